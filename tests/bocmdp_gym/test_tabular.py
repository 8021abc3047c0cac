from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
from bocmdp_gym import SuccessorTransitions, TabularBOCMDP, errors
from tests.problems import (
    F64,
    brute_force_solution,
    finite_difference,
    four_rooms_model,
    random_model,
    random_x,
    relative_error,
)

TIGHT = {"tolerance": 1e-14}


@pytest.mark.parametrize("regularization", [0.001, 0.003, 0.005])
def test_hypergradient_matches_finite_differences_on_four_rooms(regularization: float) -> None:
    model = four_rooms_model()
    x = random_x(model.leader_dim, scale=1.0).requires_grad_()
    model.leader_return(x, regularization, **TIGHT).backward()
    assert x.grad is not None
    numeric = finite_difference(lambda z: model.leader_return(z, regularization, **TIGHT), x.detach(), step=1e-5)
    assert relative_error(x.grad, numeric) <= 1e-6


@pytest.mark.parametrize("regularization", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("terminating", [True, False])
@pytest.mark.parametrize(("states", "successors"), [(7, None), (20, 3), (40, None), (60, 4)])
def test_hypergradient_matches_finite_differences_on_random_models(
    regularization: float, terminating: bool, states: int, successors: int | None
) -> None:
    model = random_model(
        states,
        states=states,
        successors=successors,
        terminating=terminating,
        moving=("reward", "leader_reward", "transition", "initial", "termination"),
    )
    x = random_x(model.leader_dim, seed=1)
    gradient = torch.func.grad(lambda z: model.leader_return(z, regularization, **TIGHT))(x)
    step = 1e-6 if regularization >= 0.1 else 1e-7  # small lambda: the optimum bends on a scale of lambda
    numeric = finite_difference(lambda z: model.leader_return(z, regularization, **TIGHT), x, step)
    assert relative_error(gradient, numeric) <= 1e-6


@pytest.mark.parametrize("regularization", [0.01, 1.0])
@pytest.mark.parametrize("successors", [None, 4])
def test_solution_matches_brute_force(regularization: float, successors: int | None) -> None:
    model = random_model(3, successors=successors)
    x = random_x(model.leader_dim)
    solution = model.solve(x, regularization)
    expected = brute_force_solution(model, x, regularization)
    torch.testing.assert_close(solution.value, expected, atol=1e-9, rtol=0)
    assert solution.residual <= 1e-9
    torch.testing.assert_close(solution.policy, torch.softmax(solution.q / regularization, -1))


def test_warm_start_needs_fewer_iterations() -> None:
    model = four_rooms_model()
    x = random_x(model.leader_dim, scale=0.01)
    cold = model.solve(x, 1e-3)
    warm = model.solve(x + 1e-4, 1e-3, initial_value=cold.value)
    assert warm.iterations < cold.iterations
    torch.testing.assert_close(warm.value, model.solve(x + 1e-4, 1e-3).value, atol=1e-9, rtol=0)


def test_transforms_batches_and_sums_agree() -> None:
    model = random_model(5, successors=3)
    xs = torch.stack([random_x(model.leader_dim, seed) for seed in range(4)])

    def f(x: torch.Tensor) -> torch.Tensor:
        return model.leader_return(x, 0.1)

    one_by_one = torch.stack([f(x) for x in xs])
    torch.testing.assert_close(f(xs), one_by_one)
    torch.testing.assert_close(torch.func.vmap(f)(xs), one_by_one)
    gradients = torch.stack([torch.func.grad(f)(x) for x in xs])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(f))(xs), gradients)
    batched = xs.clone().requires_grad_()
    f(batched).sum().backward()
    torch.testing.assert_close(batched.grad, gradients)
    jacobian = torch.func.jacrev(lambda x: model.leader_return(x, 0.1, per_context=True))(xs[0])
    assert jacobian.shape == (model.n_contexts, model.leader_dim)
    torch.testing.assert_close(torch.as_tensor(model.context_probabilities) @ jacobian, gradients[0])
    x = xs[0].clone().requires_grad_()
    (f(x) + 2.0 * f(x)).backward()  # two calls summed in one graph
    torch.testing.assert_close(x.grad, 3.0 * gradients[0])


def test_second_derivatives() -> None:
    model = random_model(6)
    x = random_x(model.leader_dim)
    gradient = torch.func.grad(lambda z: model.leader_return(z, 0.5, **TIGHT))
    hessian = torch.func.jacrev(gradient)(x)
    numeric = torch.stack(
        [(gradient(x + 1e-5 * e) - gradient(x - 1e-5 * e)) / 2e-5 for e in torch.eye(model.leader_dim, dtype=F64)]
    )
    torch.testing.assert_close(hessian, numeric, atol=1e-6, rtol=1e-6)


def test_any_torch_optimiser_climbs() -> None:
    model = random_model(7)
    x = torch.zeros(model.leader_dim, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.05, maximize=True)
    before = float(model.leader_return(x.detach(), 0.1))
    for _ in range(30):
        optimizer.zero_grad()
        model.leader_return(x, 0.1).backward()
        optimizer.step()
    assert float(model.leader_return(x.detach(), 0.1)) > before + 0.1


def test_general_loss_and_its_gradient() -> None:
    model = random_model(8)
    x = random_x(model.leader_dim)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return model.loss(z, lambda y, policy: (policy**3).sum((-1, -2)) + (y**2).sum(), regularization=0.5, **TIGHT)

    gradient = torch.func.grad(loss)(x)
    assert relative_error(gradient, finite_difference(loss, x)) <= 1e-6
    torch.testing.assert_close(loss(torch.stack([x, 2 * x])), torch.stack([loss(x), loss(2 * x)]))
    with pytest.raises(errors.ModelError, match="one per context"):
        model.loss(x, lambda y, policy: policy.sum(), regularization=0.5)


def test_constant_parts_give_no_gradient_but_the_right_one() -> None:
    model = random_model(9, moving=("leader_reward",))
    x = random_x(model.leader_dim)
    gradient = torch.func.grad(lambda z: model.leader_return(z, 0.3))(x)
    assert relative_error(gradient, finite_difference(lambda z: model.leader_return(z, 0.3), x)) <= 1e-6


def test_frozen_lake_ends_on_arrival() -> None:
    model = TabularBOCMDP.from_gymnasium(gym.make("FrozenLake-v1"), leader_dim=1)
    value = model.solve([0.0], 0.1).value
    assert float(value[0, 0]) == pytest.approx(2.471, abs=5e-4)


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1"])
def test_published_tables_reproduce_the_environment(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    tables = bocmdp_gym.gymnasium_tables(env)
    tables.transition.validate()
    rng = np.random.default_rng(0)
    for _ in range(200):
        s, a = int(rng.integers(len(env.P))), int(rng.integers(len(env.P[0])))
        reward = sum(p * r for p, _, r, _ in env.P[s][a])
        done = sum(p for p, _, _, end in env.P[s][a] if end)
        assert float(tables.reward[0, s, a]) == pytest.approx(reward)
        assert float(tables.termination[0, s, a]) == pytest.approx(done)


def test_model_without_tables_is_refused() -> None:
    with pytest.raises(errors.UnsupportedError, match="publishes no tables"):
        TabularBOCMDP.from_gymnasium(gym.make("CartPole-v1"), leader_dim=1)


# bad input: one clear named error each


def _small(**changes: object) -> TabularBOCMDP:
    p = torch.full((1, 3, 2, 3), 1 / 3, dtype=F64)
    arguments: dict[str, object] = {
        "reward": lambda x: x.sum() * torch.ones(1, 3, 2, dtype=F64),
        "leader_reward": torch.zeros(1, 3, 2, dtype=F64),
        "transition": p,
        "initial": torch.tensor([[1.0, 0.0, 0.0]], dtype=F64),
        "leader_dim": 2,
        "discount": 0.9,
    }
    return TabularBOCMDP(**{**arguments, **changes})


def _bad_rows() -> torch.Tensor:
    p = torch.full((2, 3, 2, 3), 1 / 3, dtype=F64)
    p[1, 2, 0] *= 0.98
    return p


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"transition": _bad_rows(), "reward": torch.zeros(2, 3, 2)},
            errors.ModelError,
            r"sums to 0\.98 at state 2, action 0, context 1",
        ),
        ({"transition": torch.full((1, 3, 2, 4), 0.25)}, errors.ModelError, r"expected \(C, S, A, S\)"),
        ({"reward": torch.zeros(1, 4, 2)}, errors.ModelError, "reward has shape"),
        ({"reward": lambda x: torch.full((1, 3, 2), float("nan"))}, errors.ModelError, "reward is nan at state 0"),
        ({"initial": torch.tensor([[0.5, 0.0, 0.0]])}, errors.ModelError, "initial distribution of context 0 sums to 0.5"),
        ({"termination": torch.full((1, 3), 1.5)}, errors.ModelError, "termination is 1.5"),
        ({"discount": 1.2}, errors.DiscountError, "1.2"),
        ({"discount": -0.1}, errors.DiscountError, "-0.1"),
        ({"discount": 1.0}, errors.DiscountError, "never end"),
        ({"leader_discount": 1.0}, errors.DiscountError, "never end"),
        ({"context_probabilities": [0.5, 0.6]}, errors.ContextError, "not a distribution"),
    ],
)
def test_malformed_models_are_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _small(**changes)


def test_discount_one_is_allowed_where_episodes_end() -> None:
    model = _small(discount=1.0, termination=torch.full((1, 3), 0.1))
    assert np.isfinite(float(model.leader_return([0.0, 0.0], 0.1)))


def _walk(cost: float, *, both_ends: bool = True, way_back: bool = True) -> TabularBOCMDP:
    """States 0..8 in a row, steps left and right; acting in 0 or 8 ends the episode, every other step pays -cost."""
    steps = np.clip(np.arange(9)[:, None] + [-1, 1], 0, 8)
    if not way_back:
        steps[8] = 8
    ends = torch.zeros(1, 9, dtype=F64)
    ends[0, [0, 8] if both_ends else [0]] = 1.0
    return _small(
        transition=torch.eye(9, dtype=F64)[torch.from_numpy(steps)][None],
        reward=lambda x: (ends - 1).unsqueeze(-1) * (cost + 0 * x.sum()),
        leader_reward=torch.zeros(1, 9, 2),
        initial=torch.full((9,), 1 / 9),
        termination=ends,
        discount=1.0,
    )


def test_discount_one_is_allowed_where_staying_costs() -> None:
    """A shortest path: to and fro for ever is possible, but loses without bound."""
    model = _walk(1.0)
    expected = brute_force_solution(model, torch.zeros(2, dtype=F64), 0.5)
    torch.testing.assert_close(model.solve([0.0, 0.0], 0.5).value, expected, atol=1e-9, rtol=0)
    assert torch.isfinite(torch.func.grad(lambda x: model.leader_return(x, 0.5))(torch.zeros(2, dtype=F64))).all()
    with pytest.raises(errors.ConvergenceError):  # 2 cos(pi / 8) exp(-cost / lambda) > 1: entropy pays for staying
        model.solve([0.0, 0.0], 2.0)
    for cost in (0.0, -1.0):
        with pytest.raises(errors.DiscountError, match="from state 1 in context 0 some policy's episodes never end"):
            _walk(cost)
    with pytest.raises(errors.DiscountError, match="from state 8 in context 0"):
        _walk(1.0, both_ends=False, way_back=False)  # from state 8 there is no way to the end


@pytest.mark.parametrize("x", [[0.0], [0.0, float("nan")], [[1.0, 2.0, 3.0]], "text"])
def test_bad_x_is_refused(x: object) -> None:
    with pytest.raises(errors.LeaderParameterError):
        _small().leader_return(x, 0.1)


@pytest.mark.parametrize("regularization", [0.0, -1.0, float("nan"), float("inf"), "small"])
def test_bad_regularization_is_refused(regularization: object) -> None:
    with pytest.raises(errors.RegularizationError, match="positive finite"):
        _small().solve([0.0, 0.0], regularization)  # type: ignore[arg-type]


def test_nan_of_the_model_at_some_x_is_reported() -> None:
    model = _small(reward=lambda x: torch.log(1.0 - x.sum()) * torch.ones(1, 3, 2, dtype=F64))
    with pytest.raises(errors.ConvergenceError, match="not finite"):
        model.leader_return([2.0, 2.0], 0.1)


def test_successors_out_of_range_are_refused() -> None:
    with pytest.raises(errors.ModelError, match=r"expected states in 0\.\.2"):
        SuccessorTransitions(np.full((3, 2, 1), 3), torch.ones(3, 2, 1, dtype=F64))


def test_jacobians_of_the_parts() -> None:
    model = random_model(2, successors=3, moving=("reward", "leader_reward", "transition", "initial", "termination"))
    x = random_x(model.leader_dim)
    jacobians = model.jacobians(x)
    assert set(jacobians) == set(model.moving)

    def parts(z: torch.Tensor) -> dict[str, torch.Tensor]:
        mdps = model.configure(z)
        named = {name: getattr(mdps, name) for name in ("reward", "leader_reward", "initial", "termination")}
        return named | {"transition": mdps.transition.values}

    for i, direction in enumerate(torch.eye(model.leader_dim, dtype=F64)):
        high, low = parts(x + 1e-6 * direction), parts(x - 1e-6 * direction)
        for name, jacobian in jacobians.items():
            numeric = (high[name] - low[name]) / 2e-6
            torch.testing.assert_close(jacobian[..., i].expand_as(numeric), numeric, atol=1e-8, rtol=1e-6)


def test_jacobians_of_functions_that_ignore_x_are_zero() -> None:
    constant = torch.ones(1, 2, 2, dtype=F64)
    model = TabularBOCMDP(
        reward=lambda x: constant * x.sum(),
        leader_reward=lambda x: constant,
        transition=torch.full((1, 2, 2, 2), 0.5, dtype=F64),
        initial=[0.5, 0.5],
        leader_dim=3,
        discount=0.9,
    )
    jacobians = model.jacobians(np.zeros(3))
    assert jacobians["reward"].shape == (1, 2, 2, 3)
    assert float(jacobians["leader_reward"].abs().max()) == 0.0


@pytest.mark.parametrize("moving", [False, True])
def test_float32_probabilities_are_freed_of_their_rounding(moving: bool) -> None:
    def give(values: torch.Tensor) -> object:
        return (lambda x: values + 0.0 * x.sum().to(torch.float32)) if moving else values

    third = torch.full((3,), 1.0, dtype=torch.float32) / 3
    successors = np.tile(np.arange(3), (3, 2, 1))
    for transition in (give(third.expand(1, 3, 2, 3)), SuccessorTransitions(successors, third.expand(1, 3, 2, 3))):
        zero = np.zeros((1, 3, 2))
        model = TabularBOCMDP(
            reward=zero, leader_reward=zero, transition=transition, initial=give(third[None]), leader_dim=1, discount=0.9
        )
        mdps = model.configure(np.zeros(1))
        for part in (mdps.transition.values, mdps.initial):
            assert part.dtype == F64
            torch.testing.assert_close(part.sum(-1), torch.ones_like(part.sum(-1)), rtol=0, atol=1e-15)


def test_row_sums_are_named_with_enough_digits() -> None:
    off = torch.full((1, 2, 1, 2), 0.5 + 2e-8, dtype=F64)
    zero = np.zeros((1, 2, 1))
    with pytest.raises(errors.ModelError, match=r"sums to 1\.00000004 "):
        TabularBOCMDP(reward=zero, leader_reward=zero, transition=off, initial=[0.5, 0.5], leader_dim=1, discount=0.9)
    wrong = (0.99 * off).to(torch.float32)  # float32, but not its rounding
    with pytest.raises(errors.ModelError, match=r"sums to 0\.99"):
        TabularBOCMDP(reward=zero, leader_reward=zero, transition=wrong, initial=[0.5, 0.5], leader_dim=1, discount=0.9)


def test_gymnasium_tables_need_no_leader_dim() -> None:
    lake = gym.make("FrozenLake-v1")
    assert TabularBOCMDP.from_gymnasium(lake, reward=np.zeros((1, 16, 4))).leader_dim == 1
    assert TabularBOCMDP.from_gymnasium(lake, reward=lambda x: x.reshape(1, 1, 1)).leader_dim == 1
    space = gym.spaces.Box(-1.0, 1.0, (16,), np.float64)
    per_state = lambda x: x.reshape(1, 16, 1)  # noqa: E731
    assert TabularBOCMDP.from_gymnasium(lake, reward=per_state, leader_space=space).leader_dim == 16
    assert TabularBOCMDP.from_gymnasium(lake, reward=per_state, example=np.zeros(16)).leader_dim == 16
    with pytest.raises(errors.ModelError, match="Give leader_dim="):
        TabularBOCMDP.from_gymnasium(lake, reward=per_state)
