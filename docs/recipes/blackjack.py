"""Blackjack with a house rule: a card at 17 or more comes with a drink worth x, bought at x / 4."""

from functools import partial

import gymnasium as gym

import followers
import leaders
from bocmdp_gym.wrappers import LeaderReward


def rule(least, s, rng):
    """Take cards below a sum."""
    return int(s[0] < least)


def bonus(x, s, a, context):
    """What the drink is worth."""
    return x[0] * (s[0] >= 17) * (a == 1)


def leader_reward(x, s, a, context, next_observations, rewards):
    """What the player loses, less what drinks cost."""
    return -rewards - 0.25 * bonus(x, s, a, context)


world = gym.make("Blackjack-v1", sab=True, render_mode="rgb_array")
space = gym.spaces.Box(0.0, 2.0, (1,), "float64")
env = LeaderReward(world, bonus, space, leader_reward, discount=1.0)
follower = followers.BestOf([partial(rule, least) for least in (17, 18, 19, 20, 21)], 200)
leader, iterations = leaders.ZeroOrder(0.8, 0.3, decay=False, directions=4, env_steps=2_000), 30

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(x, leaders.evaluate_policy(env, follower, x, env_steps=2_000).leader_return)
