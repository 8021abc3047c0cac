from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bocmdp_gym.errors import UnsupportedError
from followers import TrajectoryOracle
from leaders.run_arguments import generator
from leaders.settings import settings_from_values
from leaders.video import MOST_STEPS, film, frames, pictured, snapshot

SMALL: dict[str, dict[str, Any]] = {
    "four-rooms": {"horizon": 12, "regularization": 0.05},
    "tax-design": {"horizon": 6, "grid_size": 11},
}


@pytest.mark.parametrize("name", SMALL)
def test_the_follower_is_filmed_in_every_context(name: str, tmp_path: Path) -> None:
    settings = settings_from_values(name, SMALL[name])
    with settings.make_env() as env:
        x = env.unwrapped.initial_leader(generator(0))  # type: ignore[attr-defined]
    film(settings, x, tmp_path / "a.gif", 0)
    film(settings, x, tmp_path / "b.gif", 0)
    content = (tmp_path / "a.gif").read_bytes()
    assert content == (tmp_path / "b.gif").read_bytes()
    moving: Any = Image.open(io.BytesIO(content))
    times = []
    for i in range(moving.n_frames):
        moving.seek(i)
        times.append(moving.info["duration"])
    assert sum(time >= 1000 for time in times) == 2  # the last frame of an episode stays; both have two contexts
    film(settings, x + 3.0 * (np.arange(len(x)) == 0), tmp_path / "c.gif", 0)
    assert content != (tmp_path / "c.gif").read_bytes()


def test_frames_begin_at_the_start_and_end_with_the_episode() -> None:
    settings = settings_from_values("four-rooms", SMALL["four-rooms"])
    with pictured(settings) as env, settings.make_env() as plain:
        oracle = TrajectoryOracle(plain, settings.make_follower())
        x = np.zeros(105)
        policy = oracle.respond(x, 0, generator(0))
        taken = list(frames(env, x, 0, policy, generator(1)))
        assert len(taken) == 13 < MOST_STEPS
        assert len(list(frames(env, x, 0, policy, generator(1), 3))) == 4
        (still,) = frames(env, x, 0, None, generator(1))
        np.testing.assert_array_equal(still, taken[0])
        np.testing.assert_array_equal(snapshot(env, x, 0, policy, generator(1)), taken[-1])
        assert (taken[0] != taken[-1]).any()


@pytest.mark.filterwarnings("ignore:.*RGB-array rendering")  # Gymnasium says so too
def test_what_is_no_picture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from_values("four-rooms", SMALL["four-rooms"])
    with pictured(settings) as env:
        monkeypatch.setattr(type(env.unwrapped), "render", lambda self: np.zeros((4, 4)))
        with pytest.raises(UnsupportedError, match=r"bocmdp/FourRooms-v0 rendered an array of shape \(4, 4\)"):
            next(frames(env, np.zeros(105), 0, None, generator(0)))
