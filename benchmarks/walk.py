"""The walk of one outer iteration of HPGD through the files of the library, from one step of x to the next.

Every call of a Python (or compiled) function of `bocmdp_gym`, `followers` or `leaders` is recorded, in order; calls of other
packages are left out, and so are returns. A stay is a maximal run of calls of functions of one file: each stay but the first is a
file that a reader has to open, or to come back to. The iteration is one of `leaders.optimize` on Four-Rooms with the default
estimator and an exact follower, after warm-up and between evaluations; it starts with `Update.step` and ends before the next one.
Run it with ``python -m benchmarks.walk``; results go to ``benchmarks/results/walk.json``. The first version made 47 stays in 18
files, 9 of them in tabular.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym

import bocmdp_gym
import followers
import leaders
from benchmarks.common import store

PACKAGES = tuple(Path(str(package.__file__)).parent for package in (bocmdp_gym, followers, leaders))
#: The iteration that is recorded: neither it nor the next one is evaluated.
_RECORDED, _ITERATIONS, _EVALUATE_EVERY = 30, 60, 50
#: The same of the library's first version.
FIRST_VERSION = {"stays": 47, "files": 18}
#: A file and the functions called there, in order.
Stay = tuple[str, list[str]]


def record() -> list[tuple[str, str]]:
    """File and name of every function of the library that is called in one iteration, in order."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    leader, calls, steps = leaders.HPGD(learning_rate=0.5, env_steps=10_000), [], 0
    original = leader.update.step

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        del argument
        if event == "call" and (file := library_file(frame.f_code.co_filename)):
            calls.append((file, frame.f_code.co_qualname))

    def step(*arguments: Any) -> float:
        nonlocal steps
        steps += 1
        sys.setprofile(profile if steps == _RECORDED else None)
        return original(*arguments)

    leader.update.step = step  # type: ignore[method-assign]
    follower = followers.SoftPolicyIteration(regularization=1e-3)
    leaders.optimize(env, leader, follower, _ITERATIONS, evaluate_every=_EVALUATE_EVERY, progress=False)
    return calls


def library_file(name: str) -> str | None:
    """A file of the library, relative to where it is; None for any other."""
    path = Path(name)
    return next((str(path.relative_to(root.parent)) for root in PACKAGES if root in path.parents), None)


def stays(calls: list[tuple[str, str]]) -> list[Stay]:
    """Consecutive calls in one file, together."""
    found: list[Stay] = []
    for file, function in calls:
        if not found or found[-1][0] != file:
            found.append((file, []))
        found[-1][1].append(function)
    return found


def main() -> None:
    walk = stays(record())
    visits = Counter(file for file, _ in walk)
    store(
        "walk",
        {
            "stays": len(walk),
            "files": len(visits),
            "returns to a file already left": len(walk) - len(visits),
            "first version": FIRST_VERSION,
            "stays by file": dict(visits.most_common()),
            "walk": [f"{file}: {', '.join(functions)}" for file, functions in walk],
        },
    )


if __name__ == "__main__":
    main()
