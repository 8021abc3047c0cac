from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from tests.problems import F64, finite_difference, random_x, relative_error

OPPOSITE = {"rewards": [[1.0, 0.0], [0.0, 1.0]], "task_probabilities": [0.7, 0.3], "kl_weight": 1.0}


def _make(**options: Any) -> gym.Env[Any, Any]:
    return gym.make("bocmdp/MetaRL-v0", **options)


def _core(**options: Any) -> bocmdp_gym.envs.MetaRL:
    return bocmdp_gym.configurable(_make(**options))


def _maximise(f: Callable[[Tensor], Tensor], x0: Tensor, rounds: int = 20) -> Tensor:
    """L-BFGS: the public gradient, a textbook optimiser."""
    x = x0.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([x], max_iter=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Any:
        optimiser.zero_grad()
        loss = -f(x)
        loss.backward()
        return loss

    for _ in range(rounds):
        optimiser.step(closure)
    return x.detach()


def test_stated_optima_of_opposite_tasks() -> None:
    """The numbers of the closed forms at p = 0.7, lambda' = 1."""
    core = _core(**OPPOSITE)
    reward, value = core.benchmark(), core.value_benchmark()
    assert reward is not None
    assert value is not None
    assert core.prior(reward.x)[0, 0] == pytest.approx(0.72582, abs=5e-6)
    assert reward.value == pytest.approx(0.76658, abs=5e-6)
    assert core.prior(value.x)[0, 0] == pytest.approx(0.93279, abs=5e-6)
    assert value.value == pytest.approx(0.70240, abs=5e-6)


@pytest.mark.parametrize("kl_weight", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("p", [0.5, 0.55, 0.7])
@pytest.mark.parametrize("objective", ["reward", "value"])
def test_gradient_ascent_reaches_the_closed_forms(objective: str, p: float, kl_weight: float) -> None:
    """Exact gradients, so 1e-9; where the optimum lies on the boundary the softmax only tends to it, so 1e-4."""
    core = _core(**{**OPPOSITE, "task_probabilities": [p, 1.0 - p], "kl_weight": kl_weight})
    benchmark = core.benchmark() if objective == "reward" else core.value_benchmark()
    assert benchmark is not None
    weights = torch.tensor(core.model.context_probabilities)

    def value(x: Tensor) -> Tensor:
        if objective == "reward":
            return core.model.leader_return(x, kl_weight)
        return weights @ core.model.solve(x, kl_weight).value[:, 0]

    x = _maximise(value, torch.tensor([0.1, -0.1], dtype=F64))
    inside = core.prior(benchmark.x).max() < 1.0 - 1e-9
    assert float(value(x)) == pytest.approx(benchmark.value, abs=1e-9 if inside else 1e-4)
    np.testing.assert_allclose(core.prior(x), core.prior(benchmark.x), atol=1e-4 if inside else 1e-2)
    assert float(value(torch.tensor(benchmark.x))) == pytest.approx(benchmark.value, abs=1e-10)


@pytest.mark.parametrize("objective", ["reward", "value"])
def test_leaders_reach_the_closed_forms(objective: str) -> None:
    """One task per iteration at rate 0.05: x jitters by O(sqrt(0.05)), and the value, flat there, by less than 0.05^2."""
    core = _core(**OPPOSITE)
    benchmark = core.benchmark() if objective == "reward" else core.value_benchmark()
    assert benchmark is not None
    result = leaders.optimize(
        _make(**OPPOSITE),
        leaders.ExactGradient(learning_rate=0.05),
        followers.SoftPolicyIteration(1.0),
        1500,
        loss=core.value_loss if objective == "value" else None,
        evaluate_every=1500,
        progress=False,
    )
    assert result.leader_return is not None
    assert result.leader_return == pytest.approx(benchmark.value, abs=2.5e-3)


def test_order_of_tasks_does_not_matter() -> None:
    turned = {**OPPOSITE, "rewards": [[0.0, 1.0], [1.0, 0.0]], "task_probabilities": [0.3, 0.7]}
    first, second = _core(**OPPOSITE).benchmark(), _core(**turned).benchmark()
    assert first is not None
    assert second is not None
    assert first.value == pytest.approx(second.value)
    assert _core().benchmark() is None
    assert _core(rewards=[[1.0, 0.0], [0.0, 2.0]]).benchmark() is None
    assert _core(**OPPOSITE).benchmark(regularization=0.5) is None  # not its kl_weight


def test_follower_is_the_kl_regularised_optimum() -> None:
    """pi proportional to prior * exp(Q / lambda'), and V the value with the KL divergence subtracted, by brute force."""
    core = _core(kl_weight=0.2, slip_probability=0.3)
    x = random_x(core.model.leader_dim, scale=1.0)
    prior = torch.tensor(core.prior(x))
    mdps, solution = core.model.configure(x), core.model.solve(x, 0.2)
    v = torch.zeros(3, len(core.grid), dtype=F64)  # plain value iteration on V = lambda' log sum prior exp(Q / lambda')
    for _ in range(800):
        q = core.task_reward + mdps.continuation * mdps.transition.expectation(v)
        v = 0.2 * torch.log((prior * torch.exp(q / 0.2)).sum(-1))
    torch.testing.assert_close(solution.value, v, atol=1e-9, rtol=0)
    answer = prior * torch.exp((q - v.unsqueeze(-1)) / 0.2)
    torch.testing.assert_close(solution.policy, answer, atol=1e-9, rtol=0)
    torch.testing.assert_close(-core.value_loss(x, answer), v[:, core.start], atol=1e-9, rtol=0)
    assert float(core.value_loss(x, answer[1], 1)) == pytest.approx(-float(v[1, core.start]), abs=1e-9)


@pytest.mark.parametrize("cost", [0.01, 0.1, 1.0])
def test_random_walk_with_discount_exactly_one(cost: float) -> None:
    """Todorov's walk: V_i = log(cosh(theta (i - N/2)) / cosh(theta N/2)), cosh theta = exp(cost); ends 0 and N absorb."""
    n = 20
    options = {"layout": [" " * (n + 1)], "start": [0, n // 2], "goals": [[[0, 0], [0, n]]], "goal_reward": 0.0}
    env = _make(**options, step_reward=-cost, kl_weight=1.0, discount=1.0)
    core = bocmdp_gym.configurable(env)
    prior = np.full((n + 1, 4), 1e-30)
    prior[:, [1, 3]] = 0.5  # right, left
    x = np.log(prior).reshape(-1)
    theta = np.arccosh(np.exp(cost))
    i = np.arange(n + 1)
    desirability = np.cosh(theta * (i - n / 2)) / np.cosh(theta * n / 2)
    solution = core.model.solve(x, 1.0)
    np.testing.assert_allclose(solution.value[0].numpy(), np.log(desirability), atol=1e-9)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(1.0))
    policy = oracle.respond(x, 0, np.random.default_rng(0))
    right = desirability[2:] / (desirability[2:] + desirability[:-2])
    np.testing.assert_allclose(policy.table[1:n, 1], right, atol=1e-9)


def test_best_prior_for_the_value_averages_the_followers() -> None:
    """The optimality condition of G: p(a|s) proportional to E_xi d_xi(s) pi_xi(a|s). Gradient steps get there to 1e-3."""
    core = _core(kl_weight=0.3, layout=["x" * 7, "x     x", "x x x x", "x     x", "x" * 7], start=[1, 1], goals=[[1, 5], [3, 5]])
    weights = torch.tensor(core.model.context_probabilities)

    def value(x: Tensor) -> Tensor:
        return weights @ core.model.solve(x, 0.3).value[:, core.start]

    x = _maximise(value, torch.zeros(core.model.leader_dim, dtype=F64))
    mdps, pi = core.model.configure(x), core.model.solve(x, 0.3).policy
    average = torch.zeros_like(pi[0])
    for context, weight in enumerate(weights):
        matrix = mdps.transition.policy_matrix(pi * mdps.continuation)[context]
        visits = torch.linalg.solve(torch.eye(len(core.grid)) - matrix.T, mdps.initial[context])
        average += weight * visits[:, None] * pi[context]
    visited = average.sum(-1) > 1e-3
    assert visited.sum() > 5
    average = average / average.sum(-1, keepdim=True)
    np.testing.assert_allclose(core.prior(x)[visited], average[visited], atol=1e-3)
    leader = leaders.ExactGradient(learning_rate=2.0, max_gradient_norm=None)
    follower = followers.SoftPolicyIteration(0.3)
    result = leaders.optimize(core, leader, follower, 1000, loss=core.value_loss, evaluate_every=1000, progress=False)
    assert result.leader_return == pytest.approx(float(value(x)), abs=5e-3)


def test_gradient_of_the_task_reward_on_the_grid() -> None:
    core = _core(slip_probability=0.2, leader_discount=0.9)
    x = random_x(core.model.leader_dim).requires_grad_()
    core.model.leader_return(x, 0.1, tolerance=1e-14).backward()
    assert x.grad is not None
    numeric = finite_difference(lambda z: core.model.leader_return(z, 0.1, tolerance=1e-14), x.detach(), 1e-5)
    assert relative_error(x.grad, numeric) <= 1e-6


def test_leader_learns_the_shared_way() -> None:
    """On the default grid the prior comes within 1% of sending every follower straight to its goal."""
    core = _core()
    result = leaders.optimize(
        _make(),
        leaders.ExactGradient(learning_rate=20.0, max_gradient_norm=None),
        followers.SoftPolicyIteration(0.1),
        600,
        progress=False,
    )
    straight = (0.95**8 + 2 * 0.95**10) / 3
    assert result.leader_return is not None
    assert straight >= result.leader_return > 0.99 * straight
    door = core.grid.index[3, 5]
    assert core.prior(result.x)[door, 1] > 0.9  # right, through the door


def test_pictures() -> None:
    env = _make(render_mode="rgb_array", **OPPOSITE)
    env.reset(seed=0, options={"leader": [2.0, 0.0]})
    first: Any = env.render()
    env.reset(seed=0, options={"leader": [0.0, 2.0]})
    assert (first != env.render()).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kl_weight": 0.0}, errors.OptionError, "kl_weight is 0.0; expected a finite number above 0"),
        ({"rewards": [[1.0, 0.0], [0.0]]}, errors.OptionError, "rewards"),
        ({"rewards": [[float("nan"), 0.0]]}, errors.OptionError, r"rewards is nan at \[0, 0\]"),
        ({"rewards": [1.0, 0.0]}, errors.OptionError, r"rewards has shape \(2,\)"),
        ({"task_probabilities": [0.5, 0.2, 0.2]}, errors.OptionError, "task_probabilities .* sum to 1"),
        ({"task_probabilities": [0.5, 0.5]}, errors.OptionError, r"task_probabilities has shape \(2,\); expected \(3,\)"),
        ({"task_probabilities": [1.5, -0.5, 0.0]}, errors.OptionError, "non-negative"),
        ({"goals": []}, errors.OptionError, r"goals is \[\]"),
        ({"goals": [[0, 0]]}, errors.LayoutError, r"goals\[0\] \[0, 0\] lies inside a wall"),
        ({"start": [99, 0]}, errors.LayoutError, "start"),
        ({"slip_probability": -0.1}, errors.OptionError, "slip_probability"),
        ({"goal_reward": float("inf")}, errors.OptionError, "goal_reward"),
        ({"discount": 1.0, "step_reward": 5.0}, errors.DiscountError, "never end"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _core(**options)


def test_rewards_are_float64() -> None:
    core = _core(goal_reward=0.1, step_reward=1e-300)
    assert set(core.task_reward.unique().tolist()) == {0.1, 1e-300}
    assert _core(goal_reward=1e300).task_reward.max() == 1e300
