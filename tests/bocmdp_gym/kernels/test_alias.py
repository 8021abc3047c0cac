from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bocmdp_gym.kernels.alias import AliasTables, alias_tables, initial_tables, move_row, policy_tables


def _probabilities(tables: AliasTables, row: int) -> dict[int, float]:
    """The probability of every outcome of a row: slots are equally likely, and each splits at its threshold."""
    found: dict[int, float] = {}
    n = tables.threshold.shape[1]
    for threshold, (first, second) in zip(tables.threshold[row], tables.packed[row].tolist(), strict=True):
        found[first] = found.get(first, 0.0) + threshold / n
        found[second] = found.get(second, 0.0) + (1.0 - threshold) / n
    return {outcome: p for outcome, p in found.items() if p > 0.0}


def _check(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found == pytest.approx({outcome: p for outcome, p in expected.items() if p > 0.0}, abs=1e-14)


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.0, 1.0, 0.0], [1.0, 2.0, 3.0, 1e-12], list(range(50))])
def test_rows(weights: Any) -> None:
    weights = np.array([weights, weights[::-1]], dtype=float)
    outcomes = np.arange(weights.size, dtype=np.int32).reshape(weights.shape)
    tables = alias_tables(weights, outcomes)
    for row in range(2):
        _check(_probabilities(tables, row), dict(zip(outcomes[row].tolist(), weights[row] / weights[row].sum(), strict=True)))


def test_starts_of_one_and_of_several_contexts() -> None:
    initial = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    tables = initial_tables(initial)
    for context in range(2):
        _check(_probabilities(tables, context), dict(enumerate(initial[context])))
    np.testing.assert_array_equal(initial_tables(initial[0]).packed[0], tables.packed[0])


def test_joint_draws_of_action_and_successor() -> None:
    rng = np.random.default_rng(0)
    policy, successors = rng.dirichlet(np.ones(3), 4), rng.integers(0, 4, (4, 3, 2)).astype(np.int32)
    probabilities = rng.dirichlet(np.ones(2), (4, 3))
    tables = AliasTables(np.empty((4, 6)), np.empty((4, 6, 2), dtype=np.uint64))
    policy_tables(policy, successors, probabilities, *tables)
    for s in range(4):
        expected: dict[int, float] = {}
        for a, k in np.ndindex(3, 2):
            outcome = a << 32 | int(successors[s, a, k])
            expected[outcome] = expected.get(outcome, 0.0) + policy[s, a] * probabilities[s, a, k]
        _check(_probabilities(tables, s), expected)


def test_draws_of_action_and_its_move() -> None:
    policy, moves = np.random.default_rng(0).dirichlet(np.ones(3), 4), np.array([1, 0, 1])
    tables = AliasTables(np.empty((4, 3)), np.empty((4, 3, 2), dtype=np.uint64))
    space = np.empty(3), np.empty(3, np.uint64), np.empty(3, np.int64), np.empty(3, np.int64)
    for s in range(4):
        move_row(policy[s], moves, *space, tables.threshold[s], tables.packed[s])
        _check(_probabilities(tables, s), {a << 32 | int(moves[a]): policy[s, a] for a in range(3)})
