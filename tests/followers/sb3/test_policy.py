from __future__ import annotations

import numpy as np
import pytest
import torch

from bocmdp_gym import errors
from followers import TrajectoryOracle
from tests.followers.problems import Point, X, bandit
from tests.followers.sb3.quick import CONTINUOUS, DISCRETE, quick, respond, rng


@pytest.mark.parametrize("algorithm", DISCRETE)
def test_probabilities_of_every_family(algorithm: str) -> None:
    policy = respond(quick(algorithm))
    assert policy.table.shape == (2, 2)
    np.testing.assert_allclose(policy.table.sum(-1), 1.0)
    for state in range(2):
        np.testing.assert_allclose(policy.probabilities(state), policy.table[state], atol=1e-6)
    generator, n = rng(1), 4000
    actions = policy.act_batch(np.zeros(n, dtype=int), generator)
    error = np.sqrt(0.25 / n)
    assert abs((actions == 0).mean() - policy.table[0, 0]) < 4 * error
    assert policy.act(0, rng(3)) == policy.act(0, rng(3))
    assert set(policy.metrics) == {"follower_training_steps"}


@pytest.mark.parametrize("algorithm", CONTINUOUS)
def test_continuous_actions_have_no_probabilities(algorithm: str) -> None:
    env = Point()
    policy = respond(quick(algorithm), env, [0.5])
    assert not policy.exposes_probabilities
    assert policy.table is None
    action = policy.act(np.zeros(1, np.float32), rng(0))
    assert env.action_space.contains(action)
    np.testing.assert_array_equal(action, policy.act(np.zeros(1, np.float32), rng(0)))
    assert policy.act_batch(np.zeros((7, 1), np.float32), rng(0)).shape == (7, 1)


def test_a_categorical_policy_is_read_as_it_acts() -> None:
    follower = quick("PPO")
    policy = respond(follower)
    model = follower._learners[0].model
    distribution = model.policy.get_distribution(torch.tensor([0, 1]))  # type: ignore[operator]
    np.testing.assert_allclose(policy.table, distribution.distribution.probs.detach().numpy(), atol=1e-6)


def test_q_values_are_greedy_unless_a_temperature_is_asked_for() -> None:
    greedy, soft = quick("DQN"), quick("DQN", softmax_temperature=0.2)
    first, second = respond(greedy), respond(soft)
    model = soft._learners[0].model
    with torch.no_grad():
        q = model.policy.q_net(torch.tensor([0, 1])).double()  # type: ignore[operator]
    np.testing.assert_array_equal(first.table, np.eye(2)[q.argmax(1)])
    np.testing.assert_allclose(second.table, torch.softmax(q / 0.2, 1).numpy(), atol=1e-7)
    assert soft.regularization is None  # it does not maximise the regularised return
    for algorithm in ("PPO", "SoftDQN"):
        with pytest.raises(errors.OptionError, match=f"greedy in Q-values, which {algorithm} is not"):
            quick(algorithm, softmax_temperature=0.1)
    with pytest.raises(errors.RegularizationError):
        quick("DQN", softmax_temperature=0.0)


def test_multidiscrete_probabilities_have_an_axis_per_factor() -> None:
    policy = respond(quick("PPO"), Point(discrete=True), [0.5])
    joint = policy.probabilities(np.zeros(1, np.float32))
    assert joint.shape == (3, 2)
    assert joint.sum() == pytest.approx(1.0)
    n = 3000
    actions = policy.act_batch(np.zeros((n, 1), np.float32), rng(0))
    frequencies = np.zeros((3, 2))
    np.add.at(frequencies, tuple(actions.T), 1.0 / n)
    assert (abs(frequencies - joint) < 4 * np.sqrt(0.25 / n)).all()
    assert policy.act(np.zeros(1, np.float32), rng(0)).shape == (2,)
    observations = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    one_by_one = [policy.probabilities(observation) for observation in observations]
    np.testing.assert_allclose(policy.probabilities_batch(observations), one_by_one, atol=1e-6)


def test_an_answer_is_a_snapshot() -> None:
    oracle = TrajectoryOracle(bandit(), quick("PPO", learning_rate=3e-3))
    generator = rng(0)
    policy = oracle.respond(X, 0, generator)
    before = policy.table.copy()
    later = oracle.respond(X, 0, generator)
    assert abs(later.table - before).max() > 1e-3
    np.testing.assert_array_equal(policy.table, before)
    np.testing.assert_allclose([policy.probabilities(s) for s in range(2)], before, atol=1e-6)
