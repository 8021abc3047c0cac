from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.grids import grid_model
from bocmdp_gym import errors
from tests.problems import F64, brute_force_solution, four_rooms_model, random_model, random_x, small_model

TIGHT = {"tolerance": 1e-14}


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


def test_nan_of_the_model_at_some_x_is_reported() -> None:
    model = small_model(reward=lambda x: torch.log(1.0 - x.sum()) * torch.ones(1, 3, 2, dtype=F64))
    with pytest.raises(errors.ModelError, match="reward is nan at state 0, action 0, context 0"):
        model.leader_return([2.0, 2.0], 0.1)


def test_too_few_newton_steps_say_what_was_reached() -> None:
    with pytest.raises(errors.ConvergenceError, match=r"residual of .* may be wrong .* after 2 steps; raise max_iterations"):
        grid_model(900).solve(np.zeros(900), 0.01, max_iterations=2)
