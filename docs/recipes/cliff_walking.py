"""CliffWalking with a fence of thorns, x high in each column: it stops the careless, and costs."""

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
import leaders

world = gym.make("CliffWalking-v1", render_mode="rgb_array")
falls = torch.as_tensor(bocmdp_gym.gymnasium_tables(world).reward == -100.0).double()  # (1, S, A)
model = bocmdp_gym.TabularBOCMDP.from_gymnasium(
    world,
    # the walker minds thorns, and falls no more than any step
    reward=lambda x: -1.0 - falls * x.repeat(4).reshape(1, 48, 1),
    leader_reward=lambda x: -10.0 * falls - 0.01 * x.sum(),
    leader_space=gym.spaces.Box(0.0, 10.0, (12,), np.float64),
    discount=0.95,
)
env = bocmdp_gym.TabularEnv(model, horizon=200)
follower = followers.SoftPolicyIteration(regularization=0.3)
leader, iterations = leaders.HPGD(0.2, env_steps=5_000), 200

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(leaders.evaluate_policy(env, follower, x).leader_return, x.numpy().round(2))
