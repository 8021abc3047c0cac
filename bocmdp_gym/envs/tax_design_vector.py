"""Many copies of tax design, stepped together in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from bocmdp_gym.envs.tax_design import TaxDesign, asset_utility
from bocmdp_gym.options import check_instance
from bocmdp_gym.vector_env import NativeVectorEnv, Taken


class TaxDesignVectorEnv(NativeVectorEnv):
    """Many copies of `TaxDesign`; see `NativeVectorEnv`.

    Args:
        env: the environment to copy.
        num_envs: number of copies.
        autoreset_mode: "NextStep" (default), "SameStep" or "Disabled".
    """

    env: TaxDesign

    def __init__(self, env: TaxDesign, num_envs: int, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP):
        check_instance("env", env, TaxDesign)
        super().__init__(env, num_envs, autoreset_mode)
        self._assets, self._final_assets = np.zeros((2, self.num_envs))

    def _prepare(self) -> None:
        self._utility, self._welfare, self._savings = self.env.economy.tables(self._leader)

    def _place(self, mask: npt.NDArray[np.bool_], state: Any | None) -> None:
        if state is not None:
            self._assets[mask] = self.env.check_state(state)
            return
        economy, u = self.env.economy, self.np_random.random(int(mask.sum()))
        self._assets[mask] = economy.truncated_normal(economy.centre, self.env.initial_std, u)

    def _observations(self) -> Any:
        return self._assets[:, None].copy()

    def _final_observations(self, ended: npt.NDArray[np.bool_]) -> Any:
        return self._final_assets[ended, None]

    def _state_of(self, copy: int) -> Any:
        return float(self._assets[copy])

    def _checked_actions(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        nvec = self.env.economy.nvec
        joint: npt.NDArray[np.int64] = np.ravel_multi_index(tuple(self._checked_choices(actions, nvec).T), nvec)
        return joint

    def _advance(self, actions: npt.NDArray[np.int64], taken: Taken) -> None:
        economy, acts = self.env.economy, ~self._needs_reset
        taken.rewards[:] = np.where(acts, asset_utility(self._assets) + self._utility[self._contexts, actions], 0.0)
        taken.leader_rewards[:] = np.where(acts, self._welfare[actions], 0.0)
        mean = np.clip(self._assets + self._savings[actions], economy.low, economy.high)
        drawn = economy.truncated_normal(mean, economy.noise_std, self.np_random.random(self.num_envs))
        self._assets = np.where(acts, drawn, self._assets)
        self._final_assets = self._assets.copy()
        self._truncate_and_restart(acts, taken)


def tax_design_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> TaxDesignVectorEnv:
    """Many copies of `TaxDesign` in one environment; keywords as for `TaxDesign`."""
    return TaxDesignVectorEnv(TaxDesign(**kwargs), num_envs, autoreset_mode)
