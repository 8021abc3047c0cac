"""Which estimator to take: errors and times of all of them at equal steps, on problems of several kinds.

`leaders.compare_gradients` asks every estimator that has a name for `REPEATS` estimates of dF/dx (on the tax design, of one
context's dF_xi/dx, and fewer) at x = 0, sized so that one takes about `STEPS` steps; `DISCARDED` estimates before them let those
settle that carry something on from estimate to estimate. The reference is the exact gradient, and for the follower that learns
central differences of its own responses.

``python -m benchmarks.which_estimator`` stores ``results/which_estimator.json``; names of problems after it limit it to those.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
import leaders
from benchmarks.common import RESULTS, store

STEPS, REPEATS, DISCARDED = 10_000, 10, 5


@dataclass(frozen=True)
class Problem:
    """One kind of problem.

    Attributes:
        what: of it matters here.
        make: environment and follower.
        context: xi; None: all.
        options: further ones of `leaders.compare_gradients`.
        repeats, discarded: fewer where an estimate takes long.
    """

    what: str
    make: Callable[[], tuple[Any, followers.Follower]]
    context: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    repeats: int = REPEATS
    discarded: int = DISCARDED


PROBLEMS: dict[str, Problem] = {
    "rewards": Problem(
        "Four-Rooms, λ 0.003: x moves rewards alone",
        lambda: (gym.make("bocmdp/FourRooms-v0", slip_probability=0.44), followers.SoftPolicyIteration(3e-3)),
    ),
    "transitions": Problem(
        "random table, λ 1, discount 0.9: x moves rewards and transitions",
        lambda: (gym.make("bocmdp/RandomMDP-v0", discount=0.9), followers.SoftPolicyIteration(1.0)),
    ),
    "continuous": Problem(
        "tax design, λ 0.2: states are real numbers, x moves rewards and transitions",
        lambda: (gym.make("bocmdp/TaxDesign-v0"), followers.SoftPolicyIteration(0.2)),
        context=0,
        repeats=4,
        discarded=2,
    ),
    "learner": Problem(
        "random table, λ 1, discount 0.7, 200 iterations of Q-learning: a follower that learns and stops early",
        lambda: (
            gym.make("bocmdp/RandomMDP-v0", discount=0.7, n_states=6, n_contexts=1),
            followers.SoftQLearning(1.0, iterations=200),
        ),
        options=(("reference", "differences"), ("difference", 0.3), ("difference_repeats", 200)),
    ),
}


def compared(problem: Problem) -> dict[str, Any]:
    """What all estimators do in one problem."""
    env, follower = problem.make()
    x = np.zeros(bocmdp_gym.configurable(env).leader_space.shape)
    found = leaders.compare_gradients(
        env, None, x, problem.context, follower=follower, repeats=problem.repeats, env_steps=STEPS,
        discard=problem.discarded, **dict(problem.options),
    )  # fmt: skip
    fields = ("relative_error", "relative_bias", "spread", "cosine", "deviation", "env_steps", "model_draws", "training_steps")
    rows = {name: {f: getattr(row, f) for f in (*fields, "seconds")} for name, row in found.rows.items()}
    n_contexts = 1 if problem.context is not None else len(bocmdp_gym.configurable(env).context_probabilities)
    return {
        "what": problem.what,
        "reference": found.source,
        "reference_error": float(found.exact_error.norm() / found.exact.norm()),
        "gradient_norm": float(found.exact.norm()),
        "contexts": n_contexts,
        "repeats": problem.repeats,
        "discarded": problem.discarded,
        "estimators": rows,
        "left_out": found.left_out,
    }


def main() -> None:
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(PROBLEMS)
    path = RESULTS / "which_estimator.json"
    before = json.loads(path.read_text())["results"]["problems"] if sys.argv[1:] and path.exists() else {}
    made = {name: compared(PROBLEMS[name]) for name in chosen}
    problems = {name: (before | made)[name] for name in PROBLEMS if name in before | made}
    store("which_estimator", {"steps": STEPS, "problems": problems})


if __name__ == "__main__":
    main()
