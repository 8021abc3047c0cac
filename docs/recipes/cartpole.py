"""CartPole with a bonus for a place: x[0] is paid for standing near x[1]; the leader wants 1."""

from functools import partial

import gymnasium as gym
import torch

import followers
import leaders
from bocmdp_gym.wrappers import LeaderReward


def rule(spot, s, rng):
    """Balance the pole at a spot."""
    return int(0.3 * (s[0] - spot) + 0.5 * s[1] + 4.0 * s[2] + s[3] > 0.0)


def bonus(x, s, a, context):
    """What is paid for a step."""
    return x[0] * torch.exp(-2.0 * (s[:, 0] - x[1]) ** 2)


def leader_reward(x, s, a, context):
    """Closeness to 1, less what is paid."""
    return torch.exp(-2.0 * (s[:, 0] - 1.0) ** 2) - bonus(x, s, a, context)


world = gym.make("CartPole-v1", max_episode_steps=200, render_mode="rgb_array")
space = gym.spaces.Box(0.0, 2.0, (2,), "float64")
env = LeaderReward(world, bonus, space, leader_reward, 0.99, initial_leader=(0.5, 0.5))
follower = followers.BestOf([partial(rule, spot) for spot in (0.0, -1.0, -0.5, 0.5, 1.0)], 3)
leader, iterations = leaders.ZeroOrder(0.1, 0.2, decay=False, directions=2, env_steps=1), 12

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(x, leaders.evaluate_policy(env, follower, x, env_steps=2_000).leader_return)
