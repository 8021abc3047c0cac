from __future__ import annotations

import numpy as np
import pytest

from bocmdp_gym import errors
from bocmdp_gym.optimum import WarmSolver
from tests.problems import overflowing_model, random_model, random_x


def test_one_context_at_a_time_is_the_batched_solution() -> None:
    model = random_model(4, successors=3)
    x = random_x(model.leader_dim)
    mdps, expected, solver = model.configure(x), model.solve(x, 0.1), WarmSolver()
    for context in range(model.n_contexts):
        found = solver.solve(mdps, context, 0.1)
        for mine, theirs in ((found.value, expected.value), (found.q, expected.q), (found.policy, expected.policy)):
            np.testing.assert_allclose(mine, theirs[context].numpy(), atol=1e-9)
        assert found.residual <= 1e-9


def test_a_warm_start_is_kept_restored_and_forgotten() -> None:
    model = random_model(4)
    x = random_x(model.leader_dim)
    mdps, solver = model.configure(x), WarmSolver()
    cold = solver.solve(mdps, 1, 0.01)
    state = solver.state()
    warm = solver.solve(mdps, 1, 0.01)
    assert warm.iterations < cold.iterations
    other = WarmSolver()
    other.load_state(dict(state))
    np.testing.assert_array_equal(other.solve(mdps, 1, 0.01).value, warm.value)
    assert other.solve(mdps, 0, 0.01).iterations > 1  # contexts have warm starts of their own
    other.reset()
    again = other.solve(mdps, 1, 0.01)
    assert again.iterations == cold.iterations
    np.testing.assert_array_equal(again.value, cold.value)


def test_failures_are_named() -> None:
    model = random_model(4)
    with pytest.raises(errors.ConvergenceError, match=r"residual of .* in context 2, .* after 1 steps; raise max_iterations"):
        WarmSolver(max_iterations=1).solve(model.configure(random_x(model.leader_dim)), 2, 0.01)
    overflowing = overflowing_model()
    with pytest.raises(errors.ConvergenceError):
        WarmSolver().solve(overflowing.configure([1.0]), 0, 0.1)
    with pytest.raises(errors.ModelError, match="reward is nan at state 0"):  # the model's fault, not the iteration's
        WarmSolver().solve(overflowing.configure([-1.0]), 0, 0.1)
