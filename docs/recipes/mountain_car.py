"""MountainCar with a rebate: a quiet valley pays x for each step on which the engine is off."""

from functools import partial

import gymnasium as gym

import followers
import leaders
from bocmdp_gym.wrappers import LeaderReward


def rule(top, s, rng):
    """Push along the way it moves, up to a speed."""
    return 1 if abs(s[1]) > top else 2 * int(s[1] >= 0.0)


def bonus(x, s, a, context):
    """The rebate."""
    return x[0] * (a == 1)


def leader_reward(x, s, a, context):
    """Noise costs 3 per step, and the rebate is paid."""
    return -3.0 * (a != 1) - bonus(x, s, a, context)


world = gym.make("MountainCar-v0", render_mode="rgb_array")
space = gym.spaces.Box(0.0, 2.0, (1,), "float64")
env = LeaderReward(world, bonus, space, leader_reward, discount=0.99)
follower = followers.BestOf([partial(rule, top) for top in (0.07, 0.04, 0.03, 0.02, 0.01)])
leader, iterations = leaders.ZeroOrder(0.1, 0.5, decay=False, directions=4, env_steps=1), 12

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(x, leaders.evaluate_policy(env, follower, x, env_steps=2_000).leader_return)
