from __future__ import annotations

import numpy as np
import pytest
import torch

from bocmdp_gym import SuccessorTransitions, TabularBOCMDP, errors
from tests.problems import F64, finite_difference, four_rooms_model, random_model, random_x, relative_error, small_model

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
        return model.loss(
            z, lambda y, policy, context: (context + 1) * (policy**3).sum() + (y**2).sum(), regularization=0.5, **TIGHT
        )

    gradient = torch.func.grad(loss)(x)
    assert relative_error(gradient, finite_difference(loss, x)) <= 1e-6
    torch.testing.assert_close(loss(torch.stack([x, 2 * x])), torch.stack([loss(x), loss(2 * x)]))
    with pytest.raises(errors.ModelError, match=r"shape \(3,\) .* expected a torch scalar"):
        model.loss(x, lambda y, policy, context: policy.sum(0), regularization=0.5)
    with pytest.raises(errors.ModelError, match="returned 'a'; expected a torch scalar"):
        model.loss(x, lambda y, policy, context: "a", regularization=0.5)  # type: ignore[arg-type,return-value]


def test_constant_parts_give_no_gradient_but_the_right_one() -> None:
    model = random_model(9, moving=("leader_reward",))
    x = random_x(model.leader_dim)
    gradient = torch.func.grad(lambda z: model.leader_return(z, 0.3))(x)
    assert relative_error(gradient, finite_difference(lambda z: model.leader_return(z, 0.3), x)) <= 1e-6


# bad input: one clear named error each


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
        small_model(**changes)


@pytest.mark.parametrize("x", [[0.0], [0.0, float("nan")], [[1.0, 2.0, 3.0]], "text"])
def test_bad_x_is_refused(x: object) -> None:
    with pytest.raises(errors.LeaderParameterError):
        small_model().leader_return(x, 0.1)


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
