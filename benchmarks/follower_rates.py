r"""How fast followers approach the optimal policy, beside Propositions E.4, E.5 and E.7.

- E.4 and E.7: the max-norm errors of Q and of the policy against the number of iterations, for soft value iteration and for exact
  natural policy gradient with several steps c = eta lambda / (1 - gamma). The factor per iteration is fitted on the logarithm of
  the error between 1e-2 of where it began and 1e-9; the propositions bound it by gamma, and by 1 - eta lambda =
  1 - c (1 - gamma). None where the error falls through that range too quickly for a line (c = 1 is Newton's method).
- E.5: the mean squared policy gap of soft Q-learning against the number of updates T, over independent runs. The exponents b of
  gap ~ T^b and of gap ~ (log T / T)^b are fitted beyond the first updates; the proposition says b = 1 for the latter.

Run it with ``python -m benchmarks.follower_rates``; results go to ``benchmarks/results/follower_rates.json`` and ``.png``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

import bocmdp_gym
from benchmarks.common import RESULTS, store
from followers import (
    IterativeFollower,
    NaturalPolicyGradient,
    SoftQLearning,
    SoftValueIteration,
    StepSize,
    TrajectoryOracle,
)
from followers.evaluation import q_values

Array = npt.NDArray[np.float64]
RUNS = 48
DOUBLINGS = 24  # Q-learning is run for 2^24 updates
STEPS = (0.1, 0.3, 1.0)


def random_problem(states: int, actions: int, discount: float) -> bocmdp_gym.TabularBOCMDP:
    """A dense random MDP without termination: no contraction but the discount's."""
    rng = np.random.default_rng(0)
    return bocmdp_gym.TabularBOCMDP(
        reward=rng.random((1, states, actions)),
        leader_reward=np.zeros((1, states, actions)),
        transition=rng.dirichlet(np.ones(states), (1, states, actions)),
        initial=np.full(states, 1.0 / states),
        leader_dim=1,
        discount=discount,
    )


def four_rooms() -> Any:
    return gym.make("bocmdp/FourRooms-v0", slip_probability=0.44)


def task_of(env: Any, follower: IterativeFollower) -> Any:
    oracle = TrajectoryOracle(env, follower)
    return oracle.task(np.zeros(oracle.core.leader_space.shape), 0)


# -------------------------------------------------------------------------------------------------- E.4 and E.7


def deterministic_errors(env: Any, follower: IterativeFollower, iterations: int) -> tuple[Array, Array]:
    """max |Q_t - Q*| and max |pi_t - pi*| after t = 1..iterations."""
    task = task_of(env, follower)
    arrays = task.arrays
    solution = task.mdps.solve(follower.regularization, tolerance=1e-14)
    q, pi = solution.q[0].detach().numpy(), solution.policy[0].detach().numpy()
    run = follower.start(task, np.random.default_rng(0))
    errors = np.empty((2, iterations))
    for t in range(iterations):
        run.advance(1)
        errors[0, t] = np.abs(q_values(arrays, run.assess()[0]) - q).max()
        errors[1, t] = np.abs(run.policy().table - pi).max()
    return errors[0], errors[1]


def fitted_rate(errors: Array) -> float | None:
    """Factor per iteration: exp of the least-squares slope of log error, between 1e-2 of the first error and 1e-9."""
    use = np.flatnonzero((errors < 1e-2 * errors[0]) & (errors > 1e-9))
    return float(np.exp(np.polyfit(use, np.log(errors[use]), 1)[0])) if len(use) > 2 else None


def linear_rates(env: Any, regularization: float, iterations: int) -> dict[str, dict[str, Any]]:
    discount = bocmdp_gym.configurable(env).discount if isinstance(env, gym.Env) else env.discount
    settings: list[tuple[str, IterativeFollower, float]] = [
        ("soft value iteration", SoftValueIteration(regularization, iterations=1), discount)
    ]
    for c in STEPS:
        follower = NaturalPolicyGradient(regularization, iterations=1, step_size=c)
        settings.append((f"natural policy gradient, c = {c}", follower, 1.0 - c * (1.0 - discount)))
    found = {}
    for name, follower, bound in settings:
        of_q, of_policy = deterministic_errors(env, follower, iterations)
        found[name] = {"Q": fitted_rate(of_q), "policy": fitted_rate(of_policy), "bound": bound, "errors": of_q}
    return found


# ---------------------------------------------------------------------------------------------------------- E.5


def least_visited(env: Any) -> float:
    """mu_min: the smallest stationary probability of a pair under the uniform behaviour policy with restarts."""
    arrays = task_of(env, SoftQLearning(1.0, iterations=1)).arrays
    n_states, n_actions, width = arrays.probabilities.shape
    chain = np.zeros((n_states, n_states))
    for s, a, k in np.ndindex(n_states, n_actions, width):
        going = (1.0 - arrays.termination[s, a]) / n_actions
        chain[s, arrays.successors[s, a, k]] += going * arrays.probabilities[s, a, k]
    chain += (arrays.termination.mean(-1))[:, None] * arrays.initial
    return float(np.linalg.matrix_power(chain, 10_000)[0].min() / n_actions)


def squared_gaps(env: Any, follower: IterativeFollower, counts: list[int]) -> Array:
    """Mean over `RUNS` runs of max |pi_T - pi*|^2 at each T, ``(len(counts),)``."""
    task = task_of(env, follower)
    optimum = task.mdps.solve(follower.regularization).policy[0].detach().numpy()
    gaps = np.empty((RUNS, len(counts)))
    for seed in range(RUNS):
        run = follower.start(task, np.random.default_rng(seed))
        for i, count in enumerate(counts):
            run.advance(count - run.iterations)
            gaps[seed, i] = np.abs(run.policy().table - optimum).max() ** 2
    return gaps.mean(0)


def exponents(counts: list[int], gaps: Array, first: int) -> dict[str, float]:
    """Exponents of T and of log T / T, fitted from T = ``first`` on."""
    t = np.array(counts, dtype=np.float64)
    use = t >= first
    log_gap, log_t = np.log(gaps[use]), np.log(t[use])
    return {
        "fitted from T": float(first),
        "exponent of T": float(np.polyfit(log_t, log_gap, 1)[0]),
        "exponent of log T / T": float(np.polyfit(np.log(log_t) - log_t, log_gap, 1)[0]),
    }


def q_learning_rates() -> dict[str, dict[str, Any]]:
    problem = random_problem(4, 2, 0.5)
    mu_min = least_visited(problem)
    h = 4.0 / (mu_min * (1.0 - problem.discount))
    rooms = gym.make(
        "bocmdp/FourRooms-v0",
        layout=("xxxxxxx", "x  x  x", "x     x", "x xxx x", "x     x", "x  x  x", "xxxxxxx"),
        start=[1, 1],
        goals=[[5, 5]],
        waypoint=[4, 1],
        discount=0.9,
        slip_probability=0.44,
    )
    settings: dict[str, tuple[Any, IterativeFollower, int]] = {
        "random MDP (4 states), h / (t + t0) of E.5": (
            problem,
            SoftQLearning(0.1, iterations=1, behaviour="uniform", step_size=StepSize.harmonic(h, 4.0 * h)),
            int(40 * h),
        ),
        "random MDP (4 states), steps by visits": (problem, SoftQLearning(0.1, iterations=1, behaviour="uniform"), 2**12),
        "small Four-Rooms (20 states), steps by visits": (rooms, SoftQLearning(0.1, iterations=1, behaviour="uniform"), 2**16),
    }
    counts = [2**k for k in range(8, DOUBLINGS + 1)]
    found: dict[str, dict[str, Any]] = {}
    for name, (env, follower, first) in settings.items():
        gaps = squared_gaps(env, follower, counts)
        first = min(c for c in counts if c >= first)
        found[name] = {**exponents(counts, gaps, first), "T": counts, "mean squared policy gap": gaps}
    found["random MDP (4 states), h / (t + t0) of E.5"] |= {"mu_min": mu_min, "h": h, "t0": 4.0 * h}
    return found


# --------------------------------------------------------------------------------------------------------- output


def plot(linear: dict[str, dict[str, dict[str, Any]]], learning: dict[str, dict[str, Any]]) -> None:
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, (problem, series) in zip(axes, linear.items(), strict=False):
        for i, (name, found) in enumerate(series.items()):
            errors = found["errors"]
            shown = errors > 1e-12
            factors = [f"{key} {found[key]:.3f}" if found[key] else f"{key} at once" for key in ("Q", "policy")]
            label = f"{name}: {', '.join(factors)}, bound {found['bound']:.3f}"
            t = np.arange(1, len(errors) + 1)
            ax.semilogy(t[shown], errors[shown], color=f"C{i}", label=label)
            ax.semilogy(t, errors[0] * found["bound"] ** (t - 1), color=f"C{i}", linestyle=":", linewidth=1)
        ax.set(title=problem, xlabel="iterations", ylim=(1e-12, 1e6))
        ax.legend(fontsize=7, loc="upper right", title="factor per iteration", title_fontsize=7)
    axes[0].set_ylabel(r"$\max|Q_t - Q^*|$ (dotted: falling at the bound)")
    ax = axes[2]
    for i, (name, found) in enumerate(learning.items()):
        t, gaps = np.array(found["T"], dtype=np.float64), found["mean squared policy gap"]
        label = f"{name}: exponent {found['exponent of log T / T']:.2f} of log T / T"
        ax.loglog(t, gaps, "o-", color=f"C{i}", markersize=3, label=label)
        reference = np.log(t) / t
        ax.loglog(t, reference * gaps[-1] / reference[-1], color=f"C{i}", linestyle=":", linewidth=1)
    ax.set(title=f"soft Q-learning, {RUNS} runs", xlabel="updates T", ylabel=r"mean of $\max|\pi_T - \pi^*|^2$", ylim=(1e-9, 2))
    ax.legend(fontsize=7, loc="lower left", title="dotted: log T / T", title_fontsize=7)
    figure.savefig(RESULTS / "follower_rates.png", dpi=110)


def main() -> None:
    torch.set_num_threads(1)
    linear = {
        "random MDP, 30 states, gamma 0.9, lambda 0.1": linear_rates(random_problem(30, 3, 0.9), 0.1, 250),
        "Four-Rooms, gamma 0.99, lambda 0.001": linear_rates(four_rooms(), 1e-3, 400),
    }
    learning = q_learning_rates()
    RESULTS.mkdir(exist_ok=True)
    plot(linear, learning)
    stored = {
        "soft value iteration (E.4) and natural policy gradient (E.7)": {
            problem: {name: {k: v for k, v in found.items() if k != "errors"} for name, found in series.items()}
            for problem, series in linear.items()
        },
        "soft Q-learning (E.5)": {
            name: {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}
            for name, found in learning.items()
        },
    }
    store("follower_rates", stored)


if __name__ == "__main__":
    main()
