from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import leaders
from bocmdp_gym import TabularBOCMDP, errors
from followers import SoftPolicyIteration, TrajectoryOracle
from leaders.gradients import Estimate, Estimator, ExactEstimator, GeometricEstimator
from leaders.gradients.estimate import combine_groups
from tests.leaders.gradients.geometric_reference import Formula, loss_gradients, return_gradients
from tests.problems import F64, four_rooms, random_model, random_x

EVERYTHING = ("reward", "leader_reward", "transition", "initial", "termination")


def _estimates(
    model: TabularBOCMDP, x: Tensor, estimator: Estimator, loss: Any = None, regularization: float = 1.0
) -> tuple[Estimate, Estimate]:
    """A stochastic estimate in the last context, and the exact one."""
    oracle = TrajectoryOracle(model, SoftPolicyIteration(regularization))
    exact = ExactEstimator()
    rng = np.random.default_rng(0)
    both = []
    for one in (estimator, exact):
        one.bind(oracle, loss)
        both.append(one.estimate(oracle, x, model.n_contexts - 1, rng))
    return both[0], both[1]


def _deviation(estimate: Estimate, exact: Estimate) -> float:
    """Largest error of a coordinate, in its standard errors (an error without any spread is infinitely many)."""
    assert estimate.standard_error is not None
    error = (estimate.gradient - exact.gradient).abs()
    return float(torch.where(error > 1e-12, error / estimate.standard_error, 0.0).max())


@pytest.mark.parametrize(("discount", "leader_discount"), [(0.5, 0.7), (0.7, 0.5)])
@pytest.mark.parametrize("terminating", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_mean_is_the_exact_gradient(seed: int, terminating: bool, discount: float, leader_discount: float) -> None:
    moving = EVERYTHING if terminating else EVERYTHING[:4]
    model = random_model(
        seed, states=4, dim=3, discount=discount, leader_discount=leader_discount, terminating=terminating, moving=moving
    )
    estimate, exact = _estimates(model, random_x(3), GeometricEstimator(500_000, error_groups=40))
    assert estimate.standard_error is not None
    assert float(estimate.standard_error.max() / exact.gradient.abs().max()) < 0.02
    assert _deviation(estimate, exact) < 4
    assert estimate.leader_return == pytest.approx(exact.leader_return, abs=0.02)


@pytest.mark.parametrize(
    ("part", "samples"),
    [
        ("reward", 500_000),
        ("leader_reward", 200_000),
        ("transition", 2_000_000),
        ("initial", 300_000),
        ("termination", 800_000),
    ],
)
def test_each_term_alone(part: str, samples: int) -> None:
    model = random_model(2, contexts=1, states=4, dim=3, discount=0.5, leader_discount=0.7, moving=(part,), strength=1.0)
    estimate, exact = _estimates(model, random_x(3), GeometricEstimator(samples, error_groups=40))
    assert estimate.standard_error is not None
    assert float(estimate.standard_error.max() / exact.gradient.abs().max()) < 0.02
    assert _deviation(estimate, exact) < 4


@pytest.mark.parametrize("successors", [None, 3])
def test_a_general_loss(successors: int | None) -> None:
    model = random_model(0, states=4, dim=3, discount=0.5, successors=successors, moving=EVERYTHING)
    coefficients = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)

    def loss(x: Tensor, policy: Tensor, context: int) -> Tensor:
        return context * (coefficients * policy**2).sum() + (x**3).sum()

    estimator = GeometricEstimator(500_000, sampling_distribution=[0.1, 0.2, 0.3, 0.4], error_groups=40)
    estimate, exact = _estimates(model, random_x(3), estimator, loss)
    assert estimate.standard_error is not None
    assert float(estimate.standard_error.max() / exact.gradient.abs().max()) < 0.02
    assert _deviation(estimate, exact) < 4
    assert estimate.leader_return == exact.leader_return


# ------------------------------------------------------------------------------------------------ planted errors


def _fork(leader_discount: float = 0.7) -> TabularBOCMDP:
    """State 0 forks into two states that are hard to leave, so every factor of the formula counts.

    Each coordinate of x moves one part alone: r(0, 0), rbar, P(.|0, 0), mu. The two states differ in reward and entropy.
    """

    def tensor(values: Any) -> Tensor:
        return torch.tensor(values, dtype=F64)

    first = tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    left, stay = tensor([0.0, 1.0, 0.0]), tensor([[[0.05, 0.95, 0.0]] * 2, [[0.05, 0.0, 0.95]] * 2])
    second = tensor([0.0, 0.27, 0.73])

    def transition(x: Tensor) -> Tensor:
        p = torch.sigmoid(1.0 + x[2])
        fork = torch.stack([p * left + (1 - p) * left.flip(-1).roll(1), second])
        return torch.cat([fork.unsqueeze(0), stay]).unsqueeze(0)

    return TabularBOCMDP(
        reward=lambda x: (tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, -3.0]]) + x[0] * first).unsqueeze(0),
        leader_reward=lambda x: tensor([0.0, 1.0, -1.0]).reshape(1, 3, 1) * (1.0 + x[1]),
        transition=transition,
        initial=lambda x: torch.softmax(tensor([2.0, 0.0, 0.0]) + tensor([0.0, 1.0, -1.0]) * x[3], 0),
        termination=tensor([[0.1, 0.1, 0.0]]),
        leader_dim=4,
        discount=0.5,
        leader_discount=leader_discount,
    )


_SIGNS = ("q", "v", "reward", "transition", "entropy", "leader_reward", "advantage", "leader_transition", "initial")
_OF_GRADEST = ("q", "v", "reward", "transition", "entropy", "horizon", "reach", "tail_horizon", "tail")
#: Plausible wrong values of every sign and exponent.
_PLANTED = [
    (name, wrong)
    for name, value in Formula._field_defaults.items()
    for wrong in ([-value] if name in _SIGNS else [value / 2, 2 * value])
]
_NU, _GROUPS = np.array([0.9, 0.05, 0.05]), 40


def _first_probability(x: Tensor, policy: Tensor, context: int) -> Tensor:
    return policy[0, 0]


@pytest.mark.parametrize("loss", [None, _first_probability])
def test_the_fork_is_unbiased(loss: Any) -> None:
    estimator = GeometricEstimator(500_000 if loss else 200_000, _NU if loss else None, error_groups=_GROUPS)
    estimate, exact = _estimates(_fork(), torch.zeros(4, dtype=F64), estimator, loss)
    assert _deviation(estimate, exact) < 4


def _reference(formula: Formula, loss: bool) -> tuple[Estimate, Estimate]:
    """The literal reading's estimate on the fork, and the exact one."""
    model, x = _fork(), torch.zeros(4, dtype=F64)
    _, exact = _estimates(model, x, ExactEstimator(), _first_probability if loss else None)
    mdps = model.configure(x.clone().requires_grad_())
    policy, rng = model.solve(x, 1.0).policy[0].numpy(), np.random.default_rng(0)
    if loss:
        sensitivity = np.zeros(policy.shape)
        sensitivity[0, 0] = 1.0
        gradients = -loss_gradients(mdps, policy, sensitivity, _NU, 1.0, 500_000, _GROUPS, rng, formula)
    else:
        gradients = return_gradients(mdps, policy, 1.0, 200_000, _GROUPS, rng, formula)
    gradient, error = combine_groups(list(gradients), [1] * _GROUPS)
    return Estimate(gradient, 0.0, standard_error=error), exact


@pytest.mark.parametrize("loss", [False, True])
def test_a_literal_reading_is_unbiased(loss: bool) -> None:
    assert _deviation(*_reference(Formula(), loss)) < 4


@pytest.mark.parametrize(("name", "value"), _PLANTED)
def test_the_fork_shows_every_planted_error(name: str, value: float) -> None:
    loss = name in _OF_GRADEST  # Alg. 1 shows GradEst without the noise of the leader's return
    assert _deviation(*_reference(Formula(**{name: value}), loss)) > 8


# ------------------------------------------------------------------------------------------------------- behaviour


def test_standard_errors_are_those_of_repeats() -> None:
    model = random_model(0, states=4, dim=3, discount=0.5, moving=EVERYTHING)
    oracle = TrajectoryOracle(model, SoftPolicyIteration(1.0))
    estimator = GeometricEstimator(4000, error_groups=20)
    estimator.bind(oracle)
    rng = np.random.default_rng(0)
    estimates = [estimator.estimate(oracle, random_x(3), 0, rng) for _ in range(300)]
    spread = torch.stack([e.gradient for e in estimates]).std(0)
    reported = torch.stack([e.standard_error for e in estimates if e.standard_error is not None]).square().mean(0).sqrt()
    torch.testing.assert_close(reported, spread, rtol=0.15, atol=0.0)
    assert oracle.env_steps == sum(e.env_steps for e in estimates) == 0
    assert min(e.model_draws for e in estimates) > 4000


def test_draws_from_the_model_have_a_column_of_their_own() -> None:
    model = random_model(0, states=4, dim=3, discount=0.5)
    leader = leaders.HPGD(0.05, estimator="geometric", samples=200)
    history = leaders.optimize(model, leader, SoftPolicyIteration(1.0), 5, contexts=2).history
    assert (history["env_steps"] == 0).all()
    assert (np.diff(history["model_draws"], prepend=0) > 2 * 200).all()


def test_equal_seeds_equal_bits() -> None:
    model = random_model(0, discount=0.6, moving=EVERYTHING)
    leader = leaders.HPGD(learning_rate=0.1, estimator="geometric", samples=500)
    runs = [leaders.optimize(model, leader, SoftPolicyIteration(1.0), 10, seed=3) for _ in range(2)]
    assert torch.equal(runs[0].x, runs[1].x)


def test_hpgd_with_the_geometric_estimator_improves_the_leader() -> None:
    model = random_model(0, discount=0.6, moving=EVERYTHING)
    leader = leaders.HPGD(learning_rate=0.05, estimator="geometric", samples=5000)
    result = leaders.optimize(model, leader, SoftPolicyIteration(1.0), 100, x0=np.zeros(5))
    assert result.leader_return is not None
    assert result.leader_return > result.history["leader_return"][0] + 0.1


@pytest.mark.parametrize("leader", [leaders.ExactGradient(0.5), leaders.HPGD(0.2, estimator="geometric", samples=20_000)])
def test_quadratic_loss_reaches_its_closed_form(leader: leaders.Leader) -> None:
    """f = |x|^2/2 + sum pi^2/2, r linear in x: the optimum is x = 0, pi uniform, f = S / (2 A)."""
    states, actions, dim = 5, 3, 4
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(1, states, actions, dim, generator=generator, dtype=F64)
    model = TabularBOCMDP(
        reward=lambda x: slope @ x,
        leader_reward=torch.zeros(1, 1, 1),
        transition=torch.softmax(torch.randn(1, states, actions, states, generator=generator, dtype=F64), -1),
        initial=torch.full((states,), 1.0 / states, dtype=F64),
        leader_dim=dim,
        discount=0.7,
    )
    result = leaders.optimize(
        model,
        leader,
        SoftPolicyIteration(1.0),
        60,
        x0=np.ones(dim),
        loss=lambda x, policy, context: (x**2).sum() / 2 + (policy**2).sum() / 2,
    )
    assert result.leader_return == pytest.approx(-states / (2 * actions), abs=1e-3)
    assert -result.history["leader_return"][0] > states / (2 * actions) + 1.0


def test_what_cannot_work_is_refused() -> None:
    follower = SoftPolicyIteration(1.0)
    undiscounted = random_model(0, leader_discount=1.0)
    with pytest.raises(errors.DiscountError, match=r'discounts below 1.*estimator="monte_carlo"'):
        leaders.optimize(undiscounted, leaders.HPGD(estimator="geometric"), follower, 5)
    with pytest.raises(errors.OptionError, match=r"sampling_distribution \(nu\) belongs to general losses"):
        leaders.optimize(random_model(0), leaders.HPGD(estimator="geometric", sampling_distribution=[1.0]), follower, 5)
    with pytest.raises(errors.OptionError, match="positive everywhere"):
        leaders.optimize(
            random_model(0),
            leaders.HPGD(estimator="geometric", sampling_distribution=[1.0] + [0.0] * 8),
            follower,
            5,
            loss=lambda x, policy, context: x.sum(),
        )
    with pytest.raises(errors.OptionError, match="samples is 0"):
        GeometricEstimator(0)
    with pytest.raises(errors.OptionError, match="error_groups is 1"):
        GeometricEstimator(10, error_groups=1)
    with pytest.raises(errors.OptionError, match="samples is an option of estimator='geometric'"):
        leaders.HPGD(samples=10)


def test_standard_errors_hold_on_four_rooms() -> None:
    oracle = TrajectoryOracle(four_rooms(), SoftPolicyIteration(0.01))
    estimator = GeometricEstimator(5000, error_groups=20)
    estimator.bind(oracle)
    rng, x = np.random.default_rng(0), torch.zeros(105, dtype=torch.float64)
    estimates = [estimator.estimate(oracle, x, 0, rng) for _ in range(100)]
    spread = torch.stack([e.gradient for e in estimates]).std(0)
    reported = torch.stack([e.standard_error for e in estimates if e.standard_error is not None]).square().mean(0).sqrt()
    assert float(reported.norm() / spread.norm()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("rewards", ["reward", "leader_reward"])
def test_a_constant_added_to_rewards_changes_no_estimate_where_nothing_ends(rewards: str) -> None:
    gradients = []
    for constant in (0.0, 100.0):
        model = random_model(0, states=4, dim=3, terminating=False, moving=("transition", "initial"), discount=0.7)
        shifted = model.replace(**{rewards: model.part(rewards, random_x(3)) + constant})
        gradients.append(_estimates(shifted, random_x(3), GeometricEstimator(1000))[0].gradient)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
