"""What the layers of an `SB3Follower` cost: CPU time of a response on a configurable CartPole over that of a bare ``learn``.

The configurable CartPole is Gymnasium's in a wrapper that gives it an x and a leader's reward of 0 and changes nothing else, so
what is measured is what this library puts around an environment: the wrapper, the monitor, the copies, the watch over numbers
that are not finite, the snapshot of the policy. Both sides train on from call to call. Calls come in pairs, in random order
within each; the figure is the median of the pairs' ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env

import followers
from benchmarks.common import store
from bocmdp_gym.wrappers import ConfigurableWrapper

DISCOUNT = 0.99
STEPS, PAIRS = 2048, 12
#: Of the ratio: what it should not exceed.
TARGET = 1.15
CASES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "PPO": (PPO, 1, {}),
    "PPO, 8 copies": (PPO, 8, {"n_steps": 256}),
    "A2C, 8 copies": (A2C, 8, {}),
    "DQN": (DQN, 1, {"learning_starts": 100, "buffer_size": 20_000}),
}


class Configurable(ConfigurableWrapper):
    """CartPole with a leader parameter that changes nothing."""

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self._setup_configuration(gym.spaces.Box(-1.0, 1.0, (1,), np.float64), gym.spaces.Discrete(1), DISCOUNT)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["leader_reward"], info["context"] = 0.0, self.context
        return observation, reward, terminated, truncated, info


def make_env() -> gym.Env[Any, Any]:
    return Configurable(gym.make("CartPole-v1"))


def ratios(calls: tuple[Callable[[], Any], Callable[[], Any]], pairs: int, rng: np.random.Generator) -> Any:
    """CPU seconds of both calls ``(pairs, 2)``; one pair before them warms up."""
    times = np.empty((pairs + 1, 2))
    for pair in times:
        for which in rng.permutation(2):
            began = process_time()
            calls[which]()
            pair[which] = process_time() - began
    return times[1:]


def measure(name: str, steps: int = STEPS, pairs: int = PAIRS) -> dict[str, Any]:
    algorithm, n_envs, settings = CASES[name]
    rng = np.random.default_rng(0)
    bare = algorithm("MlpPolicy", make_vec_env("CartPole-v1", n_envs), gamma=DISCOUNT, seed=0, device="cpu", **settings)
    follower = followers.SB3Follower(algorithm, steps, n_envs=n_envs, device="cpu", **settings)
    oracle, x = followers.TrajectoryOracle(make_env(), follower), np.zeros(1)
    times = ratios((lambda: bare.learn(steps, reset_num_timesteps=False), lambda: oracle.respond(x, 0, rng)), pairs, rng)
    found = times[:, 1] / times[:, 0]
    return {
        "bare, CPU seconds": float(np.median(times[:, 0])),
        "follower, CPU seconds": float(np.median(times[:, 1])),
        "median ratio": float(np.median(found)),
        "quartiles of the ratio": np.quantile(found, [0.25, 0.75]).tolist(),
        "ratio of total times": float(times[:, 1].sum() / times[:, 0].sum()),
    }


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"steps": STEPS, "pairs": PAIRS, "target": TARGET} | {name: measure(name) for name in CASES}
    results["largest median ratio"] = max(results[name]["median ratio"] for name in CASES)
    store("sb3_training", results)


if __name__ == "__main__":
    main()
