"""Policies, returns and gradients do not depend on units, on states nobody enters, or on how close to 1 the discount is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

import followers
from bocmdp_gym import TabularBOCMDP, errors
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.soft_bellman import SolveStatistics, check_convergence
from leaders.gradients import exact_weights
from tests.bocmdp_gym.exact_reference import reference

Array = npt.NDArray[np.float64]
METHODS = ("banded", "dense", "krylov", "sparse-lu")


class Problem(NamedTuple):
    """A model with a pit: a state whose cost nobody pays twice, or nobody can reach."""

    r: Array
    P: Array
    lam: float
    discount: float
    mu: Array
    rbar: Array
    dr: Array

    def model(self, method: str = "auto") -> TabularBOCMDP:
        r, dr = torch.from_numpy(self.r), torch.from_numpy(self.dr)
        return TabularBOCMDP(
            reward=lambda x: (r + x[0] * dr)[None],
            leader_reward=self.rbar[None],
            transition=self.P[None],
            initial=self.mu[None],
            discount=self.discount,
            leader_dim=1,
            solver=method,
        )

    def reference(self) -> tuple[Array, float, float] | None:
        return reference(self.r, np.full_like(self.r, self.discount), self.P, self.lam, self.mu, self.rbar, self.dr)


def pit(seed: int) -> Problem:
    """Costs 1e2 to 1e12, units 1e-12 to 1e12, 1 - gamma down to 1e-9, reachable or not, with rewards of its own or not."""
    rng = np.random.default_rng(seed)
    S, A = int(rng.integers(2, 6)), int(rng.integers(2, 4))
    P = np.zeros((S + 1, A + 1, S + 1))
    if rng.random() < 0.5:
        P[:S, :A, :S] = rng.dirichlet(np.full(S, 0.5), (S, A))
    else:
        P[np.arange(S)[:, None], np.arange(A), rng.integers(S, size=(S, A))] = 1.0
    r = np.zeros((S + 1, A + 1))
    r[:S, :A] = rng.normal(size=(S, A))
    if rng.random() < 0.5:
        P[:S, A, S] = 1.0
    else:
        P[:S, A] = P[:S, 0]  # the pit cannot be reached
    P[S, :, S] = 1.0
    r[S] = -(10.0 ** rng.uniform(2, 12)) + rng.normal(size=A + 1) * rng.integers(2)
    lam, unit = 10.0 ** rng.uniform(-2, 0), 10.0 ** rng.uniform(-12, 12)
    mu, rbar, dr = np.zeros(S + 1), np.zeros((S + 1, A + 1)), np.zeros((S + 1, A + 1))
    mu[:S], rbar[:S], dr[:S] = rng.dirichlet(np.ones(S)), rng.normal(size=(S, A + 1)), rng.normal(size=(S, A + 1))
    return Problem(r * unit, P, lam * unit, 1.0 - 10.0 ** rng.uniform(-9, -0.3), mu, rbar, dr * unit)


def judge(problem: Problem, method: str) -> str:
    """ "right", "named error", or what is wrong."""
    expected = problem.reference()
    if expected is None:
        return "no reference"
    policy, value, slope = expected
    try:
        model = problem.model(method)
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        found = model.solve(x, problem.lam).policy[0].detach().numpy()
        F = model.leader_return(x, problem.lam)
        (gradient,) = torch.autograd.grad(F, x)
        mdps = model.configure(x)
        solution = WarmSolver().solve(mdps, 0, problem.lam)
        weights, leader = exact_weights(mdps, 0, solution, problem.lam)
        exact = mdps.vjp(weights, 0)
    except errors.ConvergenceError:
        return "named error"
    # a slope far below what rounding leaves of F's own terms is no slope that anybody could see
    visible = 1e-20 * float(np.abs(problem.dr).max()) / problem.lam / (1.0 - problem.discount) ** 2
    scale = float(np.abs(problem.rbar).max()) / (1.0 - problem.discount)
    off = {
        "policy": float(np.abs(found - policy).max()) / 1e-6,
        "F": abs(float(F.detach()) - value) / (1e-5 * abs(value) + 1e-13 * scale),
        "gradient": abs(float(gradient) - slope) / (1e-5 * abs(slope) + visible),
        "exact F": abs(leader.leader_return - value) / (1e-5 * abs(value) + 1e-13 * scale),
        "exact gradient": abs(float(exact) - slope) / (1e-5 * abs(slope) + visible),
    }
    wrong = {name: error for name, error in off.items() if not error <= 1.0}
    return f"wrong: {wrong}" if wrong else "right"


def _tally(seeds: range) -> tuple[dict[int, str], int]:
    verdicts = {seed: judge(pit(seed), METHODS[seed % 4]) for seed in seeds}
    wrong = {seed: verdict for seed, verdict in verdicts.items() if verdict.startswith("wrong")}
    return wrong, sum(verdict == "right" for verdict in verdicts.values())


def test_models_with_a_pit_are_solved_or_refused() -> None:
    wrong, right = _tally(range(120))
    assert not wrong
    assert right >= 110


@pytest.mark.slow
def test_two_thousand_models_with_a_pit_are_solved_or_refused() -> None:
    wrong, right = _tally(range(1000, 3000))
    print(f"right {right}, wrong {len(wrong)}, of 2,000")
    assert not wrong
    assert right >= 1940


def _three_states(cost: float, unit: float = 1.0, reachable: bool = True) -> TabularBOCMDP:
    """States 0 and 1 stay or swap; action 2 leads to state 2, where every action costs ``cost`` for ever."""
    P = np.zeros((1, 3, 3, 3))
    P[0, 0, 0, 0] = P[0, 0, 1, 1] = P[0, 1, 0, 1] = P[0, 1, 1, 0] = 1.0
    P[0, 2, :, 2] = 1.0
    P[0, :2, 2, 2 if reachable else 0] = 1.0
    leader = np.zeros((1, 3, 3))
    leader[0, 0, 0] = 1.0

    def reward(x: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros((), dtype=torch.float64)
        rows = [torch.stack([x[0], zero - 0.2, zero]), torch.stack([zero + 0.3, 0.1 * x[0], zero]), (zero - cost).expand(3)]
        return unit * torch.stack(rows)[None]

    return TabularBOCMDP(reward=reward, leader_reward=leader, transition=P, initial=[0.5, 0.5, 0.0], leader_dim=1, discount=0.9)


@pytest.mark.parametrize("reachable", [True, False])
def test_what_a_pit_costs_changes_nothing(reachable: bool) -> None:
    x = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    found = []
    for cost in (1e6, 1e8, 1e10, 1e12):
        model = _three_states(cost, reachable=reachable)
        F = model.leader_return(x, 0.1)
        (gradient,) = torch.autograd.grad(F, x)
        oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.1))
        mdps = oracle.configure(x.detach())
        solution = WarmSolver().solve(mdps, 0, 0.1)
        weights, leader = exact_weights(mdps, 0, solution, 0.1)
        assert float(F.detach()) == pytest.approx(leader.leader_return, rel=1e-12)
        assert float(gradient) == pytest.approx(float(mdps.vjp(weights, 0)), rel=1e-11)
        policy = oracle.respond(x.detach(), 0, np.random.default_rng(0))
        np.testing.assert_allclose(policy.table, solution.policy, rtol=0, atol=1e-12)  # type: ignore[attr-defined]
        found.append((float(F.detach()), float(gradient)))
    np.testing.assert_allclose(found, np.broadcast_to(found[0], (4, 2)), rtol=1e-11)


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 3.0, 1e9, 1e12])
@pytest.mark.parametrize("cost", [1.0, 1e8])
def test_policies_have_no_unit(unit: float, cost: float) -> None:
    expected = _three_states(cost).solve([0.2], 0.1)
    found = _three_states(cost, unit).solve([0.2], 0.1 * unit)
    np.testing.assert_allclose(found.policy, expected.policy, rtol=0, atol=1e-9)
    assert float(_three_states(cost, unit).leader_return([0.2], 0.1 * unit)) == pytest.approx(
        float(_three_states(cost).leader_return([0.2], 0.1)), rel=1e-9
    )


@pytest.mark.parametrize("seed", range(30))
def test_rewards_and_lambda_times_c_leave_the_policy_as_it_is(seed: int) -> None:
    problem = pit(seed)
    c = 2.0 ** int(np.random.default_rng(seed).integers(-40, 41))  # a power of two: rewards are scaled without rounding
    scaled = problem._replace(r=problem.r * c, lam=problem.lam * c)
    try:
        before = problem.model().solve([0.0], problem.lam).policy
        after = scaled.model().solve([0.0], scaled.lam).policy
    except errors.ConvergenceError:
        return
    assert float((before - after).abs().max()) <= 1e-9


def test_values_next_to_discount_one_are_exact() -> None:
    """V = 1 / (1 - gamma) for a reward of 1, in 60 digits: lost at 1 - gamma = 1e-9 by 1.8% before."""
    for gap in (1e-6, 1e-8, 1e-9):
        gamma = 1.0 - gap
        model = TabularBOCMDP(
            reward=np.ones((1, 2, 2)),
            leader_reward=np.ones((1, 2, 2)),
            transition=np.full((1, 2, 2, 2), 0.5),
            initial=[1.0, 0.0],
            leader_dim=1,
            discount=gamma,
        )
        value = model.solve([0.0], 0.1).value
        expected = (1.0 + 0.1 * np.log(2.0)) / (1.0 - gamma)
        np.testing.assert_allclose(value, expected, rtol=1e-13)


def test_one_context_does_not_excuse_another() -> None:
    """Each context is judged by its own values, also where the steps run out."""
    r = np.zeros((2, 3, 2))
    r[0] = 1e9
    r[1] = np.random.default_rng(0).normal(size=(3, 2))
    P = np.random.default_rng(1).dirichlet(np.ones(3), (1, 3, 2))
    model = TabularBOCMDP(reward=r, leader_reward=r, transition=P, initial=[1.0, 0, 0], leader_dim=1, discount=0.9)
    with pytest.raises(errors.ConvergenceError, match="may be wrong"):
        model.solve([0.0], 0.01, max_iterations=1)


def test_what_extended_precision_cannot_tell_is_refused_by_name() -> None:
    statistics = SolveStatistics(residual=1e-17, error=1e-3, iterations=12)
    with pytest.raises(errors.ConvergenceError, match=r"wrong by 0.001 .* too large beside the regularization"):
        check_convergence(statistics, 0.1, 1e-8, 200)


def test_planners_do_not_mind_a_pit_either() -> None:
    """Soft value iteration, natural policy gradient and linear programming, whose rule had the same fault."""
    for cost in (1e2, 1e8):
        model = _three_states(cost)
        expected = model.solve([0.2], 0.1).policy[0].numpy()
        for follower in (followers.SoftValueIteration(0.1), followers.NaturalPolicyGradient(0.1)):
            oracle = followers.TrajectoryOracle(model, follower)
            table: Any = oracle.respond([0.2], 0, np.random.default_rng(0))
            np.testing.assert_allclose(table.table[:2], expected[:2], rtol=0, atol=1e-6)


def test_a_cost_nobody_pays_makes_no_tie() -> None:
    """100 and 105 tied beside a cost of 1e12 that is never reached, and the leader had its way."""
    r = np.array([[[100.0, 105.0], [-1e12, -1e12]]])
    leader = np.array([[[1.0, 0.0], [0.0, 0.0]]])
    P = np.zeros((1, 2, 2, 2))
    P[0, 0, :, 0] = P[0, 1, :, 1] = 1.0
    model = TabularBOCMDP(reward=r, leader_reward=leader, transition=P, initial=[1.0, 0.0], leader_dim=1, discount=0.9)
    oracle = followers.TrajectoryOracle(model, followers.LinearProgramming())
    policy: Any = oracle.respond([0.0], 0, np.random.default_rng(0))
    np.testing.assert_array_equal(policy.table[0], [0.0, 1.0])
