from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import bocmdp_gym
import followers
from bocmdp_gym import errors
from bocmdp_gym.wrappers.leader_share import LeaderShare, LeaderShareCopies, share_of, with_leader_share
from followers.environments import inspect_layers
from tests.problems import random_model, random_x, small_rooms

SHARE = 0.5


def _copies(mode: str, vectorization: str | None) -> Any:
    spec = small_rooms(horizon=4, start=None).spec
    assert spec is not None
    options: dict[str, Any] = dict(spec.kwargs)
    if vectorization is None:
        return gym.make_vec("bocmdp/FourRooms-v0", 3, autoreset_mode=mode, **options)
    return gym.make_vec("bocmdp/FourRooms-v0", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options)


def test_a_step_pays_the_share_and_changes_nothing_else() -> None:
    plain, paid = small_rooms(), LeaderShare(small_rooms(), SHARE)
    for env in (plain, paid):
        env.reset(seed=0, options={"context": 1})
    for action in (1, 2, 2, 1, 3, 2) * 5:
        one, other = plain.step(action), paid.step(action)
        assert other[1] == one[1] + SHARE * one[4]["leader_reward"]
        assert (other[0], *other[2:]) == (one[0], *one[2:])
        if one[2] or one[3]:
            break


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("vectorization", [None, "sync"])
def test_copies_pay_it_in_every_autoreset_mode(mode: str, vectorization: str | None) -> None:
    """Rewards less the share are those of the plain copies, rows that are resets included."""
    plain, paid = _copies(mode, vectorization), LeaderShareCopies(_copies(mode, vectorization), SHARE)
    x = np.linspace(-1.0, 1.0, 21)
    for copies in (plain, paid.env):
        copies.call("set_leader", x)
        copies.reset(seed=0)
    rng, ended, earned_any = np.random.default_rng(0), np.zeros(3, dtype=bool), False
    for _ in range(40):
        if mode == "Disabled" and ended.any():
            for copies in (plain, paid):
                copies.reset(options={"reset_mask": ended})
        actions = rng.integers(4, size=3)
        _, rewards, terminations, truncations, infos = plain.step(actions)
        _, shared, *_ = paid.step(actions)
        ended = terminations | truncations
        earned = np.zeros(3)
        if "leader_reward" in infos:
            earned = np.where(infos["_leader_reward"], infos["leader_reward"], 0.0)
        if mode == "SameStep" and ended.any():
            earned[ended] = infos["final_info"]["leader_reward"][ended]
        np.testing.assert_allclose(shared, rewards + SHARE * earned, atol=1e-12)
        earned_any |= bool(earned.any())
    assert earned_any


def test_the_model_pays_the_same() -> None:
    model, x = random_model(0), random_x(5)
    mdps = model.configure(x)
    shared = mdps.with_leader_share(SHARE)
    for context in range(model.n_contexts):
        arrays, own = shared.arrays(context), mdps.arrays(context)
        np.testing.assert_allclose(arrays.reward, own.reward + SHARE * own.leader_reward)
        np.testing.assert_allclose(arrays.leader_reward, own.leader_reward)
        np.testing.assert_allclose(arrays.reward, shared.reward[context].numpy())
    again = mdps.arrays(0)
    np.testing.assert_array_equal(again.reward, model.configure(x).arrays(0).reward)  # the model's own are left alone
    value = shared.solve(0.5).value[0]
    changed = model.replace(reward=lambda z: model.part("reward", z) + SHARE * model.part("leader_reward", z))
    np.testing.assert_allclose(value, changed.solve(x, 0.5).value[0])


@pytest.mark.parametrize("env", [small_rooms(), gym.wrappers.FlattenObservation(small_rooms())], ids=["plain", "flat"])
def test_oracles_planners_and_samples_know_the_layer(env: Any) -> None:
    x, context, rng = random_x(21), 1, np.random.default_rng(0)
    plain, paid = (followers.TrajectoryOracle(e, followers.SoftPolicyIteration(0.2)) for e in (env, LeaderShare(env, SHARE)))
    assert (plain.layers.share, paid.layers.share) == (0.0, SHARE)
    assert paid.compiled
    batch = paid.sample(paid.respond(x, context, rng), 500, rng)
    arrays = plain.configure(x).arrays(context)
    assert batch.states is not None
    pairs = batch.states, batch.actions
    np.testing.assert_allclose(batch.rewards, (arrays.reward + SHARE * arrays.leader_reward)[pairs])
    np.testing.assert_allclose(batch.leader_rewards, arrays.leader_reward[pairs])
    slow = followers.TrajectoryOracle(LeaderShare(env, SHARE), followers.SoftPolicyIteration(0.2), compiled=False)
    played = slow.sample(slow.respond(x, context, rng), 100, rng)
    assert played.states is not None
    np.testing.assert_allclose(played.rewards, (arrays.reward + SHARE * arrays.leader_reward)[played.states, played.actions])
    assert not np.allclose(paid.respond(x, context, rng).table, plain.respond(x, context, rng).table)  # type: ignore[arg-type]


def test_layers_are_found_and_weights_checked() -> None:
    env = with_leader_share(small_rooms(), SHARE)
    assert share_of(env) == SHARE
    assert share_of(env.env) is None
    core = bocmdp_gym.configurable(env)
    assert inspect_layers(LeaderShare(env, 0.25), core).share == 0.75
    assert isinstance(with_leader_share(_copies("NextStep", None), SHARE), LeaderShareCopies)
    with pytest.raises(errors.OptionError, match="weight is nan"):
        LeaderShare(small_rooms(), float("nan"))
