"""Answers of one follower at several x that can be compared: each from where the follower stood before the first of them.

A follower that learns gets better with every answer. Asked at one x after another, the last would profit from the training of
all others, and the difference of two returns would be that of their training as much as that of their x.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any, Self

from followers import Follower


class Branches:
    """A follower asked at several x, with ``begin()`` before each; afterwards it continues from its answer at the first.

    Training steps of all branches count. An exact follower is left alone: its answers are the same wherever it starts.

    Args:
        follower: at the fork.

    Warns:
        UserWarning: (by ``begin``) the follower cannot be put back (`Follower.resumes`).
    """

    def __init__(self, follower: Follower):
        self._follower = follower
        self._begun = 0
        self._idle = follower.exact  # what it answers does not depend on what it was asked before
        if not self._idle:
            self._fork, self._steps = deepcopy(follower.state()), follower.training_steps
            self._trained = 0
            self._first: dict[Any, Any] | None = None

    def begin(self) -> None:
        """Begin the answers at another x, which may be those in several contexts: put the follower back to the fork."""
        self._begun += 1
        if self._idle or self._begun == 1:
            return
        if self._first is None:
            self._first = deepcopy(self._follower.state())
            if not self._follower.resumes:
                warnings.warn(
                    f"{type(self._follower).__name__} trains an agent in place, which cannot be put back: answers at several x "
                    "are compared, and each begins where the last one's training ended. Have train return a new agent, made "
                    "from scratch or from a copy of the last; or use followers.SB3Follower, or leaders.FirstOrder.",
                    UserWarning,
                    stacklevel=2,
                )
        self._count()
        self._follower.load_state(deepcopy(self._fork))  # it may keep the arrays, and go on in them
        self._follower.training_steps = self._steps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Let the follower continue from the first branch, unless something went wrong."""
        if self._idle or self._first is None or kind is not None:
            return
        self._count()
        self._follower.load_state(self._first)
        self._follower.training_steps = self._steps + self._trained

    def _count(self) -> None:
        """Add up the training of a branch."""
        self._trained += self._follower.training_steps - self._steps
