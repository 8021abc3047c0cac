from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bocmdp_gym.errors import UnsupportedError
from followers import Policy, TabularPolicy

TABLE = np.array([[0.25, 0.75], [1.0, 0.0]])


class Last(Policy):
    """Acts by the last entry of an observation."""

    def __init__(self) -> None:
        self.leader, self.context = np.zeros(1), 0

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        return int(observation[-1])


class Exposed(Last):
    exposes_probabilities = True

    def probabilities(self, observation: Any) -> Any:
        return TABLE[int(observation[-1])]


def test_defaults_of_a_policy_that_only_acts() -> None:
    policy, rng = Last(), np.random.default_rng(0)
    assert (policy.table, policy.value, policy.estimate, dict(policy.metrics)) == (None, None, None, {})
    assert not policy.exposes_probabilities
    assert policy.act_batch(np.array([[0, 1], [0, 0]]), rng) == [1, 0]
    for ask in (policy.probabilities, policy.probabilities_batch):
        with pytest.raises(UnsupportedError, match="Last exposes no probabilities"):
            ask(np.array([[0, 1]]))


def test_batches_are_made_of_single_answers() -> None:
    np.testing.assert_array_equal(Exposed().probabilities_batch(np.array([[0, 1], [0, 0]])), TABLE[[1, 0]])
    policy = TabularPolicy(TABLE, np.zeros(1), 0)
    np.testing.assert_array_equal(policy.probabilities_batch(np.array([1, 0])), TABLE[[1, 0]])
    one, many = np.random.default_rng(3), np.random.default_rng(3)
    states = np.zeros(50, dtype=int)
    assert policy.act_batch(states, many) == [policy.act(state, one) for state in states]


def test_dictionaries_of_observations_are_taken_apart() -> None:
    class Named(Last):
        def act(self, observation: Any, rng: np.random.Generator) -> Any:
            return int(observation["a"][0]) + int(observation["b"])

    batch = {"a": np.array([[1], [2]]), "b": np.array([10, 20])}
    assert Named().act_batch(batch, np.random.default_rng(0)) == [11, 22]


def test_a_policy_must_act() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Policy()  # type: ignore[abstract]
