"""Steps per second of everything that plays Four-Rooms: the compiled sampler, one environment, many copies.

``python -m benchmarks.sampler`` stores results (JSON, CSV) and a plot. The oracle calls the sampler as it does for leaders,
and the policy's tables are prepared in each call: in large models that takes longer than 10,000 steps do. LU is of the same run.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
from benchmarks.common import RESULTS, best_of, lu_seconds, store, store_table

ENV = "bocmdp/FourRooms-v0"
#: The layout enlarged: 104 to 93,600 states.
SCALES = (1, 3, 10, 30)
ENV_STEPS = 10_000
COPIES = (1, 16, 256, 1024, 4096)
MODES = {"vector_entry_point": "native copies", "sync": "copies, sync mode"}


def sampler(scale: int) -> dict[str, Any]:
    """Nanoseconds per step through the oracle, for one policy again and again."""
    env = gym.make(ENV, slip_probability=0.44, scale=scale)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(0.01))
    rng = np.random.default_rng(0)
    states = oracle.model.n_states  # type: ignore[union-attr]
    policy = oracle.respond(np.zeros(states + 1), 0, rng)
    steps = oracle.sample(policy, ENV_STEPS, rng).n_steps
    seconds = best_of(lambda: oracle.sample(policy, ENV_STEPS, rng), inner=max(1, 100 // scale**2))
    return {"what": "compiled sampler, 10,000 steps", "size": states, "nanoseconds": 1e9 * seconds / steps}


def single(env_id: str, steps: int = 100_000) -> dict[str, Any]:
    """Nanoseconds per step of the unwrapped environment under random actions, resets included."""
    env = gym.make(env_id).unwrapped
    actions = np.random.default_rng(0).integers(0, env.action_space.n, steps).tolist()

    def play() -> None:
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return {"what": f"{env_id}, one copy", "size": 1, "nanoseconds": 1e9 * best_of(play, repeats=5) / steps}


def copies(mode: str, count: int) -> dict[str, Any]:
    """Nanoseconds per step of ``count`` copies under random actions, resets included."""
    envs = gym.make_vec(ENV, num_envs=count, vectorization_mode=mode)
    native = mode == "vector_entry_point"
    actions = np.random.default_rng(0).integers(0, 4, (200 if native else 5, count))
    envs.reset(seed=0)

    def play() -> None:
        for row in actions:
            envs.step(row)

    return {"what": MODES[mode], "size": count, "nanoseconds": 1e9 * best_of(play, 5 if native else 2) / actions.size}


def plot(rows: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, names in ((left, ["compiled sampler, 10,000 steps"]), (right, list(MODES.values()))):
        for name in names:
            own = [row for row in rows if row["what"] == name]
            ax.loglog([row["size"] for row in own], [row["nanoseconds"] for row in own], "o-", label=name)
        ax.set(ylabel="nanoseconds per step")
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=9)
    left.set(xlabel="states", title="Trajectories of a tabular policy")
    right.set(xlabel="copies", title="Stepping Four-Rooms")
    figure.savefig(RESULTS / "sampler.png", dpi=130)


def main() -> None:
    lu = lu_seconds()
    rows = [sampler(scale) for scale in SCALES]
    rows += [single(name) for name in (ENV, "FrozenLake-v1")]
    rows += [copies(mode, count) for mode in MODES for count in (COPIES if mode != "sync" else COPIES[:-1])]
    for row in rows:
        row["steps_per_second"] = 1e9 / row["nanoseconds"]
    store_table("sampler", rows)
    plot(rows)
    store("sampler", {"lu_microseconds": 1e6 * lu, "rows": rows})


if __name__ == "__main__":
    main()
