"""`ActionMasks`: which actions an environment allows, read from its info."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.validation import check_wrappable


class ActionMasks(Constructed, gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Keeps ``info["action_mask"]`` of an environment (Taxi, card games) and offers it as ``action_masks()``.

    That is where a learner with masks asks (MaskablePPO). It changes nothing else, so it may lie anywhere among the layers.

    Args:
        env: any environment whose ``reset`` and ``step`` tell an "action_mask" in their info: an entry for each action, true
            where it is allowed.

    Raises:
        UnsupportedError: no environment, a multi-agent one, or a vector environment (wrap each copy); at a reset or a step:
            the info has none.
    """

    _records = True

    transparent = True

    def __init__(self, env: gym.Env[Any, Any]):
        check_wrappable(env, type(self).__name__)
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._mask: npt.NDArray[np.bool_] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._keep(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._keep(info)
        return observation, reward, terminated, truncated, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Which actions are allowed now, ``(A,)``.

        Raises:
            UnsupportedError: before the first reset.
        """
        if self._mask is None:
            raise UnsupportedError("no actions are allowed before the first episode; call reset first.")
        return self._mask.copy()

    def _keep(self, info: dict[str, Any]) -> None:
        if "action_mask" not in info:
            raise UnsupportedError(
                f"{type(self.env.unwrapped).__name__} tells no 'action_mask' in its info ({', '.join(info) or 'it is empty'}); "
                "expected one at every reset and step. Leave ActionMasks out."
            )
        self._mask = np.array(info["action_mask"], dtype=np.bool_)
