"""Leaders' functions of points, with checks of what they return."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import Parameter, signature
from math import isfinite
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.autodiff import gradients_enabled
from bocmdp_gym.errors import ModelError, OptionError, suggest
from bocmdp_gym.leaks import check_leaks
from bocmdp_gym.memory import owned
from bocmdp_gym.options import as_list, check_function

#: A function (x (d,), observations (N, ...), actions (N, ...), context) -> (N,), in torch, that may name `OUTCOMES` too.
PointFunction = Callable[..., Tensor]
POINT_ARGUMENTS = "x, observations, actions, context"
#: What a function may take besides, by the names of its parameters: where a step led, and what the environment said of it.
OUTCOMES = ("next_observations", "rewards", "infos")
_PROBES = 3
#: Steps of the environment at which functions of outcomes are probed.
_STEPS = 8


class StepFunction:
    """A leader's function of visited steps, called with the outcomes that it names, and its results checked.

    Args:
        name: for messages.
        function: takes ``arguments`` by position, and those of `OUTCOMES` that are among its further parameters by name.
        arguments: what it takes by position, for messages.

    Attributes:
        outcomes: those of `OUTCOMES` that it takes.

    Raises:
        OptionError: no function, or one with a parameter that nothing is known for.
    """

    def __init__(self, name: str, function: PointFunction, arguments: str = POINT_ARGUMENTS):
        self.name, self._function = name, check_function(name, function, arguments)
        self._arguments = arguments
        self.outcomes = named_outcomes(name, function, len(arguments.split(",")))

    def __call__(self, x: Tensor, *points: Any, n: int, outcomes: Mapping[str, Any] | None = None) -> Tensor:
        """Its values at N steps, as float64 ``(N,)``.

        Raises:
            ModelError: it returned something else than a tensor ``(N,)``, or numbers that are not finite.
        """
        value = self.raw(x, *points, n=n, outcomes=outcomes)
        if not bool(torch.isfinite(value).all()):
            self._refuse(x, points, value, int((~torch.isfinite(value)).nonzero()[0]))
        return value.to(torch.float64)

    def raw(self, x: Tensor, *points: Any, n: int, outcomes: Mapping[str, Any] | None = None) -> Tensor:
        """The same, of any type, finite or not.

        Raises:
            ModelError: it returned something else than a tensor ``(N,)``.
        """
        value = self._function(x, *points, **({name: outcomes[name] for name in self.outcomes} if outcomes else {}))
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{self} returned {type(value).__name__}; expected a torch tensor ({n},), computed from x by torch operations "
                "so that gradients can flow."
            )
        if value.shape != (n,):
            raise ModelError(
                f"{self} returned shape {tuple(value.shape)} for {n} points; expected ({n},): one number per row of "
                "observations and actions."
            )
        return value

    def one(self, x: Tensor, *points: Any, outcomes: Mapping[str, Any] | None = None) -> float:
        """Its value at a single step, given as batches of one.

        Raises:
            ModelError: as for a batch.
        """
        value = self.raw(x, *points, n=1, outcomes=outcomes)
        number = float(value)
        if not isfinite(number):
            self._refuse(x, points, value, 0)
        return number

    def _refuse(self, x: Tensor, points: Sequence[Any], value: Tensor, where: int) -> None:
        observations, actions, *_, context = points
        raise ModelError(
            f"{self.name} is {float(value.detach()[where])} at observation {as_points(observations, where)}, action "
            f"{as_points(actions, where)}, context {context}, x = {x.detach().tolist()}; expected finite numbers."
        )

    def __str__(self) -> str:
        return f"{self.name}({', '.join([self._arguments, *self.outcomes])})"


def named_outcomes(name: str, function: Any, positional: int) -> tuple[str, ...]:
    """Those of `OUTCOMES` that a function names after its first ``positional`` parameters.

    Raises:
        OptionError: a further parameter without a default that is none of them, or one with a default that is nearly one.
    """
    try:
        parameters = list(signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        return ()
    named = []
    for i, parameter in enumerate(parameters):
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        if i < positional and parameter.kind is not Parameter.KEYWORD_ONLY:
            continue
        if parameter.name in OUTCOMES:
            named.append(parameter.name)
        elif parameter.default is Parameter.empty or get_close_matches(parameter.name, OUTCOMES, n=1, cutoff=0.75):
            raise OptionError(
                f"{name} has a parameter {parameter.name!r} after its first {positional}. {suggest(parameter.name, OUTCOMES)}"
            )
    return tuple(outcome for outcome in OUTCOMES if outcome in named)


class Outcomes:
    """What functions may know of where a step led: reads it from one step of an environment.

    Args:
        names: those of `OUTCOMES` that are asked for.
        keys: entries of the environment's info that ``infos`` holds.

    Raises:
        OptionError: ``infos`` without entries, or entries that no function asks for.
    """

    def __init__(self, names: Sequence[str], keys: Sequence[str]):
        given = as_list([keys] if isinstance(keys, str) else keys)
        if given is None or not all(isinstance(key, str) for key in given):
            raise OptionError(f"info_keys is {keys!r}; expected names of entries of the environment's info.")
        self.names, self._keys = tuple(names), given
        if given and "infos" not in names:
            raise OptionError(f"info_keys is {given}, and no function has a parameter named infos, which would hold them.")
        if "infos" in names and not given:
            raise OptionError(
                "a function takes infos, and info_keys names none; give the entries of the environment's info that it reads, "
                'e.g. info_keys=["x_velocity"].'
            )

    def of(self, observation: Any, reward: float, info: Mapping[str, Any]) -> dict[str, Any]:
        """One step's, as batches of one.

        Raises:
            ModelError: an entry of info that is missing, or not made of numbers.
        """
        found: dict[str, Any] = {}
        for name in self.names:
            if name == "next_observations":
                found[name] = as_batch([observation])
            elif name == "rewards":
                found[name] = torch.tensor([reward], dtype=torch.float64)
            else:
                found[name] = {key: as_batch(np.asarray([self._entry(info, key)])) for key in self._keys}
        return found

    def single(self, observation: Any, reward: float, info: Mapping[str, Any]) -> dict[str, Any]:
        """The same of one step, not as batches.

        Raises:
            ModelError: as for `of`.
        """
        found = self.kept(reward, info)
        return found | {"next_observations": observation} if "next_observations" in self.names else found

    def kept(self, reward: float, info: Mapping[str, Any]) -> dict[str, Any]:
        """What trajectories must keep of one step: all but the next observation, which they have."""
        kept: dict[str, Any] = {"rewards": reward} if "rewards" in self.names else {}
        if "infos" in self.names:
            kept["infos"] = {key: self._entry(info, key) for key in self._keys}
        return kept

    @staticmethod
    def _entry(info: Mapping[str, Any], key: str) -> Any:
        if key not in info:
            raise ModelError(f"the environment's info has no entry {key!r} in this step. {suggest(key, info)}")
        value = info[key]
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ModelError(f"info[{key!r}] is {value!r}; expected a number or an array of numbers.")
        return float(array) if array.ndim == 0 else array.copy()


NO_OUTCOMES = Outcomes((), ())


def probe(
    function: StepFunction,
    env: gym.Env[Any, Any],
    x: npt.NDArray[np.float64],
    context: Any,
    space: gym.spaces.Box | None = None,
    steps: Sequence[Step] | None = None,
) -> Tensor:
    """Call a leader's function on a few points, so that its mistakes show before anything runs.

    Points are sampled from the spaces; where outcomes count, they are steps that the environment took (`played`).
    With the ``space`` of x, the function is to be differentiated, and must not leave torch.

    Values need not be finite there: sampled observations may lie where no episode goes.

    Raises:
        ModelError: a result of a wrong type or shape, or one that leaves torch on its way from x.
    """
    if steps is None:
        batches = [gym.vector.utils.batch_space(one, _PROBES) for one in (env.observation_space, env.action_space)]
        for batch in batches:
            batch.seed(0)
        points, outcomes, n = [as_batch(batch.sample()) for batch in batches], None, _PROBES
    else:
        points = [as_batch([getattr(step, name) for step in steps]) for name in ("observation", "action")]
        outcomes, n = joined([step.outcomes for step in steps]), len(steps)

    def at(z: Tensor) -> Tensor:
        return torch.nan_to_num(function.raw(z, *points, as_context(context), n=n, outcomes=outcomes)).to(torch.float64)

    with gradients_enabled():
        value = at(torch.tensor(x, requires_grad=True))
    if space is not None:
        check_leaks(lambda z: {function.name: at(z)}, x, space)
    return value


def check_log_transitions(
    function: StepFunction, steps: Sequence[Step], x: npt.NDArray[np.float64], context: Any, space: gym.spaces.Box
) -> None:
    """Refuse log densities that do not depend on x, leave torch, or are not finite where an environment went.

    Raises:
        ModelError: they do.
    """
    points = [as_batch([getattr(step, name) for step in steps]) for name in ("observation", "action", "next_observation")]

    def at(z: Tensor) -> Tensor:
        return function(z, *points, as_context(context), n=len(steps))

    with gradients_enabled():
        depends = at(torch.tensor(x, requires_grad=True)).requires_grad
    if not depends:
        raise ModelError(
            "log_transitions does not depend on x through torch operations; leave it out where x does not move the dynamics."
        )
    check_leaks(lambda z: {function.name: at(z)}, x, space)


class Step(NamedTuple):
    """One step of an environment, and its outcomes: as batches of one, and single."""

    observation: Any
    action: Any
    next_observation: Any
    reward: float
    outcomes: dict[str, Any]
    single: dict[str, Any]


def played(env: gym.Env[Any, Any], outcomes: Outcomes) -> list[Step]:
    """A few steps of an environment, by actions drawn from its space.

    Raises:
        ModelError: an entry of info that is missing.
    """
    space = copy.deepcopy(env.action_space)  # its generator is the user's
    space.seed(0)
    observation, _ = env.reset()
    steps = []
    for _ in range(_STEPS):
        action, seen = space.sample(), owned(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        led_to = owned(observation), float(np.ravel(np.asarray(reward))[0]), info
        steps.append(Step(seen, action, *led_to[:2], outcomes.of(*led_to), outcomes.single(*led_to)))
        if terminated or truncated:
            observation, _ = env.reset()
    return steps


def joined(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Outcomes of steps, each as a batch of one, as one batch."""
    batch: dict[str, Any] = torch.utils._pytree.tree_map(lambda *parts: torch.cat(parts), *outcomes)
    return batch


def as_batch(points: Any) -> Any:
    """Observations or actions as tensors with a leading batch dimension; dicts and tuples entry by entry."""
    if isinstance(points, (list, np.ndarray)) and len(points) and isinstance(points[0], tuple):
        return tuple(as_batch([point[i] for point in points]) for i in range(len(points[0])))
    if isinstance(points, (list, tuple, np.ndarray)) and len(points) and isinstance(points[0], dict):
        return {key: as_batch([point[key] for point in points]) for key in points[0]}
    if isinstance(points, dict):
        return {key: as_batch(value) for key, value in points.items()}
    if isinstance(points, tuple):
        return tuple(as_batch(value) for value in points)
    if isinstance(points, Tensor):
        return points
    array = np.asarray(points)
    return torch.as_tensor(array.astype(np.float64) if array.dtype.kind == "f" else array)


def as_points(batch: Any, index: int) -> Any:
    """One point of a batch, for messages."""
    if isinstance(batch, dict):
        return {key: as_points(value, index) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(as_points(value, index) for value in batch)
    return batch[index].tolist()


def as_context(context: Any) -> Any:
    """The context as leaders' functions get it: an int, or a float64 tensor."""
    return torch.tensor(context, dtype=torch.float64) if isinstance(context, np.ndarray) else context
