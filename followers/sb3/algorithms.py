"""Which algorithms of Stable-Baselines3 and sb3-contrib can be followers, and what their constructors take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from stable_baselines3 import TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from bocmdp_gym.errors import OptionError, UnsupportedError, suggest
from followers.sb3.soft_dqn import SoftDQN

#: Where algorithms are found by name.
_SOURCES = {
    "stable_baselines3": ("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"),
    SoftDQN.__module__: ("SoftDQN",),
    "sb3_contrib": ("ARS", "CrossQ", "MaskablePPO", "QRDQN", "RecurrentPPO", "TQC", "TRPO"),
}
#: Algorithms whose answer is no policy of the observation alone, and what to use instead.
_REFUSED = {
    "RecurrentPPO": "its action depends on the whole episode, while a follower's policy answers the observation at hand (the "
    "hypergradient is that of a Markov policy); use PPO, and show what has to be remembered, e.g. with FrameStackObservation",
    "MaskablePPO": "its action depends on a mask beside the observation; let illegal actions cost something or do nothing in "
    "the environment, and use PPO",
    "ARS": "it maximises undiscounted returns, so it cannot take the environment's discount; use PPO or A2C",
}


def find_algorithm(algorithm: str | type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    """The class.

    Raises:
        OptionError: no such algorithm, or sb3-contrib is missing.
        UnsupportedError: one that gives no policy of the observation, or takes no discount.
    """
    if isinstance(algorithm, str):
        source = next((module for module, names in _SOURCES.items() if algorithm in names), None)
        if source is None:
            known = sorted(name for names in _SOURCES.values() for name in names if name not in _REFUSED)
            raise OptionError(f"unknown algorithm {algorithm!r}. {suggest(algorithm, known)}")
        try:
            found: type[BaseAlgorithm] = getattr(import_module(source), algorithm)
        except ModuleNotFoundError as error:
            raise OptionError(f"{algorithm} is in sb3-contrib, which is not installed: pip install sb3-contrib.") from error
    elif isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm):
        found = algorithm
    else:
        raise OptionError(f"algorithm is {algorithm!r}; expected an algorithm class of Stable-Baselines3, or its name.")
    for base in found.__mro__:
        if base.__name__ in _REFUSED:
            raise UnsupportedError(f"{found.__name__} cannot be a follower: {_REFUSED[base.__name__]}.")
    if "gamma" not in settings_of(found):
        raise UnsupportedError(f"{found.__name__} has no gamma, so it cannot take the environment's discount; use PPO or DQN.")
    return found


def _signatures(algorithm: type[BaseAlgorithm]) -> Iterator[inspect.Parameter]:
    """Parameters of the constructor, and of its bases' as long as it hands on keywords."""
    for base in algorithm.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        yield from (p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            return


def settings_of(algorithm: type[BaseAlgorithm]) -> set[str]:
    """Names of the constructor's parameters."""
    return {p.name for p in _signatures(algorithm)}


def default_of(algorithm: type[BaseAlgorithm], name: str, otherwise: Any) -> Any:
    """The default of one of the constructor's parameters, ``otherwise`` if it has no such parameter."""
    return next((p.default for p in _signatures(algorithm) if p.name == name), otherwise)


def greedy_in_values(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether it answers with the action of the largest Q-value (DQN, QRDQN), which is also what explores by epsilon alone."""
    return takes_discrete_only(algorithm) and "regularization" not in settings_of(algorithm)


def deterministic(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether what it answers with is a function of the observation: greedy in values, or an actor without noise (TD3, DDPG)."""
    return greedy_in_values(algorithm) or issubclass(algorithm, TD3)


def takes_discrete_only(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether it is a Q-learner with an output for each action (DQN, QRDQN, SoftDQN)."""
    return "exploration_final_eps" in settings_of(algorithm)


def set_regularization(model: BaseAlgorithm, regularization: float) -> None:
    """Let a learner of the regularised problem go on with another lambda: it is read at every action and every update.

    Args:
        model: SoftDQN; or SAC, TQC, CrossQ with a fixed ``ent_coef``.
        regularization: lambda.
    """
    if isinstance(model, SoftDQN):
        model.set_regularization(regularization)
    else:
        model.ent_coef_tensor.fill_(regularization)  # type: ignore[attr-defined]
