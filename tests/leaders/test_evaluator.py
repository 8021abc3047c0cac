from __future__ import annotations

import numpy as np
import pytest
import torch

import followers
import leaders
from leaders.evaluator import Evaluator
from tests.problems import four_rooms, random_model


def _follower(regularization: float = 1e-3) -> followers.SoftPolicyIteration:
    return followers.SoftPolicyIteration(regularization=regularization)


def test_evaluation_does_not_change_the_run() -> None:
    env = four_rooms()
    often = leaders.optimize(env, leaders.HPGD(env_steps=1000), _follower(), 30, seed=1, evaluate_every=1)
    seldom = leaders.optimize(env, leaders.HPGD(env_steps=1000), _follower(), 30, seed=1, evaluate_every=30)
    assert torch.equal(often.x, seldom.x)


def test_the_value_is_that_of_the_model() -> None:
    model, x = random_model(3), torch.linspace(-0.3, 0.4, 5, dtype=torch.float64)
    evaluator = Evaluator(followers.TrajectoryOracle(model, _follower(0.5)), 0.5)
    assert evaluator(x) == pytest.approx(float(model.leader_return(x, 0.5)), rel=1e-9)


def test_a_loss_is_averaged_over_contexts_with_a_minus() -> None:
    model, x = random_model(3), torch.linspace(-0.3, 0.4, 5, dtype=torch.float64)
    oracle = followers.TrajectoryOracle(model, _follower(0.5))
    evaluator = Evaluator(oracle, 0.5, lambda x, policy, context: x.sum() + (1 + context) * policy.square().sum())
    policies = model.solve(x, 0.5).policy
    each = [x.sum() + (1 + c) * policy.square().sum() for c, policy in enumerate(policies)]
    assert evaluator(x) == pytest.approx(-float(torch.stack(each) @ torch.from_numpy(model.context_probabilities)), rel=1e-8)


def test_the_optimum_has_no_suboptimality() -> None:
    oracle = followers.TrajectoryOracle(random_model(3), _follower(0.5))
    policy = oracle.respond(np.zeros(5), 0, np.random.default_rng(0))
    found = Evaluator(oracle, 0.5).suboptimality(policy)
    assert found["follower_delta"] == pytest.approx(0.0, abs=1e-8)
    assert found["follower_value_gap"] == pytest.approx(0.0, abs=1e-8)
