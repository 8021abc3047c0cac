"""FirstOrder steers the cart-pole of `benchmarks.cartpole`, without the lambda that HPGD has to assume of PPO.

The same problem, leader's reward and judgement by fresh followers as there; here two PPO learners, trained on between iterations,
answer the leader's x with a share of +-WEIGHT of its reward, and their episodes tell the gradient. Every learner plays copies of
the environment with its own share, so each step costs more time than there; what is compared are steps. The return without a
bonus, and HPGD's, are those that ``benchmarks/results/cartpole.json`` has for the same seeds.

Run it with ``python -m benchmarks.cartpole_first_order`` (``--seeds 1000`` for fewer, ``--quick`` for a trial that is not
stored); results go to ``benchmarks/results/cartpole_first_order.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import followers
import leaders
from benchmarks.cartpole import FIRST_RUN, Budget, judge, make_env, timed
from benchmarks.common import RESULTS, store

WEIGHT = 0.3
BUDGET = Budget(iterations=28)  # about as many steps as HPGD took in the first version of that benchmark
QUICK = Budget(iterations=2, follower_steps=1024, env_steps=500, fresh_steps=2048, evaluation_steps=500)


def learn(seed: int, budget: Budget) -> dict[str, Any]:
    """One run of the leader: the x found, its steps, and its sampled returns on the way."""
    settings: dict[str, Any] = {"n_envs": 8, "n_steps": 128, "batch_size": 256, "learning_rate": 1e-3, "device": "cpu"}
    follower = followers.SB3Follower("PPO", budget.follower_steps, **settings)
    leader = leaders.FirstOrder(0.004, WEIGHT, env_steps=budget.env_steps, max_gradient_norm=50.0, schedule="linear")
    found = leaders.optimize(make_env(), leader, follower, budget.iterations, seed=seed, progress=False)
    return {
        "x": found.x.tolist(),
        "curve": found.history["sampled_return"].tolist(),
        "paid_gain": found.history["paid_gain"].tolist(),
        "steps": int(found.env_steps + found.history["follower_training_steps"][-1]),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Gains over no bonus, over seeds, beside HPGD's."""
    stored = json.loads((RESULTS / "cartpole.json").read_text())["results"]
    before = {run["seed"]: run for run in stored["runs"]}
    pairs = [(run, before[run["seed"]]) for run in runs if run["seed"] in before]
    own, theirs = (
        np.array([one - other["no bonus"]["leader_return"] for one, other in found])
        for found in (
            [(run["bonus found"]["leader_return"], other) for run, other in pairs],
            [(other["bonus found"]["leader_return"], other) for _, other in pairs],
        )
    )
    hpgd = stored["steps"]

    def error(gains: Any) -> float | None:
        return float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else None

    return {
        "seeds": [run["seed"] for run, _ in pairs],
        "mean improvement": float(own.mean()),
        "standard error": error(own),
        "steps": float(np.mean([run["steps"] for run in runs])),
        "HPGD, mean improvement on the same seeds": float(theirs.mean()),
        "HPGD, standard error": error(theirs),
        "HPGD, steps": hpgd,
        "improvements": own.tolist(),
        "HPGD, improvements": theirs.tolist(),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(FIRST_RUN, FIRST_RUN + 5)), help="one run each")
    parser.add_argument("--quick", action="store_true", help="a trial in seconds, printed and not stored")
    args = parser.parse_args(arguments)
    budget = QUICK if args.quick else BUDGET
    runs = []
    for seed in args.seeds:
        found, learning = timed(learn, seed, budget)
        print(seed, found, flush=True)
        judged, judging = timed(judge, found["x"], seed, budget)
        runs.append({"seed": seed, **found, "bonus found": judged, "CPU seconds": [learning, judging]})
        print(seed, judged["leader_return"], runs[-1]["CPU seconds"], flush=True)
    results = {**summary(runs), "weight": WEIGHT, "budget": asdict(budget), "runs": runs}
    if args.quick:
        print(json.dumps(summary(runs), indent=2))
        return
    store("cartpole_first_order", results)


if __name__ == "__main__":
    main()
