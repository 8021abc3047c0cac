"""Taxi with a fare: who earns 10 per ride pays x[0] for it, and x[1] per step with a passenger."""

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
import leaders

world = gym.make("Taxi-v4", render_mode="rgb_array")
own = torch.as_tensor(bocmdp_gym.gymnasium_tables(world).reward)
arrival = (own > 0).double()  # the passenger is set down where it wants to be
aboard = (torch.arange(500) // 4 % 5 == 4).double().reshape(1, 500, 1).expand_as(own)
model = bocmdp_gym.TabularBOCMDP.from_gymnasium(
    world,
    reward=lambda x: x[0] * arrival + x[1] * aboard - 0.1,  # fuel costs 0.1 per step
    leader_reward=lambda x: (10.0 - x[0]) * arrival - x[1] * aboard,
    leader_space=gym.spaces.Box(np.array([1.0, 0.0]), np.array([10.0, 1.0]), dtype=np.float64),
    discount=0.95,
    action_mask=True,
)
env = bocmdp_gym.TabularEnv(model, horizon=200)
follower = followers.SoftPolicyIteration(regularization=0.1)
leader, iterations = leaders.HPGD(0.2, env_steps=5_000), 100

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(leaders.evaluate_policy(env, follower, x).leader_return, x.numpy().round(2))
