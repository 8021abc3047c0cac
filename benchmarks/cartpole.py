"""HPGD steers a cart-pole: a leader pays a PPO follower, which it only sees through trajectories, for where its cart stands.

CartPole-v1 under `LeaderReward`. The leader wants the cart at a marked spot and pays for positions, as little as it can:

    bonus(x, s) = sum_k x_k exp(-(position - c_k)^2 / (2 * 0.5^2)),   c = -2, -1, 0, 1, 2,   x in [0, 1]^5
    rbar(x, s)  = exp(-(position - 1)^2 / (2 * 0.5^2)) - 0.5 * bonus(x, s)

It starts at x = 0, no bonus, with an untrained follower, and knows neither the dynamics nor how PPO learns: HPGD with
``estimator="critic"`` learns x from sampled episodes while one learner, trained on between iterations, keeps answering.

Afterwards fresh followers, trained from scratch for equally long, answer x = 0 and the x found, with seeds that no run has used.
Where a follower stands that nobody pays is its own whim, so several answer each, and a seed's result is their mean. Reported per
seed: the leader's discounted return from fresh episodes under each of the two, the bonus paid in it, and how close the cart kept
to the spot; over seeds: the mean improvement and its standard error. Settings were chosen with other seeds than those reported.

Run it with ``python -m benchmarks.cartpole`` (``--seeds 1 2 3`` for others, ``--workers 2`` to use two processes, ``--quick`` for
a short trial that shows nothing); results go to ``benchmarks/results/cartpole.json`` and ``cartpole.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

import followers
import leaders
from benchmarks.common import RESULTS, store
from bocmdp_gym.wrappers import LeaderReward

DISCOUNT = 0.99
WIDTH, PRICE = 0.5, 0.5
CENTRES = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)
#: The leader's weights of the centres: the marked spot is the one at 1.
SPOT = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
#: What the leader assumes of PPO, which has no lambda of its own: the larger, the more the cost of the bonus weighs.
REGULARIZATION = 2.0
BINS = np.linspace(-2.4, 2.4, 49)
#: Runs and evaluations are seeded from here on: smaller seeds are for choosing settings.
FIRST_RUN, FIRST_EVALUATION = 1_000, 3_000_000


@dataclass(frozen=True)
class Budget:
    """Outer iterations; steps per warm response and per gradient; fresh followers per x, steps to train and judge each."""

    iterations: int = 14
    follower_steps: int = 2048
    env_steps: int = 2000
    fresh_followers: int = 2
    fresh_steps: int = 92_160
    evaluation_steps: int = 2000


QUICK = Budget(iterations=2, follower_steps=1024, env_steps=500, fresh_followers=2, fresh_steps=2048, evaluation_steps=500)


def bumps(observations: Tensor) -> Tensor:
    """How near the cart is to each centre, in (0, 1], ``(N, 5)``."""
    return torch.exp(-0.5 / WIDTH**2 * (observations[:, :1] - CENTRES).square())


def bonus(x: Tensor, observations: Tensor, actions: Any, context: Any) -> Tensor:
    """What the leader pays for a step, ``(N,)``."""
    del actions, context
    return bumps(observations) @ x


def leader_reward(x: Tensor, observations: Tensor, actions: Any, context: Any) -> Tensor:
    """Closeness to the marked spot, less the cost of the bonus, ``(N,)``."""
    del actions, context
    return bumps(observations) @ (SPOT - PRICE * x)


def make_env() -> LeaderReward:
    """CartPole-v1 with the leader's bonus, starting without any."""
    space = gym.spaces.Box(0.0, 1.0, (len(CENTRES),), np.float64)
    return LeaderReward(gym.make("CartPole-v1"), bonus, space, leader_reward, DISCOUNT)


class PaidTogether(DummyVecEnv):
    """Copies for training, under `LeaderReward`'s bonus, computed for all copies in one call: the same rewards in less time."""

    def __init__(self, env_fns: Sequence[Any]):
        super().__init__([lambda: Monitor(gym.make("CartPole-v1"))] * len(env_fns))
        self._x = torch.zeros(len(CENTRES), dtype=torch.float64)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Take on x; there is a single context."""
        del indices, method_kwargs
        if method_name == "set_leader":
            self._x = torch.tensor(method_args[0])
        return [None] * self.num_envs

    def step_wait(self) -> Any:
        """Step all copies; the bonus is that of the observations before the step."""
        seen = torch.from_numpy(self._obs_from_buf().astype(np.float64))
        observations, rewards, dones, infos = super().step_wait()
        return observations, rewards + bonus(self._x, seen, None, 0).numpy().astype(np.float32), dones, infos


def make_follower(steps: int, warm_start: bool = True) -> followers.SB3Follower:
    """PPO, with ``steps`` environment steps per response."""
    settings = {"n_envs": 8, "n_steps": 128, "batch_size": 256, "learning_rate": 1e-3, "device": "cpu"}
    return followers.SB3Follower("PPO", steps, warm_start=warm_start, vec_env_class=PaidTogether, **settings)


def learn(seed: int, budget: Budget) -> dict[str, Any]:
    """One run of the leader: the x found, and its sampled returns on the way."""
    leader = leaders.HPGD(
        learning_rate=0.003,
        max_gradient_norm=50.0,  # not shorter: most of a gradient's length points out of the box, where x stays at 0
        env_steps=budget.env_steps,
        estimator="critic",
        regularization=REGULARIZATION,
        schedule="linear",
    )
    follower = make_follower(budget.follower_steps)
    found = leaders.optimize(make_env(), leader, follower, budget.iterations, seed=seed, progress=False)
    return {
        "x": found.x.tolist(),
        "curve": found.history["sampled_return"].tolist(),
        "steps": int(found.env_steps + found.history["follower_training_steps"][-1]),
    }


def judge(x: Any, seed: int, budget: Budget) -> dict[str, Any]:
    """What the leader gets at x from followers trained from scratch: means over them, and each one's part."""
    oracle = followers.TrajectoryOracle(make_env(), make_follower(budget.fresh_steps, warm_start=False))
    judged = [
        measure(oracle, x, np.random.default_rng((FIRST_EVALUATION, seed, i)), budget) for i in range(budget.fresh_followers)
    ]
    means = {name: np.mean([one[name] for one in judged], 0).tolist() for name in judged[0]}
    return {**means, "leader_returns": [one["leader_return"] for one in judged]}


def measure(oracle: followers.TrajectoryOracle, x: Any, rng: np.random.Generator, budget: Budget) -> dict[str, Any]:
    """Train one follower at x and watch it."""
    batch = oracle.sample(oracle.respond(x, 0, rng), budget.evaluation_steps, rng)
    near = (bumps(torch.from_numpy(batch.observations.astype(np.float64))) @ SPOT).numpy()
    discounts = DISCOUNT**batch.times
    return {
        "leader_return": float(batch.discounted_returns(DISCOUNT, leader=True).mean()),
        "closeness": float(np.add.reduceat(near * discounts, batch.starts).mean()),
        "bonus_paid": float(np.add.reduceat((near - batch.leader_rewards) / PRICE * discounts, batch.starts).mean()),
        "mean_episode_length": float(batch.lengths.mean()),
        "positions": (np.histogram(batch.observations[:, 0], BINS)[0] / batch.n_steps).tolist(),
    }


def run_all(seeds: Sequence[int], budget: Budget, workers: int) -> list[dict[str, Any]]:
    """For each seed: learn, and judge x = 0 and the x found; ``workers`` of these at a time."""
    none = np.zeros(len(CENTRES))
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        learned = [pool.submit(timed, learn, seed, budget) for seed in seeds]
        paying_nothing = [pool.submit(timed, judge, none, seed, budget) for seed in seeds]
        paying = [pool.submit(timed, judge, run.result()[0]["x"], seed, budget) for seed, run in zip(seeds, learned, strict=True)]
        runs = []
        for seed, *parts in zip(seeds, learned, paying_nothing, paying, strict=True):
            (found, learning), (without, judging), (judged, judging_too) = (part.result() for part in parts)
            times = {"CPU seconds to learn": learning, "CPU seconds": learning + judging + judging_too}
            runs.append({"seed": seed, **found, "no bonus": without, "bonus found": judged, **times})
    return runs


def timed(call: Callable[..., dict[str, Any]], *arguments: Any) -> tuple[dict[str, Any], float]:
    """What ``call`` returns, and the CPU seconds it took."""
    began = process_time()
    return call(*arguments), process_time() - began


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The improvement over no bonus, over seeds."""
    gains = np.array([r["bonus found"]["leader_return"] - r["no bonus"]["leader_return"] for r in runs])
    error = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else None
    return {
        "leader_return, no bonus": float(np.mean([r["no bonus"]["leader_return"] for r in runs])),
        "leader_return, bonus found": float(np.mean([r["bonus found"]["leader_return"] for r in runs])),
        "mean improvement": float(gains.mean()),
        "standard error": error,
        "improvement in standard errors": None if not error else float(gains.mean() / error),
        "steps": float(np.mean([r["steps"] for r in runs])),
        "CPU seconds": sum(r["CPU seconds"] for r in runs),
    }


def plot(runs: list[dict[str, Any]]) -> None:
    """The leader's return as it learns; what it then pays, by position; and where fresh followers' carts stand."""
    from matplotlib.figure import Figure

    grey, blue, red, green = "#8a8f99", "#2668be", "#c4562b", "#1e8c46"
    figure = Figure(figsize=(14, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    curves = np.array([r["curve"] for r in runs])
    for curve in curves:
        left.plot(curve, color=blue, alpha=0.25, linewidth=1)
    left.plot(curves.mean(0), color=blue, linewidth=2.2, label="mean over seeds")
    left.set(xlabel="outer iteration", ylabel="leader's return, sampled", title="HPGD against a learning PPO follower")
    left.legend(frameon=False, loc="lower right")

    positions = torch.linspace(-2.4, 2.4, 241, dtype=torch.float64)
    paid = np.array([bonus(torch.tensor(r["x"], dtype=torch.float64), positions[:, None], None, 0).numpy() for r in runs])
    for profile in paid:
        middle.plot(positions, profile, color=red, alpha=0.3, linewidth=1)
    middle.plot(positions, paid.mean(0), color=red, linewidth=2.2, label="bonus found, mean over seeds")
    middle.plot(
        positions, bumps(positions[:, None]) @ SPOT, color=green, linestyle="--", label="the leader's closeness to the spot"
    )
    middle.set(xlabel="position of the cart", ylabel="per step", title="What the leader pays for", ylim=(0, 1.35))

    for name, colour in (("no bonus", grey), ("bonus found", red)):
        shares = np.array([r[name]["positions"] for r in runs]) / (BINS[1] - BINS[0])
        returns = np.array([r[name]["leader_return"] for r in runs])
        right.stairs(shares.mean(0), BINS, color=colour, fill=True, alpha=0.35)
        right.stairs(shares.mean(0), BINS, color=colour, linewidth=1.5, label=f"{name}: leader's return {returns.mean():.1f}")
    right.set(xlabel="position of the cart", ylabel="density of the time spent", title="Where fresh followers stand")
    right.set(xlim=(BINS[0], BINS[-1]), ylim=(0, 1.4 * right.get_ylim()[1]))
    for ax in (middle, right):
        ax.axvline(float(CENTRES @ SPOT), color=green, linewidth=1, label="marked spot" if ax is right else None)
        ax.legend(framealpha=1.0, edgecolor="none", loc="upper left")
    for ax in (left, middle, right):
        ax.grid(alpha=0.25)
    figure.savefig(RESULTS / "cartpole.png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=list(range(FIRST_RUN, FIRST_RUN + 10)),
        help=f"one run each (ten from {FIRST_RUN})",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    parser.add_argument("--quick", action="store_true", help="a trial in seconds, printed and not stored")
    args = parser.parse_args(arguments)
    budget = QUICK if args.quick else Budget()
    runs = run_all(args.seeds, budget, args.workers)
    results = {**summary(runs), "regularization": REGULARIZATION, "budget": asdict(budget), "runs": runs}
    if args.quick:
        print(json.dumps(summary(runs), indent=2))
        return
    store("cartpole", results)
    plot(runs)


if __name__ == "__main__":
    main()
