"""Layers around an environment: which leave its problem alone, and under which the leader is still paid for every step."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.wrappers import (
    HumanRendering,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    RecordVideo,
    RenderCollection,
    TimeLimit,
)
from gymnasium.wrappers import vector as vector_wrappers

from bocmdp_gym.errors import UnsupportedError

#: Wrappers that watch, record or cut episodes, and leave observations, actions, rewards and dynamics alone.
TRANSPARENT = (
    HumanRendering,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    RecordVideo,
    RenderCollection,
    TimeLimit,
)
_VECTOR = (
    vector_wrappers.HumanRendering,
    vector_wrappers.RecordEpisodeStatistics,
    vector_wrappers.RecordVideo,
    gym.vector.VectorWrapper,
)
#: Known by name, so that their packages need not be there.
_NAMED = ("stable_baselines3.common.monitor.Monitor",)
#: Steps that a copy is played for, to see what its layers do.
_STEPS = 50


def layers_of(env: Any) -> Iterator[Any]:
    """All layers of an environment, or of a vector environment, outermost first."""
    yield env
    while isinstance(env, (gym.Wrapper, gym.vector.VectorWrapper)):
        env = env.env
        yield env


def is_transparent(layer: Any) -> bool:
    """Whether a wrapper leaves the problem alone.

    Those of Gymnasium that do are known; any other may do anything in its ``step`` or ``reset``, so it must have none, or say by
    a class attribute ``transparent = True`` that it only watches.
    """
    if getattr(type(layer), "transparent", False) is True:
        return True
    known = _VECTOR if isinstance(layer, gym.vector.VectorEnv) else (gym.Wrapper, *TRANSPARENT)
    return all(_is_known(defined_by(layer, name), known) for name in ("step", "reset"))


def defined_by(layer: Any, method: str) -> type | None:
    """The class whose method a layer has; None where the layer has one of its own."""
    if method in vars(layer):
        return None
    return next(cls for cls in type(layer).__mro__ if method in vars(cls))


def _is_known(cls: type | None, known: tuple[type, ...]) -> bool:
    return cls is not None and (cls in known or f"{cls.__module__}.{cls.__qualname__}" in _NAMED)


# ------------------------------------------------------------------------------------------ what the leader is paid for


def check_steps(env: Any, core: Any) -> None:
    """Refuse layers around ``core`` that lose some of the leader's rewards: each of their steps must be one of its steps.

    No list of names knows every wrapper, so a copy is played for a few steps with random actions, and watched at each layer. (An
    environment that cannot be copied is played itself, and left in the middle of an episode.)

    Args:
        env: the environment, or the vector environment.
        core: its innermost layer that is looked at: what is inside belongs to the problem.

    Raises:
        UnsupportedError: a layer skips or repeats steps, plays some in its reset, or changes ``info["leader_reward"]``.
    """
    depth = next(i for i, layer in enumerate(layers_of(env)) if layer is core)
    try:
        played = deepcopy(env)
    except Exception:  # noqa: BLE001 - an environment may hold anything that cannot be copied
        played = env
    watches = [_Watch(layer) for layer, _ in zip(layers_of(played), range(depth + 1), strict=False)]
    try:
        _play(played, watches)
    finally:
        for watch in watches:
            watch.remove()


class _Watch:
    """Counts the steps of one layer, and keeps what it said of the leader's reward in the last."""

    def __init__(self, layer: Any):
        self.layer, self.steps = layer, 0
        self.paid: tuple[Any, ...] = ()
        self._own = vars(layer).get("step")
        inner = layer.step

        def step(action: Any) -> Any:
            result = inner(action)
            self.steps += 1
            self.paid = _paid(result[4])
            return result

        layer.step = step

    @property
    def name(self) -> str:
        return type(self.layer).__name__

    def remove(self) -> None:
        """Leave the layer as it was."""
        if self._own is None:
            del self.layer.step
        else:
            self.layer.step = self._own


def _paid(info: Any) -> tuple[Any, ...]:
    """The leader's rewards of a step: of a copy that was reset within it, that before the reset too."""
    parts = (info, info.get("final_info"))
    return tuple(np.array(part["leader_reward"]) for part in parts if isinstance(part, dict) and "leader_reward" in part)


def _play(env: Any, watches: list[_Watch]) -> None:
    space = deepcopy(env.action_space)
    space.seed(0)
    vector = isinstance(env, gym.vector.VectorEnv)
    options: dict[str, Any] | None = None
    over: Any = True
    for number in range(_STEPS):
        try:
            if np.any(over):
                env.reset(seed=0 if number == 0 else None, options=options)
            _compare(watches, "its reset")
            _, _, terminated, truncated, _ = env.step(space.sample())
        except UnsupportedError:
            raise
        except Exception:  # noqa: BLE001 - it refuses random actions, or fails at this x: who plays it is told by itself
            return
        _compare(watches, "one of its own")
        over = np.logical_or(terminated, truncated)
        if vector:
            over = over & (env.metadata.get("autoreset_mode") == gym.vector.AutoresetMode.DISABLED)
            options = {"reset_mask": over}


def _compare(watches: list[_Watch], where: str) -> None:
    """Hold each layer's steps against those inside, and forget them."""
    for outer, inner in reversed(list(pairwise(watches))):
        advice = _advice(outer.name, watches[-1].layer)
        if inner.steps != outer.steps:
            raise UnsupportedError(
                f"{outer.name} plays {inner.steps} steps of {inner.name} in {where}, and the leader is told of "
                f"{min(outer.steps, inner.steps)}: the leader's rewards would not be those of the steps played. {advice}"
            )
        if inner.steps and not data_equivalence(outer.paid, inner.paid):
            got, expected = (", ".join(f"{part}" for part in one.paid) or "nothing" for one in (outer, inner))
            raise UnsupportedError(
                f'{outer.name} hands on {got} as info["leader_reward"] where {inner.name} has {expected}, so the leader would '
                f"not be paid as the problem says. {advice}"
            )
    for watch in watches:
        watch.steps = 0


def _advice(name: str, core: Any) -> str:
    if isinstance(core, gym.Wrapper):
        kind = type(core).__name__
        return f"Put it inside the leader's wrapper: {kind}({name}(env), ...); its steps are then those of the problem."
    return (
        f"Leave it out, or write a bocmdp_gym.ConfigurableWrapper of your own around {name}({type(core).__name__}(...)) that "
        "says what the leader is paid for each of its steps."
    )
