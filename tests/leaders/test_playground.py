from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import leaders
from bocmdp_gym import configurable
from bocmdp_gym.errors import LeaderParameterError, UnsupportedError
from followers import SoftPolicyIteration
from leaders.playground import Playground
from leaders.settings import settings_from_values

ROOMS: dict[str, Any] = {"regularization": 0.05, "horizon": 20}


def test_what_is_seen_is_exact() -> None:
    playground = Playground(settings_from_values("four-rooms", ROOMS))
    model = configurable(gym.make("bocmdp/FourRooms-v0")).model
    for x in (playground.x, playground.x + np.linspace(-1, 1, 105)):
        playground.move(x)
        view = playground.look()
        assert view.leader_return == pytest.approx(float(model.leader_return(x, regularization=0.05)), abs=1e-9)
        mdps, solution = model.configure(x), model.solve(x, 0.05)
        np.testing.assert_allclose(view.follower, (mdps.initial * solution.value).sum(-1).numpy(), atol=1e-9)


def test_the_picture_shows_x() -> None:
    playground = Playground(settings_from_values("four-rooms", ROOMS))
    before = playground.picture(0)
    playground.move(playground.x + np.linspace(-4, 4, 105))
    assert before is not None
    assert (playground.picture(0) != before).any()
    assert (playground.picture(1) != playground.picture(0)).any()


def test_steps_are_those_of_the_exact_leader() -> None:
    settings = settings_from_values("four-rooms", ROOMS)
    playground = Playground(settings)
    for _ in range(3):
        playground.step()
    env, follower = settings.make_env(), SoftPolicyIteration(0.05)
    leader = leaders.ExactGradient(learning_rate=1.0)
    found = leaders.optimize(env, leader, follower, 3, contexts="all", x0=playground.start, progress=False)
    np.testing.assert_allclose(playground.x, found.x.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("halved", [True, False])
def test_steps_too_long_are_halved(halved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not halved:
        monkeypatch.setattr("leaders.playground._HALVINGS", 0)
    playground = Playground(settings_from_values("tax-design", {"grid_size": 11, "horizon": 10, "learning_rate": 1.0}))
    returns = [playground.look().leader_return]
    for _ in range(5):
        playground.step()
        returns.append(playground.look().leader_return)
    assert (returns == sorted(returns)) == halved


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("road-tolls", {"network": "braess"}),
        ("tax-design", {"grid_size": 11, "horizon": 10}),
        ("principal-agent", {"regularization": 0.2}),
    ],
)
def test_other_environments_can_be_played_with(name: str, values: dict[str, Any]) -> None:
    playground = Playground(settings_from_values(name, values | {"seed": 1}))
    before = playground.look().leader_return
    playground.step()
    assert playground.look().leader_return != before
    assert (playground.low <= playground.x).all()
    assert (playground.x <= playground.high).all()


def test_x_stays_in_its_space() -> None:
    playground = Playground(settings_from_values("four-rooms", ROOMS))
    with pytest.raises(LeaderParameterError):
        playground.move(np.full(105, np.nan))
    with pytest.raises(LeaderParameterError):
        playground.move([0.0])


def test_a_problem_without_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from_values("custom", {"id": "mine/Draws-v0"})
    from tests.leaders.test_evaluate import Draws

    monkeypatch.setattr(type(settings), "make_env", lambda self, **further: Draws(False))
    with pytest.raises(UnsupportedError, match="tabular"):
        Playground(settings)
