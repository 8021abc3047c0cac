"""What a follower is: something that, given a task M_{x, xi}, comes back with a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP
from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import DiscountError, OptionError, UnsupportedError
from bocmdp_gym.mdps import ContextArrays
from followers.environments import AnyEnv, Layers, configure, model_of, observations_of_states
from followers.policies import Array, InterpolatedPolicy, Policy, TabularPolicy


@dataclass(eq=False, repr=False)
class Task:
    """The problem M_{x, xi} a follower is asked to solve; made by an oracle.

    Attributes:
        leader, context: x ``(d,)`` and xi.
        core: the environment's configurable layer (of one copy, where it is a vector environment).
    """

    leader: Array
    context: Any
    core: Any
    _env: AnyEnv
    _layers: Layers
    _configure: Callable[[Array], ConfiguredMDPs]

    @property
    def discount(self) -> float:
        """gamma."""
        discount: float = self.core.discount
        return discount

    @property
    def leader_share(self) -> float:
        """What the follower is paid per unit of the leader's reward, in addition to the model's reward; mostly 0."""
        return self._layers.share

    @property
    def env(self) -> AnyEnv:
        """The environment (or the copies), with x and the context set: what a learning follower trains on."""
        configure(self._env, self.core, self.leader, self.context)
        return self._env

    @property
    def observations(self) -> npt.NDArray[Any] | None:
        """What a follower sees in each state, ``(S, ...)``; None where the problem, as seen, is not tabular."""
        return observations_of_states(self.core, self._layers, self.context)

    @property
    def states_of(self) -> Callable[[Any], Any] | None:
        """Reads the state in an observation, as the follower sees it; None where there are no states to read."""
        if not self._layers.showing:
            return self.core.states_of if self.core.exposes_states else None
        rows = self.observations
        assert rows is not None
        states = {row.tobytes(): state for state, row in enumerate(rows)}
        return lambda observation: states[np.asarray(observation, dtype=rows.dtype).tobytes()]

    @property
    def read(self) -> Callable[[Any], Any] | None:
        """Reads the core's own observations in those seen, where outer layers only add to them; None where they are the same."""
        return self._layers.own if self._layers.showing else None

    @cached_property
    def mdps(self) -> ConfiguredMDPs:
        """The model's arrays at x: what a planning follower solves.

        Raises:
            UnsupportedError: the environment has no tabular model.
        """
        if not isinstance(model_of(self.core), TabularBOCMDP):
            raise UnsupportedError(
                f"{type(self.core).__name__} has no tabular model, which this follower plans with; use a learning follower "
                "(SB3Follower, CallableFollower), or an environment whose .model is a TabularBOCMDP."
            )
        return self._configure(self.leader)

    @cached_property
    def arrays(self) -> ContextArrays:
        """Those of the context, for NumPy and compiled functions.

        Raises:
            UnsupportedError: as `mdps`.
        """
        return self.mdps.arrays(self.context)

    def tabular_policy(self, table: Array, value: Array | None = None, **metrics: float) -> TabularPolicy:
        """A policy for this task from a table of probabilities ``(S, A)``; where the model is a grid, it interpolates.

        Raises:
            UnsupportedError: outer layers change the observations the grid is laid on.
        """
        if self.core.interpolates:
            if not self._layers.reversible:
                raise UnsupportedError(
                    f"the model of {type(self.core).__name__} is a grid of its own observations, and outer layers change them; "
                    "unwrap the environment, or use a learning follower."
                )
            options: Any = {"core": self.core, "read": self.read, "value": value, "metrics": metrics}
            return InterpolatedPolicy(table, self.leader, self.context, **options)
        return TabularPolicy(
            table,
            self.leader,
            self.context,
            value=value,
            metrics=metrics,
            states_of=self.states_of,
        )


class Follower(WithArguments, ABC):
    """Base class of followers. A subclass says how it responds to a task; warm starts live in it, keyed by context.

    What it offers is declared by the attributes below, on the class or, where arguments decide, on the instance. They are read
    when an environment, a follower and a leader are put together, before anything runs.

    Attributes:
        regularization: the lambda of the objective it maximises; None if it has none (leaders then need their own).
        plans: whether it reads the tabular model, rather than learning from the environment.
        exact: whether its policies are optimal up to a residual it reports, so that no one need measure their distance.
        iterative: whether a solve can be stopped and continued (`IterativeFollower.start`).
        anneals: whether its lambda may be set anew between responses: ``regularization`` is read at each.
        resumes: whether `state` holds all that it has learnt, so that `load_state` puts it back.
        shared: whether one learner serves all contexts, so that it cannot answer in several at once.
        populates: whether it answers for a whole population, whose loads are those that it makes: its policies bring the problem
            they are played in (`Policy.problem`), which is not the model at x.
        exposes_probabilities: whether its policies do; None where that depends on the response.
        greedy: whether it answers with the best action alone. Such a policy jumps as x moves, or stands still: no hypergradient
            finds how it reacts.
        markov: whether its policies choose by the observation alone, as a hypergradient takes for granted. Otherwise by what the
            episode brought before, or by what the environment allows just then.
        discount: a gamma it was given explicitly, which must be the environment's; None: it takes the environment's.
        training_steps: environment steps it has used for its own purposes since the last `reset`.
    """

    regularization: float | None = None
    plans: bool = False
    exact: bool = False
    iterative: bool = False
    anneals: bool = False
    resumes: bool = True
    shared: bool = False
    populates: bool = False
    greedy: bool = False
    markov: bool = True
    exposes_probabilities: bool | None = None
    discount: float | None = None
    training_steps: int = 0

    def bind(self, env: AnyEnv, core: Any) -> None:
        """Refuse an environment this follower cannot answer in: called when an oracle is made, before anything runs.

        A subclass that refuses more calls this first.

        Args:
            env: the environment, or the vector environment.
            core: its configurable layer (of one copy).

        Raises:
            UnsupportedError: it plans with a tabular model, and there is none.
            DiscountError: it was given another discount than the environment's.
            OptionError: it meets followers of another lambda.
        """
        del env
        name, kind = type(self).__name__, type(core).__name__
        if self.plans and not isinstance(model_of(core), TabularBOCMDP):
            raise UnsupportedError(
                f"{name} plans with a tabular model, and {kind} has none; use a learning follower (SB3Follower, "
                "CallableFollower)."
            )
        if self.discount is not None and self.discount != core.discount:
            raise DiscountError(
                f"{name} was given discount {self.discount}, but {kind} has {core.discount}; leave it out: followers take theirs "
                "from the environment."
            )
        met = core.met_regularization
        if met is not None and self.regularization not in (None, met):
            raise OptionError(
                f"the followers of {kind} play by regularization {met}, and {name}, one of them, was given "
                f"{self.regularization}; expected the same. Make the environment with that lambda, or {name} with theirs."
            )

    @abstractmethod
    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        """The policy it answers ``task`` with; an oracle also takes objects that only have ``act`` or ``predict``."""

    def reset(self) -> None:
        """Forget everything learnt: called once when a run starts, so that equal seeds give equal runs."""

    def copy(self, name: str | None = None) -> Follower:
        """A follower of the same settings that has learnt nothing; this one is reset too.

        Args:
            name: keeps apart what several copies write into folders.

        Raises:
            UnsupportedError: it holds something that cannot be copied.
        """
        del name
        try:
            self.reset()
            return deepcopy(self)
        except Exception as error:  # what cannot be copied says so in its own words
            raise UnsupportedError(
                f"a copy of the follower is needed, and {type(self).__name__} cannot be copied ({error}); keep what cannot be "
                "copied out of it, for example in functions that make it, or define __deepcopy__ for it."
            ) from error

    def state(self) -> dict[Any, Any]:
        """What a checkpoint keeps of it: nested dicts of arrays and JSON-able values; {} if it remembers nothing."""
        return {}

    def load_state(self, state: dict[Any, Any]) -> None:
        """Continue from `state`."""


def check_follower_type(follower: Any) -> Follower:
    """The follower, if it is one.

    Raises:
        OptionError: a class instead of an instance, or something else: an agent or a function, or arguments in another order.
    """
    if isinstance(follower, Follower):
        return follower
    if isinstance(follower, type):
        raise OptionError(f"follower is the class {follower.__name__}; expected an instance, {follower.__name__}(...).")
    raise OptionError(
        f"follower is {follower!r}, of type {type(follower).__name__}; expected a followers.Follower, such as "
        "SoftPolicyIteration(regularization=1e-3). An agent or a function of the observation becomes one by "
        "CallableFollower(agent). If it is a leader or an environment, arguments are in the wrong order."
    )
