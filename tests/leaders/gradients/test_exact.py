from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from leaders.gradients import ExactEstimator
from tests.problems import four_rooms, four_rooms_model, random_model, random_x

ALL = ("reward", "leader_reward", "transition", "initial", "termination")


@pytest.mark.parametrize("moving", [ALL, *((name,) for name in ALL)])
@pytest.mark.parametrize("leader_discount", [None, 0.7])
@pytest.mark.parametrize(("states", "successors"), [(9, None), (60, 3), (70, None)])
def test_weights_agree_with_automatic_differentiation(
    moving: tuple[str, ...], leader_discount: float | None, states: int, successors: int | None
) -> None:
    """Banded and dense solvers, each of the four sums (and termination) alone and together."""
    model = random_model(states, states=states, successors=successors, leader_discount=leader_discount, moving=moving)
    x = random_x(model.leader_dim)
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.2))
    estimator = ExactEstimator(tolerance=1e-14)
    estimator.bind(oracle)
    jacobian = torch.func.jacrev(lambda z: model.leader_return(z, 0.2, per_context=True, tolerance=1e-14))(x)
    returns = model.leader_return(x, 0.2, per_context=True)
    for context in range(model.n_contexts):
        estimate = estimator.estimate(oracle, x, context, np.random.default_rng(0))
        torch.testing.assert_close(estimate.gradient, jacobian[context], rtol=1e-9, atol=1e-10)
        assert estimate.leader_return == pytest.approx(float(returns[context]), abs=1e-9)


@pytest.mark.parametrize("regularization", [0.001, 0.005])
def test_weights_agree_on_four_rooms(regularization: float) -> None:
    oracle = followers.TrajectoryOracle(four_rooms(), followers.SoftPolicyIteration(regularization))
    model, x = four_rooms_model(), random_x(105, scale=1.0)
    estimator = ExactEstimator(tolerance=1e-14)
    estimator.bind(oracle)
    jacobian = torch.func.jacrev(lambda z: model.leader_return(z, regularization, per_context=True, tolerance=1e-14))(x)
    for context in range(2):
        estimate = estimator.estimate(oracle, x, context, np.random.default_rng(0))
        torch.testing.assert_close(estimate.gradient, jacobian[context], rtol=1e-7, atol=1e-9)


def test_loss_gradient_agrees_with_automatic_differentiation() -> None:
    model = random_model(3)
    x = random_x(model.leader_dim)
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.4))
    estimator = ExactEstimator(tolerance=1e-14)
    estimator.bind(oracle, lambda z, policy, context: (1 + context) * (policy**2).sum() * z[0] + z.sum())

    def per_context(z: torch.Tensor) -> torch.Tensor:
        policy = model.solve(z, 0.4, tolerance=1e-14).policy
        return torch.stack([(1 + c) * (policy[c] ** 2).sum() * z[0] + z.sum() for c in range(model.n_contexts)])

    jacobian = torch.func.jacrev(per_context)(x)
    for context in range(model.n_contexts):
        estimate = estimator.estimate(oracle, x, context, np.random.default_rng(0))
        torch.testing.assert_close(-estimate.gradient, jacobian[context], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x, policy, context: float(policy[0, 0].detach()), "by torch operations"),
        (lambda x, policy, context: policy.sum(0), "expected a torch scalar"),
        (lambda x, policy, context: None, "returned None"),
    ],
)
@pytest.mark.parametrize("leader", [leaders.ExactGradient(), leaders.HPGD(estimator="geometric")], ids=["exact", "geometric"])
def test_losses_that_have_no_gradient_are_refused(leader: leaders.Leader, loss: Any, message: str) -> None:
    with pytest.raises(errors.ModelError, match=message):
        leaders.optimize(random_model(3), leader, followers.SoftPolicyIteration(0.5), 1, loss=loss)
