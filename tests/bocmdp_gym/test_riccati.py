"""Lyapunov and Riccati equations: residuals, derivatives, and what has no solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from bocmdp_gym.errors import ConvergenceError
from bocmdp_gym.riccati import policy_cost, solve_lyapunov, solve_riccati
from tests.problems import F64, finite_difference, relative_error

EYE = torch.eye(3, dtype=F64)


@pytest.mark.parametrize("radius", [0.0, 0.5, 0.999, 1.02])
def test_lyapunov_agrees_with_scipy(radius: float) -> None:
    """Spectral radii up to 1.02 at the discount 0.95: 1.02 * sqrt(0.95) is 0.994."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((6, 6))
    matrix *= radius / np.abs(np.linalg.eigvals(matrix)).max()
    cost = rng.standard_normal((6, 6))
    cost = cost + cost.T
    found = solve_lyapunov(torch.tensor(matrix), torch.tensor(cost), 0.95, "it")
    np.testing.assert_allclose(found, solve_discrete_lyapunov(0.95**0.5 * matrix.T, cost), rtol=1e-9, atol=1e-9)


def test_lyapunov_of_a_matrix_far_from_normal() -> None:
    """Its powers grow a thousandfold before they fall."""
    matrix = torch.tensor([[0.9, 1000.0], [0.0, 0.9]], dtype=F64)
    found, cost = solve_lyapunov(matrix, torch.eye(2, dtype=F64), 1.0, "it"), torch.eye(2, dtype=F64)
    assert relative_error(found, cost + matrix.T @ found @ matrix) < 1e-12


def test_lyapunov_names_what_is_infinite() -> None:
    with pytest.raises(ConvergenceError, match=r"the bill is infinite: its states grow by up to 1\.2 a step"):
        solve_lyapunov(1.2 * EYE, EYE, 0.9, "the bill")


def _problem(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.9, 0.0], [0.2, 0.0, 1.1]], dtype=F64) * torch.exp(x[0])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=F64) * torch.exp(x[1])
    z = torch.tensor([[1.0, 0.2, 0.1, 0.3, -0.2]], dtype=F64)
    return a, b, torch.eye(5, dtype=F64) * torch.exp(x[2]) + z.T @ z


def test_riccati_residual_and_optimality() -> None:
    a, b, cost = _problem(torch.tensor([0.1, -0.2, 0.3], dtype=F64))
    p, k, s = solve_riccati(a, b, cost, 0.9, "")
    q, n, r = cost[:3, :3], cost[:3, 3:], cost[3:, 3:]
    cross = 0.9 * b.T @ p @ a + n.T
    torch.testing.assert_close(s, r + 0.9 * b.T @ p @ b)
    torch.testing.assert_close(p, q + 0.9 * a.T @ p @ a - cross.T @ torch.linalg.solve(s, cross), rtol=1e-12, atol=1e-12)
    for seed in range(5):  # another gain costs more in every state
        other = k + 0.05 * torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
        worse = solve_lyapunov(a - b @ other, policy_cost(cost, other), 0.9, "it") - p
        assert float(torch.linalg.eigvalsh(worse).min()) > -1e-12


def test_riccati_is_differentiated_through_the_envelope() -> None:
    x = torch.tensor([0.0, -0.2, 0.3], dtype=F64)
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=F64) for shape in ((3, 3), (2, 3), (2, 2))]

    def scalar(z: torch.Tensor) -> torch.Tensor:
        parts = solve_riccati(*_problem(z), 0.9, "")
        return torch.stack([(weight * part).sum() for weight, part in zip(weights, parts, strict=True)]).sum()

    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(z), z)
    assert relative_error(gradient, finite_difference(scalar, x)) < 1e-7


def test_what_no_action_reaches_and_grows_has_no_solution() -> None:
    a = torch.diag(torch.tensor([1.2, 0.5, 0.5], dtype=F64))
    b = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64)
    with pytest.raises(ConvergenceError, match=r"in context 2|no stabilising solution in context 2"):
        solve_riccati(a, b, torch.eye(4, dtype=F64), 0.9, " in context 2")
    p, *_ = solve_riccati(a, b, torch.eye(4, dtype=F64), 0.6, "")  # 1.2^2 * 0.6 is below 1
    assert float(p[0, 0]) == pytest.approx(1.0 / (1.0 - 0.6 * 1.44), rel=1e-12)
