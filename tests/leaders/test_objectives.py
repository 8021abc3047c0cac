from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from leaders.objectives import (
    OBJECTIVES,
    CVaR,
    EqualityTimesProductivity,
    Function,
    Mean,
    Min,
    Objective,
    SoftMin,
    as_objective,
)
from tests.problems import finite_difference, four_rooms, random_model, random_x

P = np.array([0.1, 0.2, 0.3, 0.4])
VALUES = np.array([1.0, -2.0, 0.5, 3.0])


def inverse(values: torch.Tensor) -> torch.Tensor:
    """A function of one's own, decreasing in each value and defined for all."""
    return -torch.exp(-values).sum() + 0.1 * values[0] * values[-1]


ALL: list[Objective] = [
    Mean(),
    Min(),
    CVaR(0.35),
    CVaR(1.0),
    SoftMin(0.5),
    EqualityTimesProductivity(),
    Function(inverse),
]


def test_values_by_hand() -> None:
    assert Mean().value(VALUES, P) == pytest.approx(0.1 - 0.4 + 0.15 + 1.2)
    assert Min().value(VALUES, P) == -2.0
    assert CVaR(0.35).value(VALUES, P) == pytest.approx((0.2 * -2.0 + 0.15 * 0.5) / 0.35)
    assert CVaR(1.0).value(VALUES, P) == pytest.approx(Mean().value(VALUES, P))
    assert CVaR(1e-3).value(VALUES, P) == -2.0
    assert SoftMin(0.5).value(VALUES, P) == pytest.approx(-0.5 * np.log(P @ np.exp(-VALUES / 0.5)))
    assert SoftMin(1e-4).value(VALUES, P) == pytest.approx(-2.0, abs=1e-3)
    assert SoftMin(1e6).value(VALUES, P) == pytest.approx(Mean().value(VALUES, P), abs=1e-5)
    values, equal = np.array([1.0, 2.0, 5.0]), np.full(3, 1 / 3)
    gini = sum(abs(a - b) for a in values for b in values) / (2 * 9 * values.mean())
    product = EqualityTimesProductivity().value(values, equal)
    assert product == pytest.approx((1.0 - gini * 3 / 2) * values.mean())
    assert EqualityTimesProductivity().value(np.array([0.0, 0.0, 6.0]), equal) == pytest.approx(0.0)  # one has everything
    assert EqualityTimesProductivity().value(np.full(3, 2.0), equal) == pytest.approx(2.0)
    assert EqualityTimesProductivity().value(np.array([2.0]), np.ones(1)) == 2.0


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_weights_are_the_derivatives(objective: Objective) -> None:
    weights, step = objective.weights(VALUES, P), 1e-6
    for i, direction in enumerate(np.eye(4)):
        ahead, behind = (objective.value(VALUES + s * direction, P) for s in (step, -step))
        assert weights[i] == pytest.approx((ahead - behind) / (2 * step), abs=1e-8)


def test_ties_are_shared_by_probability() -> None:
    tied = np.array([1.0, 0.0, 0.0, 2.0])
    np.testing.assert_allclose(Min().weights(tied, P), [0.0, 0.4, 0.6, 0.0])
    np.testing.assert_allclose(CVaR(0.25).weights(tied, P), [0.0, 0.4, 0.6, 0.0])
    np.testing.assert_allclose(CVaR(0.8).weights(np.zeros(4), P), P)
    np.testing.assert_allclose(EqualityTimesProductivity().weights(np.zeros(4), P), P)
    uniform = EqualityTimesProductivity().weights(VALUES, np.full(4, 0.25))
    assert (uniform >= -1e-12).all()  # the richest has none


@pytest.mark.parametrize("contexts", [2, 3, 5])
@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_the_gradient_of_a_run_is_that_of_the_objective(objective: Objective, contexts: int) -> None:
    """A step of size 1 along ExactGradient, contexts of different probabilities, against central differences of Phi."""
    model, x = random_model(contexts, contexts=contexts, states=4, dim=3), random_x(3)
    lam = 0.5

    def phi(point: torch.Tensor) -> torch.Tensor:
        mdps = model.configure(point)
        values = mdps.policy_return(mdps.solve(lam).policy).detach().numpy().reshape(-1)
        return torch.tensor(objective.value(values, model.context_probabilities), dtype=torch.float64)

    follower, leader = followers.SoftPolicyIteration(lam), leaders.ExactGradient(1.0, max_gradient_norm=None)
    result = leaders.optimize(model, leader, follower, 1, x0=x, contexts="all", objective=objective)
    torch.testing.assert_close(result.x - x, finite_difference(phi, x, 1e-5), rtol=1e-6, atol=1e-8)
    assert result.history["leader_return"][0] == pytest.approx(float(phi(x)), rel=1e-9)
    assert result.history["sampled_return"][0] == pytest.approx(float(phi(x)), rel=1e-9)
    assert result.leader_return == pytest.approx(float(phi(result.x)), rel=1e-9)


def test_the_least_raises_the_worse_context_on_four_rooms() -> None:
    def run(objective: Any) -> leaders.Result:
        leader, follower = leaders.ExactGradient(0.05, optimizer="Adam"), followers.SoftPolicyIteration(1e-3)
        return leaders.optimize(four_rooms(), leader, follower, 120, contexts="all", objective=objective, progress=False)

    mean, least = run(None), run(Min())
    assert mean.context_returns is not None
    assert least.context_returns is not None
    assert least.leader_return == pytest.approx(least.context_returns.min())
    start = least.history["leader_return"][0]
    assert least.leader_return > start + 0.1
    assert least.context_returns.min() > mean.context_returns.min() + 0.02
    assert least.context_returns.mean() < mean.context_returns.mean()
    assert [c for c in least.history.columns if c.startswith("leader_return_")] == ["leader_return_0", "leader_return_1"]
    assert least.history["leader_return_0"][0] == start
    assert "leader_return_0" not in mean.history.columns


def test_the_mean_is_what_a_run_without_an_objective_has() -> None:
    model, follower = random_model(2), followers.SoftPolicyIteration(0.5)
    plain, mean = (
        leaders.optimize(model, leaders.HPGD(0.1, 200), follower, 5, contexts=2, objective=objective)
        for objective in (None, Mean())
    )
    assert torch.equal(plain.x, mean.x)
    assert plain.history.columns == mean.history.columns
    assert as_objective(Mean()) is None


@pytest.mark.parametrize(
    ("objective", "error", "match"),
    [
        (3, errors.OptionError, "objective is 3"),
        (Min, errors.OptionError, "the class Min"),
        (lambda values: 1.0, errors.ModelError, r"returned 1\.0"),
        (lambda values: values, errors.ModelError, r"shape \(3,\)"),
        (lambda values: values.detach().sum(), errors.ModelError, "does not depend"),
    ],
)
def test_what_is_no_objective_is_refused(objective: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        leaders.optimize(random_model(0), leaders.ExactGradient(), followers.SoftPolicyIteration(1.0), 1, objective=objective)


@pytest.mark.parametrize("level", [0.0, 1.5, -1.0, float("nan"), "half"])
def test_levels_and_temperatures_out_of_range_are_refused(level: Any) -> None:
    with pytest.raises(errors.OptionError, match="level is"):
        CVaR(level)
    if level != 1.5:
        with pytest.raises(errors.OptionError, match="temperature is"):
            SoftMin(level)
    with pytest.raises(errors.OptionError, match="memory is"):
        Min(memory=0)


def test_values_beyond_the_domain_of_an_objective_are_named() -> None:
    follower = followers.SoftPolicyIteration(0.5)
    with pytest.raises(errors.ConvergenceError, match="at the contexts' values"):
        leaders.optimize(
            random_model(0), leaders.ExactGradient(), follower, 1, contexts="all", objective=lambda v: (v - 1e3).log().sum()
        )


def test_names_of_the_command_line_are_of_every_objective() -> None:
    assert set(OBJECTIVES.values()) == {Mean, Min, CVaR, SoftMin, EqualityTimesProductivity}
