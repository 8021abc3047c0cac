"""Policies of Stable-Baselines3 that act along an episode: by what they remember, or by what the environment allows just then.

They tell no probabilities of an observation, since there are none: what they do depends on more than that.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv

from bocmdp_gym.errors import OptionError, UnsupportedError
from followers.environments import AnyEnv
from followers.sb3.masks import check_masks
from followers.sb3.policy import SB3Policy


class RecurrentSB3Policy(SB3Policy):
    """A snapshot that remembers an episode: RecurrentPPO.

    `begin` hands out what remembers; this policy itself is as at the start of an episode, at every observation.
    """

    batched = False
    _remembers = False
    _memory: Any = None
    _starts: npt.NDArray[np.bool_] | None = None

    def begin(self, env: AnyEnv) -> RecurrentSB3Policy:
        del env
        made = copy(self)
        made._remembers, made._memory, made._starts = True, None, None
        return made

    def restart(self, copies: npt.NDArray[np.bool_]) -> None:
        self._starts = copies if self._starts is None else self._starts | copies

    def _choose(self, observations: Any) -> Any:
        """As `SB3Policy`.

        Raises:
            OptionError: observations of another number of copies than before.
        """
        network: Any = self.network
        if self._memory is None:
            return self._remember(network.predict(observations))
        tensor, _ = network.obs_to_tensor(observations)
        n, seen = self._memory[0].shape[1], len(next(iter(tensor.values())) if isinstance(tensor, dict) else tensor)
        if n != seen:
            raise OptionError(
                f"{seen} observations were shown to a policy that remembers the episodes of {n} copies; expected one of each, or "
                "another policy.begin(env)."
            )
        starts = np.zeros(n, dtype=np.bool_) if self._starts is None else self._starts
        self._starts = None
        return self._remember(network.predict(observations, state=self._memory, episode_start=starts))

    def _remember(self, answer: tuple[Any, Any]) -> Any:
        actions, memory = answer
        if self._remembers:
            self._memory = memory
        return actions


class MaskedSB3Policy(SB3Policy):
    """A snapshot that chooses among the actions its environment allows: MaskablePPO.

    `begin` hands out what asks an environment; this policy itself knows none.
    """

    batched = False
    _env: AnyEnv | None = None

    def begin(self, env: AnyEnv) -> MaskedSB3Policy:
        made = copy(self)
        made._env = env
        return made

    def _choose(self, observations: Any) -> Any:
        """As `SB3Policy`.

        Raises:
            UnsupportedError: it was not told in which environment it acts.
            ActionError: masks that are none, or that allow nothing.
        """
        if self._env is None:
            raise UnsupportedError(
                "this policy asks its environment which actions are allowed, so it cannot act on an observation alone; let "
                "policy.begin(env) act, or have an oracle sample it."
            )
        network: Any = self.network
        if isinstance(self._env, VectorEnv):
            copies: Any = self._env.unwrapped
            masks = np.stack(copies.call("action_masks"))
        else:
            masks = self._env.get_wrapper_attr("action_masks")()
        check_masks(masks, network.action_space)
        return network.predict(observations, action_masks=masks)[0]
