"""How good neural followers are, what they are worth to a leader, and what the adapter costs.

Four parts, each stored in ``benchmarks/results/neural_followers_PART.json``:

- ``accuracy``: SoftDQN on Four-Rooms against the exact policy, in visitation-weighted total variation, as it trains;
- ``returns``: PPO and DQN there, their exact return as a share of the optimum;
- ``hpgd``: HPGD with SoftDQN and PPO as followers, warm-started on small budgets, on a small Four-Rooms: the leader's exact
  value, and how far the follower is from the exact policy in the end (delta: the max-norm gap of Assumption 2.4);
- ``overhead``: CPU time of `SB3Follower` over a bare ``learn`` of the same length, measured in turn in one run.

Run all of them with ``python -m benchmarks.neural_followers``, or name some. The plot of the first and the third is
``benchmarks/results/neural_followers.png``.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter, process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback

import bocmdp_gym
import followers
import leaders
from benchmarks.common import RESULTS, store
from followers.sb3.policy import reader
from leaders.gradients.exact import leader_values

REGULARIZATION = 0.02
SEEDS = range(3)
SMALL = ["xxxxxxx", "x  x  x", "x     x", "xx xx x", "x  x  x", "x     x", "xxxxxxx"]


def study_env() -> gym.Env[Any, Any]:
    """Four-Rooms where the goal is reached and a uniform policy is about 0.6 away from the optimum."""
    return gym.make(
        "bocmdp/FourRooms-v0",
        slip_probability=0.1,
        discount=0.9,
        start=[4, 9],
        goals=[[1, 9], [4, 7]],
        observation="coordinates",
    )


def small_env() -> gym.Env[Any, Any]:
    """A Four-Rooms of 19 cells, whose marked cell lies off the way to both goals."""
    return gym.make(
        "bocmdp/FourRooms-v0",
        layout=SMALL,
        start=[1, 1],
        goals=[[1, 5], [5, 5]],
        waypoint=[4, 2],
        slip_probability=0.1,
        discount=0.95,
        horizon=100,
        observation="coordinates",
    )


def decaying(remaining: float) -> float:
    """A learning rate that ends at a fiftieth of where it starts."""
    return 1e-3 * max(remaining, 0.02)


SOFT_DQN: dict[str, Any] = {
    "learning_rate": decaying,
    "learning_starts": 1000,
    "buffer_size": 60_000,
    "batch_size": 128,
    "target_update_interval": 500,
    "exploration_initial_eps": 1.0,
    "exploration_final_eps": 0.1,
    "exploration_fraction": 0.5,
}


class Distance:
    """Total variation to the exact policy at x, averaged over the states as the exact policy visits them."""

    def __init__(self, core: Any, context: int, x: Any = None):
        x = np.zeros(core.model.leader_dim) if x is None else x
        self.exact = core.model.solve(x, REGULARIZATION).policy[context].numpy()
        visits = leader_values(core.model.configure(x).arrays(context), self.exact).visitation
        self.share = visits / visits.sum()

    def __call__(self, table: Any) -> float:
        return float(self.share @ abs(table - self.exact).sum(-1) / 2)


class Curve(BaseCallback):
    """The distance as training goes on."""

    def __init__(self, core: Any, distance: Distance, every: int = 2000):
        super().__init__()
        self.observations, self.distance, self.every = core.observe(np.arange(core.model.n_states)), distance, every
        self.points: list[tuple[int, float]] = []

    def measure(self) -> None:
        read = reader(self.model.policy, None)
        assert read is not None
        with torch.no_grad():
            table = read(self.model.policy, self.model.policy.obs_to_tensor(self.observations)[0])[0]
        self.points.append((self.num_timesteps, self.distance(table)))

    def _on_training_start(self) -> None:
        self.measure()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.measure()
        return True


def accuracy(steps: int = 60_000) -> dict[str, Any]:
    results: dict[str, Any] = {"regularization": REGULARIZATION, "training_steps": steps, "contexts": []}
    core = bocmdp_gym.configurable(study_env())
    for context in range(2):
        distance = Distance(core, context)
        record: dict[str, Any] = {"uniform": distance(np.full((core.model.n_states, 4), 0.25)), "seeds": []}
        for seed in SEEDS:
            curve = Curve(core, distance)
            oracle = followers.TrajectoryOracle(
                study_env(), followers.SoftDQNFollower(REGULARIZATION, steps, callback=curve, **SOFT_DQN)
            )
            began = perf_counter()
            policy: Any = oracle.respond(np.zeros(core.model.leader_dim), context, np.random.default_rng(seed))
            seconds = perf_counter() - began
            record["seeds"].append(
                {"untrained": curve.points[0][1], "trained": distance(policy.table), "seconds": seconds, "curve": curve.points}
            )
        results["contexts"].append(record)
    results["largest distance"] = max(run["trained"] for record in results["contexts"] for run in record["seeds"])
    return results


def optimal_table(mdps: Any, context: int, sweeps: int = 2000) -> Any:
    """The greedy policy of the unregularised problem, by value iteration."""
    arrays = mdps.arrays(context)
    value = np.zeros(len(arrays.reward))
    for _ in range(sweeps):
        q = arrays.reward + arrays.continuation * (arrays.probabilities * value[arrays.successors]).sum(-1)
        value = q.max(-1)
    return np.eye(q.shape[1])[q.argmax(-1)]


def plain_return(mdps: Any, context: int, table: Any) -> float:
    """The follower's exact expected discounted reward, without entropy."""
    arrays = mdps.arrays(context)
    system = arrays.solver.factor(table * arrays.continuation, arrays.probabilities)
    return float(arrays.initial @ system.solve((table * arrays.reward).sum(-1)))


def returns() -> dict[str, Any]:
    settings: dict[str, dict[str, Any]] = {
        "PPO": {"total_timesteps": 100_000, "n_envs": 8, "n_steps": 128, "batch_size": 256, "learning_rate": 1e-3},
        "DQN": {
            "total_timesteps": 40_000,
            "learning_rate": 1e-3,
            "learning_starts": 1000,
            "buffer_size": 40_000,
            "batch_size": 64,
            "target_update_interval": 500,
            "exploration_fraction": 0.4,
        },
    }
    core = bocmdp_gym.configurable(study_env())
    x = np.zeros(core.model.leader_dim)
    mdps = core.model.configure(x)
    results: dict[str, Any] = {}
    shares = []
    for context in range(2):
        best = plain_return(mdps, context, optimal_table(mdps, context))
        uniform = plain_return(mdps, context, np.full((core.model.n_states, 4), 0.25))
        record: dict[str, Any] = {"optimum": best, "uniform, share of the optimum": uniform / best}
        for name, options in settings.items():
            runs = []
            for seed in SEEDS:
                oracle = followers.TrajectoryOracle(study_env(), followers.SB3Follower(name, **options))
                policy: Any = oracle.respond(x, context, np.random.default_rng(seed))
                runs.append(plain_return(mdps, context, policy.table) / best)
            record[f"{name}, share of the optimum"] = runs
            shares += runs
        results[f"context {context}"] = record
    results["smallest share"] = min(shares)
    return results


def hpgd(iterations: int = 60) -> dict[str, Any]:
    warm: dict[str, Any] = {"total_timesteps": 2000}
    choices: dict[str, Any] = {
        "exact": (followers.SoftPolicyIteration(REGULARIZATION), None),
        "SoftDQN": (
            followers.SoftDQNFollower(
                REGULARIZATION,
                **warm,
                replay="relabel",
                learning_rate=1e-3,
                learning_starts=500,
                buffer_size=20_000,
                batch_size=128,
                target_update_interval=250,
                exploration_initial_eps=1.0,
                exploration_final_eps=0.1,
                exploration_fraction=0.5,
            ),
            None,
        ),
        "PPO": (
            followers.SB3Follower("PPO", **warm, n_envs=8, n_steps=64, batch_size=128, learning_rate=1e-3, ent_coef=0.01),
            REGULARIZATION,
        ),
    }
    results: dict[str, Any] = {"regularization": REGULARIZATION, "iterations": iterations, "runs": {}}
    for name, (follower, regularization) in choices.items():
        runs = []
        for seed in SEEDS:
            leader = leaders.HPGD(learning_rate=1.0, env_steps=2000, regularization=regularization)
            seen: list[leaders.Progress] = []
            run = leaders.optimize(
                small_env(), leader, follower, iterations, seed=seed, evaluate_every=5, progress=False, callback=seen.append
            )
            steps = follower.training_steps
            oracle, rng = seen[-1].oracle, np.random.default_rng(seed)
            gaps = []
            for context in range(2):
                distance, policy = Distance(oracle.core, context, run.x.numpy()), oracle.respond(run.x, context, rng)
                gaps.append({"delta": float(abs(policy.table - distance.exact).max()), "distance": distance(policy.table)})
            values = run.history["leader_return"]
            evaluated = np.flatnonzero(~np.isnan(values))
            runs.append(
                {
                    "initial": float(values[0]),
                    "final": run.leader_return,
                    "curve": [(int(i), float(values[i])) for i in evaluated] + [(iterations, run.leader_return)],
                    "follower at the final x": gaps,
                    "training_steps": steps,
                    "sampled_steps": run.env_steps,
                    "seconds": run.seconds,
                }
            )
        gains = np.array([run["final"] - run["initial"] for run in runs])
        error = gains.std(ddof=1) / len(gains) ** 0.5
        results["runs"][name] = {"mean gain": float(gains.mean()), "standard error": float(error), "seeds": runs}
    return results


def overhead(steps: int = 2048, pairs: int = 30) -> dict[str, Any]:
    """CPU time of a warm response over that of a ``learn`` of the same length, pair by pair, in random order within each."""
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "DQN": (DQN, {"learning_starts": 500, "buffer_size": 20_000}),
        "SoftDQN": (followers.SoftDQN, {"learning_starts": 500, "buffer_size": 20_000, "regularization": REGULARIZATION}),
        "PPO": (PPO, {}),
    }
    x, rng = np.zeros(105), np.random.default_rng(0)
    results: dict[str, Any] = {"steps": steps, "pairs": pairs}
    for name, (algorithm, settings) in cases.items():
        env = study_env()
        core = bocmdp_gym.configurable(env)
        core.set_leader(x)
        core.set_context(0)
        bare = algorithm("MlpPolicy", env, gamma=core.discount, seed=0, device="cpu", **settings)
        oracle = followers.TrajectoryOracle(study_env(), followers.SB3Follower(algorithm, steps, device="cpu", **settings))
        calls = (
            lambda bare=bare: bare.learn(steps, reset_num_timesteps=False),
            lambda oracle=oracle: oracle.respond(x, 0, rng),
        )
        times = np.empty((pairs + 1, 2))
        for pair in times:
            for which in rng.permutation(2):
                began = process_time()
                calls[which]()
                pair[which] = process_time() - began
        ratios = times[1:, 1] / times[1:, 0]  # the first pair warms up
        results[name] = {
            "bare, CPU seconds": float(np.median(times[1:, 0])),
            "follower, CPU seconds": float(np.median(times[1:, 1])),
            "median ratio": float(np.median(ratios)),
            "quartiles of the ratio": np.quantile(ratios, [0.25, 0.75]).tolist(),
            "ratio of total times": float(times[1:, 1].sum() / times[1:, 0].sum()),
        }
    return results


def plot() -> None:
    """Distance against training steps, and the leader's exact value against outer iterations."""
    from matplotlib.figure import Figure

    stored = {
        part: json.loads((RESULTS / f"neural_followers_{part}.json").read_text())["results"] for part in ("accuracy", "hpgd")
    }
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for context, (record, colour) in enumerate(zip(stored["accuracy"]["contexts"], ("#2668be", "#c4562b"), strict=True)):
        for index, run in enumerate(record["seeds"]):
            points = np.array(run["curve"])
            left.plot(points[:, 0], points[:, 1], color=colour, alpha=0.8, label=f"context {context}" if index == 0 else None)
        left.axhline(record["uniform"], color=colour, linestyle=":", linewidth=1)
    left.axhline(0.05, color="black", linestyle="--", linewidth=1, label="0.05")
    left.set(yscale="log", xlabel="training steps", ylabel="total variation to the exact policy", title="SoftDQN on Four-Rooms")
    left.legend(title="dotted: uniform policy")
    for (name, runs), colour in zip(stored["hpgd"]["runs"].items(), ("#444444", "#2668be", "#c4562b"), strict=True):
        curves = np.array([run["curve"] for run in runs["seeds"]])
        right.plot(curves[0, :, 0], curves[:, :, 1].mean(0), color=colour, label=name)
        right.fill_between(curves[0, :, 0], curves[:, :, 1].min(0), curves[:, :, 1].max(0), color=colour, alpha=0.2)
    right.set(xlabel="outer iteration", ylabel="leader's exact return", title="HPGD on a small Four-Rooms, by follower")
    right.legend(title="mean and range of 3 seeds")
    figure.savefig(RESULTS / "neural_followers.png", dpi=120)


PARTS = {"accuracy": accuracy, "returns": returns, "hpgd": hpgd, "overhead": overhead}


def main() -> None:
    torch.set_num_threads(1)
    for part in sys.argv[1:] or PARTS:
        store(f"neural_followers_{part}", PARTS[part]())
    if all((RESULTS / f"neural_followers_{part}.json").exists() for part in ("accuracy", "hpgd")):
        plot()


if __name__ == "__main__":
    main()
