"""Masks of actions: which of them an environment allows just now, as its method ``action_masks()`` says."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from bocmdp_gym import TabularEnv
from bocmdp_gym.errors import ActionError, UnsupportedError
from followers.environments import Layers


def check_masked(env: gym.Env[Any, Any], name: str) -> None:
    """Refuse an environment that does not say which actions it allows.

    Args:
        env: one copy.
        name: of the algorithm that asks.

    Raises:
        UnsupportedError: no layer has ``action_masks()``.
    """
    if not env.has_wrapper_attr("action_masks"):
        raise UnsupportedError(
            f"{name} asks its environment which actions are allowed, and no layer of {type(env.unwrapped).__name__} has a method "
            "action_masks(); give it one, wrap it in bocmdp_gym.wrappers.ActionMasks where its info holds an 'action_mask', or "
            "use PPO."
        )


def check_unmasked(core: Any, layers: Layers, name: str) -> None:
    """Refuse an environment in which some actions do not exist, for an algorithm that would take them.

    Args:
        core, layers: the configurable layer, and those around it.
        name: of the algorithm.

    Raises:
        UnsupportedError: the environment's model has an ``action_mask``, and no layer may make something else of actions.
    """
    if isinstance(core, TabularEnv) and core.model.mask is not None and layers.changing is None:
        raise UnsupportedError(
            f"the model of {type(core).__name__} has an action_mask, and {name} would take actions that do not exist; use "
            "MaskablePPO, or a follower that plans."
        )


def masks_of_states(env: gym.Env[Any, Any], core: Any) -> bool:
    """Whether the masks of an environment are those of its tabular model: functions of the state and the context alone.

    Args:
        env: one copy.
        core: its configurable layer.
    """
    if not (isinstance(core, TabularEnv) and core.model.mask is not None):
        return False
    return getattr(env.get_wrapper_attr("action_masks"), "__self__", None) is core


def check_masks(masks: Any, space: gym.Space[Any]) -> None:
    """Refuse masks that are none.

    Args:
        masks: of one copy or several, ``(..., A)``, True where an action is allowed; choices of several factors end to end.
        space: the learner's actions.

    Raises:
        ActionError: another number of entries, or none of an action's allowed.
    """
    if isinstance(space, gym.spaces.MultiBinary):
        factors = np.full(int(np.prod(space.shape)), 2)
    else:
        factors = np.array([space.n]) if isinstance(space, gym.spaces.Discrete) else space.nvec.reshape(-1)  # type: ignore[attr-defined]
    array = np.asarray(masks)
    if array.ndim == 0 or array.shape[-1] != factors.sum():
        raise ActionError(
            f"action_masks() returned an array of shape {array.shape}; expected an entry for each of {factors.sum()} choices."
        )
    allowed = np.logical_or.reduceat(array.astype(np.bool_), np.cumsum(factors) - factors, axis=-1)
    if not allowed.all():
        raise ActionError(f"action_masks() returned {array.tolist()}, which allows nothing; expected an action that is allowed.")
