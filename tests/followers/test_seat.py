from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import bocmdp_gym
from bocmdp_gym import errors
from followers.policies import Policy
from followers.seat import JointPolicy, Lineup, Seat
from tests.games import game

X = np.zeros(1)


class Constant(Policy):
    """Chooses one action, and remembers what it saw."""

    batched = True
    leader, context = X, 0

    def __init__(self, action: int):
        self.action, self.seen = action, list[Any]()

    def act(self, observation: Any, rng: np.random.Generator) -> int:
        self.seen.append(float(observation[0]))
        return self.action


class Remembers(Constant):
    """Acts by what `begin` hands out."""

    batched = False

    def begin(self, env: Any) -> Policy:
        return Constant(1 - self.action)


class Random(Constant):
    """Flips a coin."""

    def act(self, observation: Any, rng: np.random.Generator) -> int:
        self.seen.append(int(rng.integers(2)))
        return self.seen[-1]


def seated(*agents: str, **policies: Policy) -> tuple[Seat, Lineup]:
    env, lineup = game(), Lineup()
    lineup.policies = {agent: Constant(0) for agent in "abc"} | policies
    return Seat(env, env, agents, lineup), lineup


def test_joint_policies_show_each_agent_its_own() -> None:
    joint = JointPolicy({"a": Constant(0), "b": Constant(1)}, X, 0)
    assert joint.batched
    assert joint.act({"a": [1.0], "b": [2.0]}, np.random.default_rng(0)) == {"a": 0, "b": 1}
    rows = {"a": np.array([[3.0], [4.0]]), "b": np.array([[5.0], [6.0]])}
    assert joint.act_batch(rows, np.random.default_rng(0)) == [{"a": 0, "b": 1}] * 2
    several = np.array([{"a": np.array([7.0]), "b": np.array([8.0])}] * 2, dtype=object)  # as trajectories hold them
    assert joint.act_batch(several, np.random.default_rng(0)) == [{"a": 0, "b": 1}] * 2
    assert [policy.seen for policy in joint.policies.values()] == [[1.0, 3.0, 4.0, 7.0, 7.0], [2.0, 5.0, 6.0, 8.0, 8.0]]  # type: ignore[attr-defined]


def test_joint_policies_begin_where_one_of_them_does() -> None:
    plain = JointPolicy({"a": Constant(0)}, X, 0)
    assert plain.begin(game()) is plain
    joint = JointPolicy({"a": Constant(0), "b": Remembers(0)}, X, 0)
    assert not joint.batched
    begun = joint.begin(game())
    assert begun.act({"a": [0.0], "b": [0.0]}, np.random.default_rng(0)) == {"a": 0, "b": 1}


def test_a_seat_is_one_agents_problem() -> None:
    seat, _ = seated("b", a=Constant(1))
    assert bocmdp_gym.configurable(seat) is seat
    assert seat.discount == 0.9
    seat.set_leader([0.5])
    seen, info = seat.reset(seed=0)
    assert (seen.tolist(), info) == ([0.0], {"context": 0, "agent": "b"})
    seen, reward, terminated, truncated, info = seat.step(1)
    assert (seen.tolist(), reward, terminated, truncated) == ([1.0], 1.5, False, False)
    assert info["leader_reward"] == 2.0 - 1.0  # a acted too
    assert seat.step(0)[1:4] == (0.0, False, True)  # b is truncated then, although c goes on


def test_the_others_see_what_they_see() -> None:
    seat, lineup = seated("c", a=Constant(1), b=Remembers(0))
    seat.reset(seed=0)
    for _ in range(3):
        *_, terminated, truncated, _ = seat.step(0)
    assert (terminated, truncated) == (True, False)
    assert seat.env.game.actions[-3:] == [{"a": 1, "b": 1, "c": 0}, {"b": 1, "c": 0}, {"c": 0}]  # type: ignore[attr-defined]
    assert lineup.policies["a"].seen[:2] == [0.0, 1.0]  # type: ignore[attr-defined]


def test_a_time_limit_around_the_game_cuts_a_seat() -> None:
    inner = game()
    env, lineup = gym.wrappers.TimeLimit(inner, 2), Lineup()
    lineup.policies = {agent: Constant(0) for agent in "abc"}
    seat = Seat(env, inner, ("c",), lineup)
    seat.reset(seed=0)
    assert [seat.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_shared_seats_take_turns() -> None:
    seat, _ = seated("a", "b", "c")
    told = [seat.reset(seed=seed)[1]["agent"] for seed in (0, *[None] * 299)]
    counts = [told.count(agent) for agent in "abc"]
    assert sum(counts) == 300
    assert max(abs(n - 100) for n in counts) < 4 * np.sqrt(300 * 2 / 9)  # 4 standard errors
    assert told == [seat.reset(seed=seed)[1]["agent"] for seed in (0, *[None] * 299)]


def test_seeds_settle_what_the_others_do() -> None:
    seat, lineup = seated("c", a=Random(0), b=Random(0))
    drawn = []
    for seed in (1, 1, 2):
        policy = lineup.policies["b"] = Random(0)
        for episode in range(20):
            seat.reset(seed=seed if episode == 0 else None)
            for _ in range(3):
                seat.step(0)
        drawn.append(policy.seen)
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_others_choose_in_several_copies_at_once() -> None:
    seat, lineup = seated("b", "c", c=Random(0))
    lineup.policies["a"], lineup.policies["b"] = Random(0), Random(0)
    seats = [deepcopy(seat) for _ in range(6)]
    for i, copied in enumerate(seats):
        copied.reset(seed=i)
    asked = [policy.seen for policy in lineup.policies.values()]  # type: ignore[attr-defined]
    Seat.ask_others(seats)
    assert [len(seen) for seen in asked] == [6, *(sum(one._agent != agent for one in seats) for agent in "bc")]
    assert 0 < len(asked[1]) < 6
    chosen = [copied._chosen for copied in seats]
    for copied, others in zip(seats, chosen, strict=True):
        copied.step(1)
        assert copied.env.game.actions[-1] == {copied._agent: 1, **(others or {})}  # type: ignore[attr-defined]
    assert len(asked[0]) == 6  # nobody was asked twice
    seats[0].step(1)
    assert len(asked[0]) == 7  # and of the next step, nothing is known yet


def test_copies_hear_of_new_policies_and_other_processes_may_not() -> None:
    seat, lineup = seated("c")
    copied = deepcopy(seat)
    assert copied.env is not seat.env
    lineup.policies = {agent: Constant(1) for agent in "abc"}
    copied.reset(seed=0)
    copied.step(0)
    assert copied.env.game.actions[-1] == {"a": 1, "b": 1, "c": 0}  # type: ignore[attr-defined]
    with pytest.raises(errors.UnsupportedError, match=r"another process.*DummyVecEnv"):
        pickle.dumps(lineup)
    lineup._process += 1
    with pytest.raises(errors.UnsupportedError, match="another process"):
        copied.reset()
