"""One environment or many: what an oracle and its followers must know of either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import (
    DtypeObservation,
    FlattenObservation,
    RescaleObservation,
    ReshapeObservation,
    TimeLimit,
)

from bocmdp_gym import BOCMDP, Configurable, PopulationBOCMDP, TabularBOCMDP, TabularEnv, configurable
from bocmdp_gym.errors import ActionError, NotConfigurableError, ObservationError, RegularizationError, UnsupportedError
from bocmdp_gym.layers import check_steps, defined_by, is_transparent, layers_of
from bocmdp_gym.vector_env import NativeVectorEnv
from bocmdp_gym.wrappers import ObserveContext
from bocmdp_gym.wrappers.appended import AppendedModel
from bocmdp_gym.wrappers.leader_share import share_of

#: A Gymnasium environment, or a vector environment of copies of one.
AnyEnv = gym.Env[Any, Any] | VectorEnv[Any, Any, Any]

#: Wrappers that show the same thing differently: what they show is a function of what they are shown (and of the context).
_SHOWING = (DtypeObservation, FlattenObservation, ObserveContext, RescaleObservation, ReshapeObservation)


def as_environment(env: AnyEnv | TabularBOCMDP | PopulationBOCMDP, regularization: float | None) -> AnyEnv:
    """An environment of what may be a model; ``regularization``: the follower's lambda, by which a population plays.

    Raises:
        RegularizationError: a population, and a follower without lambda.
    """
    if isinstance(env, PopulationBOCMDP):
        if regularization is None:
            raise RegularizationError(
                "the others in a population play by a regularization (lambda), and this follower has none; pass "
                "population.at(regularization) in the population's place."
            )
        env = env.at(regularization)
    return TabularEnv(env) if isinstance(env, TabularBOCMDP) else env


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
        plain: none of them changes dynamics, rewards (but for ``share``), actions or observations.
        showing: those that show states differently, innermost first; None where one does more than that.
        changing: the name of a layer that does more, and so changes the problem; None where none does.
        share: what the follower is paid per unit of the leader's reward (`bocmdp_gym.wrappers.leader_share`).
    """

    horizon: int | None
    plain: bool
    showing: list[Any] | None
    changing: str | None
    share: float = 0.0

    @property
    def reversible(self) -> bool:
        """Whether the core's observations can be read in those seen: where nothing but the context is shown besides."""
        return self.showing is not None and all(isinstance(layer, ObserveContext) for layer in self.showing)

    def own(self, observations: Any) -> Any:
        """The core's observations in those seen ``(..., n)``, where the layers are `reversible`."""
        for layer in reversed(self.showing or []):
            observations = layer.appended.split(observations)
        return observations

    def seen(self, model: BOCMDP) -> BOCMDP:
        """A model of the core's observations as one of those seen, where the layers are `reversible`; one of states as it is."""
        if isinstance(model, TabularBOCMDP) and model.takes_states:
            return model
        for layer in self.showing or []:
            model = AppendedModel(model, layer.appended)
        return model


def inspect_layers(env: AnyEnv, core: Any, one: gym.Env[Any, Any] | None = None) -> Layers:
    """Look at every layer around ``core``: what is asked of them, planners, leaders and evaluators ask here.

    A wrapper that this library does not know, and that has a ``step`` or ``reset`` of its own, may do anything; one that only
    watches says so by a class attribute ``transparent = True``.

    Args:
        env: the environment, or the vector environment.
        core: its configurable layer (of one copy).
        one: the environment that stands for each copy, where it was made already.
    """
    changing: str | None = None
    share = 0.0
    copies: list[Any] = [env]
    if isinstance(env, VectorEnv):
        layer: Any = env
        while isinstance(layer, VectorWrapper):
            weight = share_of(layer)
            share += weight or 0.0
            changing = changing or (None if weight is not None or is_transparent(layer) else type(layer).__name__)
            layer = layer.env
        copies = list(layer.envs) if isinstance(layer, SyncVectorEnv) else [single(env) if one is None else one]
    horizons: list[int | None] = [core.horizon]
    showing: list[Any] = []
    for i, copy in enumerate(copies):
        for layer in _around(copy):
            if isinstance(layer, TimeLimit):
                horizons.append(layer._max_episode_steps)
            weight = share_of(layer)
            if weight is not None:
                share += weight if i == 0 else 0.0
            elif _is_showing(layer):
                if i == 0:
                    showing.insert(0, layer)
            elif not is_transparent(layer):
                changing = changing or type(layer).__name__
    horizon = min((h for h in horizons if h is not None), default=None)
    layers = Layers(horizon, changing is None and not showing, showing if changing is None else None, changing, share)
    if layers.showing and isinstance(core, TabularEnv):
        space: Any = core.context_space
        rows = observations_of_states(core, layers, int(space.start))
        if rows is not None and len(np.unique(rows.reshape(len(rows), -1), axis=0)) < len(rows):
            return Layers(horizon, False, None, " > ".join(type(layer).__name__ for layer in reversed(showing)), share)
    return layers


def _around(env: gym.Env[Any, Any]) -> Iterator[Any]:
    """The layers around the configurable one, outermost first."""
    return takewhile(lambda layer: not isinstance(layer, Configurable), layers_of(env))


def check_leader_paid(env: AnyEnv, layers: Layers, one: gym.Env[Any, Any]) -> None:
    """Refuse layers under which a step is not one step of the configurable layer, or pays the leader otherwise.

    Args:
        env: the environment, or the vector environment.
        layers: around its configurable layer.
        one: the environment that stands for each copy.

    Raises:
        UnsupportedError: naming the layer.
    """
    if layers.changing is None:
        return
    copies: list[Any] = [one]
    if isinstance(env, VectorEnv):
        check_steps(env, env.unwrapped)
        base = env.unwrapped
        copies = list(base.envs) if isinstance(base, SyncVectorEnv) else [one]
    looked_at = set()
    for copy in copies:
        kinds = tuple(type(layer) for layer in layers_of(copy))
        if kinds not in looked_at:
            check_steps(copy, configurable(copy).layer)
        looked_at.add(kinds)


def _is_showing(layer: Any) -> bool:
    if not isinstance(layer, _SHOWING):
        return False
    methods = {name: defined_by(layer, name) for name in ("observation", "step", "reset")}
    own = (*_SHOWING, gym.wrappers.TransformObservation)
    return all(cls in own or (name != "observation" and cls is gym.ObservationWrapper) for name, cls in methods.items())


def check_unchanged(who: str, layers: Layers, core: Any, *, plain: bool = False) -> None:
    """Refuse layers that make of the core's model another problem than the follower's.

    Args:
        who: reads the model.
        layers: around ``core``.
        core: the configurable layer.
        plain: whether the model is a function of the observations themselves, which must then be read in those shown.

    Raises:
        UnsupportedError: naming the layer.
    """
    changing = layers.changing
    if changing is None and plain and layers.showing and not layers.reversible:
        changing = type(layers.showing[-1]).__name__
    if changing is not None:
        inside = "put that wrapper inside the leader's wrapper, " if isinstance(core.layer, gym.Wrapper) else ""
        raise UnsupportedError(
            f"{who} reads the model of {type(core.layer).__name__}, and {changing} around it may change what the follower sees, "
            f"does or is paid, so it would answer another problem; {inside}leave it out, or use a learning follower with "
            "ZeroOrder(exact=False). A wrapper of your own that only watches says so by a class attribute transparent = True."
        )


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
    """Stacked observations (arrays, also in dicts and tuples) one by one; later changes of the stack leave them alone."""
    if isinstance(observations, dict):
        parts = {name: rows(part) for name, part in observations.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    if isinstance(observations, tuple):
        return list(zip(*map(rows, observations), strict=True))
    return [np.array(row) if isinstance(row, np.ndarray) else row for row in observations]


def stacked(observations: Sequence[Any]) -> Any:
    """The inverse of `rows`: observations (arrays or numbers, also in dicts and tuples) as a batch."""
    first = observations[0]
    if isinstance(first, dict):
        return {name: stacked([one[name] for one in observations]) for name in first}
    if isinstance(first, tuple):
        return tuple(stacked(part) for part in zip(*observations, strict=True))
    return np.asarray(observations)


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
    for part in _parts(observation):
        if isinstance(part, np.ndarray) and part.dtype.kind == "f" and not np.isfinite(part).all():
            raise ObservationError(
                f"the observation {where} is {observation!r}; expected finite numbers. The environment is at fault: check its "
                "dynamics at this leader parameter."
            )


def _parts(observation: Any) -> Iterator[Any]:
    if isinstance(observation, (dict, tuple)):
        for part in observation.values() if isinstance(observation, dict) else observation:
            yield from _parts(part)
    else:
        yield observation
