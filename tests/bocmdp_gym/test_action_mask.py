from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bocmdp_gym import FactoredTransitions, SuccessorTransitions, TabularBOCMDP, errors
from bocmdp_gym.soft_bellman import torch_linear_algebra
from tests.problems import F64, finite_difference, random_mask, random_model, random_x, restricted_solution, small_model

MOVING = ("reward", "leader_reward", "transition", "initial", "termination")


@pytest.mark.parametrize("per_context", [True, False])
@pytest.mark.parametrize(("states", "successors"), [(9, None), (60, 3), (70, None)], ids=["banded", "lists", "dense"])
def test_solutions_are_those_of_the_actions_that_exist(per_context: bool, states: int, successors: int | None) -> None:
    plain = random_model(4, states=states, successors=successors, actions=4, moving=MOVING)
    mask, x = random_mask(plain, per_context=per_context), random_x(plain.leader_dim)
    model = plain.replace(action_mask=mask)
    solution = model.solve(x, 0.3)
    value, policy, returns = restricted_solution(plain, mask, x, 0.3)
    np.testing.assert_allclose(solution.value.numpy(), value, atol=1e-10)
    np.testing.assert_allclose(solution.policy.numpy(), policy, atol=1e-10)
    np.testing.assert_allclose(model.leader_return(x, 0.3, per_context=True).numpy(), returns, atol=1e-10)
    allowed = np.broadcast_to(mask, policy.shape)
    assert (solution.policy.numpy()[~allowed] == 0.0).all()
    assert (solution.q.numpy()[~allowed] == -np.inf).all()
    with torch_linear_algebra():
        np.testing.assert_allclose(model.solve(x, 0.3).policy.numpy(), policy, atol=1e-8)


@pytest.mark.parametrize("regularization", [0.05, 1.0])
def test_gradients_are_those_of_the_actions_that_exist(regularization: float) -> None:
    plain = random_model(5, states=5, dim=3, moving=MOVING)
    mask, x = random_mask(plain, 1), random_x(3)
    model = plain.replace(action_mask=mask)
    gradient = torch.func.grad(lambda z: model.leader_return(z, regularization))(x)

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.tensor(model.context_probabilities @ restricted_solution(plain, mask, z, regularization)[2])

    torch.testing.assert_close(gradient, finite_difference(f, x, 1e-5), atol=1e-7, rtol=1e-6)
    batched = torch.stack([x, x + 0.1]).requires_grad_()
    model.leader_return(batched, regularization).sum().backward()
    torch.testing.assert_close(batched.grad[0], gradient)  # type: ignore[index]


def test_second_derivatives() -> None:
    plain = random_model(6, states=4, dim=2, moving=MOVING)
    model, x = plain.replace(action_mask=random_mask(plain)), random_x(2)
    gradient = torch.func.grad(lambda z: model.leader_return(z, 0.5, tolerance=1e-14))
    hessian = torch.func.jacrev(gradient)(x)
    numeric = torch.stack([(gradient(x + 1e-5 * e) - gradient(x - 1e-5 * e)) / 2e-5 for e in torch.eye(2, dtype=F64)])
    torch.testing.assert_close(hessian, numeric, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("solver", ["banded", "dense", "krylov", "sparse-lu"])
def test_extended_precision_knows_of_missing_actions(solver: str) -> None:
    """Values of 10^9 beside lambda = 1e-3, which double precision cannot tell apart."""
    plain = random_model(7, contexts=1, states=6, actions=3, discount=0.99, moving=(), terminating=False)
    reward = plain.configure(plain.example).reward.numpy() + 1e7
    mask = random_mask(plain)
    mask[:, :, 0] = False
    mask[:, :, 1] |= ~mask.any(-1)
    model = plain.replace(action_mask=mask, reward=reward, solver=solver)
    large = model.solve(model.example, 1e-3)
    small = plain.replace(action_mask=mask, reward=reward - 1e7).solve(model.example, 1e-3)
    np.testing.assert_allclose(large.policy.numpy(), small.policy.numpy(), atol=1e-5)  # rewards themselves are rounded to 1e-9
    assert (large.policy.numpy()[~mask] == 0.0).all()


def test_what_is_given_for_missing_actions_is_not_read() -> None:
    plain = random_model(8, moving=())
    mask, x = random_mask(plain), random_x(plain.leader_dim)
    arrays: dict[str, Any] = {name: getattr(plain.configure(x), name).numpy().copy() for name in ("reward", "leader_reward")}
    arrays["termination"] = plain.configure(x).termination.numpy().copy()
    arrays["transition"] = plain.configure(x).transition.values.numpy().copy()
    expected = plain.replace(action_mask=mask).leader_return(x, 0.2)
    for name, value in arrays.items():
        value[~mask] = 0.0 if name == "transition" else np.nan
    model = plain.replace(action_mask=mask, **arrays)
    assert torch.equal(model.leader_return(x, 0.2), expected)


def test_a_mask_that_allows_everything_is_none() -> None:
    plain = random_model(9, moving=MOVING)
    model = plain.replace(action_mask=np.ones((9, 3), dtype=np.bool_))
    assert model.mask is None
    x = random_x(plain.leader_dim)
    assert torch.equal(model.leader_return(x, 0.2), plain.leader_return(x, 0.2))


def test_discount_1_asks_only_of_the_actions_that_exist() -> None:
    """State 0 could stay for ever by action 1, which pays; not where that does not exist."""
    arguments: dict[str, Any] = {
        "reward": np.array([[-1.0, 5.0], [-1.0, -2.0]])[None],
        "leader_reward": np.ones((1, 2, 2)),
        "transition": np.array([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])[None],
        "termination": np.array([[0.0, 0.0], [0.5, 0.5]])[None],
        "initial": np.array([1.0, 0.0]),
        "leader_dim": 1,
        "discount": 1.0,
    }
    with pytest.raises(errors.DiscountError, match="never end"):
        TabularBOCMDP(**arguments)
    model = TabularBOCMDP(**arguments, action_mask=np.array([[True, False], [False, True]]))
    # 0 -> 1 -> ends or 0: V0 = -1 + V1, V1 = -2 + V0 / 2
    np.testing.assert_allclose(model.solve(model.example, 0.1).value.numpy(), [[-6.0, -5.0]])


def test_at_discount_1_losing_loops_and_missing_actions_meet() -> None:
    """A shortest path problem whose first policy has to be made, with an action missing on each side of the one that ends."""
    s = 12
    p = np.zeros((s, 3, s))
    for state in range(s):
        p[state, 0, max(state - 1, 0)] = p[state, 1, state] = p[state, 2, min(state + 1, s - 1)] = 1.0
    stop = np.zeros((1, s, 3))
    stop[0, -1, 2] = 1.0
    mask = np.ones((s, 3), dtype=np.bool_)
    mask[::2, 0], mask[1::2, 1] = False, False
    plain = TabularBOCMDP(
        reward=np.full((1, s, 3), -1.0),
        leader_reward=np.ones((1, s, 3)),
        transition=p[None],
        termination=stop,
        initial=np.eye(s)[0],
        leader_dim=1,
        discount=1.0,
        leader_discount=0.9,
    )
    for lam in (0.05, 0.5):
        value, policy, _ = restricted_solution(plain, mask, torch.zeros(1, dtype=F64), lam)
        solution = plain.replace(action_mask=mask).solve([0.0], lam)
        np.testing.assert_allclose(solution.value.numpy(), value, atol=1e-8)
        np.testing.assert_allclose(solution.policy.numpy(), policy, atol=1e-8)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[True, True], [False, False], [True, True]]), "state 1 without any action in context 0"),
        (np.ones((3, 2), dtype=np.int8), "of type int8; expected booleans"),
        (np.ones((2, 3), dtype=np.bool_), r"shape \(1, 2, 3\); expected \(3, 2\)"),
        (np.ones(2, dtype=np.bool_), r"shape \(2,\); expected \(S, A\)"),
        ([[True], [True, False]], "of type list"),
        ("all", "of type "),
    ],
)
def test_wrong_masks_are_named(mask: Any, message: str) -> None:
    with pytest.raises(errors.ModelError, match=message):
        small_model(action_mask=mask)


def test_shared_rows_have_no_masks() -> None:
    transition = FactoredTransitions(torch.full((3, 1, 3), 1 / 3, dtype=F64), [0, 0])
    with pytest.raises(errors.ModelError, match="SuccessorTransitions or a full array"):
        small_model(transition=transition, action_mask=np.array([[True, False]] * 3))


def test_masks_of_contexts_count_contexts() -> None:
    mask = np.ones((4, 3, 2), dtype=np.bool_)
    mask[2, 1, 0] = False
    successors = SuccessorTransitions(np.zeros((3, 2, 1), np.int64), np.ones((3, 2, 1)))  # type: ignore[arg-type]
    for transition in (np.full((1, 3, 2, 3), 1 / 3), successors):
        model = small_model(action_mask=mask, transition=transition)
        assert model.n_contexts == 4
        assert model.solve([0.0, 0.0], 0.1).policy[2, 1].tolist() == [0.0, 1.0]
