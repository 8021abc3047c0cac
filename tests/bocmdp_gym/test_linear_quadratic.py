"""Linear-quadratic models: closed forms, the soft Bellman equation, derivatives, draws and densities, and refusals."""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from bocmdp_gym import LinearQuadraticBOCMDP, errors
from tests.problems import F64, finite_difference, linear_quadratic, relative_error

X = torch.tensor([0.3, -0.2], dtype=F64)


def scalar(**options: Any) -> LinearQuadraticBOCMDP:
    """s' = x s + b a + noise, costs q s^2 + r a^2, the leader's s^2 + a^2 / 2."""
    given: dict[str, Any] = {
        "state_matrix": lambda x: x.reshape(1, 1),
        "input_matrix": [[0.7]],
        "noise_covariance": [[0.09]],
        "cost": np.diag([2.0, 0.5]),
        "leader_cost": np.diag([1.0, 0.5]),
        "initial_covariance": [[4.0]],
        "leader_dim": 1,
        "discount": 0.9,
        "leader_discount": 0.8,
    }
    return LinearQuadraticBOCMDP(**(given | options))


@pytest.mark.parametrize("a", [0.0, 0.6, 1.1, -1.4])
def test_scalar_closed_form(a: float) -> None:
    """P is the positive root of g b^2 P^2 + (r (1 - g a^2) - g b^2 q) P - q r = 0, and all else follows by geometric series."""
    g, gl, b, q, r, lam, noise, start = 0.9, 0.8, 0.7, 2.0, 0.5, 0.3, 0.09, 4.0
    half = (r * (1 - g * a * a) - g * b * b * q) / (2 * g * b * b)
    p = -half + (half**2 + q * r / (g * b * b)) ** 0.5
    s = r + g * b * b * p
    k, spread = g * a * b * p / s, lam / (2 * s)
    value = (0.5 * lam * log(pi * lam / s) - g * p * noise) / (1 - g)
    model = scalar()
    found = model.solve([a], lam)
    assert found.value.item() == pytest.approx(p, rel=1e-12)
    assert found.gain.item() == pytest.approx(k, rel=1e-12, abs=1e-15)
    assert found.covariance.item() == pytest.approx(spread, rel=1e-12)
    assert found.constant.item() == pytest.approx(value, rel=1e-12)
    growth = gl * (a - b * k) ** 2
    pbar = (1.0 + 0.5 * k * k) / (1.0 - growth)
    expected = -pbar * start - (0.5 * spread + gl * pbar * (b * b * spread + noise)) / (1 - gl)
    assert float(model.leader_return([a], lam)) == pytest.approx(expected, rel=1e-12)


def test_soft_bellman_equation_by_quadrature() -> None:
    """V(s) = lambda log int exp(Q(s, a) / lambda) da, in a problem with costs of state and action together."""
    lam, model = 0.4, scalar(cost=[[2.0, 0.3], [0.3, 0.5]])
    solved = model.solve([1.1], lam)
    p, v, g = solved.value.item(), solved.constant.item(), model.discount

    def q(s: float, a: float) -> float:
        mean = 1.1 * s + 0.7 * a
        return -(2.0 * s * s + 0.6 * s * a + 0.5 * a * a) + g * (v - p * (mean * mean + 0.09))

    for s in (-1.0, 0.0, 2.0):
        best = q(s, -solved.gain.item() * s)
        total, _ = quad(lambda a, s=s, best=best: np.exp((q(s, a) - best) / lam), -20, 20, points=[-solved.gain.item() * s])
        assert best + lam * log(total) == pytest.approx(v - p * s * s, rel=1e-9)


def test_contexts_are_problems_of_their_own_and_average() -> None:
    model = linear_quadratic()
    each = model.leader_return(X, 0.2, per_context=True)
    assert each.shape == (2,)
    assert float(each[0]) != pytest.approx(float(each[1]))
    assert float(model.leader_return(X, 0.2)) == pytest.approx(0.25 * float(each[0]) + 0.75 * float(each[1]), rel=1e-14)
    batch = torch.stack([X, 0.5 * X, -X]).reshape(3, 1, 2)
    together = model.leader_return(batch, 0.2)
    assert together.shape == (3, 1)
    assert float(together[1, 0]) == float(model.leader_return(0.5 * X, 0.2))


PARTS = [
    "state_matrix", "input_matrix", "noise_covariance", "cost", "leader_cost", "leader_bonus", "initial_mean",
    "initial_covariance",
]  # fmt: skip


@pytest.mark.parametrize("moving", [None, *PARTS])
def test_derivative_of_the_return(moving: str | None) -> None:
    model = linear_quadratic(None if moving is None else (moving,))

    def value(x: torch.Tensor) -> torch.Tensor:
        return model.leader_return(x, 0.2)

    z = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(z), z)
    assert float(gradient.norm()) > 0.0
    assert relative_error(gradient, finite_difference(value, X)) < 1e-6


def test_leader_share_pays_the_follower() -> None:
    """One without costs of its own, and all of the leader's: its value at the start is the leader's return, and entropy."""
    model = scalar(cost=np.diag([1e-9, 1e-9]), leader_bonus=lambda x: x.sum(), leader_discount=0.9)
    answer = model.best_response([0.8], 0.2, leader_share=1.0)
    entropy = 0.5 * log(2 * pi * np.e * answer.covariance.item()) * 0.2 / (1 - 0.9)
    own = answer.constant.item() - 4.0 * answer.value.item()
    paid = float(model.context_return([0.8], 0.2, 0, leader_share=1.0))
    assert own == pytest.approx(paid + entropy, rel=1e-6)
    assert paid > float(model.context_return([0.8], 0.2, 0))


def test_points_agree_with_the_matrices() -> None:
    model, rng, context = linear_quadratic(), np.random.default_rng(0), 1
    states, following = rng.standard_normal((2, 6, 3))
    actions = rng.standard_normal((6, 2))
    parts = [part.numpy() for part in model.parts(X, context)]
    a, b, noise, cost, leader_cost, bonus, mean, start = parts
    joint = np.concatenate([states, actions], -1)
    np.testing.assert_allclose(model.rewards(X, states, actions, context), [-z @ cost @ z for z in joint])
    np.testing.assert_allclose(model.leader_rewards(X, states, actions, context), [bonus - z @ leader_cost @ z for z in joint])
    logs, first = model.log_transitions(X, states, actions, following, context), model.log_initials(X, states, context)
    means = states @ a.T + actions @ b.T
    expected = [multivariate_normal(m, noise).logpdf(s) for m, s in zip(means, following, strict=True)]
    np.testing.assert_allclose(logs, expected)  # type: ignore[arg-type]
    np.testing.assert_allclose(first, multivariate_normal(mean, start).logpdf(states))  # type: ignore[arg-type]


def test_draws_have_the_density() -> None:
    """Mean and covariance of 100,000 draws within 5 standard errors, their edges finite."""
    model, n = linear_quadratic(), 100_000
    parts = model.parts(X, 0)
    noise = torch.rand(n, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    state, action = np.ones((n, 3)), np.ones((n, 2))
    drawn = model.draw_transitions(X, state, action, noise, 0).numpy()
    mean = (parts.state_matrix.sum(-1) + parts.input_matrix.sum(-1)).numpy()
    covariance = parts.noise_covariance.numpy()
    deviation = drawn - mean
    assert (np.abs(deviation.mean(0)) < 5 * np.sqrt(np.diag(covariance) / n)).all()
    second = deviation[:, :, None] * deviation[:, None]
    assert (np.abs(second.mean(0) - covariance) < 5 * second.std(0) / n**0.5).all()
    for edge in (0.0, 1.0):
        assert torch.isfinite(model.draw_transitions(X, state[:1], action[:1], torch.full((1, 3), edge, dtype=F64), 0)).all()


def test_draws_and_densities_are_differentiable() -> None:
    model, rng = linear_quadratic(), np.random.default_rng(0)
    states, following = rng.standard_normal((2, 6, 3))
    actions, noise = rng.standard_normal((6, 2)), torch.from_numpy(rng.random((6, 3)))
    functions: list[Any] = [
        lambda z: model.log_transitions(z, states, actions, following, 1).sum(),  # type: ignore[union-attr]
        lambda z: model.log_initials(z, states, 1).sum(),  # type: ignore[union-attr]
        lambda z: model.draw_transitions(z, states, actions, noise, 1).square().sum(),
        lambda z: model.rewards(z, states, actions, 1).sum(),
        lambda z: model.leader_rewards(z, states, actions, 1).sum(),
    ]
    for function in functions:
        z = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(z), z)
        assert relative_error(gradient, finite_difference(function, X)) < 1e-6


def test_what_x_does_not_move_has_no_density() -> None:
    model = linear_quadratic(("cost",))
    points = np.zeros((1, 3)), np.zeros((1, 2)), np.zeros((1, 3))
    assert model.log_transitions(X, *points, 0) is None
    assert model.log_initials(X, points[0], 0) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": np.diag([-1.0, 0.5])}, "cost has the eigenvalue -1 in context 0; expected a matrix that is positive semidef"),
        ({"cost": np.diag([1.0, 0.0])}, r"block of actions of cost \(R\) has the eigenvalue 0"),
        ({"noise_covariance": [[0.0]]}, "noise_covariance has the eigenvalue 0"),
        ({"initial_covariance": [[-1.0]]}, "initial_covariance has the eigenvalue -1"),
        ({"initial_mean": lambda x: x, "initial_covariance": [[0.0]]}, "initial_covariance has the eigenvalue 0"),
        ({"cost": np.eye(3)}, r"cost has shape \(3, 3\); expected \(2, 2\) for 1 states and 1 actions"),
        ({"leader_bonus": [1.0, 2.0], "cost": np.eye(2)[None].repeat(3, 0)}, r"leader_bonus has shape \(2,\)"),
        ({"input_matrix": [0.7]}, r"input_matrix has shape \(1,\)"),
        ({"cost": "a"}, "cost is 'a'; expected real numbers"),
        ({"state_matrix": [[np.nan]]}, "state_matrix is not finite"),
        ({"state_matrix": lambda x: torch.tensor(x.detach().numpy()).reshape(1, 1) + 0 * x}, "state_matrix"),
        ({"example": [1.0, 2.0]}, "example is"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ModelError, match=message):
        scalar(**options)


@pytest.mark.parametrize("options", [{"discount": 1.0}, {"leader_discount": 1.0}])
def test_discounts_are_below_one(options: dict[str, Any]) -> None:
    with pytest.raises(errors.DiscountError, match="expected numbers below 1"):
        scalar(**options)


def test_refused_at_an_x() -> None:
    model = scalar(cost=lambda x: torch.diag(torch.stack([2.0 * torch.ones_like(x[0]), 0.5 - x[0]])))
    with pytest.raises(errors.ModelError, match=r"cost has the eigenvalue -0\.5 in context 0"):
        model.solve([1.0], 0.1)
    with pytest.raises(errors.RegularizationError):
        model.solve([0.0], 0.0)
    with pytest.raises(errors.LeaderParameterError):
        model.solve([0.0, 1.0], 0.1)
    with pytest.raises(errors.ContextError):
        model.context_return([0.0], 0.1, 1)
    with pytest.raises(errors.ConvergenceError, match="have no least value in context 0"):
        scalar(leader_cost=np.diag([1.0, -1.0])).best_response([0.5], 0.1, leader_share=100.0)
    nothing = scalar(input_matrix=[[0.0]])
    with pytest.raises(errors.ConvergenceError, match="in context 0"):
        nothing.solve([1.2], 0.1)


def test_leader_minds_what_the_follower_does_not() -> None:
    """The follower does not mind its state, which grows by 1.1: the leader's costs are infinite at a discount of 0.9."""
    model = scalar(cost=np.diag([0.0, 0.5]), leader_discount=0.9, discount=0.5)
    with pytest.raises(errors.ConvergenceError, match="what the leader's costs add up to in context 0 is infinite"):
        model.leader_return([1.1], 0.1)
