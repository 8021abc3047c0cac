from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import DQNPolicy

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


class Tempered(ActorCriticPolicy):
    """A policy whose own keyword scales its logits."""

    def __init__(self, *args: Any, temperature: float = 1.0, **options: Any):
        self.temperature = temperature
        super().__init__(*args, **options)

    def _get_action_dist_from_latent(self, latent: Any) -> Any:
        return self.action_dist.proba_distribution(action_logits=self.action_net(latent) / self.temperature)  # type: ignore[call-arg]


class Scaled(FlattenExtractor):
    """Features with a keyword of their own."""

    def __init__(self, space: gym.Space[Any], factor: float = 1.0):
        super().__init__(space)
        self.factor = factor

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.factor * super().forward(observations)


class Hurried(DQNPolicy):
    """Its own rule of choosing: the worst action."""

    def _predict(self, obs: Any, deterministic: bool = True) -> torch.Tensor:
        return self.q_net(obs).argmin(dim=1)  # type: ignore[no-any-return]


def _agrees(policy: Any, model: Any, observations: Any) -> None:
    with torch.no_grad():
        probabilities = model.policy.get_distribution(model.policy.obs_to_tensor(observations)[0]).distribution.probs
    np.testing.assert_allclose(policy.probabilities_batch(observations), probabilities.numpy(), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 30.0])
def test_a_policy_of_ones_own_keeps_its_keywords(temperature: float) -> None:
    kwargs = {"temperature": temperature, "features_extractor_class": Scaled, "features_extractor_kwargs": {"factor": 3.0}}
    for algorithm in ("PPO", "A2C", "TRPO"):
        follower = quick(algorithm, policy=Tempered, policy_kwargs=kwargs)
        policy = respond(follower)
        model: Any = follower._learners[0].model
        _agrees(policy, model, np.array([0, 1]))
        np.testing.assert_allclose(policy.table, policy.probabilities_batch(np.array([0, 1])), atol=1e-6)
        assert policy.network.temperature == temperature
        assert policy.network.features_extractor.factor == 3.0
    assert kwargs["features_extractor_kwargs"] == {"factor": 3.0}


def test_a_policy_that_changes_beside_its_parameters_is_kept_as_it_is() -> None:
    class Cooling(Tempered):
        def train(self, mode: bool = True) -> Any:
            self.temperature *= 0.9
            return super().train(mode)

    follower = quick("PPO", policy=Cooling, policy_kwargs={"temperature": 2.0})
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    policy = oracle.respond(X, 0, generator)
    before = policy.probabilities_batch(np.array([0, 1]))
    oracle.respond(X, 0, generator)
    np.testing.assert_array_equal(policy.probabilities_batch(np.array([0, 1])), before)
    assert policy.table is not None
    np.testing.assert_allclose(policy.table, before, atol=1e-6)


def test_a_policy_that_chooses_by_itself_has_no_probabilities_to_read() -> None:
    follower = quick("DQN", policy=Hurried)
    oracle = TrajectoryOracle(bandit(), follower)
    assert follower.exposes_probabilities is False
    policy = oracle.respond(X, 0, rng(0))
    assert not policy.exposes_probabilities
    assert policy.table is None
    model: Any = follower._learners[0].model
    with torch.no_grad():
        worst = model.policy.q_net(torch.tensor([0, 1])).argmin(1).numpy()
    np.testing.assert_array_equal(policy.act_batch(np.array([0, 1]), rng(0)), worst)
    with pytest.raises(errors.UnsupportedError, match="exposes no probabilities"):
        policy.probabilities(0)
    soft = respond(quick("DQN", policy=Hurried, softmax_temperature=0.1))
    assert soft.table is not None  # asked for


def test_a_policy_that_cannot_be_copied_is_named() -> None:
    class Open(Tempered):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            self.stream = (i for i in range(3))

    with pytest.raises(errors.UnsupportedError, match="Open cannot be copied"):
        respond(quick("PPO", policy=Open))


def test_noise_of_ones_own_and_batch_norm_are_copied() -> None:
    for algorithm, options in (("PPO", {"use_sde": True}), ("SAC", {"use_sde": True}), ("TD3", {})):
        follower = quick(algorithm, **options)
        policy = respond(follower, Point(), [0.5])
        action = policy.act(np.zeros(1, np.float32), rng(0))
        np.testing.assert_array_equal(action, policy.act(np.zeros(1, np.float32), rng(0)))
        assert all(p.is_leaf for p in policy.network.parameters())


def test_settings_that_make_no_network_are_named() -> None:
    with pytest.raises(errors.OptionError, match="PPO cannot be made with these settings"):
        respond(quick("PPO", policy=Tempered, policy_kwargs={"temperatur": 1.0}))
