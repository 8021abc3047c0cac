"""What `LeaderReward` adds to a step of CartPole: with torch functions, and with their NumPy twin (``step_rewards``).

    python -m benchmarks.leader_reward

Times are microseconds per step, episodes' resets included. The floor is the bare step and the torch functions alone, called with
tensors that are there already: what no wrapper that calls them in every step can go below.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from time import perf_counter
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from benchmarks.common import store
from bocmdp_gym.wrappers import LeaderReward

_STEPS, _REPEATS = 2000, 9


def bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
    """The bonus of the documentation's example."""
    return x[0] * torch.exp(-((observations[:, 0] - x[1]) ** 2))


def leader_reward(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
    """Its leader's reward."""
    return -((observations[:, 0] - 1.0) ** 2) - 0.1 * bonus(x, observations, actions, context)


def twin(x: Any, observation: Any, action: Any, context: Any) -> tuple[float, float]:
    """Both at one step."""
    place = float(observation[0])
    paid = x[0] * exp(-((place - x[1]) ** 2))
    return paid, -((place - 1.0) ** 2) - 0.1 * paid


def functions_alone() -> None:
    """Both functions once per step."""
    x, observations = torch.tensor([0.5, 0.3], dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    actions = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(_STEPS):
            bonus(x, observations, actions, 0)
            leader_reward(x, observations, actions, 0)


def playing(env: gym.Env[Any, Any]) -> Callable[[], None]:
    """Left, right, left, ... in episodes from the same seed."""

    def play() -> None:
        env.reset(seed=0)
        for step in range(_STEPS):
            _, _, terminated, truncated, _ = env.step(step % 2)
            if terminated or truncated:
                env.reset()

    return play


def main() -> None:
    """Measure all in turn, so that a busy machine slows them alike, and store the best of each."""
    torch.set_num_threads(1)
    arguments: dict[str, Any] = {
        "leader_space": 2,
        "leader_reward": leader_reward,
        "discount": 0.99,
        "initial_leader": [0.5, 0.3],
    }
    cases = {
        "bare": playing(gym.make("CartPole-v1")),
        "torch functions": playing(LeaderReward(gym.make("CartPole-v1"), bonus, **arguments)),
        "with step_rewards": playing(LeaderReward(gym.make("CartPole-v1"), bonus, **arguments, step_rewards=twin)),
        "functions alone": functions_alone,
    }
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(_REPEATS):
        for name, case in cases.items():
            began = perf_counter()
            case()
            best[name] = min(best[name], (perf_counter() - began) / _STEPS * 1e6)
    floor = best["bare"] + best["functions alone"]
    results = {
        "microseconds per step": {name: round(value, 1) for name, value in best.items()},
        "times the bare step": {name: round(best[name] / best["bare"], 1) for name in ("torch functions", "with step_rewards")},
        "floor of torch functions, times the bare step": round(floor / best["bare"], 1),
    }
    store("leader_reward", results)


if __name__ == "__main__":
    main()
