"""LunarLander with a price of fuel: a port buys it at 0.5, sells it at x, and minds crashes."""

from functools import partial

import gymnasium as gym
import numpy as np

import followers
import leaders
from bocmdp_gym.wrappers import LeaderReward


def rule(sink, s, rng):
    """Lean towards the pad, and brake above a speed of sink times the height."""
    landed = s[6] or s[7]
    turn = 0.0 if landed else 0.5 * (np.clip(0.5 * s[0] + s[2], -0.4, 0.4) - s[4]) - s[5]
    lift = -s[3] - 0.1 - (0.0 if landed else sink * max(s[1], 0.0))
    return 2 if lift > max(abs(turn), 0.05) else 2 + int(np.sign(-turn)) if abs(turn) > 0.05 else 0


def bonus(x, s, a, context):
    """What the main engine burns, and costs."""
    return -x[0] * (a == 2)


def leader_reward(x, s, a, context, next_observations, rewards):
    """Sales, and crashes."""
    return (x[0] - 0.5) * (a == 2) - 100.0 * (rewards == -100.0)


world = gym.make("LunarLander-v3", render_mode="rgb_array")
env = LeaderReward(world, bonus, gym.spaces.Box(0.0, 5.0, (1,), "float64"), leader_reward, 0.99)
follower = followers.BestOf([partial(rule, sink) for sink in (0.6, 0.8, 1.0, 2.0)], 4)
leader, iterations = leaders.ZeroOrder(0.3, 0.5, decay=False, directions=2, env_steps=1_000), 12

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(x, leaders.evaluate_policy(env, follower, x, env_steps=2_000).leader_return)
