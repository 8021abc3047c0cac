"""`ObserveContext`: show the context to the follower."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import flatten, flatten_space

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.env import configurable


class ObserveContext(Constructed, gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Appends the context to every observation, so that one learner can serve all contexts.

    ## Observation space
    ``Box``: the observation, flattened (a Discrete one becomes one-hot), followed by the context, flattened likewise; of a
    float type that holds the numbers of both.

    Args:
        env: a configurable environment, wrapped or not.

    Attributes:
        context_observed: True; any layer that shows the context says so by this name.

    Raises:
        NotConfigurableError: no layer of ``env`` has a leader parameter.
        UnsupportedError: a multi-agent environment.
    """

    _records = True

    context_observed = True

    def __init__(self, env: gym.Env[Any, Any]):
        self._core = configurable(env)
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        boxes: list[Any] = [flatten_space(env.observation_space), flatten_space(self._core.context_space)]
        shown = [space.dtype for space in (env.observation_space, self._core.context_space) if isinstance(space, gym.spaces.Box)]
        dtype = np.result_type(np.float32, *shown).type  # numbers are kept: wide integers need a float64; one-hot entries do not
        self.observation_space = gym.spaces.Box(
            np.concatenate([box.low for box in boxes]).astype(dtype),
            np.concatenate([box.high for box in boxes]).astype(dtype),
            dtype=dtype,
        )

    def observation(self, observation: Any) -> npt.NDArray[Any]:
        """The observation with the context of the running episode."""
        return self.combine(observation, self._core.context)

    def combine(self, observation: Any, context: Any) -> npt.NDArray[Any]:
        """The observation as it is shown in ``context``."""
        parts: list[Any] = [flatten(self.env.observation_space, observation), flatten(self._core.context_space, context)]
        return np.concatenate(parts).astype(self.observation_space.dtype)
