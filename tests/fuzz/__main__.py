"""Count what becomes of random inputs: ``python -m tests.fuzz FIRST LAST`` prints the faults among them, and the counts."""

from __future__ import annotations

import argparse
import os
import tempfile

from tests.fuzz.inputs import try_all


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("first", type=int, nargs="?", default=2_000)
    parser.add_argument("last", type=int, nargs="?", default=102_000, help="the first that is not tried")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # some inputs name files
        found, faults = try_all(range(given.first, given.last))
        os.chdir("/")
    for fault in faults:
        print(fault)
    print({name: found[name] for name in ("right", "named", "other", "nonsense")})


if __name__ == "__main__":
    main()
