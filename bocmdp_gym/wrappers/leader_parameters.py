"""`LeaderParameters`: a leader who sets an environment's physical attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_array, check_number
from bocmdp_gym.validation import check_wrappable
from bocmdp_gym.wrappers.attributes import Applied, AttributeLayer, Attributes, parameters_of
from bocmdp_gym.wrappers.base import LeaderWrapper
from bocmdp_gym.wrappers.functions import Outcomes, PointFunction, StepFunction, played, probe


class ParameterLayer(AttributeLayer, LeaderWrapper):
    """A leader's wrapper, the last entries of whose x act on the environment; none if ``_attributes`` is None."""

    _attributes: Attributes | Applied | None = None
    _n_parameters = 0
    _resetting = False

    @property
    def _parameters(self) -> npt.NDArray[np.float64]:
        """Their values in force ``(n,)``."""
        return self._episode_leader[len(self._episode_leader) - self._n_parameters :]

    def _configured(self) -> None:
        super()._configured()
        if self._attributes is not None:
            self._attributes.set(self._parameters)
        if self._resetting:
            self._settle()
        else:
            self._update_all()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Raises:
            UnsupportedError: the environment's own reset changed an attribute.
        """
        self._resetting = True
        try:
            result = super().reset(seed=seed, options=options)
        finally:
            self._resetting = False
        if self._attributes is not None:
            self._attributes.check(self._parameters)
        return result


class LeaderParameters(ParameterLayer, gym.utils.RecordConstructorArgs):
    """x sets physical attributes of any Gymnasium environment (a pole's length, gravity). Zero-order leaders only.

    How transitions depend on the attributes is unknown and cannot be differentiated, so there is no ``model``: leaders that
    need gradients of the environment refuse it, leaders that compare leader returns at nearby x (``leaders.ZeroOrder``) work.
    Attributes are set before each reset, and at once by `set_leader`. One that is an int stays an int where x is whole there,
    and becomes a float where x is not.

        def derived(cartpole):
            cartpole.total_mass = cartpole.masspole + cartpole.masscart
            cartpole.polemass_length = cartpole.masspole * cartpole.length

        env = LeaderParameters(
            gym.make("CartPole-v1"), names=["length", "force_mag"], low=[0.1, 2.0], high=[2.0, 20.0],
            leader_reward=lambda x, observations, actions, context: -observations[:, 2].abs(), discount=0.99, update=derived,
        )

    Args:
        env: the environment.
        names: attributes of ``env.unwrapped``, as one would write them after it: ``"length"``, ``"model.body_mass[1]"``,
            ``'config["collision_reward"]'``; x[i] is the value of the i-th. None with ``apply``.
        low, high: bounds of x, one per name or one for all.
        leader_reward: the leader's reward, a function of batches as in `LeaderReward`.
        discount, leader_discount: gamma, and gamma_L (None: gamma).
        update: called with ``env.unwrapped`` after each change, to recompute what is derived from the attributes (CartPole's
            ``polemass_length`` and ``total_mass``). At a reset it runs once, when a `ContextWrapper` inside has set its own too.
        apply: in place of names, ``apply(env.unwrapped, x)`` puts x into the environment: before each reset and by `set_leader`.
        initial_leader: where leaders start ``(d,)``; None: the attributes' own values, with ``apply`` the middle of the bounds.
        info_keys: entries of the environment's info that the leader's reward takes as ``infos``.

    Raises:
        OptionError: attributes that do not exist or are not numbers, bounds that are not increasing.
        UnsupportedError: a multi-agent or vector environment, or an attribute that the environment's reset overwrites.
        ModelError: a leader reward that returns a wrong type, a wrong shape or NaN.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        names: Sequence[str] | None,
        low: npt.ArrayLike,
        high: npt.ArrayLike,
        leader_reward: PointFunction,
        discount: float,
        leader_discount: float | None = None,
        update: Callable[[Any], None] | None = None,
        *,
        apply: Callable[[Any, Any], None] | None = None,
        initial_leader: npt.ArrayLike | None = None,
        info_keys: Sequence[str] = (),
    ):
        gym.utils.RecordConstructorArgs.__init__(
            self,
            names=names,
            low=low,
            high=high,
            leader_reward=leader_reward,
            discount=discount,
            leader_discount=leader_discount,
            update=update,
            apply=apply,
            initial_leader=initial_leader,
            info_keys=info_keys,
        )
        check_wrappable(env, "LeaderParameters")
        self._leader_reward = StepFunction("leader_reward", leader_reward)
        outcomes = Outcomes(self._leader_reward.outcomes, info_keys)
        self._attributes = parameters_of(env, names, apply, update)
        if isinstance(self._attributes, Attributes):
            n = len(self._attributes.names)
        else:
            n = max(np.size(low), np.size(high))
        lower, upper = (self._bound(name, bound, n) for name, bound in (("low", low), ("high", high)))
        if not (lower < upper).all():
            raise OptionError(f"low is {lower.tolist()} and high {upper.tolist()}; expected low < high for every name.")
        own = self._attributes.values if isinstance(self._attributes, Attributes) else (lower + upper) / 2
        start = np.clip(own, lower, upper) if initial_leader is None else initial_leader
        super().__init__(env, gym.spaces.Box(lower, upper, dtype=np.float64), discount, leader_discount, start)
        self._start, self._outcomes, self._n_parameters = self._leader, outcomes, n
        context = self.sample_context(np.random.default_rng(0))
        steps = played(env, outcomes) if outcomes.names else None
        probe(self._leader_reward, env, self._start, context, steps=steps)

    @staticmethod
    def _bound(name: str, bound: npt.ArrayLike, n: int) -> npt.NDArray[np.float64]:
        if np.ndim(bound) == 0:
            return np.full(n, check_number(name, bound, note=f", or {n}: one per name"))
        return check_array(name, bound, (n,))

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """The start given to the constructor; the environment's own values, clipped to the bounds, without one."""
        del rng
        return self._start.copy()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; ``info["leader_reward"]`` is the leader's reward."""
        (*result, info), (leader_reward,) = self._values(action, self._leader_reward)
        return *result, info | {"leader_reward": leader_reward, "context": self._episode_context}
