from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import TabularVectorEnv, errors
from bocmdp_gym.wrappers import ObserveContext
from followers import SB3Follower, TrajectoryOracle, check_follower
from leaders.checkpoints import Checkpoints
from tests.followers.problems import CountSteps, Point, X, bandit
from tests.problems import four_rooms, random_model

#: Settings with which an algorithm learns something, or at least updates, in a few dozen steps.
QUICK: dict[str, dict[str, Any]] = {
    "A2C": {"total_timesteps": 40},
    "DDPG": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "DQN": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16},
    "PPO": {"total_timesteps": 64, "n_steps": 32, "batch_size": 32},
    "QRDQN": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16},
    "SAC": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "SoftDQN": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16, "regularization": 0.1},
    "TD3": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "TRPO": {"total_timesteps": 64, "n_steps": 32, "batch_size": 32},
}
DISCRETE = ["A2C", "DQN", "PPO", "QRDQN", "SoftDQN", "TRPO"]
CONTINUOUS = ["A2C", "DDPG", "PPO", "SAC", "TD3"]


def quick(algorithm: str, **options: Any) -> SB3Follower:
    return SB3Follower(algorithm, **{**QUICK[algorithm], **options})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def respond(follower: SB3Follower, env: Any = None, x: Any = X, context: int = 0, seed: int = 0) -> Any:
    return TrajectoryOracle(bandit() if env is None else env, follower).respond(x, context, rng(seed))


# ---------------------------------------------------------------------------------------------------------- reading policies


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
    assert not hasattr(policy, "probabilities")
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
    with pytest.raises(errors.OptionError, match="greedy in Q-values, not for PPO"):
        respond(quick("PPO", softmax_temperature=0.1))
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


# ------------------------------------------------------------------------------------------------------------------ learning


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
@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_learning_followers_keep_the_contract(algorithm: str) -> None:
    settings: dict[str, Any] = {"total_timesteps": 2048, "warm_start": False, "device": "cpu"}
    if algorithm == "PPO":
        settings |= {"n_envs": 8, "n_steps": 32, "batch_size": 128, "learning_rate": 5e-3}
    else:
        settings |= {"learning_rate": 1e-2, "target_update_interval": 50, "batch_size": 64, "exploration_fraction": 0.5}
        settings |= {"policy_kwargs": {"net_arch": []}}
    check_follower(SB3Follower(algorithm, **settings))


def test_sac_finds_the_best_action() -> None:
    follower = followers.SACFollower(
        0.01, 500, learning_rate=1e-2, learning_starts=50, batch_size=64, policy_kwargs={"net_arch": [32]}
    )
    policy = respond(follower, Point(), [0.5])
    actions = policy.act_batch(rng(0).uniform(-1, 1, (100, 1)).astype(np.float32), rng(1))
    assert abs(actions.mean() - 0.5) < 0.25


def test_an_answer_is_a_snapshot() -> None:
    oracle = TrajectoryOracle(bandit(), quick("PPO", learning_rate=3e-3))
    generator = rng(0)
    policy = oracle.respond(X, 0, generator)
    before = policy.table.copy()
    later = oracle.respond(X, 0, generator)
    assert abs(later.table - before).max() > 1e-3
    np.testing.assert_array_equal(policy.table, before)
    np.testing.assert_allclose([policy.probabilities(s) for s in range(2)], before, atol=1e-6)


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


# ---------------------------------------------------------------------------------------------------- the environment's terms


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
    oracle = TrajectoryOracle(env, follower)
    assert not oracle.compiled  # the wrapper might do anything
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


@pytest.mark.parametrize("algorithm", ["DQN", "SoftDQN", "SAC"])
def test_no_stale_reward_survives_a_new_x(algorithm: str) -> None:
    """After x changes, every reward in the buffer is the one its transition earns at the new x."""
    tabular = algorithm != "SAC"
    for replay in ("drop", "relabel"):
        follower = quick(algorithm, replay=replay)
        oracle = TrajectoryOracle(bandit() if tabular else Point(), follower)
        generator = rng(0)
        points = ([0.5, 1.0], [-0.25, 1.0], [2.0, 0.0]) if tabular else ([0.5], [-1.0], [0.3])
        for index, x in enumerate(points):
            oracle.respond(x, 0, generator)
            model: Any = follower._learners[0].model
            buffer, size = model.replay_buffer, model.replay_buffer.size()
            assert size == (60 if replay == "drop" else 60 * (index + 1))
            if tabular:
                expected = np.array([x[0], 0.0])[buffer.actions[:size, 0, 0]]
            else:
                expected = -((model.policy.unscale_action(buffer.actions[:size, 0, 0]) - x[0]) ** 2)
            np.testing.assert_allclose(buffer.rewards[:size, 0], expected, atol=1e-5)
        oracle.respond(points[-1], 0, generator)  # the same x again: nothing is lost
        assert model.replay_buffer.size() == size + 60


def test_an_unmended_buffer_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("followers.sb3_learner.empty_buffer", lambda model: model.replay_buffer)
    with pytest.raises(AssertionError):
        test_no_stale_reward_survives_a_new_x("DQN")


def test_a_dropped_buffer_is_filled_before_it_is_learnt_from() -> None:
    follower = quick("DQN")
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    oracle.respond(X, 0, generator)
    model: Any = follower._learners[0].model
    updates = model._n_updates
    oracle.respond(2 * X, 0, generator)
    assert model.learning_starts == 60 + 20
    assert model._n_updates == 2 * updates


def test_relabelling_is_refused_where_it_would_lie() -> None:
    for model, message in [
        (random_model(0), "transition depend"),
        (random_model(0, moving=("reward", "termination")), "termination"),
    ]:
        with pytest.raises(errors.UnsupportedError, match=message):
            TrajectoryOracle(model, quick("DQN", replay="relabel"))
    TrajectoryOracle(random_model(0), quick("PPO", replay="relabel"))  # no buffer, nothing to mend
    with pytest.raises(errors.UnsupportedError, match="wrappers change"):
        TrajectoryOracle(CountSteps(bandit()), quick("DQN", replay="relabel"))
    with pytest.raises(errors.OptionError, match="mixes contexts"):
        quick("DQN", replay="relabel", shared=True)
    with pytest.raises(errors.OptionError, match="Did you mean 'relabel'"):
        quick("DQN", replay="relable")


# -------------------------------------------------------------------------------------------------------- one continuous run


def test_warm_starts_go_on_with_one_log(tmp_path: Path) -> None:
    follower = quick("DQN", log_dir=tmp_path, log_interval=1)
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    for k in range(3):
        oracle.respond((k + 1) * X, 0, generator)
        oracle.respond((k + 1) * X, 1, generator)
    assert {key: learner.model.num_timesteps for key, learner in follower._learners.items()} == {0: 180, 1: 180}
    follower.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["context_0", "context_1"]
    for folder in tmp_path.iterdir():
        assert len(list(folder.glob("*.csv"))) == 1
        assert len(list(folder.glob("events.*"))) == 1
        with (folder / "progress.csv").open() as file:
            steps = [int(row["time/total_timesteps"]) for row in csv.DictReader(file)]
        assert steps == sorted(steps)
        assert len(set(steps)) == len(steps)
        assert steps[-1] > 120


def test_fresh_training_is_an_option_and_its_log_goes_on(tmp_path: Path) -> None:
    follower = quick("DQN", warm_start=False, log_dir=tmp_path, log_interval=1)
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    first = oracle.respond(X, 0, generator)
    model = follower._learners[None].model
    oracle.respond(X, 0, generator)
    assert follower._learners[None].model is not model
    assert follower._learners[None].model.num_timesteps == 60
    assert follower.training_steps == 120
    again = oracle.respond(X, 0, rng(0))  # the third depends on nothing that was before
    np.testing.assert_array_equal(first.table, again.table)
    follower.close()
    with (tmp_path / "context_0" / "progress.csv").open() as file:
        steps = [int(row["time/total_timesteps"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert steps[-1] > 120


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


@pytest.mark.parametrize("algorithm", ["A2C", "DQN", "PPO", "QRDQN", "SAC", "SoftDQN", "TD3"])
@pytest.mark.parametrize("warm_start", [True, False])
def test_a_saved_follower_goes_on_bit_for_bit(algorithm: str, warm_start: bool, tmp_path: Path) -> None:
    continuous = algorithm in ("SAC", "TD3")

    def run(responses: range, generator: np.random.Generator) -> list[Any]:
        answers = []
        for k in responses:
            x = [0.1 * k] if continuous else k * X
            policy = oracle.respond(x, k % 2, generator)
            answers.append(policy.act_batch(np.linspace(-1, 1, 9)[:, None], rng(0)) if continuous else policy.table)
        return answers

    options: dict[str, Any] = {"replay": "relabel", "warm_start": warm_start}
    oracle = TrajectoryOracle(Point() if continuous else bandit(), quick(algorithm, **options))
    generator = rng(0)
    straight = run(range(5), generator)
    oracle = TrajectoryOracle(Point() if continuous else bandit(), quick(algorithm, **options))
    generator = rng(0)
    run(range(3), generator)
    oracle.follower.save(tmp_path / "follower")  # type: ignore[attr-defined]
    assert not list(tmp_path.rglob("*.pkl"))
    fresh = quick(algorithm, **options)
    oracle = TrajectoryOracle(Point() if continuous else bandit(), fresh)
    fresh.load(tmp_path / "follower")
    for mine, theirs in zip(run(range(3, 5), generator), straight[3:], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert fresh.training_steps == 5 * (64 if algorithm == "PPO" else 60 if algorithm != "A2C" else 40)


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_a_killed_run_resumes_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    def run(resume: bool = False, callback: Any = None) -> leaders.Result:
        return leaders.optimize(
            bandit(),
            leaders.HPGD(env_steps=100, regularization=0.1),
            quick(algorithm, replay="relabel"),
            5,
            x0=X,
            evaluate_every=1,
            callback=callback,
            checkpoints=Checkpoints(tmp_path / "checkpoints", every=2) if resume or callback else None,
            resume=resume,
        )

    def die(progress: Any) -> None:
        if progress.iteration == 3:
            raise KeyboardInterrupt

    straight = run()
    with pytest.raises(KeyboardInterrupt):
        run(callback=die)
    resumed = run(resume=True)
    assert torch.equal(resumed.x, straight.x)
    for column in ("sampled_return", "follower_training_steps", "env_steps"):
        np.testing.assert_array_equal(resumed.history[column], straight.history[column])


def test_a_log_goes_on_after_loading(tmp_path: Path) -> None:
    follower = quick("DQN", log_dir=tmp_path / "log", log_interval=1)
    respond(follower)
    follower.save(tmp_path / "saved")
    follower.close()
    again = quick("DQN", log_dir=tmp_path / "log", log_interval=1)
    oracle = TrajectoryOracle(bandit(), again)
    again.load(tmp_path / "saved")
    oracle.respond(X, 0, rng(1))
    again.close()
    assert sorted(p.name for p in (tmp_path / "log" / "context_0").glob("*.csv")) == ["progress.csv", "progress_from_60.csv"]
    with (tmp_path / "log" / "context_0" / "progress_from_60.csv").open() as file:
        assert all(60 < int(row["time/total_timesteps"]) <= 120 for row in csv.DictReader(file))


def test_another_followers_save_is_refused(tmp_path: Path) -> None:
    follower = quick("DQN")
    respond(follower)
    follower.save(tmp_path)
    with pytest.raises(errors.OptionError, match="learners of DQN and this follower trains PPO"):
        quick("PPO").load(tmp_path)
    other = quick("DQN", policy_kwargs={"net_arch": [7]})
    oracle = TrajectoryOracle(bandit(), other)
    other.load(tmp_path)
    with pytest.raises(errors.OptionError, match="does not fit DQN"):
        oracle.respond(X, 0, rng(0))


# ------------------------------------------------------------------------------------------------------- what passes through


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


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_copies_of_the_environment(algorithm: str) -> None:
    compiled = quick(algorithm, n_envs=4)
    respond(compiled)
    made = quick(algorithm, n_envs=4, make_env=bandit)
    respond(made)
    copied = quick(algorithm, n_envs=4)
    respond(copied, CountSteps(bandit()))
    for follower in (compiled, made, copied):
        assert follower._envs is not None
        assert follower._envs.num_envs == 4
        assert follower._learners[0].model.n_envs == 4
        assert [leader.tolist() for leader in follower._envs.get_attr("leader")] == [X.tolist()] * 4
        assert follower.training_steps == (128 if algorithm == "PPO" else 64)  # whole rollouts
        follower.close()


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_training_on_a_vector_environment(mode: str) -> None:
    for envs in (
        TabularVectorEnv(bandit(), 3, mode),
        gym.vector.SyncVectorEnv([bandit] * 3, autoreset_mode=mode),
        gym.vector.AsyncVectorEnv([bandit] * 3, autoreset_mode=mode),
    ):
        follower = quick("DQN", total_timesteps=600, learning_rate=5e-3, target_update_interval=50)
        oracle = TrajectoryOracle(envs, follower)
        policy = oracle.respond(X, 0, rng(0))
        assert (policy.table[:, 0] == 1.0).all()
        buffer: Any = follower._learners[0].model.replay_buffer  # type: ignore[attr-defined]
        assert oracle.training_steps == buffer.size() * 3 == 600
        rewards, actions = buffer.rewards[:200], buffer.actions[:200, :, 0]
        np.testing.assert_array_equal(rewards, np.where(actions == 0, 1.0, 0.0))
        cut = buffer.timeouts[:200].astype(bool)
        assert 0.15 < (buffer.dones[:200].astype(bool) & ~cut).mean() < 0.35  # ends: a quarter of all steps
        assert cut.any()
        envs.close()


def test_autoreset_rows_are_no_training_steps() -> None:
    for envs in (TabularVectorEnv(bandit(), 3), gym.vector.SyncVectorEnv([bandit] * 3)):
        with pytest.raises(errors.UnsupportedError, match="SameStep"):
            TrajectoryOracle(envs, quick("DQN"))
    with pytest.raises(errors.OptionError, match="n_envs is 2"):
        TrajectoryOracle(TabularVectorEnv(bandit(), 3, "SameStep"), quick("DQN", n_envs=2))


@pytest.mark.slow
def test_copies_in_processes() -> None:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    follower = quick("PPO", n_envs=2, make_env=bandit, vec_env_class=SubprocVecEnv)
    policy = respond(follower)
    follower.close()
    np.testing.assert_array_equal(policy.table, respond(quick("PPO", n_envs=2, make_env=bandit)).table)


def test_any_class_is_an_algorithm() -> None:
    class MyDQN(DQN):
        pass

    follower = SB3Follower(MyDQN, **QUICK["DQN"])
    respond(follower)
    assert isinstance(follower._learners[0].model, MyDQN)
    assert SB3Follower(A2C, 10).algorithm is A2C


# ----------------------------------------------------------------------------------------------------------- with the leaders


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


# ------------------------------------------------------------------------------------------------------------------ bad input


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
        (lambda: SB3Follower("RecurrentPPO", 10), errors.UnsupportedError, "whole episode"),
        (lambda: SB3Follower("MaskablePPO", 10), errors.UnsupportedError, "mask"),
        (lambda: SB3Follower("ARS", 10), errors.UnsupportedError, "undiscounted"),
        (lambda: SB3Follower("SoftDQN", 1000), errors.RegularizationError, "regularization is None"),
        (lambda: followers.SoftDQNFollower(-1.0, 1000), errors.RegularizationError, r"-1\.0"),
    ],
)
def test_bad_settings_are_refused_at_construction(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("algorithm", "env", "message"),
    [
        ("DQN", Point(), "DQN cannot take this environment"),
        ("SAC", bandit(), "SAC cannot take this environment"),
        ("DQN", Point(discrete=True), "MultiDiscrete"),
    ],
)
def test_an_algorithm_that_cannot_act_is_refused_before_anything_runs(algorithm: str, env: Any, message: str) -> None:
    with pytest.raises(errors.UnsupportedError, match=message):
        TrajectoryOracle(env, quick(algorithm))


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_stops_training_at_once(fault: float) -> None:
    env = Point(faulty_step=7, fault=fault)
    with pytest.raises(errors.ObservationError, match="at training step 7"):
        respond(quick("SAC"), env, [0.5])
    assert env.steps == 7


def test_a_reward_that_is_not_finite_stops_training_at_once() -> None:
    class Broke(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, np.nan, *rest

    with pytest.raises(errors.ObservationError, match="reward at training step 1 is nan in copy 0"):
        respond(quick("PPO"), Broke(bandit()))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # in Stable-Baselines3's statistics
@pytest.mark.parametrize("algorithm", ["A2C", "DQN", "PPO", "QRDQN", "SoftDQN"])
def test_a_learner_that_diverges_is_stopped(algorithm: str) -> None:
    with pytest.raises(errors.ConvergenceError, match=f"{algorithm} diverged in context 0 by training step"):
        respond(quick(algorithm, total_timesteps=2000, learning_rate=1e30))


def test_divergence_is_noticed_at_the_next_update() -> None:
    follower = quick("DQN", total_timesteps=100_000, learning_rate=1e30)
    with pytest.raises(errors.ConvergenceError):
        respond(follower)
    assert follower._learners[0].model.num_timesteps < 100
