"""Has anything become slower? A short list of ratios, all of this run, beside the stored ones.

    python -m benchmarks.check            # or make bench-check: print what moved by more than a quarter
    python -m benchmarks.check --store    # make these the stored ones: results/check.json

Only ratios of processor times measured in one process count, each the best of several rounds, so that another machine, or a busy
one, says nearly the same. Times as such are not judged, and nothing here belongs to the tests.
"""

from __future__ import annotations

import json
import warnings
from argparse import ArgumentParser
from collections.abc import Callable
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
import leaders
from benchmarks.common import RESULTS, lu_solve, store
from benchmarks.peers import discrete_dp, four_rooms
from bocmdp_gym.errors import CriticWarning

#: What may change without a word.
TOLERANCE = 0.25
ROUNDS, ITERATIONS = 5, 400


def processor_seconds(call: Callable[[], Any], inner: int = 1) -> float:
    """Processor seconds of one call: the mean of ``inner`` of them."""
    began = process_time()
    for _ in range(inner):
        call()
    return (process_time() - began) / inner


def run(leader: leaders.Leader) -> Callable[[], Any]:
    """A short run on Four-Rooms."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    follower = followers.SoftPolicyIteration(1e-3)
    return lambda: leaders.optimize(env, leader, follower, ITERATIONS, seed=0, progress=False)


def sampling() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """10,000 steps of the compiled sampler, and the critic's estimate from as many."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(1e-3))
    rng = np.random.default_rng(0)
    x = torch.from_numpy(bocmdp_gym.configurable(env).initial_leader(rng))
    policy = oracle.respond(x, 0, rng)
    critic = leaders.HPGD(learning_rate=0.5, estimator="critic").estimator
    critic.bind(oracle)
    return lambda: oracle.sample(policy, 10_000, rng), lambda: critic.estimate(oracle, x, 0, rng)


def equilibrium() -> Callable[[], Any]:
    """The equilibrium of the default city and its hypergradient."""
    core = bocmdp_gym.configurable(gym.make("bocmdp/RoadTolls-v0"))
    population = core.population
    x = torch.zeros(population.leader_dim, dtype=torch.float64)
    counter = iter(range(1, 1_000_000))

    def solve() -> None:
        moved = (x + 1e-6 * next(counter)).requires_grad_()  # no two alike: none is remembered
        population.leader_return(moved, core.regularization).backward()

    return solve


def measure() -> dict[str, float]:
    """All ratios: the smallest of their rounds, numerator and yardstick side by side in each."""
    lu = (lu_solve(), 300)
    sample, critic = sampling()
    model = four_rooms(1000)
    x = torch.zeros(model.leader_dim, dtype=torch.float64)
    peer = discrete_dp(model, x)
    pairs: dict[str, tuple[tuple[Callable[[], Any], int], tuple[Callable[[], Any], int], float]] = {
        "HPGD, LU per iteration": ((run(leaders.HPGD(learning_rate=0.5)), 1), lu, 1.0 / ITERATIONS),
        "ExactGradient, LU per iteration": ((run(leaders.ExactGradient(learning_rate=1.0)), 1), lu, 1.0 / ITERATIONS),
        "ZeroOrder, LU per iteration": ((run(leaders.ZeroOrder(learning_rate=0.5)), 1), lu, 1.0 / ITERATIONS),
        "HPGD td, 100 steps, LU per iteration": (
            (run(leaders.HPGD(learning_rate=0.1, estimator="td", env_steps=100)), 1),
            lu,
            1.0 / ITERATIONS,
        ),
        "sampler, LU per 10,000 steps": ((sample, 50), lu, 1.0),
        "critic / plain sampling": ((critic, 10), (sample, 50), 1.0),
        "soft solve / quantecon, 1,000 states": (
            (lambda: model.solve(x, regularization=0.01), 3),
            (lambda: peer.solve(method="policy_iteration"), 3),
            1.0,
        ),
        "equilibrium and hypergradient of a city, LU": ((equilibrium(), 2), lu, 1.0),
    }
    best = dict.fromkeys(pairs, float("inf"))
    for call, _ in {id(pair): one for pair in pairs.values() for one in pair[:2]}.values():
        call()  # compiles
    for _ in range(ROUNDS):
        for name, ((call, inner), (yardstick, often), factor) in pairs.items():
            best[name] = min(best[name], factor * processor_seconds(call, inner) / processor_seconds(yardstick, often))
    return {name: round(value, 3) for name, value in best.items()}


def main() -> None:
    """Measure, and store or compare."""
    parser = ArgumentParser("python -m benchmarks.check", description="Ratios of times beside the stored ones.")
    parser.add_argument("--store", action="store_true", help="make these the stored ones")
    stores = parser.parse_args().store
    warnings.simplefilter("ignore", CriticWarning)  # the critic's time counts here, not its values
    torch.set_num_threads(1)
    path = RESULTS / "check.json"
    ratios = measure()
    if stores or not path.exists():
        store("check", ratios)
        return
    stored: dict[str, float] = json.loads(path.read_text())["results"]
    for name, value in ratios.items():
        before = stored.get(name)
        change = "" if before is None else f"{value / before - 1.0:+.0%}"
        moved = "" if before is not None and abs(value / before - 1.0) <= TOLERANCE else "   <- moved"
        print(f"{name:45} {value:10.3f}  stored {before if before is not None else 'none':>10}  {change}{moved}")


if __name__ == "__main__":
    main()
