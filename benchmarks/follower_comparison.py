"""What the leader gains with each follower, and how far that follower is from the optimum the theory assumes.

HPGD learns on a small Four-Rooms with one follower after the other. Per follower, the mean over seeds and its standard error of

- the leader's exact return at the last x under the optimal follower, and under the follower's own policies there;
- delta (max-norm policy gap), the visitation-weighted total variation and the follower's value gap of those policies;
- seconds per outer iteration.

Run it with ``python -m benchmarks.follower_comparison``; results go to ``benchmarks/results/follower_comparison.json`` and a
table of them to ``follower_comparison.md``. To compare other followers, add entries to `ENTRIES`, or call `compare` with a
list of them: an entry is a name and a function that makes a fresh follower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
import leaders
from benchmarks.common import RESULTS, store
from followers import Follower, StepSize, TrajectoryOracle

LAMBDA = 0.05
SEEDS = 3
ITERATIONS = 300
ENV_STEPS = 2000
LAYOUT = ("xxxxxxx", "x  x  x", "x     x", "x xxx x", "x     x", "x  x  x", "xxxxxxx")


@dataclass(frozen=True)
class Entry:
    """One line of the comparison.

    Attributes:
        name: what the table calls it.
        make: a fresh follower.
        seeds: number of runs; fewer where one takes minutes.
        iterations: outer iterations of each.
    """

    name: str
    make: Callable[[], Follower]
    seeds: int = SEEDS
    iterations: int = ITERATIONS


ENTRIES: list[Entry] = [
    Entry("soft policy iteration (exact)", lambda: followers.SoftPolicyIteration(LAMBDA)),
    Entry("soft value iteration, to 1e-10", lambda: followers.SoftValueIteration(LAMBDA)),
    Entry("soft value iteration, 5 sweeps", lambda: followers.SoftValueIteration(LAMBDA, iterations=5)),
    Entry("soft value iteration, 5 sweeps, cold", lambda: followers.SoftValueIteration(LAMBDA, iterations=5, warm_start=False)),
    Entry("natural policy gradient, exact", lambda: followers.NaturalPolicyGradient(LAMBDA)),
    Entry(
        "natural policy gradient, 20 rollouts",
        lambda: followers.NaturalPolicyGradient(LAMBDA, iterations=20, rollouts=20, step_size=StepSize.harmonic(2.0, 4.0)),
    ),
    Entry(
        "soft Q-learning, 20,000 updates",
        lambda: followers.SoftQLearning(LAMBDA, iterations=20_000, step_size=StepSize.visits(20.0, 200.0)),
    ),
    Entry(
        "soft Q-learning, 500,000 updates",
        lambda: followers.SoftQLearning(LAMBDA, iterations=500_000, exploration=0.3, step_size=StepSize.visits(20.0, 200.0)),
    ),
    Entry(
        "vanilla policy gradient, 20,000 steps",
        lambda: followers.VanillaPolicyGradient(LAMBDA, iterations=20_000, step_size=0.1),
    ),
]


def small_rooms(**options: Any) -> Any:
    """Four rooms of 2 x 2 cells, 20 free cells; penalties are cheap for the leader and felt by the follower."""
    settings: dict[str, Any] = {
        "layout": LAYOUT,
        "start": [1, 1],
        "goals": [[1, 5], [5, 5]],
        "waypoint": [4, 1],
        "slip_probability": 0.44,
        "penalty_budget": 1.0,
        "penalty_cost": 0.1,
        "discount": 0.9,
        "horizon": 100,
    }
    return gym.make("bocmdp/FourRooms-v0", **{**settings, **options})


def one_run(entry: Entry, env: Any, seed: int) -> dict[str, float]:
    """One run of HPGD; then the follower, warm as the run left it, answers the last x in every context and is measured."""
    follower = entry.make()
    own = {} if follower.regularization is not None else {"regularization": LAMBDA}
    leader = leaders.HPGD(learning_rate=0.5, env_steps=ENV_STEPS, **own)  # type: ignore[arg-type]
    oracles: list[TrajectoryOracle] = []
    result = leaders.optimize(
        env,
        leader,
        follower,
        entry.iterations,
        seed=seed,
        callback=lambda progress: oracles.append(progress.oracle),
        progress=False,
    )
    oracle, mdps = oracles[-1], oracles[-1].configure(result.x)
    assert result.leader_return is not None
    found: dict[str, float] = {
        "leader_return": float(result.leader_return),
        "first_leader_return": float(result.history["leader_return"][0]),
        "seconds_per_iteration": result.seconds / result.iterations,
    }
    tables = []
    for context in range(mdps.model.n_contexts):
        table = oracle.tabulate(oracle.respond(result.x, context, np.random.default_rng(seed)))
        tables.append(None if table is None else table.table)
    if all(table is not None for table in tables):
        policies = np.stack([table for table in tables if table is not None])
        measured = followers.suboptimality(mdps.model, policies, result.x, LAMBDA)
        returns = mdps.policy_return(torch.from_numpy(policies)).detach().numpy()
        found |= {
            "leader_return_of_its_policies": float(returns @ mdps.model.context_probabilities),
            "delta": measured.delta,
            "total_variation": measured.total_variation,
            "value_gap": measured.value_gap,
        }
    return found


def compare(entries: Sequence[Entry], env: Any | None = None) -> dict[str, dict[str, Any]]:
    """Mean and standard error over seeds of every number, by follower."""
    env = small_rooms() if env is None else env
    bocmdp_gym.configurable(env)
    rows: dict[str, dict[str, Any]] = {}
    for entry in entries:
        one_run(Entry(entry.name, entry.make, iterations=2), env, 0)  # compile
        runs = [one_run(entry, env, seed) for seed in range(entry.seeds)]
        rows[entry.name] = {"seeds": entry.seeds, "iterations": entry.iterations}
        for key in runs[0]:
            values = np.array([run[key] for run in runs])
            error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
            rows[entry.name][key] = {"mean": float(values.mean()), "standard_error": error}
    return rows


def as_table(rows: dict[str, dict[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    columns = {
        "leader_return": "leader's return, optimal follower",
        "leader_return_of_its_policies": "leader's return, this follower",
        "delta": "delta",
        "total_variation": "total variation",
        "value_gap": "value gap",
        "seconds_per_iteration": "s per iteration",
    }
    lines = ["| follower | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = []
        for key in columns:
            if key not in row:
                cells.append("not told")
                continue
            mean, error = row[key]["mean"], row[key]["standard_error"]
            with_error = error is not None and key.startswith("leader_return")
            cells.append(f"{mean:.3f} ± {error:.3f}" if with_error else f"{mean:.3g}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(entries: Sequence[Entry] = ENTRIES) -> None:
    rows = compare(entries)
    store("follower_comparison", {"lambda": LAMBDA, "HPGD env_steps": ENV_STEPS, "followers": rows})
    (RESULTS / "follower_comparison.md").write_text(as_table(rows))
    print(as_table(rows))


if __name__ == "__main__":
    main()
