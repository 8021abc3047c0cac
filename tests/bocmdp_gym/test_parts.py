from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import leaders
from bocmdp_gym import TabularBOCMDP, TabularEnv, errors
from followers import SoftPolicyIteration, TrajectoryOracle
from leaders import optimize_many
from tests.problems import F64, small_model

ONES = torch.ones(1, 3, 2, dtype=F64)
ROWS = torch.full((1, 3, 2, 3), 1 / 3, dtype=F64)
START = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
#: A part that is right at x = 0 and wrong at the x given, and what is said.
FAULTS: dict[str, tuple[str, Callable[[Tensor], Any], list[float], str]] = {
    "q above 1": ("termination", lambda x: (0.5 + x[0]) * ONES, [1.0, 0.0], "termination is 1.5 at state 0, action 0, context 0"),
    "q below 0": ("termination", lambda x: (0.5 + x[0]) * ONES, [-0.7, 0.0], "termination is -0.2"),
    "q NaN": ("termination", lambda x: 0.5 + 0.0 * torch.log(1.0 - x[0]) * ONES, [2.0, 0.0], "termination is nan"),
    "reward NaN": ("reward", lambda x: torch.log(1.0 - x[0]) * ONES, [2.0, 0.0], "reward is nan"),
    "reward inf": ("reward", lambda x: torch.log(1.0 - x[0]) * ONES, [1.0, 0.0], "reward is -inf"),
    "leader NaN": ("leader_reward", lambda x: torch.log(1.0 - x[0]) * ONES, [2.0, 0.0], "leader_reward is nan"),
    "P sum": ("transition", lambda x: ROWS * (1.0 + x[0]), [0.1, 0.0], "transition row sums to 1.1 at state 0, action 0"),
    "P negative": (
        "transition",
        lambda x: ROWS + x[0] * torch.tensor([1.0, -1.0, 0.0], dtype=F64),
        [0.5, 0.0],
        "a transition probability is -0.167",
    ),
    "P NaN": ("transition", lambda x: ROWS + 0.0 * torch.log(1.0 - x[0]), [2.0, 0.0], "transition probabilities are not finite"),
    "mu sum": ("initial", lambda x: START * (1.0 + x[0]), [0.1, 0.0], "initial distribution of context 0.* sums to 1.1"),
    "mu negative": (
        "initial",
        lambda x: START + x[0] * torch.tensor([1.0, -1.0, 0.0], dtype=F64),
        [0.5, 0.0],
        "initial distribution of context 0.* has the entry -0.5",
    ),
}


def _grad(m: TabularBOCMDP, x: Tensor) -> Any:
    return torch.func.grad(lambda z: m.leader_return(z, 0.5))(x)


def _loss(m: TabularBOCMDP, x: Tensor) -> Tensor:
    return m.loss(x, lambda z, pi: pi.square().sum((-1, -2)), regularization=0.5)


def _two(x: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(x), x])


WAYS: dict[str, Callable[[TabularBOCMDP, Tensor], Any]] = {
    "configure": lambda m, x: m.configure(x),
    "batch": lambda m, x: m.configure(_two(x)),
    "solve": lambda m, x: m.solve(x, 0.5),
    "leader_return": lambda m, x: m.leader_return(x.requires_grad_(), 0.5),
    "grad": _grad,
    "vmap": lambda m, x: torch.func.vmap(lambda z: m.leader_return(z, 0.5))(_two(x)),
    "vmap of grad": lambda m, x: torch.func.vmap(lambda z: _grad(m, z))(_two(x)),
    "jacrev": lambda m, x: torch.func.jacrev(lambda z: m.leader_return(z, 0.5, per_context=True))(x),
    "hessian": lambda m, x: torch.func.jacrev(torch.func.jacrev(lambda z: m.leader_return(z, 0.5)))(x),
    "loss": _loss,
    "loss of a batch": lambda m, x: _loss(m, _two(x)),
    "grad of a loss": lambda m, x: torch.func.grad(lambda z: _loss(m, z))(x),
    "jacobians": lambda m, x: m.jacobians(x),
    "part": lambda m, x: [m.part(name, x) for name in m.moving],
    "oracle": lambda m, x: TrajectoryOracle(m, SoftPolicyIteration(0.5)).configure(x),
    "environment": lambda m, x: TabularEnv(m).reset(options={"leader": x}),
    "ExactGradient": lambda m, x: leaders.optimize(m, leaders.ExactGradient(), SoftPolicyIteration(0.5), 1, x0=x),
    "HPGD": lambda m, x: leaders.optimize(m, leaders.HPGD(env_steps=100), SoftPolicyIteration(0.5), 1, x0=x),
    "AMD": lambda m, x: leaders.optimize(m, leaders.AMD(), SoftPolicyIteration(0.5), 1, x0=x),
    "seeds": lambda m, x: optimize_many(m, leaders.ExactGradient(), SoftPolicyIteration(0.5), 1, x0=x, seeds=range(4)),
    "device": lambda m, x: optimize_many(m, leaders.ExactGradient(), SoftPolicyIteration(0.5), 1, x0=x, device="cpu"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_x_makes_is_checked_at_every_x(fault: str, way: str) -> None:
    name, function, x, message = FAULTS[fault]
    model = small_model(**{name: function})
    if way == "environment":
        model.configure(np.zeros(2))
    with pytest.raises(errors.ModelError, match=message):
        WAYS[way](model, torch.tensor(x, dtype=F64))


def test_an_optimiser_does_not_walk_out_of_the_probabilities() -> None:
    model = small_model(termination=lambda x: (0.9 + x[0]) * ONES, leader_reward=-ONES)
    with pytest.raises(errors.ModelError, match=r"termination is 1\.\d+ at state"):
        leaders.optimize(model, leaders.ExactGradient(learning_rate=1.0), SoftPolicyIteration(0.5), 50, progress=False)


def test_an_entry_of_a_batch_is_named() -> None:
    model = small_model(termination=lambda x: (0.5 + x[0]) * ONES)
    with pytest.raises(errors.ModelError, match=r"termination is 1.5 at state 0, action 0, context 0, entry 1 of the batch"):
        model.configure(_two(torch.tensor([1.0, 0.0], dtype=F64)))


def test_rounding_of_probabilities_is_forgiven() -> None:
    model = small_model(termination=lambda x: (0.5 + x[0]) * ONES)
    assert torch.isfinite(model.leader_return([0.5 + 1e-12, 0.0], 0.5))
    with pytest.raises(errors.ModelError, match="termination"):
        model.leader_return([0.5 + 1e-6, 0.0], 0.5)


def test_x_that_is_not_finite_is_named_inside_torch_func() -> None:
    with pytest.raises(errors.LeaderParameterError, match="not finite"):
        _grad(small_model(), torch.tensor([float("nan"), 0.0], dtype=F64))


def test_losses_that_are_not_finite_are_named() -> None:
    x = torch.tensor([2.0, 0.0], dtype=F64)
    with pytest.raises(errors.ModelError, match=r"f\(x, policy\) is \[nan\]"):
        small_model().loss(x, lambda z, pi: torch.log(1.0 - z[0]) * pi.sum((-1, -2)), regularization=0.5)

    def loss(z: Tensor, policy: Tensor, context: Any) -> Tensor:
        return torch.log(1.0 - z[0]) * policy.square().sum()

    for leader in (leaders.ExactGradient(), leaders.HPGD(estimator="geometric", samples=10), leaders.ZeroOrder()):
        with pytest.raises(errors.ModelError, match=r"the loss is nan at x = \[2"):
            leaders.optimize(small_model(), leader, SoftPolicyIteration(0.5), 1, loss=loss, x0=x, progress=False)


def test_numbers_are_the_same_inside_torch_func() -> None:
    """Checks look at numbers and change none."""
    model, x = small_model(), torch.tensor([0.3, -0.2], dtype=F64)
    z = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model.leader_return(z, 0.5), z)
    torch.testing.assert_close(_grad(model, x), expected, rtol=0, atol=0)
