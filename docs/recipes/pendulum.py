"""Pendulum with a price of torque: what a utility buys at 0.5 per unit squared, it sells at x."""

from functools import partial

import gymnasium as gym
import numpy as np

import followers
import leaders
from bocmdp_gym.wrappers import LeaderReward


def rule(limit, s, rng):
    """Swing up by energy, then hold, with a limited torque."""
    swing = -2.0 * np.sign((s[2] ** 2 / 6.0 + 5.0 * (s[0] - 1.0)) * s[2] + 1e-9)
    u = -10.0 * s[1] - 2.0 * s[2] if s[0] > 0.9 else swing
    return np.clip([u], -limit, limit).astype(np.float32)


def bonus(x, s, a, context):
    """The bill."""
    return -x[0] * a[:, 0] ** 2


def leader_reward(x, s, a, context):
    """What is billed, less what it costs."""
    return (x[0] - 0.5) * a[:, 0] ** 2


world = gym.make("Pendulum-v1", render_mode="rgb_array")
space = gym.spaces.Box(0.0, 5.0, (1,), "float64")
env = LeaderReward(world, bonus, space, leader_reward, discount=0.99)
follower = followers.BestOf([partial(rule, limit) for limit in (2.0, 1.5, 1.0, 0.5, 0.0)], 3)
leader, iterations = leaders.ZeroOrder(0.3, 0.3, decay=False, directions=2, env_steps=1), 10

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(x, leaders.evaluate_policy(env, follower, x, env_steps=2_000).leader_return)
