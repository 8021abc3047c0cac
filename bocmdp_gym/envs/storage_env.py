"""What `Inventory` and `Battery` share as environments: a storage problem, played one level at a time."""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from bocmdp_gym.benchmark import Benchmark, best_known
from bocmdp_gym.env import ConfigurableEnv
from bocmdp_gym.envs.storage import Array, Storage, StorageModel
from bocmdp_gym.envs.storage_picture import storage_picture
from bocmdp_gym.errors import ActionError, StateError
from bocmdp_gym.options import as_array, as_integer, check_count, check_render_mode
from bocmdp_gym.pictures import Pictures
from bocmdp_gym.validation import check_horizon


class StorageEnv(Pictures, ConfigurableEnv):
    """A storage problem as an environment: what `bocmdp_gym.envs.Inventory` and `bocmdp_gym.envs.Battery` share.

    Subclasses call `_setup_storage` in their constructor, and keep the arguments of the model in ``_settings``.

    Attributes:
        best_known: the leader's return and x at the optimum with the default arguments, by lambda, the usual lambda first.
    """

    model: StorageModel
    interpolates = True
    best_known: ClassVar[dict[float, tuple[float, ...]]] = {}
    _settings: dict[str, Any]

    @classmethod
    def _of_the_model(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments that an optimum depends on."""
        return {name: given[name] for name in signature(cls).parameters if name not in ("horizon", "render_mode")}

    def _setup_storage(
        self,
        storage: Storage,
        grid_size: int,
        horizon: int | None,
        render_mode: str | None,
        **options: Any,
    ) -> None:
        self.storage, self.horizon = storage, check_horizon(horizon)
        self.render_mode = check_render_mode(render_mode, self.metadata)
        self.model = StorageModel(storage, check_count("grid_size", grid_size, 2), **options)
        self._setup_configuration(
            storage.leader_space,
            gym.spaces.Discrete(storage.n_contexts),
            self.model.discount,
            self.model.leader_discount,
            self.model.context_probabilities,
            leader=storage.status_quo,
        )
        self.action_space = gym.spaces.Discrete(storage.n_actions)
        self.observation_space = storage.observation_space
        self._level, self._period, self._age = storage.start_mean, 0, 0
        self._played: list[tuple[float, int, int]] = []  # level, period and action of each step of the episode

    def initial_leader(self, rng: np.random.Generator) -> Array:
        """The status quo."""
        del rng
        return self.storage.status_quo.copy()

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The best leader return known at this lambda (None: the usual one); None at other settings than the defaults."""
        source = "quasi-Newton ascent on exact gradients, the same from 6 starts, benchmarks/continuous_leaders.py"
        return best_known(type(self), self._settings, self.best_known, regularization, source)

    def picture(self) -> npt.NDArray[np.uint8]:
        """Levels and actions over the episode's time, and x between its bounds."""
        return storage_picture(self.storage, self._episode_leader, self._played, self._level, self._episode_context)

    # the grid's policies in the continuous problem

    def neighbours(self, observation: Any) -> tuple[npt.NDArray[np.int64], Array]:
        """The grid states next to observations ``(..., 1)`` or ``(..., 3)``, below and above, and their weights, ``(..., 2)``."""
        storage, n = self.storage, len(self.model.grid)
        level, period = (part.numpy() for part in storage.read(observation))
        position = (level - storage.low) / (storage.high - storage.low) * (n - 1)
        below = np.clip(position.astype(np.int64), 0, n - 2)
        share = np.clip(position - below, 0.0, 1.0)
        below = below + period * n
        return np.stack([below, below + 1], -1), np.stack([1.0 - share, share], -1)

    def joint_action(self, index: int | npt.NDArray[np.int64]) -> Any:
        """The same: the model's actions are the environment's."""
        return index

    # playing

    def _reset(self, state: Any | None) -> tuple[Array, dict[str, Any]]:
        if state is None:
            uniform = torch.tensor(self.np_random.random(), dtype=torch.float64)
            self._level, self._period = float(self.storage.draw_starts(uniform)), 0
        else:
            self._level, self._period = self.check_state(state)
        self._age, self._played = 0, []
        return self._observation(), {}

    def check_state(self, state: Any) -> tuple[float, int]:
        """Level and period of a start state: a level, in period 0, or (level, period).

        Raises:
            StateError: anything else, or out of range.
        """
        storage, given = self.storage, as_array(state)
        if given is not None and given.size in (1, 2):
            level, period = (*given.reshape(-1).tolist(), 0.0)[:2]
            number = as_integer(period)
            if storage.low <= level <= storage.high and number is not None and 0 <= number < storage.n_periods:
                return level, number
        raise StateError(
            f"start state {state!r} is out of range; expected a level in [{storage.low:g}, {storage.high:g}], or (level, period) "
            f"with a period in 0..{storage.n_periods - 1}."
        )

    def _observation(self) -> Array:
        return self.storage.observe(torch.tensor([self._level], dtype=torch.float64), self._period)[0].numpy()

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act, and see the next level. ``info["leader_reward"]`` is the leader's reward.

        Raises:
            ActionError: an action outside the action space.
        """
        chosen = as_integer(action)
        if chosen is None or not 0 <= chosen < self.storage.n_actions:
            raise ActionError(f"action {action!r} is illegal; expected an element of {self.action_space}.")
        at = np.array([self._level]), self._period, chosen, self._episode_context, self.np_random.random(1)
        reward, leader_reward, following = self.storage.play(self._episode_leader, *at)
        self._played.append((self._level, self._period, chosen))
        self._level, self._period = float(following[0]), (self._period + 1) % self.storage.n_periods
        self._age += 1
        info = {"leader_reward": float(leader_reward[0]), "context": self._episode_context}
        return self._observation(), float(reward[0]), False, self._age == self.horizon, info
