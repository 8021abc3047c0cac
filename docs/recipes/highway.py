"""highway-env with a speed fine of x times the excess squared: a town wants flow, and quiet."""

from functools import partial

import gymnasium as gym
import highway_env

import followers
import leaders
from bocmdp_gym.wrappers import LeaderReward


def rule(top, s, rng):
    """Drive at a speed, and slow down behind a car that is near."""
    near = any(0.0 < car[1] < 0.15 and abs(car[2]) < 0.1 for car in s[1:])
    return 4 if near or 80.0 * s[0, 3] > top + 1.0 else 3 if 80.0 * s[0, 3] < top - 1.0 else 1


def excess(s):
    """How much faster it is than 20 m/s, in units of 10 m/s."""
    return (8.0 * s[:, 0, 3] - 2.0).clamp(min=0.0)


def fine(x, s, a, context):
    """What is paid for a step."""
    return -x[0] * excess(s) ** 2


def leader_reward(x, s, a, context):
    """Flow less noise; fines are given back."""
    return excess(s) - 1.5 * excess(s) ** 2


gym.register_envs(highway_env)
traffic = {"vehicles_count": 3, "vehicles_density": 0.5, "lanes_count": 2, "duration": 10}
world = gym.make("highway-fast-v0", config=traffic, render_mode="rgb_array")
env = LeaderReward(world, fine, gym.spaces.Box(0.0, 2.0, (1,), "float64"), leader_reward, 0.95)
follower = followers.BestOf([partial(rule, top) for top in (30.0, 25.0, 20.0)], 2)
leader, iterations = leaders.ZeroOrder(0.1, 0.2, decay=False, directions=2, env_steps=20), 10

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(x, leaders.evaluate_policy(env, follower, x, env_steps=2_000).leader_return)
