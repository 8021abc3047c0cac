from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.wrappers import ObserveContext
from followers import SB3Follower, TrajectoryOracle, check_follower
from tests.followers.problems import CountSteps, Point, X, bandit
from tests.followers.sb3.quick import CONTINUOUS, quick, respond, rng
from tests.problems import four_rooms


def test_lambda_is_known_only_where_it_is_maximised() -> None:
    assert followers.SoftDQNFollower(0.02, 1000).regularization == 0.02
    assert followers.SACFollower(0.3, 1000).regularization == 0.3
    assert quick("SAC").regularization is None
    assert quick("SAC", ent_coef="auto_0.1").regularization is None
    assert quick("PPO", ent_coef=0.01).regularization is None
    with pytest.raises(errors.RegularizationError):
        followers.SACFollower(-1.0, 1000)
    with pytest.raises(errors.OptionError, match="ent_coef"):
        followers.SACFollower(0.1, 1000, ent_coef=0.2)


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_a_learner_per_context_solves_each(algorithm: str) -> None:
    """Action 0 pays in context 0 and costs in context 1; the observation shows no context."""
    settings: dict[str, Any] = {"total_timesteps": 1000, "learning_rate": 5e-3}
    settings |= {"n_steps": 128} if algorithm == "PPO" else {"learning_starts": 100, "target_update_interval": 100}
    oracle = TrajectoryOracle(bandit(), SB3Follower(algorithm, **settings))
    generator = rng(0)
    for context in range(2):
        policy = oracle.respond(X, context, generator)
        assert (policy.table[:, context] > 0.9).all()


def test_a_shared_learner_needs_to_see_the_context() -> None:
    with pytest.raises(errors.UnsupportedError, match="ObserveContext"):
        TrajectoryOracle(bandit(), quick("PPO", shared=True))
    follower = SB3Follower("PPO", 2000, shared=True, learning_rate=5e-3, n_steps=128)
    oracle = TrajectoryOracle(ObserveContext(bandit()), follower)
    generator = rng(0)
    policies = [oracle.respond(X, context, generator) for context in (0, 1)]
    assert len(follower._learners) == 1
    for context, policy in enumerate(policies):
        assert (policy.table[:, context] > 0.9).all()
        batch = oracle.sample(policy, 50, generator)  # compiled, and shown as the policy sees it
        assert batch.observations.shape[1:] == (4,)
        np.testing.assert_array_equal(batch.observations[:, 2:], np.tile(np.eye(2)[context], (batch.n_steps, 1)))
        played = TrajectoryOracle(ObserveContext(bandit()), quick("PPO"), compiled=False).sample(policy, 50, generator)
        np.testing.assert_array_equal(played.observations[:, 2:], np.tile(np.eye(2)[context], (played.n_steps, 1)))
        assert played.states is not None
        np.testing.assert_array_equal(played.observations[:, :2].argmax(1), played.states)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["DQN", "PPO", "QRDQN", "TRPO"])
def test_learning_followers_keep_the_contract(algorithm: str) -> None:
    settings: dict[str, Any] = {"total_timesteps": 2048, "warm_start": False, "device": "cpu"}
    if algorithm in ("PPO", "TRPO"):
        settings |= {"n_envs": 8, "n_steps": 32, "batch_size": 128, "learning_rate": 5e-3}
        settings |= {"total_timesteps": 4096, "target_kl": 0.03} if algorithm == "TRPO" else {}
    else:
        settings |= {"learning_rate": 1e-2, "target_update_interval": 50, "batch_size": 64, "exploration_fraction": 0.5}
        settings |= {"policy_kwargs": {"net_arch": []} | ({"n_quantiles": 10} if algorithm == "QRDQN" else {})}
    check_follower(SB3Follower(algorithm, **settings))


def test_sac_finds_the_best_action() -> None:
    follower = followers.SACFollower(
        0.01, 500, learning_rate=1e-2, learning_starts=50, batch_size=64, policy_kwargs={"net_arch": [32]}
    )
    policy = respond(follower, Point(), [0.5])
    actions = policy.act_batch(rng(0).uniform(-1, 1, (100, 1)).astype(np.float32), rng(1))
    assert abs(actions.mean() - 0.5) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", CONTINUOUS)
def test_the_best_action_is_found_in_each_context(algorithm: str) -> None:
    """x in context 0 and -x in context 1, of actions in [-2, 2]."""
    if algorithm in ("A2C", "PPO", "TRPO"):
        settings: dict[str, Any] = {"total_timesteps": 4000, "learning_rate": 3e-3}
        settings |= {"n_steps": 8} if algorithm == "A2C" else {"n_steps": 200, "batch_size": 50}
    elif algorithm == "ARS":
        settings = {"total_timesteps": 6000, "learning_rate": 0.1, "delta_std": 0.1, "n_eval_episodes": 2, "n_delta": 4}
    else:
        settings = {"total_timesteps": 1000, "learning_rate": 3e-3, "learning_starts": 100, "batch_size": 64, "train_freq": 1}
        settings |= {"policy_kwargs": {"net_arch": [32]}}
        if algorithm in ("TD3", "DDPG"):
            settings |= {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.3))}
    oracle = TrajectoryOracle(Point(), quick(algorithm, **settings))
    for context in range(2):
        policy = oracle.respond([0.5], context, rng(0))
        actions = policy.act_batch(rng(0).uniform(-1, 1, (200, 1)).astype(np.float32), rng(1))
        assert abs(actions.mean() - (0.5, -0.5)[context]) < 0.25


def test_sampling_does_not_train() -> None:
    follower = quick("DQN")
    oracle = TrajectoryOracle(bandit(), follower, compiled=False)
    generator = rng(0)
    policy = oracle.respond(X, 0, generator)
    model = follower._learners[0].model
    before = {name: p.clone() for name, p in model.policy.state_dict().items()}
    oracle.sample(policy, 100, generator)
    assert oracle.training_steps == 60
    assert all(torch.equal(p, before[name]) for name, p in model.policy.state_dict().items())


def test_the_discount_is_the_environments() -> None:
    for algorithm in ("DQN", "PPO"):
        follower = quick(algorithm)
        respond(follower, bandit(discount=0.7))
        assert follower._learners[0].model.gamma == 0.7  # type: ignore[attr-defined]
    for setting in ("gamma", "discount"):
        with pytest.raises(errors.DiscountError, match=r"0\.99, but TabularEnv has 0\.5"):
            TrajectoryOracle(bandit(), quick("DQN", **{setting: 0.99}))
        TrajectoryOracle(bandit(), quick("DQN", **{setting: 0.5}))


def test_training_steps_are_counted_apart_and_exactly() -> None:
    env = CountSteps(bandit())
    follower = quick("PPO")
    oracle = TrajectoryOracle(env, follower, compiled=False, copies=1)  # the wrapper is to see every step
    generator = rng(0)
    for _ in range(2):
        policy = oracle.respond(X, 0, generator)
    assert env.steps == oracle.training_steps == follower.training_steps == 128
    assert oracle.env_steps == 0
    batch = oracle.sample(policy, 30, generator)
    assert env.steps == 128 + batch.n_steps
    assert oracle.env_steps == batch.n_steps >= 30
    assert oracle.training_steps == 128
    assert policy.metrics["follower_training_steps"] == 128


def _global_states() -> list[Any]:
    legacy = np.random.get_state()  # noqa: NPY002 - that is what is tested
    return [random.getstate(), legacy[1].tolist(), legacy[2:], torch.get_rng_state().tolist()]  # type: ignore[index, union-attr]


@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "SAC"])
def test_global_generators_are_left_alone(algorithm: str) -> None:
    oracle = TrajectoryOracle(Point() if algorithm == "SAC" else bandit(), quick(algorithm), compiled=False)
    x = [0.5] if algorithm == "SAC" else X
    before = _global_states()
    policy = oracle.respond(x, 0, rng(0))
    oracle.sample(policy, 20, rng(0))
    assert _global_states() == before
    broken = TrajectoryOracle(Point(faulty_step=30), quick("SAC"))
    with pytest.raises(errors.ObservationError):
        broken.respond([0.5], 0, rng(0))
    assert _global_states() == before


@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "SoftDQN", "QRDQN"])
def test_equal_generators_give_equal_answers(algorithm: str) -> None:
    tables = []
    for global_seed in range(2):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002 - must not matter
        oracle = TrajectoryOracle(bandit(), quick(algorithm, learning_rate=0.01))
        generator = rng(5)
        tables.append([oracle.respond(k * X, k % 2, generator).table for k in range(3)])
    np.testing.assert_array_equal(tables[0], tables[1])
    other = TrajectoryOracle(bandit(), quick("PPO", learning_rate=0.01)).respond(X, 0, rng(6)).table
    assert (other != TrajectoryOracle(bandit(), quick("PPO", learning_rate=0.01)).respond(X, 0, rng(7)).table).any()


def test_settings_pass_through() -> None:
    class Count(BaseCallback):
        steps = 0

        def _on_step(self) -> bool:
            self.steps += 1
            return True

    count, calls, policy_kwargs = Count(), [], {"net_arch": [5]}
    follower = quick(
        "PPO",
        callback=[count, lambda locals_, globals_: calls.append(1) or True],
        device="cpu",
        policy_kwargs=policy_kwargs,
        ent_coef=0.02,
    )
    respond(follower)
    model: Any = follower._learners[0].model
    assert count.steps == len(calls) == 64
    assert model.device == torch.device("cpu")
    assert model.policy.net_arch == [5]
    assert model.ent_coef == 0.02
    assert isinstance(model, PPO)
    respond(quick("QRDQN", policy_kwargs=policy_kwargs))
    assert policy_kwargs == {"net_arch": [5]}  # though algorithms add to what they are given


def test_hpgd_runs_with_learning_followers() -> None:
    """The whole way, quickly: tables from networks, compiled sampling, weights, one gradient."""
    for follower, leader in [
        (quick("PPO"), leaders.HPGD(env_steps=200, regularization=0.1)),
        (quick("SoftDQN"), leaders.HPGD(env_steps=200)),
    ]:
        result = leaders.optimize(bandit(), leader, follower, 3, seed=0, x0=X)
        assert result.leader_return is not None
        assert result.env_steps >= 600
        assert result.history["follower_training_steps"][-1] == follower.training_steps
    with pytest.raises(errors.RegularizationError, match="HPGD"):
        leaders.optimize(bandit(), leaders.HPGD(), quick("PPO"), 3)


def test_the_compiled_sampler_plays_a_networks_table() -> None:
    env = four_rooms(observation="coordinates")
    oracle = TrajectoryOracle(env, quick("PPO"))
    policy = oracle.respond(np.zeros(105), 0, rng(0))
    batch = oracle.sample(policy, 2000, rng(0))
    assert batch.states is not None
    np.testing.assert_array_equal(bocmdp_gym.configurable(env).observe(batch.states), batch.observations)
    slow = TrajectoryOracle(env, quick("PPO"), compiled=False).sample(policy, 2000, rng(1))
    fast, slow_share = (np.bincount(b.actions, minlength=4) / b.n_steps for b in (batch, slow))
    assert abs(fast - slow_share).max() < 0.08  # correlated steps: far more than 4 standard errors of independent ones


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SB3Follower("PPo", 10), errors.OptionError, "Did you mean 'PPO'"),
        (lambda: SB3Follower(dict, 10), errors.OptionError, "expected an algorithm class"),  # type: ignore[arg-type]
        (lambda: SB3Follower("PPO", 0), errors.OptionError, "total_timesteps is 0"),
        (lambda: SB3Follower("PPO", 10.5), errors.OptionError, "total_timesteps"),  # type: ignore[arg-type]
        (lambda: SB3Follower("PPO", 10, n_envs=0), errors.OptionError, "n_envs is 0"),
        (lambda: SB3Follower("DQN", 100), errors.OptionError, "learning_starts"),
        (lambda: SB3Follower("PPO", 10, learning_rat=1.0), errors.OptionError, "Did you mean 'learning_rate'"),
        (lambda: SB3Follower("PPO", 10, seed=1), errors.OptionError, "generator"),
        (lambda: SB3Follower("PPO", 10, tensorboard_log="x"), errors.OptionError, "log_dir"),
        (lambda: SB3Follower("ARS", 10, normalize="both"), errors.UnsupportedError, "ARS divides by the deviation"),
        (lambda: SB3Follower("SoftDQN", 1000), errors.RegularizationError, "regularization is None"),
        (lambda: followers.SoftDQNFollower(-1.0, 1000), errors.RegularizationError, r"-1\.0"),
    ],
)
def test_bad_settings_are_refused_at_construction(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
