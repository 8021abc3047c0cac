"""What a lambda that falls does on Four-Rooms: exact ascent and HPGD with and without `leaders.Annealing`.

The nine cells of the paper's Table 1, dynamics of 0.44, steps of size 1 clipped to norm 1 (HPGD: 0.5), x_0 near 0, `ITERATIONS`
iterations: the leader's return at the cell's own lambda, mean over the last tenth, over `SEEDS` seeds (exact ascent with both
contexts per iteration differs between them by its start alone, and has one). Beside them the best known values.

``python -m benchmarks.annealing`` stores ``results/annealing.json``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
import leaders
from benchmarks.common import store

ITERATIONS, SEEDS = 1000, 3
CELLS = [(lam, beta) for lam in (0.001, 0.003, 0.005) for beta in (1.0, 3.0, 5.0)]
INITIAL: tuple[float | None, ...] = (None, 0.01, 0.1)


def final(leader: leaders.Leader, lam: float, beta: float, initial: float | None, seed: int, contexts: Any) -> float:
    """The mean return over the last tenth of a run."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=beta)
    result = leaders.optimize(
        env, leader, followers.SoftPolicyIteration(lam), ITERATIONS, seed=seed, contexts=contexts, progress=False,
        evaluate_every=ITERATIONS // 50, regularization_schedule=None if initial is None else leaders.Annealing(initial),
    )  # fmt: skip
    returns = result.history["leader_return"][-ITERATIONS // 10 :]
    return float(np.nanmean(returns))


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for lam, beta in CELLS:
        core = bocmdp_gym.configurable(gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=beta))
        row: dict[str, Any] = {"lambda": lam, "penalty_cost": beta, "best_known": core.benchmark(regularization=lam).value}
        for initial in INITIAL:
            name = "none" if initial is None else f"{initial}"
            exact = final(leaders.ExactGradient(1.0), lam, beta, initial, 0, "all")
            sampled = [final(leaders.HPGD(0.5, 10_000), lam, beta, initial, seed, 1) for seed in range(SEEDS)]
            error = float(np.std(sampled, ddof=1) / SEEDS**0.5)
            row[name] = {"exact": exact, "hpgd": float(np.mean(sampled)), "hpgd_error": error}
        print(row, flush=True)
        rows.append(row)
    store("annealing", {"iterations": ITERATIONS, "seeds": SEEDS, "rows": rows})


if __name__ == "__main__":
    main()
