"""Anyone's agents as policies: the one place where it is asked what an object can do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from bocmdp_gym.errors import ActionError, OptionError
from followers.environments import check_action
from followers.generators import isolated_generators
from followers.policies import Array, Policy


class Agent:
    """A function of the observation, or an object with ``predict``, and what is known of it.

    Args:
        agent: what the user gave.
        probabilities: ``observation -> (A,)``; the agent's own method of that name if None.

    Attributes:
        agent: as given.
        version: how often it was trained in place since.
        exposes: whether it exposes probabilities.
        space: its action space; None, before an environment is known: actions are not checked.

    Raises:
        OptionError: something that cannot act.
    """

    space: gym.Space[Any] | None = None

    def __init__(self, agent: Any, probabilities: Callable[[Any], Any] | None = None):
        call = getattr(agent, "predict", agent)
        if not callable(call):
            raise OptionError(f"the agent is {agent!r}; expected observation -> action, or an object with predict(observation).")
        self.agent, self.version = agent, 0
        self._call, self._takes_generator = call, _takes_generator(call)
        self._probabilities = getattr(agent, "probabilities", None) if probabilities is None else probabilities
        self.exposes = self._probabilities is not None

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        """An action, which is checked.

        Raises:
            ActionError: what the agent returns is no action.
        """
        if self._takes_generator:
            answer = self._call(observation, rng=rng)
        else:
            with isolated_generators(int(rng.integers(2**31))):
                answer = self._call(observation)
        if isinstance(answer, tuple) and not isinstance(self.space, gym.spaces.Tuple):
            answer = answer[0]
        return answer if self.space is None else check_action(answer, self.space)

    def probabilities(self, observation: Any) -> Array:
        """Its probabilities ``(A,)``, checked.

        Raises:
            ActionError: they are no distribution.
        """
        assert self._probabilities is not None
        row = np.asarray(self._probabilities(observation), dtype=np.float64)
        n = self.space.n if isinstance(self.space, gym.spaces.Discrete) else None
        if row.shape != (n,) or not ((row >= 0).all() and abs(row.sum() - 1.0) <= 1e-6):
            raise ActionError(
                f"the agent's probabilities for observation {observation!r} are {row!r}; expected {n} numbers >= 0 that sum to 1."
            )
        return row / row.sum()


def _takes_generator(call: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(call).parameters
    except ValueError:  # some builtins have no signature
        return False


class AdaptedPolicy(Policy):
    """An object that has ``act`` or ``predict`` but is not a `Policy`; what else of a policy it has is taken over.

    Args:
        answer: the object.
        leader, context: what it answers, unless it says so itself.
        space: of its actions.
    """

    def __init__(self, answer: Any, leader: Array | None, context: Any, space: gym.Space[Any] | None):
        self._answer = answer
        self.leader = np.asarray(getattr(answer, "leader", leader), dtype=np.float64)
        self.context = getattr(answer, "context", context)
        for name in ("table", "value", "estimate", "metrics"):
            if hasattr(answer, name):
                setattr(self, name, getattr(answer, name))
        self._agent = None if hasattr(answer, "act") else Agent(answer)
        if self._agent is not None:
            self._agent.space = space
        self.batched = hasattr(answer, "act_batch")
        self.exposes_probabilities = any(hasattr(answer, n) for n in ("probabilities", "probabilities_batch"))

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        return self._answer.act(observation, rng) if self._agent is None else self._agent.act(observation, rng)

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        own = getattr(self._answer, "act_batch", super().act_batch)
        return own(observations, rng)

    def probabilities(self, observation: Any) -> Array:
        own = getattr(self._answer, "probabilities", None)
        if own is None and hasattr(self._answer, "probabilities_batch"):
            batch: Array = self._answer.probabilities_batch(np.asarray(observation)[None])
            return batch[0]
        return super().probabilities(observation) if own is None else np.asarray(own(observation), dtype=np.float64)

    def probabilities_batch(self, observations: Any) -> Array:
        own = getattr(self._answer, "probabilities_batch", super().probabilities_batch)
        return np.asarray(own(observations), dtype=np.float64)


def can_act(answer: Any) -> bool:
    """Whether `as_policy` takes it."""
    acting = not isinstance(answer, type) and any(callable(getattr(answer, name, None)) for name in ("act", "predict"))
    return isinstance(answer, Policy) or acting


def as_policy(answer: Any, leader: Array | None = None, context: Any = None, space: gym.Space[Any] | None = None) -> Policy:
    """A policy from what a follower answered with: itself if it is a `Policy`, else an adapter around it.

    Args:
        answer: a `Policy`, or an object with ``act(observation, rng)`` or ``predict(observation)``.
        leader, context: the x and xi it answers; may be left out if it has them.
        space: of its actions, which are then checked.

    Raises:
        OptionError: something that cannot act.
    """
    if isinstance(answer, Policy):
        return answer
    if not can_act(answer):
        raise OptionError(
            f"a follower answered with {answer!r}, which is no policy; expected a followers.Policy, or an object with "
            "act(observation, rng) or predict(observation)."
        )
    if leader is None and not hasattr(answer, "leader"):
        raise OptionError(f"{answer!r} does not say which x and context it answers; expected attributes leader and context.")
    return AdaptedPolicy(answer, leader, context, space)
