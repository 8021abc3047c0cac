"""Checks of x, contexts, discounts and horizons, and of what can be configured or wrapped at all."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym.errors import ContextError, DiscountError, LeaderParameterError, OptionError, UnsupportedError
from bocmdp_gym.kernels.bounds import first_outside
from bocmdp_gym.options import as_array, as_integer, as_number, float32_rounding


def check_leader(x: npt.ArrayLike | Tensor, space: gym.spaces.Box) -> npt.NDArray[np.float64]:
    """A read-only float64 copy of x.

    Raises:
        LeaderParameterError: wrong shape, not finite, or outside ``space``.
    """
    value = x.copy() if type(x) is np.ndarray and x.dtype == np.float64 else as_array(x)
    if value is None:
        raise LeaderParameterError(f"leader parameter {x!r} is not an array of real numbers; expected shape {space.shape}.")
    if value.shape != space.shape:
        raise LeaderParameterError(f"leader parameter has shape {value.shape}; expected {space.shape}.")
    where = first_outside(value.reshape(-1), space.low.reshape(-1), space.high.reshape(-1))
    if where >= 0:
        if not np.isfinite(value).all():
            where = int(np.flatnonzero(~np.isfinite(value))[0])
            raise LeaderParameterError(
                f"leader parameter is {float(value.flat[where])} at entry {where}; expected finite numbers. If a leader "
                "produced it, lower its learning rate or clip its gradient."
            )
        raise LeaderParameterError(
            f"leader parameter is {float(value.flat[where])} at entry {where}, outside "
            f"[{float(space.low.flat[where])}, {float(space.high.flat[where])}]; project it onto leader_space."
        )
    value.flags.writeable = False
    return value


def check_context(context: Any, space: gym.Space[Any]) -> Any:
    """The context as an int (Discrete) or a read-only array.

    Raises:
        ContextError: outside ``space``.
    """
    if isinstance(space, gym.spaces.Discrete):
        number = context if type(context) is int else as_integer(context)
        if number is not None and 0 <= number - int(space.start) < int(space.n):
            return number
        low, high = int(space.start), int(space.start + space.n - 1)
        raise ContextError(f"context {context!r} is out of range; expected an integer in {low}..{high}.")
    try:
        value = np.array(context, dtype=space.dtype)
    except (TypeError, ValueError):
        raise ContextError(f"context {context!r} is not an element of {space}.") from None
    if not space.contains(value):
        raise ContextError(f"context {context!r} is outside {space}.")
    value.flags.writeable = False
    return value


def check_context_probabilities(p: npt.ArrayLike, n: int | None = None) -> npt.NDArray[np.float64]:
    """P_xi as a float64 array.

    Raises:
        ContextError: not a distribution over n contexts.
    """
    value = as_array(p)
    if value is None:
        raise ContextError(f"context_probabilities is {p!r}; expected numbers.")
    if value.ndim != 1 or not value.size or (n is not None and len(value) != n):
        raise ContextError(f"context_probabilities has shape {value.shape}; expected ({'C' if n is None else n},).")
    value = float32_rounding(p, value)
    if not (value >= 0).all():
        raise ContextError(f"context_probabilities {value.tolist()} is not a distribution: an entry is negative, or NaN.")
    if not abs(value.sum() - 1.0) <= 1e-8:
        raise ContextError(
            f"context_probabilities {value.tolist()} is not a distribution: it sums to {float(value.sum())!r}; divide it by "
            "its sum."
        )
    return value


def check_discount(value: float, prefix: str = "") -> float:
    """The discount as a float in [0, 1].

    Raises:
        DiscountError: anything else.
    """
    number = as_number(value)
    if not 0.0 <= number <= 1.0:
        raise DiscountError(f"{prefix}discount is {value!r}; expected a number in [0, 1].")
    return number


def check_horizon(horizon: Any) -> int | None:
    """A positive int, or None.

    Raises:
        OptionError: anything else.
    """
    number = None if horizon is None else as_integer(horizon)
    if horizon is None or (number is not None and 0 < number < 2**63):
        return number
    raise OptionError(f"horizon is {horizon!r}; expected a positive number of steps, or None for no limit.")


#: What PettingZoo's environments have and Gymnasium's do not.
_OF_GAMES = ("possible_agents", "max_num_agents", "agents")


def refuse_multi_agent(env: Any) -> None:
    """Refuse environments in the style of PettingZoo, at any depth of Gymnasium's wrappers, where one agent is expected.

    Raises:
        UnsupportedError: a multi-agent environment.
    """
    layer = env
    while isinstance(layer, gym.Wrapper):
        layer = layer.env
    if any(hasattr(layer, name) for name in (_OF_GAMES[:2] if isinstance(layer, gym.Env) else _OF_GAMES)):
        raise UnsupportedError(
            f"{type(layer).__name__} is a multi-agent environment, and one agent is expected here. Several followers who "
            "interact at once (Markov games) are for bocmdp_gym.games.MarkovGame, which takes PettingZoo's parallel environments"
            f"{_as_parallel(layer)}, and for followers.IndependentLearners. Many followers who do not meet are contexts of one "
            "environment."
        )


def check_game(env: Any, wrapper: str) -> None:
    """Refuse what is not in the style of PettingZoo's ``ParallelEnv``, in the name of ``wrapper``.

    Raises:
        UnsupportedError: an environment of one agent, or one whose agents take turns.
    """
    name = type(env).__name__
    if isinstance(env, (gym.Env, gym.vector.VectorEnv)):
        raise UnsupportedError(
            f"{wrapper} got {name}, an environment of Gymnasium, in which one agent acts; expected a PettingZoo parallel "
            "environment. For one agent, use bocmdp_gym.wrappers.LeaderReward."
        )
    if _as_parallel(env):
        raise UnsupportedError(
            f"{wrapper} got {name}, whose agents take turns (AEC); expected a PettingZoo parallel environment, which "
            "pettingzoo.utils.aec_to_parallel makes of it where its agents can act at once."
        )
    missing = [n for n in ("possible_agents", "observation_space", "action_space", "reset", "step") if not hasattr(env, n)]
    if isinstance(env, type) or missing or not env.possible_agents:
        raise UnsupportedError(
            f"{wrapper} got {env!r}, which has no {missing[0] if missing else 'possible_agents'}; expected a PettingZoo parallel "
            "environment."
        )


def _as_parallel(env: Any) -> str:
    """What to do with an environment whose agents take turns; empty for others."""
    return " (pettingzoo.utils.aec_to_parallel makes one of it)" if hasattr(env, "agent_iter") else ""


def check_wrappable(env: Any, wrapper: str) -> None:
    """Refuse what a wrapper of ours cannot wrap, in the name of ``wrapper``.

    Raises:
        UnsupportedError: a multi-agent or a vector environment, or no Gymnasium environment at all.
    """
    refuse_multi_agent(env)
    if isinstance(env, gym.vector.VectorEnv):
        raise UnsupportedError(
            f"{wrapper} got a vector environment, whose copies' rewards it cannot reach; wrap each copy: "
            "gym.make_vec(id, num_envs, vectorization_mode='sync', wrappers=[lambda env: ...])."
        )
    if not isinstance(env, gym.Env):
        raise UnsupportedError(f"{wrapper} got {env!r}; expected a gymnasium.Env.")
