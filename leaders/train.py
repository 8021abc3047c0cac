"""Run a leader against a follower in an environment: ``python -m leaders.train --help``, or ``bocmdp-train --help``.

``--warm-up``, instead of an environment, compiles the kernels before the first run waits for them (`leaders.warm_up`).
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

from bocmdp_gym.errors import BOCMDPError, RunInterruptedError
from leaders.settings.command_line import choose, list_commands, named
from leaders.settings.modules import import_module
from leaders.settings.names import CUSTOM, command_texts, environments

if TYPE_CHECKING:
    from leaders.settings import RunSettings


def parse(arguments: list[str] | None = None) -> RunSettings:
    """Settings from the command line.

    Raises:
        OptionError: as `settings_from_values`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    for option, value in itertools.pairwise([*itertools.chain.from_iterable(one.split("=", 1) for one in given), ""]):
        if option == "--module":
            import_module(value)  # it may bring environments, estimators and followers of its own
    if named(given, (*environments(), CUSTOM)) is None:
        list_commands(command_texts(), "leaders.train", __doc__, given)
    from leaders.settings import commands, settings_from_values  # with torch, which a list of commands can do without

    chosen: RunSettings = choose(commands(), "leaders.train", __doc__, given)
    return settings_from_values(chosen.name, {field.name: getattr(chosen, field.name) for field in fields(chosen)})


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Returns the exit status: 0, 2 for settings that cannot work or files (but the report) that cannot be written, and 128 plus
    its number after a signal (143: SIGTERM, 130: SIGINT, 129: SIGHUP).
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--warm-up"]:
        from leaders.warm_up import main as warm_up

        return warm_up(given[1:])
    try:
        settings = parse(given)
        from leaders.training import train  # after what has been refused: it takes long to import

        train(settings)
    except RunInterruptedError as error:
        print(error, file=sys.stderr)
        return 128 + error.signal
    except (BOCMDPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
