from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Whether memory of 20 MB, freed between arrays that are kept, is still this process's.
PROGRAM = """
import sys
import numpy as np
from bocmdp_gym.memory import LARGE, give_back_large_arrays

done = sys.argv[1] == "give back" and give_back_large_arrays()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

size = LARGE // 8 + 500_000
np.ones(size)  # freed at once: from now on glibc keeps pieces of this size, if it is left alone
piece, kept = np.ones(size), [np.ones(1000) for _ in range(100)]
before = resident()
del piece
print(done, before - resident() > LARGE // 2)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
@pytest.mark.parametrize(
    ("argument", "environment", "expected"),
    [
        ("give back", {}, "True True"),
        ("leave", {}, "False False"),
        ("give back", {"MALLOC_MMAP_THRESHOLD_": "33554432"}, "False False"),
    ],
)
def test_large_arrays_go_back_to_the_system(argument: str, environment: dict[str, str], expected: str) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
    run = subprocess.run([sys.executable, "-c", PROGRAM, argument], env=own, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == expected
