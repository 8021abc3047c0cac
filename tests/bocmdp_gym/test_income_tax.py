"""The income tax: closed forms, Saez's formula, gradients, and one person against the population."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym.envs import IncomeTax
from bocmdp_gym.errors import LeaderParameterError, OptionError, RegularizationError
from bocmdp_gym.income_tax import OBJECTIVES, US_BRACKETS, US_RATES, IncomeTaxation, pareto_skills
from bocmdp_gym.inequality import gini

Array = Any
SMALL: dict[str, Any] = {"skills": [1.0, 2.0, 3.0], "brackets": [0.0], "levels": 400}
LINEAR: dict[str, Any] = {**SMALL, "risk_aversion": 0.0, "elasticity": 0.5}
THREE: dict[str, Any] = {"skills": [1.0, 2.0, 4.0], "shares": [0.5, 0.3, 0.2], "brackets": [0.0, 1.5, 3.0], "levels": 30}


def best(model: IncomeTaxation, regularization: float, steps: int = 60) -> float:
    """The flat tax of the largest return, by golden sections."""
    low, high, ratio = 0.0, 0.9, (5.0**0.5 - 1.0) / 2.0
    for _ in range(steps):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if high - low < 1e-5:
            break
        left, right = (float(model.leader_return([t], regularization)) for t in (a, b))
        low, high = (a, high) if left < right else (low, b)
    return (low + high) / 2.0


def derivative(model: Any, x: Array, regularization: float) -> Array:
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(model.leader_return(point, regularization), point)[0].numpy()


# ------------------------------------------------------------------------------------------------------- closed forms


def test_incomes_under_a_flat_tax_have_the_elasticity() -> None:
    """Quasi-linear utility: z = w (w (1 - t) / wbar)^e, as lambda falls."""
    found = IncomeTaxation(**LINEAR).taxation([0.4], 1e-4)
    w = np.array([1.0, 2.0, 3.0])
    assert found.incomes == pytest.approx(w * (w * 0.6 / 2.0) ** 0.5, rel=2e-3)
    assert found.rebate == pytest.approx(0.4 * found.productivity)
    assert found.consumption == pytest.approx(found.incomes - found.taxes + found.rebate)
    assert found.gini == pytest.approx(gini(found.consumption))


def test_the_largest_revenue_and_saez_agree_on_one_over_one_plus_e() -> None:
    model = IncomeTaxation(**LINEAR, objective="revenue")
    assert best(model, 1e-4) == pytest.approx(1.0 / 1.5, abs=2e-3)
    assert model.saez(1e-4) == pytest.approx(1.0 / 1.5, abs=2e-3)


def test_the_best_flat_tax_for_weighted_people() -> None:
    """(1 - gbar) / (1 - gbar + e), gbar = E[g y] / (E[g] E[y]), with y proportional to w^(1 + e)."""
    w, g, e = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), 0.5
    gbar = np.mean(g * w**1.5) / (g.mean() * np.mean(w**1.5))
    rate = (1.0 - gbar) / (1.0 - gbar + e)
    assert rate == pytest.approx(0.31739, abs=1e-5)
    model = IncomeTaxation(**LINEAR, welfare_weights=g.tolist())
    assert best(model, 1e-4) == pytest.approx(rate, abs=2e-3)
    assert model.saez(1e-4) == pytest.approx(rate, abs=2e-3)


def test_the_top_rate_follows_the_thickness_of_the_tail() -> None:
    """For revenue, 1 / (1 + a e) with a = Z / B of the people in the top bracket."""
    skills, shares = pareto_skills(10, 2.0, 20_000.0)
    model = IncomeTaxation(skills, shares, objective="revenue", risk_aversion=0.0, elasticity=0.3)
    found = model.taxation(model.saez(0.05), 0.05)
    loads = found.equilibrium.loads.numpy().reshape(model.hours.shape)
    top = loads * (model.incomes > US_BRACKETS[-1])
    a = (top * model.incomes).sum() / (loads * model.slices[..., -1]).sum()
    assert found.rates[-1] == pytest.approx(1.0 / (1.0 + 0.3 * a), abs=0.03)
    assert 0.2 < found.rates[-1] < 0.8


def test_the_rebate_moves_hours_unless_utility_is_quasi_linear() -> None:
    """At the same taxes, a rebate of half as much."""
    for risk_aversion, moves in ((0.0, False), (1.0, True)):
        model = IncomeTaxation(**SMALL, risk_aversion=risk_aversion)
        x = torch.tensor([0.4], dtype=torch.float64)
        loads = model.equilibrium(x, 0.01).loads
        hours = []
        for rebate in (loads, 0.5 * loads):
            pair = torch.cat([x, rebate])
            solved = model.problem.solve(pair, regularization=0.01)
            hours.append(solved.policy[:, 0].detach().numpy() @ np.linspace(0.0, 1.0, 400))
        assert (hours[1] > hours[0] + 1e-3).all() if moves else hours[1] == pytest.approx(hours[0])


def test_log_utility_is_the_limit() -> None:
    around = [IncomeTaxation(**THREE, risk_aversion=1.0 + d).taxation([0.1, 0.2, 0.3], 0.05) for d in (-1e-4, 0.0, 1e-4)]
    for name in ("incomes", "utilities"):
        low, middle, high = (getattr(one, name) for one in around)
        assert middle == pytest.approx((low + high) / 2.0, rel=1e-6, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("risk_aversion", [0.0, 0.23, 2.0])
def test_hypergradients_are_those_of_central_differences(objective: Any, risk_aversion: float) -> None:
    model, x, h = IncomeTaxation(**THREE, objective=objective, risk_aversion=risk_aversion), np.array([0.1, 0.3, 0.45]), 1e-5
    ends = [[float(model.leader_return(x + sign * h * unit, 0.05)) for sign in (1, -1)] for unit in np.eye(3)]
    expected = [(up - down) / (2.0 * h) for up, down in ends]
    assert derivative(model, x, 0.05) == pytest.approx(np.array(expected), rel=1e-6, abs=1e-9)


def test_welfare_rises_by_what_is_collected_beyond_its_worth() -> None:
    """The envelope behind Saez's formula, exact: dW/dt_j = E[g u'] (dR/dt_j - gbar_j B_j), income effects included."""
    x, lam = np.array([0.1, 0.3, 0.45]), 0.05
    model = IncomeTaxation(**THREE, risk_aversion=2.0)
    revenue = derivative(IncomeTaxation(**THREE, risk_aversion=2.0, objective="revenue"), x, lam) * model.mean_skill
    found = model.taxation(x, lam)
    loads = found.equilibrium.loads.numpy().reshape(model.hours.shape)
    marginal = (model.consumption(torch.tensor(x), found.equilibrium.loads).numpy() / model.mean_skill) ** -2.0
    worth = loads * marginal * (model.weights / model.shares)[:, None] / model.mean_skill
    expected = worth.sum() * revenue - np.einsum("ca,caj->j", worth, model.slices)
    assert derivative(model, x, lam) == pytest.approx(expected, rel=1e-8)


def test_saez_comes_close_to_the_optimum() -> None:
    """Ascent that starts from the formula's rates gains next to nothing over what they gain over the federal ones."""
    env = IncomeTax(regularization=0.03)
    leader = leaders.ExactGradient(learning_rate=0.01, optimizer="Adam", schedule="linear")
    found = leaders.optimize(
        env, leader, followers.SoftPolicyIteration(0.03), 30, x0=env.saez(), seed=0, evaluate_every=30, progress=False
    ).leader_return
    free, federal, saez = (env.taxation(x).welfare for x in (env.free_market(), env.us_federal(), env.saez()))
    assert found is not None
    assert free < federal < saez <= found + 1e-6
    assert found - saez < 0.01 * (saez - federal)


# ------------------------------------------------------------------------------------------------------------ baselines


def test_federal_rates_in_other_brackets_are_means() -> None:
    env = IncomeTax()
    assert env.us_federal() == pytest.approx(np.array(US_RATES))
    assert (env.free_market() == 0.0).all()
    flat = IncomeTax(brackets=[0.0])
    paid = env.taxation(env.free_market())
    loads = paid.equilibrium.loads.numpy().reshape(env.population.hours.shape)
    federal = (loads * (env.population.slices @ np.array(US_RATES))).sum() / paid.productivity
    assert flat.us_federal() == pytest.approx(federal)
    assert IncomeTax(rate_bounds=[0.0, 0.2]).us_federal().max() == pytest.approx(0.2)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_rate_that_changes_nothing_is_the_least(objective: Any) -> None:
    """Nobody reaches the top bracket; everybody fills the first, and all of it comes back."""
    model = IncomeTaxation([1.0, 2.0], None, [0.0, 0.001, 50.0], objective, rate_bounds=[0.05, 0.9])
    found = model.saez(0.02)
    assert found[0] == pytest.approx(0.9 if objective == "revenue" else 0.05, abs=1e-6)
    assert 0.05 < found[1] < 0.9
    assert found[2] == 0.05


def test_pareto_skills() -> None:
    skills, shares = pareto_skills(10, 2.0, 20_000.0)
    assert shares.sum() == 1.0
    assert shares[:3].tolist() == [0.5, 0.25, 0.125]
    assert shares @ skills == pytest.approx(40_000.0)
    draws, equal = pareto_skills(1000, 3.0, 1.0, seed=0)
    assert (equal == 1e-3).all()
    deviation = (0.75**0.5) / 1000**0.5  # the variance of Pareto(3) is 3/4
    assert abs(draws.mean() - 1.5) < 4.0 * deviation
    assert (pareto_skills(1000, 3.0, 1.0, seed=0)[0] == draws).all()
    assert (pareto_skills(1000, 3.0, 1.0, seed=1)[0] != draws).any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_best_known_rates_are_stationary(objective: Any) -> None:
    env = IncomeTax(objective=objective)
    known = env.benchmark()
    assert known is not None
    assert known.x is not None
    model, (low, high) = env.population, env.population.rate_bounds
    for x in (env.free_market(), env.us_federal()):
        assert float(model.leader_return(x, 0.01)) < known.value
    gradient = derivative(model, known.x, 0.01)
    assert (gradient[known.x == low] < 1e-6).all()
    assert (gradient[known.x == high] > 0.0).all()
    assert np.abs(gradient[(known.x > low) & (known.x < high)]).max() < 1e-3
    assert env.benchmark(0.02) is None
    assert IncomeTax(objective=objective, elasticity=0.3).benchmark() is None


# --------------------------------------------------------------------------------------------------------- environment


def test_one_person_pays_and_receives() -> None:
    env, x = IncomeTax(**THREE), np.array([0.1, 0.2, 0.3])
    found = env.taxation(x)
    for context, action in ((0, 3), (2, 25)):
        env.reset(seed=0, options={"leader": x, "context": context})
        _, reward, terminated, truncated, info = env.step(action)
        assert terminated
        assert not truncated
        income, brackets = info["income"], [0.0, 1.5, 3.0, np.inf]
        tax = sum(
            rate * min(max(income - low, 0.0), high - low) for rate, low, high in zip(x, brackets[:-1], brackets[1:], strict=True)
        )
        assert income == pytest.approx(THREE["skills"][context] * info["hours"])
        assert info["tax"] == pytest.approx(tax)
        assert info["consumption"] == pytest.approx(income - tax + found.rebate)
        mean = 0.5 * 1.0 + 0.3 * 2.0 + 0.2 * 4.0
        utility = ((info["consumption"] / mean) ** 0.77 - 1.0) / 0.77 - info["hours"] ** 5 / 5.0
        assert reward == pytest.approx(utility)
        assert info["leader_reward"] == pytest.approx(found.welfare)


def test_people_who_are_sampled_earn_what_the_model_says() -> None:
    """4 standard errors, per skill, and the Gini coefficient of their means."""
    env, x = IncomeTax(**THREE), np.array([0.1, 0.2, 0.3])
    found = env.taxation(x)
    outcomes = {"income": lambda batch: env.population.incomes[batch.context, batch.actions]}
    report = leaders.evaluate_policy(
        env, followers.SoftPolicyIteration(0.01), x, env_steps=20_000, outcomes=outcomes, objectives=[]
    )
    for one, income, utility in zip(report.contexts, found.incomes, found.utilities, strict=True):
        seen = one.outcomes["income"]
        assert abs(seen.mean - income) < 4.0 / 1.96 * seen.half_width
        assert one.follower_value == pytest.approx(utility)
    unequal = report.inequality("income")
    assert unequal is not None
    assert unequal.gini == pytest.approx(found.gini_incomes, abs=2e-3)
    assert report.exact_leader_return == pytest.approx(found.welfare)


def test_followers_of_another_lambda_are_refused() -> None:
    with pytest.raises(OptionError, match=r"the followers of IncomeTax play by regularization 0\.01"):
        followers.TrajectoryOracle(gym.make("bocmdp/IncomeTax-v0"), followers.SoftPolicyIteration(0.1))


def test_it_is_drawn() -> None:
    env = IncomeTax(n_skills=4, regularization=0.03, render_mode="rgb_array")
    env.reset(seed=0, options={"leader": env.free_market()})
    first: Any = env.render()
    env.reset(seed=0, options={"leader": env.us_federal()})
    assert (env.render() != first).any()
    before: Any = env.render()
    env.step(49)
    assert (env.render() != before).any()
    figure = env.result_figure(env.us_federal(), np.zeros((4, 1, 50)))
    assert [axes.get_title() for axes in figure.axes[::2]] == ["rates", "Lorenz curves"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"brackets": [1.0, 2.0]}, OptionError, r"brackets begin at 1\.0; expected 0 first"),
        ({"brackets": [0.0, 3.0, 2.0]}, OptionError, r"brackets is 2\.0 at \[2\], after 3\.0; expected increasing"),
        ({"brackets": [0.0, 0.0]}, OptionError, "expected increasing"),
        ({"brackets": []}, OptionError, "brackets has shape"),
        ({"rate_bounds": [0.0, 1.0]}, OptionError, r"rate_bounds is \(0\.0, 1\.0\); expected .* in \[0, 1\)"),
        ({"rate_bounds": [-0.1, 0.5]}, OptionError, "rate_bounds"),
        ({"rate_bounds": [0.5, 0.5]}, OptionError, "rate_bounds"),
        ({"skills": [1.0, 0.0]}, OptionError, r"skills is 0\.0 at \[1\]; expected positive"),
        ({"skills": [1.0, 2.0], "shares": [1.0, 0.0]}, OptionError, "shares is 0"),
        ({"skills": [1.0, 2.0], "shares": [0.5, 0.6]}, OptionError, "sum to 1"),
        ({"skills": [1.0, 2.0], "seed": 3}, OptionError, "seed is 3, but skills are given"),
        ({"skills": [1.0, 2.0], "welfare_weights": [0.0, 0.0]}, OptionError, "welfare_weights"),
        ({"skills": [1.0, 2.0], "welfare_weights": [1.0]}, OptionError, "welfare_weights has shape"),
        ({"pareto_exponent": 1.0}, OptionError, "pareto_exponent"),
        ({"least_skill": 0.0}, OptionError, "least_skill"),
        ({"n_skills": 0}, OptionError, "n_skills"),
        ({"objective": "wellfare"}, OptionError, "Did you mean 'welfare'"),
        ({"elasticity": 0.0}, OptionError, "elasticity"),
        ({"elasticity": 1e9, "skills": [1e-9, 1.0], "risk_aversion": 0.0}, OptionError, "elasticity is 1e"),
        ({"risk_aversion": -1.0}, OptionError, "risk_aversion"),
        ({"levels": 1}, OptionError, "levels"),
        ({"regularization": 0.0}, RegularizationError, "regularization"),
        ({"horizon": 0}, OptionError, "horizon"),
        ({"seed": 0.5}, OptionError, "seed"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        IncomeTax(**options)


def test_rates_out_of_bounds_are_refused() -> None:
    with pytest.raises(LeaderParameterError):
        IncomeTax(**THREE).taxation([0.1, 0.2, 1.0])
