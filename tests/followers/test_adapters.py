from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from bocmdp_gym.errors import ActionError, OptionError
from followers import Follower, Task, TrajectoryOracle
from followers.adapters import AdaptedPolicy, as_policy
from tests.followers.problems import X, bandit

P = np.array([[0.8, 0.2], [0.3, 0.7]])


class Acts:
    def act(self, observation: Any, rng: np.random.Generator) -> int:
        return int(rng.random() > P[int(observation), 0])


class Predicts:
    def predict(self, observation: Any) -> tuple[Any, None]:
        return np.int64(observation), None


class Exposes(Acts):
    metrics = {"loss": 1.0}

    def probabilities(self, observation: Any) -> Any:
        return P[int(observation)]


class Batches(Acts):
    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        return np.zeros(len(observations), dtype=int)

    def probabilities_batch(self, observations: Any) -> Any:
        return P[np.asarray(observations)]


class Answers(Follower):
    """A third party's follower, whose answers are no policies of ours."""

    def __init__(self, answer: Any):
        self._answer = answer

    def respond(self, task: Task, rng: np.random.Generator) -> Any:
        return self._answer


def respond(answer: Any) -> tuple[TrajectoryOracle, Any]:
    oracle = TrajectoryOracle(bandit(), Answers(answer))
    return oracle, oracle.respond(X, 1, np.random.default_rng(0))


def test_an_object_that_acts_is_adapted() -> None:
    oracle, policy = respond(Acts())
    assert isinstance(policy, AdaptedPolicy)
    assert policy.leader.tolist() == X.tolist()
    assert policy.context == 1
    assert not policy.exposes_probabilities
    assert oracle.tabulate(policy) is None
    assert oracle.sample(policy, 20, np.random.default_rng(0)).n_steps >= 20
    assert repr(pickle.loads(pickle.dumps(policy)).leader) == repr(policy.leader)  # noqa: S301 - our own


def test_an_object_that_predicts_is_adapted() -> None:
    oracle, policy = respond(Predicts())
    batch = oracle.sample(policy, 20, np.random.default_rng(0))
    np.testing.assert_array_equal(batch.actions, batch.states)

    class Illegal:
        def predict(self, observation: Any) -> int:
            return 7

    oracle, policy = respond(Illegal())
    with pytest.raises(ActionError, match="7 is illegal"):
        policy.act(0, np.random.default_rng(0))


def test_what_else_an_object_has_is_taken_over() -> None:
    oracle, policy = respond(Exposes())
    assert policy.metrics == {"loss": 1.0}
    assert policy.exposes_probabilities
    np.testing.assert_array_equal(oracle.tabulate(policy).table, P)  # type: ignore[union-attr]
    np.testing.assert_array_equal(policy.probabilities_batch(np.array([1, 0])), P[[1, 0]])
    _, policy = respond(Batches())
    assert policy.act_batch(np.array([1, 1]), np.random.default_rng(0)).tolist() == [0, 0]
    np.testing.assert_array_equal(policy.probabilities(1), P[1])


def test_what_cannot_act_is_refused() -> None:
    for answer in (None, P, Acts, lambda observation: 0):
        with pytest.raises(OptionError, match="which is no policy"):
            respond(answer)
    with pytest.raises(OptionError, match="does not say which x and context"):
        as_policy(Acts(), space=gym.spaces.Discrete(2))


def test_a_policy_is_left_as_it_is() -> None:
    _, policy = respond(Acts())
    assert as_policy(policy) is policy
