"""Layers around an environment: which leave its problem alone."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
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
