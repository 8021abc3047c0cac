from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.wrappers import TransformReward

from bocmdp_gym import errors
from followers import TrajectoryOracle
from tests.followers.problems import Point, X, bandit
from tests.followers.sb3.quick import quick, rng
from tests.problems import random_model


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


def test_an_old_buffer_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("followers.sb3.learner.empty_buffer", lambda model: model.replay_buffer)
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
    TrajectoryOracle(random_model(0), quick("PPO", replay="relabel"))  # no buffer, nothing to fix
    with pytest.raises(errors.UnsupportedError, match="wrappers change"):
        TrajectoryOracle(TransformReward(bandit(), lambda reward: 2 * reward), quick("DQN", replay="relabel"))
    with pytest.raises(errors.OptionError, match="mixes contexts"):
        quick("DQN", replay="relabel", shared=True)
    with pytest.raises(errors.OptionError, match="Did you mean 'relabel'"):
        quick("DQN", replay="relable")


SAVING: dict[str, Any] = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}


@pytest.mark.parametrize("algorithm", ["DQN", "SAC"])
@pytest.mark.parametrize("buffer_size", [1000, 70])
def test_a_memory_saving_buffer_is_relabelled(algorithm: str, buffer_size: int) -> None:
    tabular = algorithm != "SAC"
    follower = quick(algorithm, replay="relabel", buffer_size=buffer_size, **SAVING)
    oracle = TrajectoryOracle(bandit() if tabular else Point(), follower)
    generator = rng(0)
    for x in ([0.5, 1.0], [-0.25, 1.0], [2.0, 0.0]) if tabular else ([0.5], [-1.0], [0.3]):
        oracle.respond(x, 0, generator)
        model: Any = follower._learners[0].model
        buffer, size = model.replay_buffer, model.replay_buffer.size()
        if tabular:
            expected = np.array([x[0], 0.0])[buffer.actions[:size, 0, 0]]
        else:
            expected = -((model.policy.unscale_action(buffer.actions[:size, 0, 0]) - x[0]) ** 2)
        np.testing.assert_allclose(buffer.rewards[:size, 0], expected, atol=1e-5)


def test_a_memory_saving_buffer_does_not_join_responses() -> None:
    follower = quick("DQN", **SAVING)
    oracle = TrajectoryOracle(bandit(horizon=1000), follower)
    generator = rng(0)
    for _ in range(3):
        oracle.respond(X, 0, generator)
    buffer = follower._learners[0].model.replay_buffer  # type: ignore[attr-defined]
    assert buffer.dones[[59, 119], 0].tolist() == [1.0, 1.0]  # the next observation stored is of another episode


def test_a_memory_saving_buffer_that_sb3_would_not_build_is_refused_at_construction() -> None:
    with pytest.raises(errors.OptionError, match="handle_timeout_termination"):
        quick("DQN", optimize_memory_usage=True)
