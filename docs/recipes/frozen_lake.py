"""FrozenLake with a paid path: x, cell by cell, is paid to a walker who should go round a lawn."""

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
import leaders

world = gym.make("FrozenLake-v1", is_slippery=False, render_mode="rgb_array")
own = torch.as_tensor(bocmdp_gym.gymnasium_tables(world).reward)
lawn = torch.isin(torch.arange(16), torch.tensor([4, 8, 9])).double().reshape(1, 16, 1)
model = bocmdp_gym.TabularBOCMDP.from_gymnasium(
    world,
    reward=lambda x: own + x.reshape(1, 16, 1),
    leader_reward=lambda x: own - 0.5 * lawn - x.reshape(1, 16, 1),  # it wants arrivals, too
    leader_space=gym.spaces.Box(0.0, 1.0, (16,), np.float64),
    discount=0.95,
)
env = bocmdp_gym.TabularEnv(model, horizon=100)
follower = followers.SoftPolicyIteration(regularization=0.01)
leader, iterations = leaders.HPGD(0.02, env_steps=2_000), 300

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(leaders.evaluate_policy(env, follower, x).leader_return, x.numpy().round(2))
