from __future__ import annotations

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from leaders.gradients import AdaptiveModelDesignEstimator, ExactEstimator
from leaders.gradients.adaptive_model_design import _PATH_NUMBERS
from tests.problems import F64, four_rooms, random_model, random_x, relative_error

EVERYTHING = ("reward", "leader_reward", "transition", "initial", "termination")
NO_RNG = np.random.default_rng(0)


@pytest.mark.parametrize("moving", [EVERYTHING, *((name,) for name in EVERYTHING)])
@pytest.mark.parametrize("successors", [None, 3])
def test_converged_sweeps_give_the_exact_gradient(moving: tuple[str, ...], successors: int | None) -> None:
    """Also where d is no multiple of the block of coordinates swept together, and gamma_L is not gamma."""
    model = random_model(0, successors=successors, moving=moving, dim=70)
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.3))
    x = random_x(70, scale=0.1)
    amd, exact = AdaptiveModelDesignEstimator(400), ExactEstimator()
    amd.bind(oracle)
    exact.bind(oracle)
    for context in range(model.n_contexts):
        estimate, truth = amd.estimate(oracle, x, context, NO_RNG), exact.estimate(oracle, x, context, NO_RNG)
        assert relative_error(estimate.gradient, truth.gradient) < 1e-6
        assert estimate.leader_return == pytest.approx(truth.leader_return, abs=1e-8)


@pytest.mark.parametrize("regularization", [0.001, 0.005])
def test_converged_sweeps_give_the_exact_gradient_on_four_rooms(regularization: float) -> None:
    oracle = followers.TrajectoryOracle(four_rooms(), followers.SoftPolicyIteration(regularization))
    x = random_x(105, scale=1.0)
    amd, exact = AdaptiveModelDesignEstimator(3000), ExactEstimator()
    amd.bind(oracle)
    exact.bind(oracle)
    for context in range(2):
        estimate, truth = amd.estimate(oracle, x, context, NO_RNG), exact.estimate(oracle, x, context, NO_RNG)
        assert relative_error(estimate.gradient, truth.gradient) < 1e-6
        assert estimate.metrics["follower_residual"] < 1e-10


def _literally(model, x: torch.Tensor, context: int, regularization: float, sweeps: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Algorithm 7 from zero, as printed (corrected), in dense torch arrays."""
    mdps = model.configure(x)
    jacobian = {name: part[min(context, len(part) - 1)] for name, part in model.jacobians(x).items()}
    p, r, rbar = mdps.transition.values[context], mdps.reward[context], mdps.leader_reward[context]
    g, g_leader = mdps.continuation[context][..., None], mdps.leader_continuation[context][..., None]
    q, q_leader = torch.zeros_like(r), torch.zeros_like(r)
    dq, q_tilde = (torch.zeros(*r.shape, model.leader_dim, dtype=F64) for _ in range(2))
    for _ in range(sweeps):
        pi = torch.softmax(q / regularization, -1)
        v, v_leader = regularization * torch.logsumexp(q / regularization, -1), (pi * q_leader).sum(-1)
        dv, v_tilde = (pi[..., None] * dq).sum(1), (pi[..., None] * q_tilde).sum(1)
        advantage, d_advantage = q_leader - v_leader[:, None], dq - dv[:, None]
        q = r + g[..., 0] * (p @ v)
        dq = jacobian["reward"] + g * (p @ dv + torch.einsum("satd,t->sad", jacobian["transition"], v))
        q_leader = rbar + g_leader[..., 0] * (p @ v_leader)
        q_tilde = (
            jacobian["leader_reward"]
            + advantage[..., None] * d_advantage / regularization
            + g_leader * (p @ v_tilde + torch.einsum("satd,t->sad", jacobian["transition"], v_leader))
        )
    pi = torch.softmax(q / regularization, -1)
    v_tilde, v_leader = (pi[..., None] * q_tilde).sum(1), (pi * q_leader).sum(-1)
    return mdps.initial[context] @ v_tilde + v_leader @ jacobian["initial"]


@pytest.mark.parametrize("sweeps", [1, 2, 7])
def test_a_few_sweeps_are_those_of_algorithm_7(sweeps: int) -> None:
    model = random_model(1, moving=EVERYTHING[:4])
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.3))
    amd, x = AdaptiveModelDesignEstimator(sweeps), random_x(5)
    amd.bind(oracle)
    for context in range(model.n_contexts):
        estimate = amd.estimate(oracle, x, context, NO_RNG)
        torch.testing.assert_close(estimate.gradient, _literally(model, x, context, 0.3, sweeps), rtol=1e-10, atol=1e-12)


def test_sweeps_go_on_from_the_last_x_in_every_context() -> None:
    model = random_model(2)
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.3))
    once, twice, x = AdaptiveModelDesignEstimator(20), AdaptiveModelDesignEstimator(10), random_x(5)
    once.bind(oracle)
    twice.bind(oracle)
    expected = [once.estimate(oracle, x, context, NO_RNG).gradient for context in range(3)]
    twice.estimate(oracle, x, 0, NO_RNG)  # sweeps all contexts
    assert not torch.allclose(twice.estimate(oracle, x, 1, NO_RNG).gradient, expected[1])  # from the same round
    torch.testing.assert_close(twice.estimate(oracle, x, 0, NO_RNG).gradient, expected[0])  # a second round
    torch.testing.assert_close(twice.estimate(oracle, x, 2, NO_RNG).gradient, expected[2])
    twice.bind(oracle)  # forgets
    assert not torch.allclose(twice.estimate(oracle, x, 0, NO_RNG).gradient, expected[0])


def test_many_sweeps_are_made_in_portions() -> None:
    model = random_model(3, contexts=1, states=40, actions=10, dim=2)
    sweeps = 3 * _PATH_NUMBERS // 400
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.3))
    amd, exact, x = AdaptiveModelDesignEstimator(sweeps), ExactEstimator(), random_x(2)
    amd.bind(oracle)
    exact.bind(oracle)
    error = relative_error(amd.estimate(oracle, x, 0, NO_RNG).gradient, exact.estimate(oracle, x, 0, NO_RNG).gradient)
    assert error < 1e-6


def test_the_leader_climbs_like_the_exact_gradient() -> None:
    follower = followers.SoftPolicyIteration(0.003)
    amd = leaders.optimize(four_rooms(), leaders.AMD(learning_rate=0.5), follower, 100, seed=0)
    exact = leaders.optimize(four_rooms(), leaders.ExactGradient(learning_rate=0.5), follower, 100, seed=0)
    assert amd.leader_return is not None
    assert amd.leader_return > amd.history["leader_return"][0] + 0.05
    assert amd.leader_return == pytest.approx(exact.leader_return, abs=0.05)
    again = leaders.optimize(four_rooms(), leaders.AMD(learning_rate=0.5), follower, 100, seed=0)
    assert torch.equal(amd.x, again.x)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(errors.OptionError, match="sweeps is 0"):
        leaders.AMD(sweeps=0)
    with pytest.raises(errors.UnsupportedError, match="use ExactGradient for losses"):
        leaders.optimize(
            random_model(0), leaders.AMD(), followers.SoftPolicyIteration(0.1), 5, loss=lambda x, policy, context: x.sum()
        )
    large = random_model(0, contexts=1, states=2, actions=2)
    large.leader_dim = 10**9
    estimator = AdaptiveModelDesignEstimator()
    oracle = followers.TrajectoryOracle(random_model(0), followers.SoftPolicyIteration(0.1))
    oracle.model = large
    with pytest.raises(errors.UnsupportedError, match=r"carry 4e\+09 numbers per context.*ExactGradient"):
        estimator.bind(oracle)
