"""Which algorithms of Stable-Baselines3 and sb3-contrib can be followers, and what their constructors take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import gymnasium as gym
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


def find_algorithm(algorithm: str | type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    """The class.

    Raises:
        OptionError: no such algorithm, or sb3-contrib is missing.
        UnsupportedError: one that takes no discount.
    """
    if isinstance(algorithm, str):
        source = next((module for module, names in _SOURCES.items() if algorithm in names), None)
        if source is None:
            known = sorted(name for names in _SOURCES.values() for name in names)
            raise OptionError(f"unknown algorithm {algorithm!r}. {suggest(algorithm, known)}")
        try:
            found: type[BaseAlgorithm] = getattr(import_module(source), algorithm)
        except ModuleNotFoundError as error:
            raise OptionError(f"{algorithm} is in sb3-contrib, which is not installed: pip install sb3-contrib.") from error
    elif isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm):
        found = algorithm
    else:
        raise OptionError(f"algorithm is {algorithm!r}; expected an algorithm class of Stable-Baselines3, or its name.")
    if not takes_discount(found) and not compares_returns(found):
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


def takes_discount(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether its constructor takes gamma."""
    return "gamma" in settings_of(algorithm)


def _is_a(algorithm: type[BaseAlgorithm], name: str) -> bool:
    """Whether it is an algorithm of sb3-contrib, which need not be installed, or derived from it."""
    return any(base.__name__ == name for base in algorithm.__mro__)


def compares_returns(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether it compares what whole episodes paid, so that they are discounted for it (ARS)."""
    return _is_a(algorithm, "ARS")


def remembers(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether it chooses by what the episode brought so far (RecurrentPPO)."""
    return _is_a(algorithm, "RecurrentPPO")


def takes_masks(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether it asks the environment which actions are allowed (MaskablePPO)."""
    return _is_a(algorithm, "MaskablePPO")


def policy_name(algorithm: type[BaseAlgorithm], observations: gym.Space[Any]) -> str:
    """The algorithm's own policy without convolutions for these observations."""
    kind = "MultiInput" if isinstance(observations, gym.spaces.Dict) else "Mlp"
    return next((name for name in algorithm.policy_aliases if name.startswith(kind)), f"{kind}Policy")


def greedy_in_values(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether it answers with the action of the largest Q-value (DQN, QRDQN), which is also what explores by epsilon alone."""
    return takes_discrete_only(algorithm) and "regularization" not in settings_of(algorithm)


def deterministic(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether it answers with a function of the observation: greedy in values, or an actor without noise (TD3, DDPG, ARS)."""
    return greedy_in_values(algorithm) or issubclass(algorithm, TD3) or compares_returns(algorithm)


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
