"""Named exceptions of all three packages. Every message says what was got, what was expected, and how to fix it.

All of them derive from `BOCMDPError`, and each also from the builtin exception a Python user would expect
(``ValueError``, ``TypeError``, ...), so ``except ValueError`` keeps working.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ActionError",
    "BOCMDPError",
    "CheckError",
    "CheckpointError",
    "ContextError",
    "ConvergenceError",
    "CriticWarning",
    "DamagedError",
    "DataError",
    "DiscountError",
    "FolderError",
    "FolderInUseError",
    "FrozenLeaderWarning",
    "LayoutError",
    "LeaderParameterError",
    "ModelError",
    "NotConfigurableError",
    "ObservationError",
    "OptionError",
    "RegularizationError",
    "ReportWarning",
    "ResetError",
    "RunInterruptedError",
    "StateError",
    "UnknownOptionError",
    "UnsupportedError",
    "WorkerError",
]


class BOCMDPError(Exception):
    """Base of every error this library raises on purpose."""


class LeaderParameterError(BOCMDPError, ValueError):
    """The leader parameter x has a wrong shape, is not finite, or lies outside ``leader_space``."""


class ContextError(BOCMDPError, ValueError):
    """The context lies outside ``context_space``, or its distribution is not a distribution."""


class StateError(BOCMDPError, ValueError):
    """A requested start state (or state-action pair) does not exist or cannot be set."""


class ModelError(BOCMDPError, ValueError):
    """A model's arrays are malformed: shapes, NaN, rows of P that do not sum to 1, and the like."""


class RegularizationError(BOCMDPError, ValueError):
    """The entropy coefficient lambda is not a positive finite number where it has to be."""


class DiscountError(BOCMDPError, ValueError):
    """A discount outside [0, 1], 1 where an episode need not end, or one that conflicts with the env's."""


class LayoutError(BOCMDPError, ValueError):
    """A grid layout cannot be read, or a named cell is a wall or off the grid."""


class OptionError(BOCMDPError, ValueError):
    """An unknown option, or an option with a value it cannot take."""


class UnknownOptionError(OptionError, TypeError):
    """A keyword argument that a constructor does not have."""


class ResetError(BOCMDPError, RuntimeError):
    """An environment was stepped before its first reset."""


class ActionError(OptionError):
    """An action outside the action space."""


class ObservationError(BOCMDPError, ValueError):
    """An observation or a reward of an environment is not a finite number."""


class NotConfigurableError(BOCMDPError, TypeError):
    """No layer of an environment has a leader parameter."""


class UnsupportedError(BOCMDPError, NotImplementedError):
    """The request is sensible, but this environment, follower or leader cannot serve it."""


class ConvergenceError(BOCMDPError, ArithmeticError):
    """An iteration did not reach its tolerance, or its values stopped being finite."""


class CriticWarning(UserWarning):
    """The values a leader fitted are worse than a constant, so that gradients made of them say little."""


class FrozenLeaderWarning(UserWarning):
    """What leaders might seem to move stays as it is: entries of x without derivatives, or a wrapped problem's own x."""


class ReportWarning(UserWarning):
    """A run, a sweep or an evaluation is complete, but its report could not be written."""


class CheckError(BOCMDPError, AssertionError):
    """A conformance check failed; the message says which rule was broken and how to keep it."""


class CheckpointError(BOCMDPError, RuntimeError):
    """A checkpoint (or a saved follower) is missing, damaged, or belongs to another run; or it cannot be written."""


class DamagedError(CheckpointError):
    """A checkpoint, a saved follower or a result is not what was written: truncated, changed, or something else."""


class DataError(BOCMDPError, ValueError):
    """A data file is missing and cannot be fetched, or cannot be read; the message names the file and the line."""


class FolderError(BOCMDPError, OSError):
    """A file of a run or a sweep cannot be written or read: disk full, folder removed or read-only."""

    def __str__(self) -> str:
        return str(self.args[-1])


class FolderInUseError(FolderError):
    """Another process works in the folder; the message says which."""


class RunInterruptedError(BOCMDPError, RuntimeError):
    """The run was asked to stop (SIGTERM, SIGINT or SIGHUP); a checkpoint was written.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])


class WorkerError(BOCMDPError, RuntimeError):
    """A worker process died with work that cannot be repeated."""


def suggest(name: object, known: Iterable[object]) -> str:
    """``'Did you mean ...?'`` for a misspelt name, followed by what is known."""
    options = {str(option).lower(): str(option) for option in known}
    given = str(name).lower()
    close = get_close_matches(given, options, n=1, cutoff=0.5) or [o for o in options if len(given) > 2 and o.startswith(given)]
    hint = f"Did you mean {options[close[0]]!r}? " if close else ""
    return f"{hint}Known: {', '.join(options.values())}."
