"""`LeaderParameters`: a leader who sets an environment's physical attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_array, check_function, check_number
from bocmdp_gym.validation import check_wrappable
from bocmdp_gym.wrappers.attributes import AttributeLayer, Attributes
from bocmdp_gym.wrappers.base import LeaderWrapper
from bocmdp_gym.wrappers.functions import POINT_ARGUMENTS, PointFunction, probe


class LeaderParameters(AttributeLayer, LeaderWrapper, gym.utils.RecordConstructorArgs):
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
        names: attributes of ``env.unwrapped``, dotted for attributes of attributes; x[i] is the value of the i-th.
        low, high: bounds of x, one per name or one for all.
        leader_reward: the leader's reward, a function of batches as in `LeaderReward`.
        discount, leader_discount: gamma, and gamma_L (None: gamma).
        update: called with ``env.unwrapped`` after each change, to recompute what is derived from the attributes (CartPole's
            ``polemass_length`` and ``total_mass``). At a reset it runs once, when a `ContextWrapper` inside has set its own too.

    Raises:
        OptionError: attributes that do not exist or are not numbers, bounds that are not increasing.
        UnsupportedError: a multi-agent or vector environment, or an attribute that the environment's reset overwrites.
        ModelError: a leader reward that returns a wrong type, a wrong shape or NaN.
    """

    _attributes: Attributes
    _resetting = False

    def __init__(
        self,
        env: gym.Env[Any, Any],
        names: Sequence[str],
        low: npt.ArrayLike,
        high: npt.ArrayLike,
        leader_reward: PointFunction,
        discount: float,
        leader_discount: float | None = None,
        update: Callable[[Any], None] | None = None,
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
        )
        check_wrappable(env, "LeaderParameters")
        check_function("leader_reward", leader_reward, POINT_ARGUMENTS)
        self._attributes = Attributes(env, names, update)
        n = len(self._attributes.names)
        lower, upper = (self._bound(name, bound, n) for name, bound in (("low", low), ("high", high)))
        if not (lower < upper).all():
            raise OptionError(f"low is {lower.tolist()} and high {upper.tolist()}; expected low < high for every name.")
        self._start = np.clip(self._attributes.values, lower, upper)
        super().__init__(env, gym.spaces.Box(lower, upper, dtype=np.float64), discount, leader_discount, self._start)
        self._leader_reward = leader_reward
        probe("leader_reward", leader_reward, env, self._start, self.sample_context(np.random.default_rng(0)))

    @staticmethod
    def _bound(name: str, bound: npt.ArrayLike, n: int) -> npt.NDArray[np.float64]:
        if np.ndim(bound) == 0:
            return np.full(n, check_number(name, bound, note=f", or {n}: one per name"))
        return check_array(name, bound, (n,))

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """The environment's own values, clipped to the bounds."""
        del rng
        return self._start.copy()

    def _configured(self) -> None:
        super()._configured()
        self._attributes.set(self._episode_leader)
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
        self._attributes.check(self._episode_leader)
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; ``info["leader_reward"]`` is the leader's reward."""
        leader_reward = self._evaluate("leader_reward", self._leader_reward, self._observation, action)
        observation, reward, terminated, truncated, info = self._act(action)
        return (
            observation,
            reward,
            terminated,
            truncated,
            {
                **info,
                "leader_reward": leader_reward,
                "context": self._episode_context,
            },
        )
