r"""Leaders at equal follower solves: gradients against PPO and CMA-ES in the leader's seat.

On a small Four-Rooms (20 free cells, x in R^21, two contexts, lambda = `LAMBDA`) every leader may have the follower's problem
solved `SOLVES` times, one context counting as one solve:

- HPGD, ExactGradient (one drawn context per iteration): 1 per iteration; ZeroOrder: 2, at x and at x + u z;
- PPO and CMA-ES through `leaders.LeaderEnv` (x within +-`BOUND`): 2 per x they try, one for each context.

What a solve tells differs. HPGD samples `ENV_STEPS` environment steps of each response; ExactGradient, ZeroOrder and
`LeaderEnv` read exact values off the model, and ExactGradient solves two adjoint systems more. The leader's exact value at the x
a leader would hand in (the last iterate, CMA-ES's mean, PPO's deterministic action) is recorded `POINTS` times along the way and
not charged. Settings are in `SETTINGS`. `leaders.multistart` with about as many solves in all, and with four times as many, is
the yardstick.

``python -m benchmarks.leader_comparison`` stores ``results/leader_comparison.json``, ``.md`` and ``.png``. CMA-ES needs the
package ``cma``: ``pip install 'bocmdp-gym[benchmarks]'``.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import followers
import leaders
from benchmarks.common import RESULTS, store
from benchmarks.follower_comparison import small_rooms
from bocmdp_gym.errors import UnsupportedError

Array = npt.NDArray[np.float64]
#: (follower solves, leader's exact value), in order.
Curve = list[tuple[int, float]]

LAMBDA = 0.01
SOLVES = 6000
BOUND = 6.0
ENV_STEPS = 2000
POINTS = 40
SEEDS = (0, 1, 2, 3)
EVERY = SOLVES // POINTS

#: Settings of each leader: those of the paper or of the package, not tuned for this problem.
SETTINGS: dict[str, dict[str, float]] = {
    "HPGD": {"learning_rate": 0.5},
    "ExactGradient": {"learning_rate": 0.5},
    "ZeroOrder": {"learning_rate": 0.5, "smoothing": 1.0},
    "CMA-ES": {"sigma": 0.2},
    "PPO": {"learning_rate": 3e-3, "log_std_init": -1.0},
}


def import_cma() -> Any:
    """The package of CMA-ES.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import cma
    except ImportError as error:
        raise UnsupportedError(
            "CMA-ES needs the package cma, which is not installed; install the extra: pip install 'bocmdp-gym[benchmarks]'."
        ) from error
    return cma


def exact_value(x: Any) -> float:
    """F(x) at the follower's optimum."""
    return float(_MODEL.leader_return(torch.as_tensor(x), LAMBDA))


_MODEL = small_rooms().unwrapped.model


def ascend(leader: leaders.Leader, solves_per_iteration: int, seed: int) -> Curve:
    """A gradient leader's curve."""
    every = EVERY // solves_per_iteration
    iterations = SOLVES // solves_per_iteration
    result = leaders.optimize(
        small_rooms(),
        leader,
        followers.SoftPolicyIteration(LAMBDA),
        iterations,
        seed=seed,
        evaluate_every=every,
        progress=False,
    )
    returns = result.history["leader_return"][::every]
    curve = [(i * every * solves_per_iteration, float(value)) for i, value in enumerate(returns)]
    return [*curve, (SOLVES, exact_value(result.x))]


def seat() -> leaders.LeaderEnv:
    """The leader's seat, for methods that are no leaders of ours."""
    return leaders.LeaderEnv(small_rooms(), followers.SoftPolicyIteration(LAMBDA), bounds=(-BOUND, BOUND))


def cma_es(sigma: float, seed: int) -> Curve:
    """CMA-ES on the actions of the seat, from the middle; begun anew from a random point where it has converged."""
    cma, env, rng = import_cma(), seat(), np.random.default_rng(seed)
    env.reset(seed=seed)

    def begin(x0: Array) -> Any:
        options = {"bounds": [-1, 1], "seed": int(rng.integers(1, 2**31)), "verbose": -9}
        return cma.CMAEvolutionStrategy(x0, sigma, options)

    strategy = begin(np.zeros(env.action_space.shape))
    best = -np.inf, np.zeros(env.action_space.shape)  # of the runs that converged
    curve: Curve = [(0, exact_value(env.to_x(best[1])))]
    while env.follower_solves < SOLVES:
        if strategy.stop():
            mean = strategy.result.xfavorite
            best = max(best, (exact_value(env.to_x(mean)), mean), key=lambda found: found[0])
            strategy = begin(rng.uniform(-1.0, 1.0, env.action_space.shape))
        positions = strategy.ask()
        costs = []
        for position in positions:
            env.reset()
            costs.append(-env.step(position)[1])
        strategy.tell(positions, costs)
        if env.follower_solves >= curve[-1][0] + EVERY or env.follower_solves >= SOLVES:
            here = exact_value(env.to_x(strategy.result.xfavorite))
            curve.append((env.follower_solves, max(here, best[0])))
    return curve


class _Watch(BaseCallback):
    """Records what PPO's deterministic action is worth."""

    def __init__(self, env: leaders.LeaderEnv):
        super().__init__()
        self._env = env
        self.curve: Curve = []

    def record(self) -> None:
        middle = np.zeros(self._env.observation_space.shape or (), dtype=np.float32)  # what `reset` shows
        action, _ = self.model.predict(middle, deterministic=True)
        self.curve.append((self._env.follower_solves, exact_value(self._env.to_x(action))))

    def _on_rollout_start(self) -> None:
        if not self.curve or self._env.follower_solves >= self.curve[-1][0] + EVERY:
            self.record()

    def _on_step(self) -> bool:
        return self._env.follower_solves < SOLVES


def ppo(learning_rate: float, log_std_init: float, seed: int) -> Curve:
    """PPO on the seat: episodes of one action."""
    env = seat()
    agent = PPO(
        "MlpPolicy", env, learning_rate, n_steps=64, gamma=0.0, ent_coef=0.0, seed=seed, device="cpu",
        policy_kwargs={"log_std_init": log_std_init},
    )  # fmt: skip
    watch = _Watch(env)
    agent.learn(SOLVES, callback=watch)
    watch.record()
    return watch.curve


RUNS: dict[str, Callable[..., Curve]] = {
    "HPGD": lambda seed, learning_rate: ascend(leaders.HPGD(learning_rate, ENV_STEPS), 1, seed),
    "ExactGradient": lambda seed, learning_rate: ascend(leaders.ExactGradient(learning_rate), 1, seed),
    "ZeroOrder": lambda seed, learning_rate, smoothing: ascend(leaders.ZeroOrder(learning_rate, smoothing), 2, seed),
    "CMA-ES": lambda seed, sigma: cma_es(sigma, seed),
    "PPO": lambda seed, learning_rate, log_std_init: ppo(learning_rate, log_std_init, seed),
}


def compare(name: str) -> dict[str, Any]:
    """All runs of one leader."""
    chosen = SETTINGS[name]
    began = perf_counter()
    curves = [RUNS[name](seed=seed, **chosen) for seed in SEEDS]
    seconds = (perf_counter() - began) / len(SEEDS)
    grid = np.arange(0, SOLVES + 1, EVERY)
    values = np.array([np.interp(grid, *np.array(curve).T) for curve in curves])
    last = np.array([curve[-1][1] for curve in curves])
    return {
        "setting": chosen,
        "solves": grid.tolist(),
        "mean": values.mean(0).tolist(),
        "standard_error": (values.std(0, ddof=1) / len(SEEDS) ** 0.5).tolist(),
        "final": {"mean": float(last.mean()), "standard_error": float(last.std(ddof=1) / len(SEEDS) ** 0.5)},
        "final_of_seeds": last.tolist(),
        "seconds_per_run": seconds,
    }


def search(starts: int) -> dict[str, Any]:
    """`leaders.multistart`: three rounds of 94 iterations, both contexts each, a quarter kept."""
    iterations, rounds, keep = 94, 3, 0.25
    runs = sum(max(1, round(starts * keep**r)) for r in range(rounds))
    leader = leaders.ExactGradient(0.1, optimizer="Adam", max_gradient_norm=None)
    values = []
    for seed in SEEDS:
        follower = followers.SoftPolicyIteration(LAMBDA)
        found = leaders.multistart(
            small_rooms(), leader, follower, iterations, starts=starts, rounds=rounds, keep=keep, seed=seed, contexts="all",
            progress=False,
        )  # fmt: skip
        assert found.best.leader_return is not None
        values.append(found.best.leader_return)
    return {
        "starts": starts,
        "solves": 2 * iterations * runs,
        "final": {"mean": float(np.mean(values)), "standard_error": float(np.std(values, ddof=1) / len(values) ** 0.5)},
        "final_of_seeds": values,
    }


def as_table(results: dict[str, Any]) -> str:
    """The final values as a Markdown table."""
    lines = ["| leader | setting | follower solves | leader's value | best seed | s per run |", "|---|---|---|---|---|---|"]
    for name, row in results["leaders"].items():
        setting = ", ".join(f"{key} {value:g}" for key, value in row["setting"].items())
        lines.append(
            f"| {name} | {setting} | {SOLVES:,} | {row['final']['mean']:.3f} ± {row['final']['standard_error']:.3f} | "
            f"{max(row['final_of_seeds']):.3f} | {row['seconds_per_run']:.1f} |"
        )
    for row in results["multistart"]:
        lines.append(
            f"| multistart | {row['starts']} starts | {row['solves']:,} | {row['final']['mean']:.3f} ± "
            f"{row['final']['standard_error']:.3f} | {max(row['final_of_seeds']):.3f} | |"
        )
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any]) -> Figure:
    """Value against solves, mean and standard error over seeds."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    for name, row in results["leaders"].items():
        mean, error = np.array(row["mean"]), np.array(row["standard_error"])
        (line,) = ax.plot(row["solves"], mean, label=f"{name}: {row['final']['mean']:.3f}")
        ax.fill_between(row["solves"], mean - error, mean + error, color=line.get_color(), alpha=0.2)
    for row, style in zip(results["multistart"], ("--", ":"), strict=True):
        label = f"multistart, {row['solves']:,} solves in all: {row['final']['mean']:.3f}"
        ax.axhline(row["final"]["mean"], color="black", linestyle=style, linewidth=1, label=label)
    ax.set(
        xlabel="follower solves",
        ylabel="leader's exact value",
        title=f"small Four-Rooms, lambda {LAMBDA}: mean of {len(SEEDS)} seeds ± standard error",
    )
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    torch.set_num_threads(1)
    import_cma()
    results: dict[str, Any] = {"lambda": LAMBDA, "seeds": len(SEEDS), "HPGD env_steps": ENV_STEPS, "bound": BOUND}
    results["value_at_0"] = exact_value(np.zeros(_MODEL.leader_dim))
    results["leaders"] = {}
    for name in RUNS:
        results["leaders"][name] = row = compare(name)
        print(name, row["setting"], row["final"], flush=True)
    results["multistart"] = [search(24), search(96)]
    store("leader_comparison", results)
    (RESULTS / "leader_comparison.md").write_text(as_table(results))
    plot(results).savefig(RESULTS / "leader_comparison.png", dpi=130)
    print(as_table(results))


if __name__ == "__main__":
    main()
