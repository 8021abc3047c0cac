from __future__ import annotations

import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import TabularEnv, errors
from leaders import Constraint
from tests.problems import four_rooms, random_model


def _follower_values(env: object, x: torch.Tensor, regularization: float) -> np.ndarray:
    """The follower's expected discounted reward per context."""
    model = bocmdp_gym.configurable(env).model  # type: ignore[arg-type]
    policy = model.solve(x, regularization).policy
    return model.replace(leader_reward=lambda z: model.part("reward", z)).configure(x).policy_return(policy).numpy()


@pytest.mark.parametrize(
    ("leader", "tolerance"),
    [(leaders.ExactGradient(learning_rate=0.03), 0.02), (leaders.HPGD(learning_rate=0.03, env_steps=3000), 0.1)],
)
def test_a_participation_level_is_kept(leader: leaders.Leader, tolerance: float) -> None:
    model = random_model(1, moving=("reward", "leader_reward"), leader_discount=None)
    env, follower = TabularEnv(model), followers.SoftPolicyIteration(0.5)
    free = leaders.optimize(env, leader, follower, 400, seed=0, contexts="all")
    values = _follower_values(env, free.x, 0.5)
    level = float(values.min()) + 0.5
    constraint = Constraint("participation", "follower", level)
    kept = leaders.optimize(env, leader, follower, 800, seed=0, contexts="all", constraints=[constraint])
    assert values.min() < level - 0.4
    assert _follower_values(env, kept.x, 0.5).min() > level - tolerance
    assert kept.leader_return == pytest.approx(float(model.leader_return(kept.x, 0.5)))  # without the multipliers
    assert kept.history["slack_participation"][0] == pytest.approx(_follower_values(env, kept.x0, 0.5).min() - level)


def test_the_optimum_of_a_constrained_quadratic() -> None:
    """One state, one action: F = x - x^2 with x <= 0.2, so x* = 0.2 and the multiplier is F'(0.2) = 0.6 (discount 0)."""
    model = bocmdp_gym.TabularBOCMDP(
        reward=np.zeros((1, 1, 1)),
        leader_reward=lambda x: (x - x**2).reshape(1, 1, 1),
        transition=np.ones((1, 1, 1, 1)),
        initial=np.ones(1),
        discount=0.0,
        leader_dim=1,
    )
    result = leaders.optimize(
        TabularEnv(model),
        leaders.ExactGradient(learning_rate=0.02, max_gradient_norm=None),
        followers.SoftPolicyIteration(1.0),
        3000,
        constraints=[Constraint("spending", lambda x: -x.reshape(1, 1, 1), -0.2, per_context=False)],
    )
    assert float(result.x) == pytest.approx(0.2, abs=1e-6)
    assert result.history["multiplier_spending"][-1] == pytest.approx(0.6, abs=1e-5)
    assert result.history["slack_spending"][-1] == pytest.approx(0.0, abs=1e-6)


def test_a_slack_constraint_changes_nothing() -> None:
    model, follower = random_model(1), followers.SoftPolicyIteration(0.5)
    leader = leaders.ExactGradient(learning_rate=0.05)
    plain = leaders.optimize(model, leader, follower, 20, seed=3)
    slack = leaders.optimize(TabularEnv(model), leader, follower, 20, seed=3, constraints=[Constraint("p", "follower", -1e6)])
    torch.testing.assert_close(plain.x, slack.x, rtol=1e-12, atol=1e-12)


def test_bad_constraints_are_refused() -> None:
    env, follower, leader = four_rooms(), followers.SoftPolicyIteration(0.01), leaders.ExactGradient()
    with pytest.raises(errors.OptionError, match="unknown outcome"):
        leaders.optimize(env, leader, follower, 1, constraints=[Constraint("p", "folower", 0.0)])
    with pytest.raises(errors.OptionError, match="different ones"):
        leaders.optimize(env, leader, follower, 1, constraints=[Constraint("p", "follower", 0.0)] * 2)
    with pytest.raises(errors.ModelError, match="leader_reward has shape"):
        leaders.optimize(env, leader, follower, 1, constraints=[Constraint("p", np.zeros((3, 3)), 0.0)])
    with pytest.raises(errors.OptionError, match="write them into the loss"):
        leaders.optimize(env, leader, follower, 1, loss=lambda x, p, c: x.sum(), constraints=[Constraint("p", "follower", 0.0)])
