from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from tests.problems import finite_difference, random_x, relative_error


def _make(**options: Any) -> gym.Env[Any, Any]:
    return gym.make("bocmdp/DynamicMechanism-v0", **options)


def _core(**options: Any) -> bocmdp_gym.envs.DynamicMechanism:
    return bocmdp_gym.configurable(_make(**options))


def _benchmark(**options: Any) -> Any:
    benchmark = _core(**options).benchmark()
    assert benchmark is not None
    return benchmark


def _mechanism(core: bocmdp_gym.envs.DynamicMechanism, boost: float) -> np.ndarray:
    """Unit weights, one boost for all unsold items."""
    return core.leader_of(np.ones(core.n_bidders), np.full(core.n_slots, boost))


# ---------------------------------------------------------------------------------------- the formulas at lambda = 0


@pytest.mark.parametrize("discount", [0.5, 0.9, 1.0])
def test_boost_one_half_earns_the_formula(discount: float) -> None:
    """5/12 + gamma/12, one item 5/12; with 1/2 between two types the middles of an even grid integrate it up to 1/(6 K^2)."""
    for n_types in (10, 20):
        two, one = (_core(n_types=n_types, discount=discount, n_slots=slots) for slots in (2, 1))
        allowed = 1 / (6 * n_types**2)
        assert two.hard_revenue(_mechanism(two, 0.5)) == pytest.approx((5 + discount) / 12, abs=allowed)
        assert one.hard_revenue(_mechanism(one, 0.5)) == pytest.approx(5 / 12, abs=allowed)


@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_dynamic_vcg_earns_the_formula(discount: float) -> None:
    """(1 - gamma)/3, one item 1/3, in continuous types; E min over K types is 1/3 + 1/(6 K^2)."""
    two, one = (_core(n_types=10, discount=discount, n_slots=slots) for slots in (2, 1))
    smaller = 1 / 3 + 1 / 600
    assert two.hard_revenue(np.zeros(two.model.leader_dim)) == pytest.approx((1 - discount) * smaller, abs=1e-12)
    assert one.hard_revenue(np.zeros(one.model.leader_dim)) == pytest.approx(smaller, abs=1e-12)
    for core, expected in ((two, (1 - discount) * smaller), (one, smaller)):
        assert float(core.model.leader_return(np.zeros(core.model.leader_dim), 1e-4)) == pytest.approx(expected, abs=1e-3)
        assert float(core.revenue(np.zeros(core.model.leader_dim), 1e-4)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_optima_of_grids_tend_to_the_formula(discount: float) -> None:
    """A grid's best price is a type, half a step above 1/2: its optimum exceeds the formula by O(1/K), halved with each doubling
    of K; extrapolating K = 20 and 40 leaves 1e-4."""
    formula = (5 + discount) / 12
    values = []
    for n_types in (5, 10, 20, 40):
        benchmark = _benchmark(n_types=n_types, discount=discount)
        assert benchmark.limit == pytest.approx(formula)
        assert benchmark.value <= benchmark.bound
        assert benchmark.bound - benchmark.value < 0.1 / n_types
        values.append(benchmark.value)
    excess = np.array(values) - formula
    np.testing.assert_allclose(excess[1:] / excess[:-1], 0.5, atol=0.03)
    assert 2 * values[3] - values[2] == pytest.approx(formula, abs=1e-4)


def test_no_other_mechanism_does_better_on_a_small_grid() -> None:
    """Local search over all weights and boosts per state and action from random mechanisms, and all pairs of two boosts:
    nothing exceeds the benchmark, let alone the bound."""
    core = _core(n_types=3)
    benchmark, rng = core.benchmark(), np.random.default_rng(0)
    levels = np.unique(np.append(np.linspace(0.0, 1.0, 21), core.types))
    pairs = [core.hard_revenue(core.leader_of([1.0, 1.0], [first, second])) for first in levels for second in levels]
    assert max(pairs) == pytest.approx(benchmark.value, abs=1e-12)
    for _ in range(3):
        x = benchmark.x + 0.3 * rng.standard_normal(core.model.leader_dim)
        best = core.hard_revenue(x)
        for _ in range(150):
            y = x.copy()
            y[rng.integers(len(y))] += rng.choice([-1, 1]) * rng.choice([0.02, 0.1, 0.3])
            value = core.hard_revenue(y)
            if value >= best:
                x, best = y, value
        assert best <= benchmark.value + 1e-9


# ------------------------------------------------------------------------------------------------- leaders get there


def test_leaders_tend_to_the_optimum_of_two_items() -> None:
    """Weights and boosts per state and action, exact revenue as a loss, lambda falling: the gap to the grid's optimum falls too.

    At 0.003 a type at the price is still turned away with a chance of about exp(-w gap / lambda), and 2.5% is missing.
    """
    env = _make(n_types=3)
    core = bocmdp_gym.configurable(env)
    optimum, x, gaps = core.benchmark().value, None, []
    for regularization in (0.1, 0.03, 0.01, 0.003):
        rate = 0.06 * (regularization / 0.1) ** 0.5
        result = leaders.optimize(
            env,
            leaders.ExactGradient(rate, optimizer="Adam", max_gradient_norm=None),
            followers.SoftPolicyIteration(regularization),
            60,
            x0=x,
            loss=core.revenue_loss(regularization),
            contexts="all",
            evaluate_every=60,
            progress=False,
        )
        x = result.x
        assert result.leader_return is not None
        gaps.append(optimum - result.leader_return)
    assert (np.diff(gaps) < 0).all()
    assert 0.0 <= gaps[-1] < 0.025 * optimum
    assert optimum * 0.98 < core.hard_revenue(x) <= optimum + 1e-12


@pytest.mark.parametrize("with_loss", [True, False])
def test_leaders_tend_to_the_optimum_of_one_item(with_loss: bool) -> None:
    """The same through `leaders.optimize`, to 4%: exact revenue as a loss, and the leader's return, which tends to it."""
    env = _make(n_types=4, n_slots=1, boosts="slot")
    core = bocmdp_gym.configurable(env)
    optimum, x, missing = core.benchmark().value, None, []
    for regularization in (0.1, 0.03, 0.01, 0.003):
        result = leaders.optimize(
            env,
            leaders.ExactGradient(
                learning_rate=0.1 * (regularization / 0.1) ** 0.5, optimizer="Adam", max_gradient_norm=None
            ),
            followers.SoftPolicyIteration(regularization),
            40 if with_loss else 80,
            x0=x,
            loss=core.revenue_loss(regularization) if with_loss else None,
            contexts="all",
            evaluate_every=40,
            progress=False,
        )  # fmt: skip
        x = result.x
        assert result.leader_return is not None
        revenue = float(core.revenue(x, regularization))
        if with_loss:
            assert result.leader_return == pytest.approx(revenue, abs=1e-9)
        missing.append(optimum - revenue)
    assert 0.0 <= missing[-1] < 0.04 * optimum
    assert missing[-1] < 0.5 * missing[0]


def test_welfare_is_greatest_without_boosts() -> None:
    """2/3 + gamma/3 in continuous types; on the grid dynamic VCG attains E sum gamma^t v_(t) as lambda -> 0."""
    core = _core(objective="welfare", n_types=6)
    benchmark = core.benchmark()
    assert benchmark is not None
    assert benchmark.value == pytest.approx((2 + 0.9) / 3, abs=1 / 36)
    assert _core(objective="welfare", leader_discount=0.5).benchmark() is None
    assert float(core.model.leader_return(benchmark.x, 1e-3)) == pytest.approx(benchmark.value, abs=2e-3)
    x = torch.tensor(_mechanism(core, 0.6), requires_grad=True)  # boosts keep items back: ascent undoes that
    optimiser = torch.optim.Adam([x], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        (-core.model.leader_return(x, 0.02)).backward()
        optimiser.step()
    assert float(core.model.leader_return(x.detach(), 0.02)) == pytest.approx(benchmark.value, rel=0.01)


# ----------------------------------------------------------------------------------- payments, truthfulness, accounts


@pytest.mark.parametrize("options", [{}, {"n_bidders": 3, "n_types": 3, "n_slots": 2}, {"n_slots": 3}, {"boosts": "slot"}])
@pytest.mark.parametrize("regularization", [0.01, 0.3])
def test_truth_telling_is_optimal_and_taking_part_worth_it(options: dict[str, Any], regularization: float) -> None:
    """Exactly, at any lambda and for any weights and boosts: no type of any bidder gains by any misreport on the grid."""
    core = _core(**options)
    x = random_x(core.model.leader_dim, scale=0.5).numpy()
    items, payments = (part.numpy() for part in core.outcome(x, regularization))
    assert core.misreport_gain(x, regularization) < 1e-9
    assert (core.types[core.profiles] * items - payments).min() > -1e-9
    assert items.max() <= 1.0 + 1e-12


@pytest.mark.parametrize("regularization", [0.3, 1.0, 5.0])
def test_taking_part_costs_no_more_than_the_fines_are_worth(regularization: float) -> None:
    """A mechanism that never wants to serve: at large lambda the fined actions count, by the bound of the module docstring."""
    core = _core()
    boosts = np.zeros((len(core.states), 3))
    boosts[:, 1:] = -30.0
    items, payments = (part.numpy() for part in core.outcome(core.leader_of([1.0, 1.0], boosts), regularization))
    allowed = sum(0.9**t for t in range(2)) * regularization * np.log1p(2 * np.exp(-10.0 / regularization))
    least = (core.types[core.profiles] * items - payments).min()
    assert least >= -allowed - 1e-12
    assert least < -0.1 * allowed or regularization < 1.0  # so the bound is no idle one


def test_a_wrong_payment_would_be_noticed() -> None:
    """Who pays its type gains by understating it: the check is not vacuous."""
    core = _core()
    core._payments = lambda optimal, gained, weights: gained  # type: ignore[method-assign]
    assert core.misreport_gain(_mechanism(core, 0.0), 0.01) > 0.05


def test_one_item_is_a_second_price_auction_with_a_reserve() -> None:
    core = _core(n_slots=1, n_types=10)
    items, payments = (part.numpy() for part in core.outcome(_mechanism(core, 0.5), 1e-4))
    types = core.types[core.profiles]
    wins = (types > types[:, ::-1]) & (types > 0.5)
    np.testing.assert_allclose(items[wins], 1.0, atol=1e-6)
    np.testing.assert_allclose(payments[wins], np.maximum(types[:, ::-1], 0.5)[wins], atol=1e-3)
    loses = (types < types[:, ::-1]) | (types < 0.5)
    np.testing.assert_allclose(payments[loses], 0.0, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"n_bidders": 3, "n_types": 3, "n_slots": 3}, {"n_bidders": 1}])
def test_leader_return_is_revenue_up_to_entropy(options: dict[str, Any]) -> None:
    core = _core(**options)
    x = random_x(core.model.leader_dim, scale=0.3)
    weights = core._split(x)[0]
    for regularization in (0.1, 0.01, 1e-3):
        entropy = regularization * float(sum(0.9**t for t in range(core.n_slots))) * np.log(core.n_bidders + 1)
        allowed = entropy * float((1 / weights).sum())
        exact, signed = float(core.revenue(x, regularization)), float(core.model.leader_return(x, regularization))
        assert abs(signed - exact) <= allowed
        loss = core.revenue_loss(regularization)
        policy = core.model.solve(x, regularization).policy
        mean = sum(p * float(loss(x, policy[c], c)) for c, p in enumerate(core.model.context_probabilities))
        assert -mean == pytest.approx(exact, abs=1e-9)
    assert float(core.revenue(x, 1e-4)) == pytest.approx(core.hard_revenue(x.numpy()), abs=2e-3)


def test_hard_max_is_the_limit_of_the_follower() -> None:
    core = _core(n_bidders=3, n_types=3, n_slots=3)
    x = random_x(core.model.leader_dim, seed=1)
    welfare, gained, allocation = core.hard_max(x.numpy())
    value = core.model.solve(x, 1e-5).value[: len(core.profiles), 0].numpy()
    np.testing.assert_allclose(welfare, value, atol=1e-3)
    items = np.stack([(allocation == i + 1) @ 0.9 ** np.arange(3) for i in range(3)], 1)
    np.testing.assert_allclose(gained, items * core.types[core.profiles])
    assert all(len(set(row[row > 0])) == (row > 0).sum() for row in allocation)  # nobody is served twice


@pytest.mark.parametrize("boosts", ["state_action", "slot"])
def test_gradients(boosts: str) -> None:
    core = _core(n_types=3, boosts=boosts)
    for f in (lambda z: core.model.leader_return(z, 0.1, tolerance=1e-14), lambda z: core.revenue(z, 0.1)):
        x = random_x(core.model.leader_dim).requires_grad_()
        (gradient,) = torch.autograd.grad(f(x), x)
        assert relative_error(gradient, finite_difference(f, x.detach(), 1e-5)) <= 1e-6


def test_contexts_are_profiles_with_and_without_each_bidder() -> None:
    core = _core(types=[0.2, 0.6, 1.0], type_probabilities=[0.5, 0.3, 0.2])
    assert core.model.n_contexts == 9 + 6
    assert core.profile(1) == ([0.2, 0.6], None)
    assert core.profile(9 + 2) == ([0.0, 1.0], 0)
    assert core.profile(9 + 3 + 1) == ([0.6, 0.0], 1)
    p = core.model.context_probabilities
    assert p[1] == pytest.approx(0.5 * 0.3 / 3)
    assert p[9 + 2] == pytest.approx(0.2 / 3)
    mdps = core.model.configure(core.leader_of([1.25, 0.8], [0.3, 0.4]))
    arrays = mdps.arrays(1)
    np.testing.assert_allclose(arrays.reward[0], [0.3, 1.25 * 0.2, 0.8 * 0.6])
    served = core.states.index((1, (True, False)))
    np.testing.assert_allclose(arrays.reward[served], [0.4, 0.4 - 10.0, 0.8 * 0.6])
    assert mdps.arrays(9 + 2).reward[0, 1] == pytest.approx(0.3 - 10.0)  # bidder 0 is absent
    assert arrays.successors[0, 1, 0] == served


@pytest.mark.parametrize("options", [{}, {"n_bidders": 3, "n_types": 3, "n_slots": 3}, {"n_slots": 1}])
def test_sales_are_what_the_policy_sells(options: dict[str, Any]) -> None:
    """At small lambda, those of `hard_max`; at any, discounted sums of them are the expected items."""
    core = _core(**options)
    x = random_x(core.model.leader_dim, seed=1)
    for regularization in (1e-4, 0.2):
        sold = core.sales(core.model.solve(x, regularization).policy.numpy())
        items = np.einsum("pti,t->pi", sold, 0.9 ** np.arange(core.n_slots))
        np.testing.assert_allclose(items, core.outcome(x, regularization)[0].detach(), atol=1e-12)
        if regularization == 1e-4:
            owners = core.hard_max(x.numpy())[2]
            expected = owners[..., None] == np.arange(1, core.n_bidders + 1)
            np.testing.assert_allclose(sold, expected, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"n_bidders": 3, "n_types": 3}, {"n_bidders": 1}, {"objective": "welfare", "n_slots": 1}]
)
def test_result_figure_has_a_panel_per_item_and_one_for_the_value(options: dict[str, Any]) -> None:
    core = _core(**options)
    x = _mechanism(core, 0.5)
    figure = core.result_figure(x, core.model.solve(x, 0.05).policy.numpy())
    assert len(figure.axes) == core.n_slots + 1
    worth = core.hard_revenue if core.objective == "revenue" else core.hard_welfare
    heights = [bar.get_height() for bar in figure.axes[-1].patches]
    assert heights[:2] == pytest.approx([worth(np.zeros(len(x))), worth(x)])


def test_weights_keep_within_their_bounds() -> None:
    core = _core(weight_bound=3.0)
    for value in (-50.0, 0.0, 50.0):
        weights = core._split(torch.full((core.model.leader_dim,), value, dtype=torch.float64))[0]
        np.testing.assert_allclose(weights, 3.0 ** np.sign(value))
    x = core.leader_of([2.0, 0.4], [0.1, 0.2])
    np.testing.assert_allclose(core._split(torch.tensor(x))[0], [2.0, 0.4])


@pytest.mark.parametrize("options", [{}, {"n_bidders": 3, "n_types": 3}, {"n_slots": 1, "boosts": "slot"}])
def test_pictures(options: dict[str, Any]) -> None:
    env = _make(render_mode="rgb_array", **options)
    core = bocmdp_gym.configurable(env)
    env.reset(seed=0, options={"leader": _mechanism(core, 0.5), "context": 1})
    first: Any = env.render()
    env.reset(seed=0, options={"leader": _mechanism(core, 0.5), "context": core.model.n_contexts - 1})
    assert (first != env.render()).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_bidders": 0}, errors.OptionError, "n_bidders"),
        ({"n_slots": 0}, errors.OptionError, "n_slots"),
        ({"n_types": 1.5}, errors.OptionError, "n_types"),
        ({"types": [0.5, 0.2]}, errors.OptionError, "expected increasing numbers"),
        ({"types": [-0.5, 0.2]}, errors.OptionError, "at least 0"),
        ({"types": []}, errors.OptionError, r"types has shape \(0,\)"),
        ({"type_probabilities": [0.5, 0.6], "n_types": 2}, errors.OptionError, "sum to 1"),
        ({"type_probabilities": [1.0]}, errors.OptionError, r"expected \(5,\)"),
        ({"objective": "profit"}, errors.OptionError, "unknown objective"),
        ({"boosts": "slots"}, errors.OptionError, "Did you mean 'slot'"),
        ({"weight_bound": 1.0}, errors.OptionError, "weight_bound"),
        ({"n_bidders": 5, "n_types": 10}, errors.OptionError, "make 150000 contexts; expected at most 20000"),
        ({"discount": 1.5}, errors.DiscountError, "1.5"),
        ({"leader_discount": 0.5}, errors.DiscountError, "revenue needs both the same"),
        ({"horizon": -1}, errors.OptionError, "horizon"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _make(**options)


def test_bad_mechanisms_are_refused() -> None:
    core = _core()
    with pytest.raises(errors.OptionError, match=r"between 0\.5 and 2"):
        core.leader_of([1.0, 3.0], [0.5, 0.5])
    with pytest.raises(errors.OptionError, match=r"weights has shape \(1,\)"):
        core.leader_of([1.0], [0.5, 0.5])
    with pytest.raises(errors.OptionError, match="boosts has shape"):
        core.leader_of([1.0, 1.0], [0.5, 0.5, 0.5])
