r"""Tax design with households that learn: HPGD(critic) against a SoftDQN follower, in the continuous environment.

SoftDQN has 1,250 joint actions to tell apart, at values from -1,000 (deep in debt) to 30 and lambda 0.2, so its network knows
what kind of problem this is, and no more: baskets are paid for by their sum alone, so

    Q(s, a) = f(s, hours, sum of spending) + g(basket),

f a network, g a number for each of the 125 baskets. It is trained on from iteration to iteration, one learner per context, in the
10 copies of the environment that the leader samples from. Its training steps are counted apart from the leader's.

x moves by plain ascent at a rate that falls to 0 on a cosine, both contexts in every iteration, from x_0 ~ N(0, 1). The leader's
value is that of the exact follower on the environment's grid; ``share`` is how far from F(x_0) to the best value known, ``least``
the least share of the last fifth of the run. Settings were found with seeds that are not reported.

``python -m benchmarks.tax_design_learner`` (``--seeds 10`` for fewer) stores ``results/tax_design_learner.json``.
"""

from __future__ import annotations

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

import followers
import leaders
from benchmarks.common import store
from benchmarks.tax_design_leaders import SEEDS, exact_value, start
from bocmdp_gym.envs.tax_design import BEST_KNOWN, HOURS, SPENDING
from followers.sb3.soft_dqn import SoftDQNPolicy

LAMBDA = 0.2
ITERATIONS, FOLLOWER_STEPS, CRITIC_STEPS = 25, 4_000, 4_000
LEARNING_RATE = 0.02
HIDDEN, SCALE = 64, 10.0
SOFT_DQN: dict[str, Any] = {
    "buffer_size": 100_000,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "train_freq": 10,
    "gradient_steps": 20,
    "target_update_interval": 20,
    "learning_starts": 500,
    "device": "cpu",
}


class HoursAndBaskets(nn.Module):
    """f and g of the module docstring: assets ``(N, 1)`` to values ``(N, 1250)``."""

    def __init__(self) -> None:
        super().__init__()
        levels = len(SPENDING)
        actions = np.array(list(itertools.product(range(len(HOURS)), *[range(levels)] * 3)))
        sums = 3 * (levels - 1) + 1
        hours, spent = torch.meshgrid(torch.linspace(0, 1, len(HOURS)), torch.linspace(0, 1, sums), indexing="ij")
        self.register_buffer("pairs", torch.stack([hours.ravel(), spent.ravel()], -1))
        self.register_buffer("pair_of", torch.from_numpy(actions[:, 0] * sums + actions[:, 1:].sum(1)))
        self.register_buffer("basket_of", torch.from_numpy(actions[:, 1:] @ [levels**2, levels, 1]))
        self.baskets = nn.Parameter(torch.zeros(levels**3))
        self.of_assets, self.of_pairs = nn.Linear(3, HIDDEN), nn.Linear(2, HIDDEN, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, assets: Tensor) -> Tensor:
        debt, wealth = torch.relu(-assets), torch.relu(assets)  # what they are worth has a kink at 0
        seen = torch.cat([assets / 50.0, debt * 0.06, torch.log1p(wealth / 20.0)], -1)
        joint = self.of_assets(seen)[:, None] + self.of_pairs(self.pairs)
        values: Tensor = self.rest(joint)[..., 0] * SCALE
        return values[:, self.pair_of] + self.baskets[self.basket_of]  # type: ignore[index]


class HouseholdPolicy(SoftDQNPolicy):
    """SoftDQN's policy with that network."""

    def make_q_net(self) -> QNetwork:
        network = super().make_q_net()
        network.q_net = HoursAndBaskets()  # type: ignore[assignment]
        return network.to(self.device)


def run(seed: int) -> dict[str, Any]:
    """One run: the share after every iteration, and the steps of both sides."""
    copies = gym.make_vec("bocmdp/TaxDesign-v0", 10, vectorization_mode="vector_entry_point", autoreset_mode="SameStep")
    follower = followers.SoftDQNFollower(LAMBDA, FOLLOWER_STEPS, policy=HouseholdPolicy, **SOFT_DQN)
    leader = leaders.HPGD(LEARNING_RATE, CRITIC_STEPS, "critic", max_gradient_norm=20.0, schedule="cosine")
    x0, best = start(seed), BEST_KNOWN[LAMBDA][0]
    first = exact_value(x0, LAMBDA)
    shares: list[float] = []

    def watch(progress: leaders.Progress) -> None:
        shares.append((exact_value(progress.x, LAMBDA) - first) / (best - first))

    found = leaders.optimize(
        copies, leader, follower, ITERATIONS, seed=seed, x0=x0, contexts="all", evaluate_every=1, callback=watch, progress=False
    )
    return {
        "seed": seed,
        "x0": x0.tolist(),
        "x": found.x.tolist(),
        "shares": shares,
        "share": shares[-1],
        "least": min(shares[-(ITERATIONS // 5) :]),
        "env_steps": int(found.env_steps),
        "follower_training_steps": int(found.history["follower_training_steps"][-1]),
        "seconds": found.seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="one run each")
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    args = parser.parse_args(arguments)
    with ProcessPoolExecutor(args.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        runs = list(pool.map(run, args.seeds))
    settings = {"lambda": LAMBDA, "iterations": ITERATIONS, "learning_rate": LEARNING_RATE, "critic_steps": CRITIC_STEPS}
    settings |= {"follower_steps": FOLLOWER_STEPS, "soft_dqn": SOFT_DQN}
    store("tax_design_learner", {"settings": settings, "runs": runs})


if __name__ == "__main__":
    main()
