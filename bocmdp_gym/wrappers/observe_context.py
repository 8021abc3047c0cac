"""`ObserveContext`: show the context to the follower."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.env import configurable
from bocmdp_gym.errors import NotConfigurableError
from bocmdp_gym.wrappers.appended import Appended
from bocmdp_gym.wrappers.context import contextual_layer


class ObserveContext(Constructed, gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Appends the context to every observation, so that one learner can serve all contexts.

    It goes anywhere outside the layer that has the contexts: around an environment of ours, around a leader's wrapper, or between
    it and a `ContextWrapper`, where the leader's functions see the context in the observations as well:

        ObserveContext(gym.make("bocmdp/FourRooms-v0"))
        ObserveContext(LeaderReward(ContextWrapper(env, ...), ...))
        LeaderReward(ObserveContext(ContextWrapper(env, ...)), ...)

    Around the leader's layer it is known for what it does: whoever reads the model reads it through this wrapper.

    ## Observation space
    ``Box``: the observation, flattened (a Discrete one becomes one-hot), followed by the context, flattened likewise; of a
    float type that holds the numbers of both.

    Args:
        env: an environment with contexts, wrapped or not.

    Attributes:
        context_observed: True; any layer that shows the context says so by this name.
        appended: makes the vectors, and takes them apart.

    Raises:
        NotConfigurableError: no layer of ``env`` has contexts.
        UnsupportedError: a multi-agent environment, or observations that are no numbers.
    """

    _records = True

    context_observed = True

    def __init__(self, env: gym.Env[Any, Any]):
        contexts = contextual_layer(env)
        if contexts is None:
            contexts = _configurable(env)
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.appended = Appended(env.observation_space, contexts.context_space)
        self.observation_space = self.appended.space
        self._context: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; its context is what ``info["context"]`` says."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._context = info["context"]
        return self.observation(observation), info

    def observation(self, observation: Any) -> npt.NDArray[Any]:
        """The observation with the context of the running episode."""
        return self.combine(observation, self._context)

    def combine(self, observation: Any, context: Any) -> npt.NDArray[Any]:
        """The observation as it is shown in ``context``."""
        return self.appended.combine(observation, context)


def _configurable(env: gym.Env[Any, Any]) -> Any:
    try:
        return configurable(env)
    except NotConfigurableError as error:
        if isinstance(env, gym.vector.VectorEnv):
            raise
        raise NotConfigurableError(
            f"no layer of {env} has contexts to show; give it some first: ObserveContext(ContextWrapper(env, [...]))."
        ) from error
