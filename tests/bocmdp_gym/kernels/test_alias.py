from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bocmdp_gym.errors import ModelError
from bocmdp_gym.kernels.alias import (
    AliasTables,
    alias_tables,
    check_pairs,
    drawn,
    initial_tables,
    low_bits,
    move_row,
    policy_tables,
    read_tables,
)


def _probabilities(tables: AliasTables, row: int) -> dict[int, float]:
    """The probability of every outcome of a row: slots are equally likely, and each splits at its threshold."""
    found: dict[int, float] = {}
    n = tables.shape[1]
    thresholds, outcomes = read_tables(tables[row])
    for threshold, (first, second) in zip(thresholds, outcomes.tolist(), strict=True):
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
    np.testing.assert_array_equal(initial_tables(initial[0])[0], tables[0])


def test_joint_draws_of_action_and_successor() -> None:
    rng = np.random.default_rng(0)
    policy, successors = rng.dirichlet(np.ones(3), 4), rng.integers(0, 4, (4, 3, 2)).astype(np.int32)
    probabilities = rng.dirichlet(np.ones(2), (4, 3))
    tables = np.empty((4, 6, 2), np.uint64)
    policy_tables(policy, successors, probabilities, low_bits(4), tables)
    for s in range(4):
        expected: dict[int, float] = {}
        for a, k in np.ndindex(3, 2):
            outcome = a << 2 | int(successors[s, a, k])
            expected[outcome] = expected.get(outcome, 0.0) + policy[s, a] * probabilities[s, a, k]
        _check(_probabilities(tables, s), expected)


def test_draws_of_action_and_its_move() -> None:
    policy, moves = np.random.default_rng(0).dirichlet(np.ones(3), 4), np.array([1, 0, 1])
    tables = np.empty((4, 3, 2), np.uint64)
    space = np.empty(3), np.empty(3, np.uint64), np.empty(3, np.int64), np.empty(3, np.int64)
    for s in range(4):
        move_row(policy[s], moves, low_bits(2), *space, tables[s])
        _check(_probabilities(tables, s), {a << 1 | int(moves[a]): policy[s, a] for a in range(3)})


def test_the_bits_of_numbers_below_n() -> None:
    assert [int(low_bits(n)) for n in (1, 2, 3, 4, 5, 104, 128, 129, 10**6)] == [0, 1, 2, 2, 3, 7, 7, 8, 20]


def test_too_many_pairs_are_refused() -> None:
    check_pairs(2**20, 2**12)
    with pytest.raises(ModelError, match=r"at most 2\^32 pairs"):
        check_pairs(2**20 + 1, 2**12)


@pytest.mark.parametrize("width", [1, 3, 16, 5000])
def test_draws_are_the_slots_and_shares_of_their_bits(width: int) -> None:
    rng = np.random.default_rng(width)
    tables = alias_tables(rng.exponential(size=(2, width)), np.arange(2 * width, dtype=np.int32).reshape(2, width))
    thresholds, outcomes = read_tables(tables)
    exact = tables[1, :, 0].tolist()
    for bits in [0, 2**64 - 1, *rng.integers(0, 2**64, 200, dtype=np.uint64).tolist()]:
        slot, share = divmod(bits * width, 2**64)
        expected = outcomes[1, slot, int(share >= exact[slot])]
        assert drawn(tables.reshape(-1), np.uint64(1), np.uint64(width), np.uint64(bits)) == expected
    np.testing.assert_allclose(thresholds[1], [one / 2**64 for one in exact], atol=1e-16)


def test_draws_of_impossible_outcomes_never_happen() -> None:
    tables = alias_tables(np.array([[0.0, 1.0, 0.0, 3.0]]), np.arange(4, dtype=np.int32)[None])
    bits = np.random.default_rng(0).integers(0, 2**64, 4000, dtype=np.uint64)
    found = [int(drawn(tables.reshape(-1), np.uint64(0), np.uint64(4), one)) for one in [np.uint64(0), *bits]]
    counts = np.bincount(found, minlength=4)
    assert counts[0] == counts[2] == 0
    assert abs(counts[1] - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)
