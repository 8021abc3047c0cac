"""The follower at work, in pictures: frames of an episode at one x, and an animation of them.

Frames are those of the environment's ``render``, with ``render_mode="rgb_array"``; animations are GIFs, which need nothing but
Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from PIL import Image

from bocmdp_gym import configurable
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.files import write_atomically
from followers import Policy, TrajectoryOracle
from leaders.policy_evaluation import draw_contexts
from leaders.run_arguments import generator
from leaders.settings import RunSettings

Frame = npt.NDArray[np.uint8]
#: Longer episodes are cut, to keep files small.
MOST_STEPS = 300
#: Contexts that are shown, at most.
CONTEXTS = 4
_STILL = 1000  # milliseconds that the last frame of an episode stays
_WIDEST = 640  # pixels


def pictured(settings: RunSettings) -> gym.Env[Any, Any]:
    """The environment of a run, to be looked at.

    Raises:
        UnsupportedError: it has no pictures.
    """
    with settings.make_env() as env:
        modes = env.metadata.get("render_modes") or []
    if "rgb_array" not in modes:
        raise UnsupportedError(
            f"{settings.env_id} has no render mode 'rgb_array' (its metadata names {list(modes)}), so there is nothing to see; "
            "give it one, or leave --video and --before out."
        )
    return settings.make_env(render_mode="rgb_array")


def frames(
    env: gym.Env[Any, Any], x: Any, context: Any, policy: Policy | None, rng: np.random.Generator, steps: int = MOST_STEPS
) -> Iterator[Frame]:
    """The pictures of an episode, from its start on.

    Args:
        env: an environment that renders arrays (`pictured`).
        x, context: what it is set to.
        policy: who acts; None: only the start is shown.
        rng: of the policy, and of the episode.
        steps: after which the episode is cut.

    Raises:
        UnsupportedError: what it renders is no picture.
    """
    for _ in _played(env, x, context, policy, rng, steps):
        yield _frame(env)


def snapshot(
    env: gym.Env[Any, Any], x: Any, context: Any, policy: Policy | None, rng: np.random.Generator, steps: int = MOST_STEPS
) -> Frame:
    """The last of `frames`."""
    for _ in _played(env, x, context, policy, rng, steps):
        pass
    return _frame(env)


def _played(
    env: gym.Env[Any, Any], x: Any, context: Any, policy: Policy | None, rng: np.random.Generator, steps: int
) -> Iterator[None]:
    """Play an episode, with a pause at its start and after each step."""
    core = configurable(env)
    core.set_leader(x)
    core.set_context(context)
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    yield
    if policy is None:
        return
    acting = policy.begin(env)
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(acting.act(observation, rng))
        yield
        if terminated or truncated:
            return


def _frame(env: gym.Env[Any, Any]) -> Frame:
    frame = np.asarray(env.render())
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise UnsupportedError(
            f"{env.spec.id if env.spec else env} rendered an array of shape {frame.shape} and type {frame.dtype}; expected a "
            "picture (H, W, 3) of type uint8, as render mode 'rgb_array' has it."
        )
    return frame


def film(settings: RunSettings, x: npt.ArrayLike, path: Path, seed: int) -> None:
    """Record the follower that answers x, one episode in each of the first few contexts, as an animated GIF.

    Args:
        settings: of the run.
        x: ``(d,)``.
        path: of the file.
        seed: of contexts, responses and episodes.

    Raises:
        UnsupportedError: the environment has no pictures.
        FolderError: the file cannot be written.
    """
    rng = generator(seed)
    with pictured(settings) as shown, settings.make_env() as env:
        oracle = TrajectoryOracle(env, settings.make_follower())
        taken: list[Image.Image] = []
        lengths: list[int] = []  # milliseconds
        pause = round(1000 / float(shown.metadata.get("render_fps") or 10))
        for context, _ in draw_contexts(oracle.core, CONTEXTS, rng)[:CONTEXTS]:
            policy = oracle.respond(x, context, rng)
            taken += [_shrunk(frame) for frame in frames(shown, x, context, policy, rng)]
            lengths += [pause] * (len(taken) - len(lengths) - 1) + [_STILL]
    content = io.BytesIO()
    taken[0].save(content, "GIF", save_all=True, append_images=taken[1:], duration=lengths, loop=0)
    write_atomically(path, content.getvalue())


def _shrunk(frame: Frame) -> Image.Image:
    """A frame in the colours and the size of a GIF."""
    image = Image.fromarray(frame)
    image.thumbnail((_WIDEST, _WIDEST))
    return image.quantize(dither=Image.Dither.NONE)
