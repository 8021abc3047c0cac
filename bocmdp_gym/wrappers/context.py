"""`ContextWrapper`: gives an existing environment contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.deprecation import deprecated_name
from bocmdp_gym.env import CONTEXT_STREAM, _Contextual, layer_rng
from bocmdp_gym.errors import ContextError, OptionError, UnsupportedError
from bocmdp_gym.memory import owned
from bocmdp_gym.options import as_list, check_flag, check_function, check_instance
from bocmdp_gym.validation import check_context, check_context_probabilities, check_wrappable
from bocmdp_gym.wrappers.appended import Appended
from bocmdp_gym.wrappers.attributes import AttributeLayer, Attributes


class ContextWrapper(AttributeLayer, _Contextual, Constructed, gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Contexts for an environment that has none: drawn at each reset, or fixed by `set_context`.

    It goes inside the leader's wrapper, which takes its contexts over: ``LeaderReward(ContextWrapper(env, ...), ...)``.
    `ObserveContext` around it shows them to the follower.

    *Finite*: ``contexts`` lists the values, xi is the index into the list. *Sampled*: ``space`` is the space of xi and
    ``sample`` draws from P_xi. In both cases the context acts on the environment through ``names`` (attributes that take the
    entries of its value) or ``apply(env.unwrapped, value)``; with neither it only reaches the leader's functions.

    Args:
        env: the environment.
        contexts: values of the finitely many contexts.
        probabilities: P_xi over them; uniform if None.
        space: space of xi, where contexts are sampled.
        sample: ``sample(rng)``: one draw of xi, in ``space``.
        names: attributes of ``env.unwrapped``, one per entry of a context's value. One that is an int stays an int where the
            value is whole, and becomes a float where it is not.
        apply: called with ``env.unwrapped`` and the value before each reset.
        update: called with ``env.unwrapped`` after ``names`` were set, those of `LeaderParameters` outside too, and after
            ``apply``: to recompute what is derived from them.
        observed: deprecated: wrap the result in `ObserveContext`, which does the same.

    Raises:
        OptionError: neither or both of ``contexts`` and ``space``, attributes that do not exist, values of a wrong length.
        ContextError: probabilities that are not a distribution.
        UnsupportedError: a multi-agent environment, or one that already has contexts.
    """

    _records = True

    def __init__(
        self,
        env: gym.Env[Any, Any],
        contexts: Sequence[Any] | None = None,
        *,
        probabilities: npt.ArrayLike | None = None,
        space: gym.spaces.Box | None = None,
        sample: Callable[[np.random.Generator], Any] | None = None,
        names: Sequence[str] | None = None,
        apply: Callable[[Any, Any], None] | None = None,
        update: Callable[[Any], None] | None = None,
        observed: bool = False,
    ):
        gym.utils.RecordConstructorArgs.__init__(
            self,
            contexts=contexts,
            probabilities=probabilities,
            space=space,
            sample=sample,
            names=names,
            apply=apply,
            update=update,
            observed=observed,
        )
        check_wrappable(env, "ContextWrapper")
        if contextual_layer(env) is not None:
            raise UnsupportedError(
                "the environment already has contexts, or a leader's wrapper; put ContextWrapper inside it: "
                "LeaderReward(ContextWrapper(env, ...), ...)."
            )
        gym.Wrapper.__init__(self, env)
        if (contexts is None) == (space is None) or (space is None) != (sample is None):
            raise OptionError("expected either contexts=[...], or space= and sample= together.")
        values = as_list(contexts)
        if contexts is not None and values is None:
            raise OptionError(f"contexts is {contexts!r}; expected a list of values.")
        if space is not None:
            check_instance("space", space, gym.spaces.Box)
        self._values = None if values is None else owned(values)
        self._sample = None if sample is None else check_function("sample", sample, "rng")
        self._apply = None if apply is None else check_function("apply", apply, "env.unwrapped, value")
        if names is None and update is not None:
            raise OptionError("update is given without names; it is called after names were set.")
        self._attributes = None if names is None else Attributes(env, names, update)
        if self._values is not None:
            if not self._values:
                raise OptionError("contexts is empty; expected at least one value.")
            p = None if probabilities is None else check_context_probabilities(probabilities, len(self._values))
            self._setup_context(gym.spaces.Discrete(len(self._values)), p)
        elif space is not None:
            if probabilities is not None:
                raise OptionError("probabilities belong to finitely many contexts; with space=, sample(rng) is the distribution.")
            self._setup_context(space, None)
            self.sample_context(np.random.default_rng(0))  # its mistakes show before anything runs
        if self._attributes is not None:
            n = len(self._attributes.names)
            for value in self._values if self._values is not None else [self.sample_context(np.random.default_rng(0))]:
                numbers = np.atleast_1d(np.asarray(value))
                if numbers.shape != (n,) or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
                    raise OptionError(f"contexts has the value {value!r}; expected {n} finite numbers, one per name.")
        self.context_observed = check_flag("observed", observed)  # how any layer that shows the context says so
        self._appended: Appended | None = None
        if observed:
            deprecated_name("ContextWrapper(observed=True)", "ObserveContext(ContextWrapper(...))", since="0.1", removed="0.2")
            self._appended = Appended(env.observation_space, self.context_space)
            self.observation_space = self._appended.space
        self._rng: np.random.Generator | None = None

    def _see(self, observation: Any) -> Any:
        return observation if self._appended is None else self._appended.combine(observation, self._episode_context)

    def sample_context(self, rng: np.random.Generator) -> Any:
        """One draw of xi ~ P_xi.

        Raises:
            ContextError: ``sample`` drew outside ``space``.
        """
        if self._sample is None:
            return super().sample_context(rng)
        try:
            return check_context(self._sample(rng), self.context_space)
        except ContextError as error:
            raise ContextError(f"sample(rng) drew outside its space: {error}") from None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in its context; ``options["context"]`` holds for this episode only."""
        options = dict(options or {})
        if seed is not None or self._rng is None:
            self._rng = layer_rng(seed, CONTEXT_STREAM)
        self._begin_context(options.pop("context", None), self._rng)
        value = self._episode_context if self._values is None else self._values[self._episode_context]
        if self._attributes is not None:
            self._attributes.set(np.atleast_1d(value))
        if self._apply is not None:
            self._apply(self.unwrapped, value)
        self._settle()
        observation, info = self.env.reset(seed=seed, options=options or None)
        if self._attributes is not None:
            self._attributes.check(np.atleast_1d(value))
        return self._see(observation), {**info, "context": self._episode_context}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act; ``info["context"]`` is the context."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._see(observation), reward, terminated, truncated, {**info, "context": self._episode_context}


def contextual_layer(env: gym.Env[Any, Any]) -> Any:
    """The outermost layer that has contexts: an environment of ours, a `ContextWrapper` or a leader's wrapper; None if none."""
    layer: Any = env
    while not isinstance(layer, _Contextual):
        if not isinstance(layer, gym.Wrapper):
            return None
        layer = layer.env
    return layer
