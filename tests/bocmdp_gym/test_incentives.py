from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from bocmdp_gym import errors
from bocmdp_gym.incentives import IncentiveProblem, Path
from tests.problems import principal_agent


def _problem(**options: Any) -> IncentiveProblem:
    return principal_agent(**options).unwrapped.incentives()


def _values(problem: IncentiveProblem, agent: int, bonus: np.ndarray) -> np.ndarray:
    """V* of an agent paid a bonus, by plain value iteration."""
    v = np.zeros(problem.shape[0])
    for _ in range(2000):
        going_on = problem.discount * v[problem.successors] * ~problem.ends[agent][:, None]
        v = (problem.rewards[agent] + bonus[problem.entries] + going_on).max(1)
    return v


FORMS: list[dict[str, Any]] = [
    {"budget": 0.3},
    {"bonus_on": "state", "budget": 0.6},
    {"budget_on": "paid", "budget": 0.4, "bonus_on": "state"},
    {"price": 0.4, "agent_probabilities": [0.8, 0.2]},
    {"outside_option": 2.0, "budget": 0.8},
    {"instance": "grid", "size": 3, "budget": 0.2, "bonus_on": "state"},
    {"instance": "grid", "size": 4, "n_agents": 1, "budget": 0.4, "budget_on": "paid"},
]


@pytest.mark.parametrize("options", FORMS)
def test_the_optimum_is_implemented_within_the_constraints(options: dict[str, Any]) -> None:
    problem = _problem(**options)
    best = problem.optimum()
    paid, value = [], 0.0
    for agent, path in enumerate(best.paths):
        visits = path.visits(problem.discount, problem.shape)
        own = problem.rewards[agent] + best.bonus[problem.entries]
        highest = _values(problem, agent, best.bonus)[problem.start]
        assert (visits * own).sum() == pytest.approx(highest, abs=1e-7)  # its path is a best response
        paid.append(float((visits * best.bonus[problem.entries]).sum()))
        principal = path.visits(problem.principal_discount, problem.shape)
        net = problem.principal - problem.price * best.bonus[problem.entries]
        value += problem.probabilities[agent] * float((principal * net).sum())
        if problem.outside_option is not None:
            assert highest >= problem.outside_option - 1e-7
    assert value == pytest.approx(best.value, abs=1e-7)
    assert (max(paid) if problem.budget_on_paid else problem.costs @ best.bonus) <= problem.budget + 1e-7


@pytest.mark.parametrize("options", FORMS)
def test_no_random_bonus_does_better(options: dict[str, Any]) -> None:
    """3,000 bonuses within the constraints, best responses by enumeration: none beats the optimum, some beat no bonus."""
    problem = _problem(**options)
    best, rng = problem.optimum().value, np.random.default_rng(0)
    n = int(problem.entries.max()) + 1
    draws = rng.dirichlet(np.full(n, 0.15), 3000) * problem.budget * rng.random((3000, 1)) ** 0.2
    draws = 2.0 * draws if problem.budget_on_paid else draws / problem.costs
    draws[0] = 0.0
    total, allowed = np.zeros(3000), np.ones(3000, dtype=bool)
    for agent, probability in enumerate(problem.probabilities):
        paths = problem.paths(agent)
        visits = np.stack([path.visits(problem.discount, problem.shape) for path in paths])
        principal = np.stack([path.visits(problem.principal_discount, problem.shape) for path in paths])
        weights = np.zeros((len(paths), n))
        charged = np.zeros((len(paths), n))
        for k in range(len(paths)):
            np.add.at(weights[k], problem.entries, visits[k])
            np.add.at(charged[k], problem.entries, principal[k])
        own = (visits * problem.rewards[agent]).sum((1, 2)) + draws @ weights.T
        chosen = own.argmax(1)
        rows = np.arange(3000)
        gross = (principal * problem.principal).sum((1, 2))[chosen]
        total += probability * (gross - problem.price * (draws @ charged.T)[rows, chosen])
        if problem.budget_on_paid:
            allowed &= (draws @ weights.T)[rows, chosen] <= problem.budget
        if problem.outside_option is not None:
            allowed &= own[rows, chosen] >= problem.outside_option
    assert allowed.any()
    assert total[allowed].max() <= best + 1e-9
    if problem.outside_option is None:
        assert total[allowed].max() >= total[0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("budget", "budget_on"), [(1e-6, "paid"), (0.2, "paid"), (0.5, "paid"), (0.5, "sum")])
def test_the_closed_form_equals_the_linear_programs(seed: int, budget: float, budget_on: str) -> None:
    """One agent, a bonus per state and action: max V_P with V_A* - V_A(path) <= budget."""
    problem = _problem(seed=seed, n_agents=1, budget_on=budget_on, budget=budget, n_actions=3)
    closed, programs = problem.single_agent_optimum(), problem.optimum()
    assert closed.value == pytest.approx(programs.value, abs=1e-7)
    path = closed.paths[0]
    cost = (path.visits(problem.discount, problem.shape) * closed.bonus[problem.entries]).sum()
    own = problem.path_value(path, problem.rewards[0], problem.discount)
    assert cost == pytest.approx(_values(problem, 0, np.zeros_like(closed.bonus))[problem.start] - own, abs=1e-9)
    assert cost <= budget + 1e-9
    assert cost == pytest.approx(problem.costs @ closed.bonus, abs=1e-9) or budget_on == "paid"


@pytest.mark.parametrize("seed", range(5))
def test_the_envelope_is_the_best_mixture(seed: int) -> None:
    """Concave in the budget, never below the best single path, equal to a linear program over mixtures of all paths."""
    base = _problem(seed=seed, n_agents=1, budget_on="paid")
    paths, shape = base.paths(0), base.shape
    own = np.array([base.path_value(path, base.rewards[0], base.discount) for path in paths])
    value = np.array([base.path_value(path, base.principal, base.principal_discount) for path in paths])
    budgets = np.linspace(0.01, 1.0, 12)
    mixed = []
    for budget in budgets:
        problem = replace(base, budget=budget)
        program = linprog(-value, [own.max() - own], [budget], [np.ones(len(paths))], [1.0])
        mixed.append(problem.mixed_optimum())
        assert mixed[-1] == pytest.approx(-program.fun, abs=1e-9)
        assert mixed[-1] >= problem.single_agent_optimum().value - 1e-12
    assert (np.diff(mixed, 2) <= 1e-9).all()
    assert shape == (10, 2)


def test_paths_and_visits() -> None:
    problem = _problem(layers=2, n_agents=1)
    paths = problem.paths(0)
    assert len(paths) == 2**3
    assert all(path.loop is None for path in paths)
    loop = Path(states=(0, 1, 2), actions=(1, 0, 1), loop=1)
    visits = loop.visits(0.5, (3, 2))
    rewards = np.arange(6.0).reshape(3, 2)
    expected, state, actions = 0.0, [0, 1, 2] + [1, 2] * 60, {0: 1, 1: 0, 2: 1}
    for t, s in enumerate(state):
        expected += 0.5**t * rewards[s, actions[s]]
    assert (visits * rewards).sum() == pytest.approx(expected)


def test_what_cannot_be_answered_is_refused() -> None:
    problem = _problem()
    with pytest.raises(errors.UnsupportedError, match="closed forms hold for one agent"):
        problem.single_agent_optimum()
    with pytest.raises(errors.UnsupportedError, match="more than 100 profiles"):
        problem.optimum(limit=100)
    with pytest.raises(errors.UnsupportedError, match="more than 3 paths"):
        problem.paths(0, limit=3)
    with pytest.raises(errors.UnsupportedError, match="its outside option"):
        replace(problem, outside_option=100.0).optimum()
    with pytest.raises(errors.UnsupportedError, match="moves are random"):
        _problem(slip_probability=0.1)
