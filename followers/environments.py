"""One environment or many: what an oracle and its followers must know of either."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import (
    DtypeObservation,
    FlattenObservation,
    OrderEnforcing,
    PassiveEnvChecker,
    RescaleObservation,
    ReshapeObservation,
    TimeLimit,
)

from bocmdp_gym import BOCMDP, TabularEnv, configurable
from bocmdp_gym.errors import ActionError, NotConfigurableError, ObservationError
from bocmdp_gym.vector_env import NativeVectorEnv
from bocmdp_gym.wrappers import ObserveContext

#: A Gymnasium environment, or a vector environment of copies of one.
AnyEnv = gym.Env[Any, Any] | VectorEnv[Any, Any, Any]

#: Wrappers that leave dynamics and observations alone.
TRANSPARENT = (PassiveEnvChecker, OrderEnforcing, TimeLimit)
#: Wrappers that show the same thing differently: what they show is a function of what they are shown (and of the context).
_SHOWING = (DtypeObservation, FlattenObservation, ObserveContext, RescaleObservation, ReshapeObservation)


def single(env: AnyEnv) -> gym.Env[Any, Any]:
    """The environment itself, or one that stands for each copy of a vector environment.

    Raises:
        NotConfigurableError: a vector environment that does not say what its copies are.
    """
    if not isinstance(env, VectorEnv):
        return env
    base = env.unwrapped
    if isinstance(base, NativeVectorEnv):
        native: gym.Env[Any, Any] = base.env
        return native
    if isinstance(base, SyncVectorEnv):
        return base.envs[0]
    if isinstance(base, AsyncVectorEnv):
        return base.env_fns[0]()
    raise NotConfigurableError(
        f"{type(base).__name__} does not show what its copies are; expected a SyncVectorEnv, an AsyncVectorEnv, or a vector "
        "environment of bocmdp_gym."
    )


def configure(env: AnyEnv, core: Any, leader: npt.NDArray[np.float64], context: Any) -> None:
    """Set x and the context (None: drawn at each reset), in all copies."""
    core.set_leader(leader)
    core.set_context(context)
    if isinstance(env, VectorEnv):
        copies: Any = env.unwrapped
        copies.call("set_leader", leader)
        copies.call("set_context", context)


class Layers(NamedTuple):
    """What the layers around a core do.

    Attributes:
        horizon: steps after which an episode is cut, None for never.
        plain: none of them changes dynamics, rewards or observations.
        showing: those that show states differently, innermost first; None where one does more than that.
    """

    horizon: int | None
    plain: bool
    showing: list[Any] | None


def inspect_layers(env: gym.Env[Any, Any], core: Any) -> Layers:
    """Look at every layer of ``env`` around ``core``."""
    horizon = core.horizon
    showing: list[Any] | None = []
    layer: Any = env
    while layer is not core.layer:
        if isinstance(layer, TimeLimit):
            limit = layer._max_episode_steps
            horizon = limit if horizon is None else min(horizon, limit)
        if showing is not None and isinstance(layer, _SHOWING):
            showing.insert(0, layer)
        elif not isinstance(layer, TRANSPARENT):
            showing = None
        layer = layer.env
    return Layers(horizon, showing == [], showing)


def observations_of_states(core: Any, layers: Layers, context: Any) -> npt.NDArray[Any] | None:
    """What is seen in each state of a tabular environment in one context, ``(S, ...)``; None elsewhere."""
    if not isinstance(core, TabularEnv) or layers.showing is None:
        return None
    rows = core.observe(np.arange(core.model.n_states))
    for layer in layers.showing:
        if isinstance(layer, ObserveContext):
            rows = np.stack([layer.combine(row, context) for row in rows])
        else:
            rows = np.stack([layer.observation(row) for row in rows])
    return rows


def make_single(env: AnyEnv) -> tuple[gym.Env[Any, Any], Any]:
    """One environment that stands for each copy, and its configurable layer."""
    one = single(env)
    return one, configurable(one)


def action_space(env: AnyEnv) -> gym.Space[Any]:
    """The action space, of one copy where there are many."""
    space: gym.Space[Any] = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
    return space


def model_of(core: Any) -> BOCMDP | None:
    """The core's model; None if it has none."""
    model = getattr(core, "model", None)
    return model if isinstance(model, BOCMDP) else None


def rows(observations: Any) -> list[Any]:
    """Stacked observations (an array, or a dictionary of arrays) one by one; later changes of the stack leave them alone."""
    if isinstance(observations, dict):
        parts = {name: rows(part) for name, part in observations.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    return [np.array(row) if isinstance(row, np.ndarray) else row for row in observations]


def check_action(action: Any, space: gym.Space[Any]) -> Any:
    """An agent's action, as the environment takes it: an int where the space is Discrete.

    Raises:
        ActionError: not in the action space.
    """
    if isinstance(space, gym.spaces.Discrete):
        try:
            number = action if isinstance(action, int) else np.asarray(action).item()
        except (TypeError, ValueError):
            number = None
        if isinstance(number, int) and 0 <= number - space.start < space.n:
            return number
        raise ActionError(
            f"the agent's action {action!r} is illegal; expected an integer in {space.start}..{space.start + space.n - 1}."
        )
    value = action
    if space.shape is not None:  # one array: of the space's own type, unless that loses something
        with suppress(TypeError, ValueError):
            cast = np.asarray(action, dtype=space.dtype)
            value = cast if cast.dtype.kind == "f" or np.array_equal(cast, action) else action
    if (isinstance(space, gym.spaces.Box) and not isinstance(value, np.ndarray)) or not space.contains(value):
        raise ActionError(f"the agent's action {action!r} is illegal; expected an element of {space}.")
    return value


def check_observation(observation: Any, where: str) -> None:
    """Refuse observations that are not numbers.

    Raises:
        ObservationError: NaN or infinite; ``where`` says whose it is.
    """
    parts = observation.values() if isinstance(observation, dict) else (observation,)
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind == "f" and not np.isfinite(part).all():
            raise ObservationError(
                f"the observation {where} is {observation!r}; expected finite numbers. The environment is at fault: check its "
                "dynamics at this leader parameter."
            )
