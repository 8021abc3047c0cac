r"""Four-Rooms: the critic, by state, against the Monte-Carlo estimator, gradient by gradient.

At x = 0 and at the x that `ASCENT` exact steps lead to, in cells of the paper's table, of `RUNS` estimates in context 0: mean
relative error against the exact gradient, cosine, the error of their mean (the bias, as far as the noise lets it be seen), and
CPU seconds. An estimate that always answers 0 has error 1.

``python -m benchmarks.adjoint_tables`` stores ``results/adjoint_tables.json``.
"""

from __future__ import annotations

from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

import bocmdp_gym
import followers
import leaders
from benchmarks.common import store
from leaders.gradients import CriticEstimator, Estimator, ExactEstimator, MonteCarloEstimator

#: lambda, beta, learning rate of the exact ascent.
CELLS = ((0.001, 1.0, 0.5), (0.003, 3.0, 0.5), (0.005, 5.0, 0.1))
STEPS = (100, 1_000, 10_000, 100_000)
ASCENT, RUNS = 300, 20


def quality(estimator: Estimator, env: Any, x: Tensor, regularization: float) -> dict[str, float]:
    """Errors of `RUNS` estimates at x."""
    oracle, reference = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(regularization)), ExactEstimator()
    estimator.bind(oracle)
    reference.bind(oracle)
    rng = np.random.default_rng(0)
    exact = reference.estimate(oracle, x, 0, rng).gradient
    estimator.estimate(oracle, x, 0, rng)
    began = process_time()
    found = torch.stack([estimator.estimate(oracle, x, 0, rng).gradient for _ in range(RUNS)])
    return {
        "relative_error": float(((found - exact).norm(dim=-1) / exact.norm()).mean()),
        "cosine": float(torch.nn.functional.cosine_similarity(found, exact[None], dim=-1).mean()),
        "bias": float((found.mean(0) - exact).norm() / exact.norm()),
        "cpu_seconds": (process_time() - began) / RUNS,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for regularization, beta, rate in CELLS:
        env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=beta)
        follower = followers.SoftPolicyIteration(regularization)
        risen = leaders.optimize(env, leaders.ExactGradient(rate), follower, ASCENT, seed=0, progress=False).x
        for place, x in (("x = 0", torch.zeros_like(risen)), (f"after {ASCENT} exact steps", risen)):
            for steps in STEPS:
                for name, estimator in (
                    ("Monte-Carlo", MonteCarloEstimator(steps)),
                    ("critic", CriticEstimator(steps)),
                ):
                    row = {"lambda": regularization, "beta": beta, "x": place, "env_steps": steps, "estimator": name}
                    try:
                        row |= quality(estimator, env, x, regularization)
                    except bocmdp_gym.errors.OptionError:  # fewer than two episodes
                        continue
                    rows.append(row)
                    print({key: row[key] for key in list(row)[:7]}, flush=True)
    store("adjoint_tables", {"runs": RUNS, "rows": rows})


if __name__ == "__main__":
    main()
