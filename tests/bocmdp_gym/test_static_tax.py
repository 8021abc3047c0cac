"""The static tax problems against their closed forms, by leaders through the public API."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import leaders
from bocmdp_gym import errors
from bocmdp_gym.envs.static_tax import linear_income_tax, static_household
from followers import SoftPolicyIteration

#: Hours spread by sqrt(lambda / (2 delta)) = 0.07 around h* = 1.02: 14 standard deviations off the end at 0.
LAMBDA = 1e-3
SHARES, DELTA = np.array([0.6, 0.3, 0.1]), 0.1
KAPPA = float(np.prod(SHARES**SHARES))


def _ascend(model: Any, x0: Any, regularization: float, learning_rate: float, iterations: int) -> Any:
    leader = leaders.ExactGradient(learning_rate, max_gradient_norm=None)
    follower = SoftPolicyIteration(regularization)
    return leaders.optimize(model, leader, follower, iterations, x0=x0, contexts="all", evaluate_every=iterations, progress=False)


@pytest.mark.parametrize("x", [[-1.0, 0.5, 0.0, -0.5], [0.3, -2.0, 1.0, 0.2]])
def test_household_works_and_pays_as_the_formulas_say(x: list[float]) -> None:
    prices, wage = np.array([1.0, 2.0, 0.5]), 1.5
    model = static_household(prices=prices.tolist(), wage=wage)
    tau, *vat = np.array([1.0, 2.0, 2.0, 2.0]) / (1 + np.exp(-np.array(x)))
    hours = KAPPA * (1 - tau) * wage * np.prod((prices * (1 + np.array(vat))) ** -SHARES) / (2 * DELTA)
    revenue = wage * hours * (1 - (1 - tau) * (SHARES / (1 + np.array(vat))).sum())
    assert float(model.leader_return(x, LAMBDA)) == pytest.approx(revenue, rel=1e-9)


@pytest.mark.parametrize("x0", [[0.0, 0.0, 0.0, 0.0], [-2.0, 1.0, -1.0, 0.0], [-1.0, -2.0, 0.0, 2.0]])
def test_revenue_maximum_of_the_household(x0: list[float]) -> None:
    """Every start climbs to kappa w^2 / (8 delta) and to the wedge 1/2, at whatever rates: to 1e-6, as lambda costs nothing."""
    result = _ascend(static_household(), x0, LAMBDA, 5.0, 3000)
    tau, *vat = np.array([1.0, 2.0, 2.0, 2.0]) / (1 + np.exp(-result.x.numpy()))
    best = KAPPA / (8 * DELTA)
    assert result.leader_return == pytest.approx(best, rel=1e-6)
    wedges = (1 - tau) / (1 + np.array(vat))
    assert float(SHARES @ wedges) == pytest.approx(0.5, abs=2e-3)
    np.testing.assert_allclose(wedges, 0.5, atol=0.02)  # uniform, as far as a share of 0.1 makes that matter


@pytest.mark.parametrize("x0", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("elasticity", [0.25, 0.5, 1.0])
def test_revenue_maximising_income_tax(elasticity: float, x0: float) -> None:
    """t = 1 / (1 + e), to 2e-3: the entropy moves incomes by a multiple of lambda."""
    result = _ascend(linear_income_tax(elasticity=elasticity), [x0], 1e-4, 2.0, 300)
    assert float(torch.sigmoid(result.x)) == pytest.approx(1 / (1 + elasticity), abs=2e-3)


def test_welfare_maximising_income_tax() -> None:
    """w = (1, 2, 3), e = 0.5, g proportional to (3, 2, 1): t = 0.31739, to 1e-3."""
    w, g, e = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), 0.5
    gbar = (g * w ** (1 + e)).mean() / (g.mean() * (w ** (1 + e)).mean())
    expected = (1 - gbar) / (1 - gbar + e)
    assert expected == pytest.approx(0.31739, abs=1e-5)
    result = _ascend(linear_income_tax(elasticity=e, welfare_weights=g.tolist()), [0.0], 1e-4, 0.5, 300)
    assert float(torch.sigmoid(result.x)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (static_household, {"shares": [0.6, 0.3, 0.2]}, "sum to 1"),
        (static_household, {"prices": [1.0, 1.0, 0.0]}, "prices are"),
        (static_household, {"prices": [1.0]}, "prices has shape"),
        (static_household, {"wage": 0.0}, "wage is"),
        (static_household, {"labour_cost": -1.0}, "labour_cost is"),
        (static_household, {"tax_upper": [1.0]}, "tax_upper has shape"),
        (static_household, {"tax_upper": [1.0, 1.0, 1.0, 0.0]}, "tax_upper is"),
        (static_household, {"levels": 1}, "levels is 1"),
        (linear_income_tax, {"abilities": [1.0, 0.0]}, "abilities are"),
        (linear_income_tax, {"elasticity": 0.0}, "elasticity is"),
        (linear_income_tax, {"welfare_weights": [1.0]}, "welfare_weights has shape"),
        (linear_income_tax, {"welfare_weights": [0.0, 0.0, 0.0]}, "welfare_weights are"),
        (linear_income_tax, {"probabilities": [0.5, 0.5, 0.5]}, "probabilities is"),
    ],
)
def test_bad_options_are_named(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        make(**options)
