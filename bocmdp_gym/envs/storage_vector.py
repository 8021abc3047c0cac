"""Many copies of a storage problem, stepped together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode

from bocmdp_gym.envs.battery import Battery
from bocmdp_gym.envs.inventory import Inventory
from bocmdp_gym.envs.storage_env import StorageEnv
from bocmdp_gym.options import check_instance
from bocmdp_gym.vector_env import NativeVectorEnv, Taken


class StorageVectorEnv(NativeVectorEnv):
    """Many copies of a `StorageEnv`; see `NativeVectorEnv`.

    Args:
        env: the environment to copy.
        num_envs: number of copies.
        autoreset_mode: "NextStep" (default), "SameStep" or "Disabled".
    """

    env: StorageEnv

    def __init__(self, env: StorageEnv, num_envs: int, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP):
        check_instance("env", env, StorageEnv)
        super().__init__(env, num_envs, autoreset_mode)
        self._levels, self._periods = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._final = self._levels, self._periods

    def _prepare(self) -> None:
        """Stepping reads x itself."""

    def _place(self, mask: npt.NDArray[np.bool_], state: Any | None) -> None:
        if state is None:
            uniform = torch.from_numpy(self.np_random.random(int(mask.sum())))
            self._levels[mask], self._periods[mask] = self.env.storage.draw_starts(uniform).numpy(), 0
        else:
            self._levels[mask], self._periods[mask] = self.env.check_state(state)

    def _shown(self, levels: npt.NDArray[np.float64], periods: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        shown: npt.NDArray[np.float64] = self.env.storage.observe(torch.tensor(levels), periods).numpy()
        return shown

    def _observations(self) -> Any:
        return self._shown(self._levels, self._periods)

    def _final_observations(self, ended: npt.NDArray[np.bool_]) -> Any:
        levels, periods = self._final
        return self._shown(levels[ended], periods[ended])

    def _state_of(self, copy: int) -> Any:
        return float(self._levels[copy]), int(self._periods[copy])

    def _checked_actions(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return self._checked_choices(actions, self.env.storage.n_actions)

    def _advance(self, actions: npt.NDArray[np.int64], taken: Taken) -> None:
        storage, acts = self.env.storage, ~self._needs_reset
        uniform = self.np_random.random(self.num_envs)
        rewards, leader_rewards, drawn = storage.play(self._leader, self._levels, self._periods, actions, self._contexts, uniform)
        taken.rewards[:], taken.leader_rewards[:] = np.where(acts, rewards, 0.0), np.where(acts, leader_rewards, 0.0)
        self._levels = np.where(acts, drawn, self._levels)
        self._periods = (self._periods + acts) % storage.n_periods
        self._final = self._levels.copy(), self._periods.copy()
        self._truncate_and_restart(acts, taken)


def inventory_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> StorageVectorEnv:
    """Many copies of `Inventory` in one environment; keywords as for `Inventory`."""
    return StorageVectorEnv(Inventory(**kwargs), num_envs, autoreset_mode)


def battery_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> StorageVectorEnv:
    """Many copies of `Battery` in one environment; keywords as for `Battery`."""
    return StorageVectorEnv(Battery(**kwargs), num_envs, autoreset_mode)
