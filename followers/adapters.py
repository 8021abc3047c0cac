"""Anyone's agents as policies: the one place where it is asked what an object can do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from bocmdp_gym.errors import ActionError, OptionError
from bocmdp_gym.options import check_flag
from followers.environments import check_action, rows, stacked
from followers.generators import isolated_generators
from followers.policies import Array, Policy


class Agent:
    """A function of the observation, or an object with ``predict``, and what is known of it.

    Args:
        agent: what the user gave.
        probabilities: ``observation -> (A,)``; the agent's own method of that name if None.
        batched: whether both take N observations at once, and answer with N rows; None: as the agent declares by an attribute
            ``batched``, which otherwise is False.

    Attributes:
        agent: as given.
        batched: as above.
        version: how often it was trained in place since.
        exposes: whether it exposes probabilities.
        calls: how often it was called, for actions or probabilities.
        space: its action space; None, before an environment is known: actions are not checked.

    Raises:
        OptionError: something that cannot act, or that declares to be batched by something else than a boolean.
    """

    space: gym.Space[Any] | None = None

    def __init__(self, agent: Any, probabilities: Callable[[Any], Any] | None = None, batched: bool | None = None):
        call = getattr(agent, "predict", agent)
        if not callable(call):
            raise OptionError(f"the agent is {agent!r}; expected observation -> action, or an object with predict(observation).")
        self.agent, self.version, self.calls = agent, 0, 0
        self.batched = check_flag("batched", getattr(agent, "batched", False) if batched is None else batched)
        self._call, self._takes_generator = call, _takes_generator(call)
        self._probabilities = getattr(agent, "probabilities", None) if probabilities is None else probabilities
        self.exposes = self._probabilities is not None

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        """An action, which is checked.

        Raises:
            ActionError: what the agent returns is no action.
        """
        if self.batched:
            return self.act_batch(stacked([observation]), rng)[0]
        action = self._answer(observation, rng)
        return action if self.space is None else check_action(action, self.space)

    def act_batch(self, observations: Any, rng: np.random.Generator) -> list[Any]:
        """Actions for several observations, one row each, which are checked: by one call where the agent is batched.

        Raises:
            ActionError: what the agent returns is no action, or not one for each observation.
        """
        each = rows(observations)
        if not self.batched:
            return [self.act(observation, rng) for observation in each]
        actions = self._answer(observations, rng)
        if isinstance(self.space, gym.spaces.Dict | gym.spaces.Tuple):
            actions = rows(actions)
        self._check_rows("actions", actions, len(each))
        return [action if self.space is None else check_action(action, self.space) for action in actions]

    def _answer(self, observations: Any, rng: np.random.Generator) -> Any:
        """What the agent says, without the state it may add."""
        self.calls += 1
        if self._takes_generator:
            answer = self._call(observations, rng=rng)
        else:
            with isolated_generators(int(rng.integers(2**31))):
                answer = self._call(observations)
        return answer[0] if isinstance(answer, tuple) and not isinstance(self.space, gym.spaces.Tuple) else answer

    def _check_rows(self, what: str, answer: Any, n: int) -> None:
        if np.ndim(answer) == 0 or len(answer) != n:
            raise ActionError(
                f"the agent is declared batched, and answered {n} observations at once with {answer!r}; expected {n} {what}, one "
                "row for each observation. Leave batched out for an agent that takes one observation."
            )

    def probabilities(self, observation: Any) -> Array:
        """Its probabilities ``(A,)``, checked.

        Raises:
            ActionError: they are no distribution.
        """
        assert self._probabilities is not None
        if self.batched:
            return self.probabilities_batch(stacked([observation]))[0]
        self.calls += 1
        return self._distribution(self._probabilities(observation), observation)

    def probabilities_batch(self, observations: Any) -> Array:
        """Those of several observations, one row each, checked: by one call where the agent is batched.

        Raises:
            ActionError: as `probabilities`, or there is not a row for each observation.
        """
        assert self._probabilities is not None
        each = rows(observations)
        if not self.batched:
            return np.stack([self.probabilities(observation) for observation in each])
        self.calls += 1
        table = self._probabilities(observations)
        self._check_rows("rows of probabilities", table, len(each))
        return np.stack([self._distribution(row, observation) for row, observation in zip(table, each, strict=True)])

    def _distribution(self, probabilities: Any, observation: Any) -> Array:
        row = np.asarray(probabilities, dtype=np.float64)
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
        self.batched = hasattr(answer, "act_batch") if self._agent is None else self._agent.batched
        self.exposes_probabilities = any(hasattr(answer, n) for n in ("probabilities", "probabilities_batch"))

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        return self._answer.act(observation, rng) if self._agent is None else self._agent.act(observation, rng)

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        default = super().act_batch if self._agent is None else self._agent.act_batch
        return getattr(self._answer, "act_batch", default)(observations, rng)

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
