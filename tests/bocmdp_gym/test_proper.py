from __future__ import annotations

import numpy as np
import pytest
import torch

from bocmdp_gym import TabularBOCMDP, errors
from tests.problems import F64, brute_force_solution, small_model


def test_discount_one_is_allowed_where_episodes_end() -> None:
    model = small_model(discount=1.0, termination=torch.full((1, 3), 0.1))
    assert np.isfinite(float(model.leader_return([0.0, 0.0], 0.1)))


def _walk(cost: float, *, both_ends: bool = True, way_back: bool = True) -> TabularBOCMDP:
    """States 0..8 in a row, steps left and right; acting in 0 or 8 ends the episode, every other step pays -cost."""
    steps = np.clip(np.arange(9)[:, None] + [-1, 1], 0, 8)
    if not way_back:
        steps[8] = 8
    ends = torch.zeros(1, 9, dtype=F64)
    ends[0, [0, 8] if both_ends else [0]] = 1.0
    return small_model(
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


def test_discount_one_is_checked_inside_transforms_too() -> None:
    """Staying costs 1 + x_0: from x_0 = -1 on, to and fro for ever is as good as ending."""
    walk = _walk(1.0)
    ends = (walk.configure([0.0, 0.0]).termination > 0).to(F64)
    model = walk.replace(reward=lambda x: (ends - 1) * (1.0 + x[0]))
    for x in ([-1.0, 0.0], [-1.5, 0.0]):
        z = torch.tensor(x, dtype=F64)
        for transform in (torch.func.grad, torch.func.jacrev, lambda f: torch.func.jacrev(torch.func.jacrev(f))):
            with pytest.raises(errors.DiscountError, match="from state 1 in context 0 some policy's episodes never end"):
                transform(lambda x: model.leader_return(x, 0.1))(z)
        for batch in (torch.stack([0 * z, z]), torch.stack([z, 0 * z])):
            with pytest.raises(errors.DiscountError, match="from state 1 in context 0 some policy's episodes never end"):
                torch.func.vmap(lambda x: model.leader_return(x, 0.1))(batch)
    value = torch.func.vmap(lambda x: model.leader_return(x, 0.1))(torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64))
    assert torch.isfinite(value).all()
