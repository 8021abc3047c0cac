from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.envs.toy_text.taxi import TaxiEnv

import bocmdp_gym
from bocmdp_gym import TabularBOCMDP, TabularEnv, errors


def test_frozen_lake_ends_on_arrival() -> None:
    model = TabularBOCMDP.from_gymnasium(gym.make("FrozenLake-v1"), leader_dim=1)
    value = model.solve([0.0], 0.1).value
    assert float(value[0, 0]) == pytest.approx(2.471, abs=5e-4)


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1"])
def test_published_tables_reproduce_the_environment(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    tables = bocmdp_gym.gymnasium_tables(env)
    tables.transition.validate()
    rng = np.random.default_rng(0)
    for _ in range(200):
        s, a = int(rng.integers(len(env.P))), int(rng.integers(len(env.P[0])))
        reward = sum(p * r for p, _, r, _ in env.P[s][a])
        done = sum(p for p, _, _, end in env.P[s][a] if end)
        assert float(tables.reward[0, s, a]) == pytest.approx(reward)
        assert float(tables.termination[0, s, a]) == pytest.approx(done)


def test_model_without_tables_is_refused() -> None:
    with pytest.raises(errors.UnsupportedError, match="publishes no tables"):
        TabularBOCMDP.from_gymnasium(gym.make("CartPole-v1"), leader_dim=1)


def test_gymnasium_tables_need_no_leader_dim() -> None:
    lake = gym.make("FrozenLake-v1")
    assert TabularBOCMDP.from_gymnasium(lake, reward=np.zeros((1, 16, 4))).leader_dim == 1
    assert TabularBOCMDP.from_gymnasium(lake, reward=lambda x: x.reshape(1, 1, 1)).leader_dim == 1
    space = gym.spaces.Box(-1.0, 1.0, (16,), np.float64)
    per_state = lambda x: x.reshape(1, 16, 1)  # noqa: E731
    assert TabularBOCMDP.from_gymnasium(lake, reward=per_state, leader_space=space).leader_dim == 16
    assert TabularBOCMDP.from_gymnasium(lake, reward=per_state, example=np.zeros(16)).leader_dim == 16
    with pytest.raises(errors.ModelError, match="Give leader_dim="):
        TabularBOCMDP.from_gymnasium(lake, reward=per_state)


# ------------------------------------------------------------------------------------- tables that are not what they seem


class _Chain(gym.Env[Any, Any]):
    """Three states in a row, in the form of Gymnasium's own: 0 goes back, 1 goes on or slips; the last state ends."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space, self.action_space = gym.spaces.Discrete(3), gym.spaces.Discrete(2)
        self.initial_state_distrib = np.array([0.5, 0.5, 0.0])
        self.P: dict[int, dict[int, Any]] = {
            s: {
                0: [(1.0, max(s - 1, 0), -1.0, False)],
                1: [(0.75, min(s + 1, 2), 0.1, s == 1), (0.25, s, 0.1, False)],
            }
            for s in range(2)
        }
        self.P[2] = {a: [(1.0, 2, 0.0, True)] for a in range(2)}
        self.place = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = int(self.np_random.choice(3, p=self.initial_state_distrib))
        return self.place, {}

    def outcome(self, action: int) -> tuple[int, float, bool]:
        row = self.P[self.place][action]
        _, place, reward, done = row[int(self.np_random.choice(len(row), p=[p for p, *_ in row]))]
        return place, reward, done

    def step(self, action: int) -> Any:
        self.place, reward, done = self.outcome(action)
        return self.place, reward, done, False, {}


class _Steady(_Chain):
    """Never slips, whatever its table says."""

    def outcome(self, action: int) -> tuple[int, float, bool]:
        _, place, reward, done = self.P[self.place][action][0]
        return place, reward, done


class _Slippery(_Chain):
    """Slips as often as not."""

    def outcome(self, action: int) -> tuple[int, float, bool]:
        row = self.P[self.place][action]
        _, place, reward, done = row[int(self.np_random.integers(len(row)))]
        return place, reward, done


class _Generous(_Chain):
    def outcome(self, action: int) -> tuple[int, float, bool]:
        place, reward, done = super().outcome(action)
        return place, reward + 0.01, done


class _Endless(_Chain):
    def outcome(self, action: int) -> tuple[int, float, bool]:
        place, reward, _ = super().outcome(action)
        return place, reward, False


class _Jumping(_Chain):
    def outcome(self, action: int) -> tuple[int, float, bool]:
        place, reward, done = super().outcome(action)
        return (2 - place, reward, False) if self.np_random.random() < 0.1 else (place, reward, done)


class _StartsElsewhere(_Chain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = 2
        return self.place, {}


class _StartsAtOneEnd(_Chain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = 0
        return self.place, {}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Steady, "at other rates than its table says"),
        (_Slippery, "at other rates than its table says"),
        (_Generous, r"with reward .*its table has"),
        (_Endless, "and went on; its table has"),
        (_Jumping, "_Jumping went from state"),
        (_StartsElsewhere, "started in state 2, which its initial_state_distrib does not"),
        (_StartsAtOneEnd, "at other rates than its table says"),
    ],
)
def test_tables_that_are_not_played_are_refused(kind: type[_Chain], message: str) -> None:
    with pytest.raises(errors.ModelError, match=message):
        TabularBOCMDP.from_gymnasium(kind())
    model = TabularBOCMDP.from_gymnasium(kind(), check_samples=0)
    expected = TabularBOCMDP.from_gymnasium(_Chain())
    torch.testing.assert_close(model.solve([0.0], 0.1).value, expected.solve([0.0], 0.1).value)


def test_rewards_need_not_be_the_tables_where_they_are_replaced() -> None:
    reward = np.zeros((1, 3, 2))
    TabularBOCMDP.from_gymnasium(_Generous(), reward=reward, leader_reward=reward)
    with pytest.raises(errors.ModelError, match="with reward"):
        TabularBOCMDP.from_gymnasium(_Generous(), reward=reward)


@pytest.mark.parametrize("probability", [0.05, 0.3, 1.0])
def test_the_fickle_passenger_is_refused(probability: float) -> None:
    env = gym.make("Taxi-v4", fickle_passenger=True, fickle_probability=probability)
    with pytest.raises(errors.UnsupportedError, match="fickle_passenger changes destinations in its step"):
        TabularBOCMDP.from_gymnasium(env)


def test_sampled_steps_would_notice_a_fickle_passenger() -> None:
    class Changing(TaxiEnv):
        """Destinations change while a passenger is driven, now and then."""

        def step(self, a: Any) -> Any:
            _, _, passenger, _ = self.decode(self.s)
            _, reward, terminated, _, info = super().step(a)
            row, column, now, _ = self.decode(self.s)
            if passenger == 4 and now == 4 and self.np_random.random() < 0.2:
                self.s = self.encode(row, column, now, int(self.np_random.integers(4)))
            return int(self.s), reward, terminated, False, info

    with pytest.raises(errors.ModelError, match=r"Changing went from state \d+ under action"):
        TabularBOCMDP.from_gymnasium(Changing())


def test_no_alarm_on_what_is_right() -> None:
    options: tuple[tuple[str, dict[str, Any]], ...] = (
        ("FrozenLake-v1", {}),
        ("FrozenLake-v1", {"is_slippery": False}),
        ("FrozenLake-v1", {"success_rate": 0.9}),
        ("FrozenLake8x8-v1", {}),
        ("Taxi-v4", {}),
        ("Taxi-v4", {"is_rainy": True}),
        ("CliffWalking-v1", {"is_slippery": True}),
    )
    for env_id, given in options:
        TabularBOCMDP.from_gymnasium(gym.make(env_id, **given))
    for n in (1, 30, 3000):
        TabularBOCMDP.from_gymnasium(_Chain(), check_samples=n)


def test_the_environment_is_left_as_it_was() -> None:
    env: Any = gym.make("FrozenLake-v1")
    env.reset(seed=3)
    before, random = env.unwrapped.s, env.unwrapped.np_random.bit_generator.state
    TabularBOCMDP.from_gymnasium(env)
    assert env.unwrapped.s == before
    assert env.unwrapped.np_random.bit_generator.state == random


def test_a_dry_taxi_is_not_a_rainy_one() -> None:
    class Dry(TaxiEnv):
        def step(self, a: Any) -> Any:
            likely = max(self.P[self.s][a])
            self.s = likely[1]
            return int(self.s), likely[2], likely[3], False, {}

    with pytest.raises(errors.ModelError, match="likely and unlikely outcomes came at other rates"):
        TabularBOCMDP.from_gymnasium(Dry(is_rainy=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[1].pop(1), r"state 1 in the table of _Chain lists the actions \[0\]"),
        (lambda p: p[0].pop(0), r"state 0 in the table of _Chain lists the actions \[1\]"),
        (lambda p: p[1].update({5: p[1].pop(1)}), r"lists the actions \[0, 5\]"),
        (lambda p: p[1].update({1: [(0.9, 2, 1.0, False)]}), r"probabilities of state 1, action 1 in .* sum to 0\.9; expected 1"),
        (lambda p: p[1].update({1: [(0.9, 2, 1.0, False), (0.3, 1, 0.0, True)]}), r"sum to 1\.2; expected 1"),
        (lambda p: p[1].update({1: []}), r"sum to 0; expected 1"),
        (lambda p: p[1].update({1: [(1.5, 2, 1.0, False), (-0.5, 1, 0.0, True)]}), "probabilities of at least 0"),
        (lambda p: p[1].update({1: [(1.0, 2, np.nan, False)]}), "expected finite numbers"),
        (lambda p: p[1].update({1: [(1.0, 3, 1.0, False)]}), r"expected states in 0\.\.2"),
        (lambda p: p[1].update({1: [(1.0, 1.5, 1.0, False)]}), r"expected states in 0\.\.2"),
        (lambda p: p[1].update({1: [(1.0, 2, 1.0)]}), r"expected a list of \(probability, successor, reward, done\)"),
        (lambda p: p.update({7: p.pop(2)}), "not numbered"),
        (lambda p: p.update({3: p[2]}), "the table of _Chain has 4 states"),
    ],
)
def test_malformed_tables_are_named(change: Any, message: str) -> None:
    env = _Chain()
    change(env.P)
    for samples in (0, 300):
        with pytest.raises(errors.ModelError, match=message):
            bocmdp_gym.gymnasium_tables(env, check_samples=samples)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
        wrappers.NormalizeReward,
        lambda env: wrappers.ClipReward(env, 0.0, 0.5),
        lambda env: wrappers.TransformAction(env, lambda action: 3 - action, env.action_space),
        lambda env: wrappers.StickyAction(env, 0.5),
        lambda env: wrappers.RepeatAction(env, 2),
        lambda env: wrappers.TransformObservation(env, lambda state: 15 - state, env.observation_space),
        wrappers.FlattenObservation,
        wrappers.TimeAwareObservation,
        lambda env: wrappers.DelayObservation(env, 1),
        lambda env: wrappers.FrameStackObservation(env, 2),
        lambda env: _Unknown(env),
        lambda env: wrappers.TimeLimit(_Unknown(env), 10),
    ],
)
def test_wrappers_that_change_the_problem_are_refused(wrap: Any) -> None:
    with pytest.raises(errors.UnsupportedError, match=r"may change observations, actions, rewards or dynamics.*env\.unwrapped"):
        TabularBOCMDP.from_gymnasium(wrap(gym.make("FrozenLake-v1")))


class _Unknown(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, float(reward) + 1.0, *rest


def test_wrappers_that_watch_are_let_through() -> None:
    class Named(gym.Wrapper[Any, Any, Any, Any]):
        """Has no step of its own."""

        name = "lake"

    class Watching(_Unknown):
        transparent = True

    env: Any = wrappers.RecordEpisodeStatistics(wrappers.TimeLimit(gym.make("FrozenLake-v1"), 7))
    for watched in (env, Named(env), Watching(env)):
        TabularBOCMDP.from_gymnasium(watched)


def test_the_environments_own_mask_is_read_where_asked_for() -> None:
    env = gym.make("Taxi-v4")
    model = TabularBOCMDP.from_gymnasium(env, action_mask=True, discount=0.9)
    assert TabularBOCMDP.from_gymnasium(env, discount=0.9).mask is None
    _, info = env.reset(seed=3)
    played = TabularEnv(model)
    for _ in range(40):
        state = env.unwrapped.s  # type: ignore[attr-defined]
        _, told = played.reset(options={"state": state})
        np.testing.assert_array_equal(told["action_mask"], info["action_mask"])
        *_, info = env.step(env.action_space.sample(info["action_mask"]))
    policy = model.solve([0.0], 0.1).policy[0].numpy()
    assert (policy[~model.mask.of(0)] == 0.0).all()  # type: ignore[union-attr]


def test_masks_that_are_none_are_refused() -> None:
    with pytest.raises(errors.UnsupportedError, match=r"FrozenLakeEnv has no method action_mask\(state\)"):
        TabularBOCMDP.from_gymnasium(gym.make("FrozenLake-v1"), action_mask=True)

    class Odd(TaxiEnv):
        def action_mask(self, state: int) -> Any:
            return np.full(6, 0.5)

    with pytest.raises(errors.ModelError, match=r"action_mask\(0\) of Odd"):
        TabularBOCMDP.from_gymnasium(Odd(), action_mask=True)
    mask = np.ones((16, 4), dtype=np.bool_)
    mask[:, 0] = False
    assert TabularBOCMDP.from_gymnasium(gym.make("FrozenLake-v1"), action_mask=mask).mask is not None
