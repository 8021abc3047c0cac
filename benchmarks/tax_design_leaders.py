r"""Tax design: whole runs of HPGD, zero-order, CMA-ES and PPO on one budget of environment steps.

Households live in the continuous environment (10 copies) and answer optimally (the exact policy on the environment's grid,
interpolated). HPGD has the critic, which knows how rewards, transitions and the leader's reward depend on x and sees nothing else
but trajectories; zero-order has returns of sampled trajectories, two per gradient; CMA-ES and PPO sit in `leaders.LeaderEnv`, x
within +-`BOUND`, and are paid one sampled return per x. Everyone may use `BUDGET` environment steps.

HPGD and zero-order move x by Adam, at a rate that falls to 0 on a cosine, from x_0 ~ N(0, 1), both contexts in every iteration;
CMA-ES and PPO begin in the middle of their bounds, as `LeaderEnv` does. The leader's value is exact, on the environment's grid:
at every x of the gradient leaders, at CMA-ES's mean and PPO's deterministic action. ``share`` is how far from F(x_0) to the best
value known (`BEST_KNOWN`); ``least`` the least share of the last fifth of the run.

``python -m benchmarks.tax_design_leaders`` stores ``results/tax_design_leaders.json`` and ``.png``; how good the gradients are is
measured by `benchmarks.tax_design_gradients`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import followers
import leaders
from benchmarks.common import RESULTS, store
from benchmarks.leader_comparison import import_cma
from bocmdp_gym import TabularEnv
from bocmdp_gym.envs import TaxDesign
from bocmdp_gym.envs.tax_design import BEST_KNOWN

GRID = 41  # of the companion in `tax_design_gradients`
LAMBDAS = (0.1, 0.2, 0.3)
BUDGET = 1_000_000
SEEDS = (10, 11, 12)  # settings were looked for on others
POINTS = 10
SMOOTHING = 0.5
BOUND = 6.0
CRITIC_STEPS, RETURN_STEPS = 10_000, 5_000

#: (environment steps, leader's exact value), in order.
Curve = list[tuple[int, float]]
_MODEL = TaxDesign().model


def environment() -> TabularEnv:
    """The companion as an environment."""
    return TabularEnv(TaxDesign(grid_size=GRID).model, horizon=200)


def copies() -> Any:
    """The continuous environment."""
    return gym.make_vec("bocmdp/TaxDesign-v0", 10, vectorization_mode="vector_entry_point")


def exact_value(x: npt.ArrayLike, regularization: float) -> float:
    """F(x) on the environment's grid."""
    return float(_MODEL.leader_return(torch.as_tensor(np.asarray(x, dtype=np.float64)), regularization))


def start(seed: int) -> npt.NDArray[np.float64]:
    """x_0, as TaxDesign.initial_leader."""
    return np.random.default_rng(seed).standard_normal(4)


# ------------------------------------------------------------------------------------------------- leaders on a budget


def ascend(leader: leaders.Leader, steps: int, regularization: float, seed: int) -> Curve:
    """A gradient leader's curve, ``steps`` in each iteration."""
    iterations = BUDGET // steps
    result = leaders.optimize(
        copies(),
        leader,
        followers.SoftPolicyIteration(regularization),
        iterations,
        seed=seed,
        x0=start(seed),
        contexts="all",
        evaluate_every=1,
        progress=False,
    )
    values = [*result.history["leader_return"], result.leader_return]
    used = result.env_steps / iterations
    return [(round(i * used), float(value)) for i, value in enumerate(values)]


def hpgd(regularization: float, seed: int) -> Curve:
    """HPGD with the critic."""
    leader = leaders.HPGD(0.2, CRITIC_STEPS, "critic", optimizer="Adam", max_gradient_norm=20.0, schedule="cosine")
    return ascend(leader, 2 * CRITIC_STEPS, regularization, seed)


def zero_order(regularization: float, seed: int) -> Curve:
    """Zero-order: two returns per gradient and context."""
    options: dict[str, Any] = {"optimizer": "Adam", "max_gradient_norm": None, "schedule": "cosine"}
    leader = leaders.ZeroOrder(0.1, SMOOTHING, decay=False, exact=False, env_steps=RETURN_STEPS, **options)
    return ascend(leader, 4 * RETURN_STEPS, regularization, seed)


def seat(regularization: float) -> leaders.LeaderEnv:
    """The leader's seat."""
    return leaders.LeaderEnv(
        copies(),
        followers.SoftPolicyIteration(regularization),
        bounds=(-BOUND, BOUND),
        value="sampled",
        env_steps=RETURN_STEPS,
    )


def cma_es(regularization: float, seed: int) -> Curve:
    """CMA-ES from the middle of the bounds."""
    env = seat(regularization)
    env.reset(seed=seed)
    options = {"bounds": [-1, 1], "seed": seed + 1, "verbose": -9}
    strategy = import_cma().CMAEvolutionStrategy(np.zeros(4), 0.2, options)
    curve: Curve = [(0, exact_value(env.to_x(np.zeros(4)), regularization))]
    while env.oracle.env_steps < BUDGET:
        positions = strategy.ask()
        costs = []
        for position in positions:
            env.reset()
            costs.append(-env.step(position)[1])
        strategy.tell(positions, costs)
        curve.append((env.oracle.env_steps, exact_value(env.to_x(strategy.result.xfavorite), regularization)))
    return curve


class _Watch(BaseCallback):
    """Records what PPO's deterministic action is worth."""

    def __init__(self, env: leaders.LeaderEnv, regularization: float):
        super().__init__()
        self._env, self._regularization = env, regularization
        self.curve: Curve = []

    def record(self) -> None:
        action, _ = self.model.predict(np.zeros(4, dtype=np.float32), deterministic=True)
        self.curve.append((self._env.oracle.env_steps, exact_value(self._env.to_x(action), self._regularization)))

    def _on_rollout_start(self) -> None:
        self.record()

    def _on_step(self) -> bool:
        return self._env.oracle.env_steps < BUDGET


def ppo(regularization: float, seed: int) -> Curve:
    """PPO on the seat: episodes of one action."""
    env = seat(regularization)
    agent = PPO("MlpPolicy", env, 3e-3, n_steps=16, batch_size=16, gamma=0.0, seed=seed, device="cpu")
    watch = _Watch(env, regularization)
    agent.learn(BUDGET // RETURN_STEPS, callback=watch)
    watch.record()
    return watch.curve


LEADERS: dict[str, Callable[[float, int], Curve]] = {
    "HPGD, critic": hpgd,
    "zero-order": zero_order,
    "CMA-ES": cma_es,
    "PPO": ppo,
}


def run(job: tuple[str, float, int]) -> tuple[Any, float]:
    """One run's curve and its seconds."""
    torch.set_num_threads(1)
    name, regularization, seed = job
    began = process_time()
    curve = LEADERS[name](regularization, seed)
    print(name, regularization, seed, curve[-1], process_time() - began, flush=True)
    return np.array(curve), process_time() - began


def compare(runs: Sequence[tuple[Any, float]], regularization: float) -> dict[str, Any]:
    """What all seeds of one leader reached at one lambda."""
    curves = [curve for curve, _ in runs]
    grid = np.linspace(0, BUDGET, POINTS + 1)
    values = np.array([np.interp(grid, *curve.T) for curve in curves])
    best = BEST_KNOWN[regularization][0]
    first = np.array([exact_value(start(seed), regularization) for seed in SEEDS])
    shares = [(curve[:, 1] - f) / (best - f) for curve, f in zip(curves, first, strict=True)]
    tails = [share[curve[:, 0] >= 0.8 * curve[-1, 0]] for share, curve in zip(shares, curves, strict=True)]
    return {
        "mean": values.mean(0).tolist(),
        "standard_error": (values.std(0, ddof=1) / len(SEEDS) ** 0.5).tolist(),
        "share": [float(share[-1]) for share in shares],
        "least": [float(tail.min()) for tail in tails],
        "steps_to_99": [
            int(curve[np.argmax(share >= 0.99), 0]) if (share >= 0.99).any() else None
            for share, curve in zip(shares, curves, strict=True)
        ],
        "env_steps": [int(curve[-1, 0]) for curve in curves],
        "seconds_per_run": float(np.mean([seconds for _, seconds in runs])),
    }


def plot(results: dict[str, Any]) -> Figure:
    """Values over the budget."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    share = np.linspace(0, BUDGET / 1e6, POINTS + 1)
    for ax, regularization in zip(figure.subplots(1, len(LAMBDAS)), LAMBDAS, strict=True):
        for name, row in results["leaders"][str(regularization)].items():
            mean, error = np.array(row["mean"]), np.array(row["standard_error"])
            (line,) = ax.plot(share, mean, label=name)
            ax.fill_between(share, mean - error, mean + error, color=line.get_color(), alpha=0.2)
        ax.axhline(BEST_KNOWN[regularization][0], color="grey", linewidth=0.8, label="best known")
        ax.set(title=f"lambda {regularization}", xlabel="million environment steps", ylabel="leader's exact value")
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    workers = parser.parse_args().workers
    jobs = [(name, regularization, seed) for name in LEADERS for regularization in LAMBDAS for seed in SEEDS]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done = dict(zip(jobs, pool.map(run, jobs), strict=True))
    results: dict[str, Any] = {"budget": BUDGET, "seeds": len(SEEDS), "leaders": {}}
    for regularization in LAMBDAS:
        rows = {name: compare([done[name, regularization, seed] for seed in SEEDS], regularization) for name in LEADERS}
        results["leaders"][str(regularization)] = rows
    store("tax_design_leaders", results)
    plot(results).savefig(RESULTS / "tax_design_leaders.png", dpi=120)


if __name__ == "__main__":
    main()
