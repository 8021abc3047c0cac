"""A leader who acts: `bocmdp/LeaderActs-v0` against the best values known, and against published runs.

``python -m benchmarks.leader_acts`` stores ``results/leader_acts.json``. DiscreteToy4 (lambda 0.05, discounts 0.99) was published
with the leader's discounted return over the first 150 steps, and no more; the exact return has no such cut, so both are stored:
`first_steps_return` of the last x under the follower's exact answer, and the exact return. What the best policy known earns in
those steps stands beside. Matrix games are held against their closed form. Settings of HPGD were found on seeds 100 to 105.
"""

from __future__ import annotations

from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

import bocmdp_gym
import followers
import leaders
from benchmarks.common import store
from leaders.sweep_table import mean_and_error

LAMBDA, STEPS, SEEDS = 0.05, 150, range(10)
#: First 150 steps at R = 1: (mean, standard error where given) of runs published with BC-HG (2025).
PUBLISHED = {"BC-HG": (27.04, 0.47), "naive": (11.5, None), "Bi-AC": (3.4, None)}
GAMES: dict[str, dict[str, Any]] = {
    "DiscreteToy4, R = 1": {"bonus": 1.0},
    "DiscreteToy4, R = 2": {"bonus": 2.0},
    "Escape": {"game": "escape"},
    "Maintain": {"game": "maintain"},
}
ITERATIONS = 1000
LEADERS: dict[str, leaders.Leader] = {
    "exact": leaders.ExactGradient(0.1),
    "HPGD, td": leaders.HPGD(0.1, estimator="td", env_steps=10_000, td_rate=0.02, schedule="cosine"),
    "HPGD, td, 1,500 steps": leaders.HPGD(0.1, estimator="td", env_steps=1500, td_rate=0.5, schedule="cosine"),
    "HPGD, monte_carlo": leaders.HPGD(0.1, estimator="monte_carlo", env_steps=10_000, schedule="cosine"),
}


def first_steps_return(model: bocmdp_gym.TabularBOCMDP, x: npt.ArrayLike, regularization: float, steps: int) -> float:
    """The leader's expected discounted return of the first ``steps`` steps at x, under the follower's optimum; one context."""
    z = torch.tensor(np.array(x, dtype=np.float64))
    arrays, policy = model.configure(z).arrays(0), model.solve(z, regularization).policy[0].numpy()
    going, total = arrays.initial, 0.0
    for step in range(steps):
        acting = going[:, None] * policy
        total += model.leader_discount**step * float((acting * arrays.leader_reward).sum())
        going = arrays.adjoint(acting * (1.0 - arrays.termination))
    return total


def measure(options: dict[str, Any], leader: leaders.Leader) -> dict[str, Any]:
    """Ten runs of one leader in one game."""
    env = gym.make("bocmdp/LeaderActs-v0", horizon=STEPS, **options)
    model = bocmdp_gym.configurable(env).model
    began = process_time()
    follower = followers.SoftPolicyIteration(LAMBDA)
    runs = leaders.optimize_many(env, leader, follower, ITERATIONS, seeds=list(SEEDS), progress=False)
    seconds = (process_time() - began) / len(runs)
    result: dict[str, Any] = {"CPU seconds": seconds}
    for name, values in {
        "first steps": [first_steps_return(model, run.x, LAMBDA, STEPS) for run in runs],
        "exact": [float(model.leader_return(run.x, LAMBDA)) for run in runs],
    }.items():
        mean, error = mean_and_error(values)
        result[name] = {"mean": mean, "standard_error": error, "values": values}
    return result


def main() -> None:
    rows = []
    for game, options in GAMES.items():
        core = bocmdp_gym.configurable(gym.make("bocmdp/LeaderActs-v0", **options))
        best = core.benchmark(LAMBDA)
        known = {"first steps": first_steps_return(core.model, best.x, LAMBDA, STEPS), "exact": best.value}
        rows.append({"game": game, "best": known, "runs": {name: measure(options, leader) for name, leader in LEADERS.items()}})
    store("leader_acts", {"lambda": LAMBDA, "iterations": ITERATIONS, "seeds": len(SEEDS), "published": PUBLISHED, "rows": rows})


if __name__ == "__main__":
    main()
