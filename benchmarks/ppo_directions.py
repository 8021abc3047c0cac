"""Directions of gradients with PPO as the follower, beside finite differences of PPOs trained anew.

A shop of `bocmdp/Inventory-v0` learns by PPO from scratch. Its true response to a change of x is that of the policies that PPO
ends with: central differences of the leader's return under policies trained at x +- a step, `TRAINED` pairs with a seed each, the
return being exact on the environment's grid. Beside them stand estimates from trajectories of PPOs with other seeds, `ESTIMATES`
at each point, each with a PPO of its own:

- HPGD with the critic, at the lambda that the policy's returns tell (`followers.estimate_regularization`);
- HPGD with the critic at the entropy bonus that PPO was given, which is not quite a lambda.

Directions are compared in units in which x is changed (`STEPS`). ``python -m benchmarks.ppo_directions`` stores
``results/ppo_directions.json``; points are kept as they are done, and a run that was stopped goes on.
"""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

import followers
from benchmarks.common import RESULTS, store
from bocmdp_gym.envs import Inventory
from followers.evaluation import evaluate
from leaders.gradients import CriticEstimator

POINTS = ((1.3, 0.2, 0.4), (1.8, 0.4, 1.5), (2.3, 0.2, 0.6))
STEPS = np.array([0.2, 0.15, 0.4])
BONUS, TRAINING = 0.1, 12_288
TRAINED, ESTIMATES, ESTIMATE_STEPS = 3, 6, 10_000
Array = npt.NDArray[np.float64]


def environment() -> gym.Env[Any, Any]:
    """One kind of shop."""
    return gym.make("bocmdp/Inventory-v0", demands=[0.9], prices=[3.0])


def ppo() -> followers.SB3Follower:
    """A PPO that begins afresh for every answer."""
    return followers.SB3Follower(
        "PPO",
        TRAINING,
        warm_start=False,
        n_steps=512,
        batch_size=64,
        learning_rate=1e-3,
        ent_coef=BONUS,
        gae_lambda=0.9,
        policy_kwargs={"net_arch": [32]},
    )


def answer(x: Array, seed: int) -> tuple[followers.TrajectoryOracle, followers.Policy]:
    """What PPO ends with at x."""
    oracle = followers.TrajectoryOracle(environment(), ppo())
    return oracle, oracle.respond(x, 0, np.random.default_rng(seed))


def leader_return(policy: followers.Policy) -> float:
    """The leader's return, exact on the grid."""
    model = Inventory(demands=[0.9], prices=[3.0]).model
    arrays = model.configure(torch.tensor(policy.leader)).arrays(0)
    table = policy.probabilities_batch(np.asarray(model.grid)[:, None])
    values = evaluate(arrays, table, arrays.leader_reward, arrays.leader_continuation).value
    return float(arrays.initial @ values)


def differences(x: Array) -> tuple[Array, Array]:
    """Central differences in units of `STEPS`, and their standard errors."""
    pairs = np.zeros((TRAINED, len(x)))
    for seed in range(TRAINED):
        for i in range(len(x)):
            sides = []
            for sign in (1.0, -1.0):
                moved = x.copy()
                moved[i] += sign * STEPS[i]
                sides.append(leader_return(answer(moved, seed)[1]))
            pairs[seed, i] = (sides[0] - sides[1]) / 2.0
    return pairs.mean(0), pairs.std(0, ddof=1) / TRAINED**0.5


def estimates(x: Array) -> list[dict[str, Any]]:
    """Of PPOs with other seeds, in units of `STEPS`."""
    found = []
    for seed in range(100, 100 + ESTIMATES):
        oracle, policy = answer(x, seed)
        rng = np.random.default_rng(seed)
        told = followers.estimate_regularization(oracle, policy, env_steps=ESTIMATE_STEPS, rng=rng)
        one: dict[str, Any] = {"lambda": told.regularization, "lambda_error": told.standard_error}
        for name, regularization in (("told", told.regularization), ("bonus", BONUS)):
            estimator = CriticEstimator(ESTIMATE_STEPS, regularization=regularization)
            estimator.bind(oracle)
            gradient = estimator.estimate_policy(oracle, policy, torch.tensor(x), 0, rng).gradient
            one[name] = (gradient.numpy() * STEPS).tolist()
        found.append(one)
    return found


def cosine(a: Array, b: Array) -> float:
    """Of the angle between two directions."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def point(x: Array) -> dict[str, Any]:
    """One point's differences, estimates and cosines."""
    expected, errors = differences(x)
    found = estimates(x)
    cosines = {name: [cosine(np.array(one[name]), expected) for one in found] for name in ("told", "bonus")}
    soft = torch.tensor(x, requires_grad=True)
    Inventory(demands=[0.9], prices=[3.0]).model.leader_return(soft, BONUS).backward()
    assert soft.grad is not None
    return {
        "x": x.tolist(),
        "differences": expected.tolist(),
        "standard_errors": errors.tolist(),
        "exact gradient of a soft-optimal shop": (soft.grad.numpy() * STEPS).tolist(),
        "estimates": found,
        "cosines": cosines,
    }


def main() -> None:
    torch.set_num_threads(1)
    path = RESULTS / "ppo_directions.json"
    done = json.loads(path.read_text())["results"]["points"] if path.exists() else []
    for x in POINTS[len(done) :]:
        done.append(point(np.array(x)))
        store("ppo_directions", {"training": TRAINING, "trained": TRAINED, "points": done})


if __name__ == "__main__":
    main()
