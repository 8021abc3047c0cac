"""`LinearQuadraticEnv`: a `LinearQuadraticBOCMDP` as a Gymnasium environment, one copy or many."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode

from bocmdp_gym.env import ConfigurableEnv
from bocmdp_gym.errors import ActionError, ResetError, StateError
from bocmdp_gym.linear_quadratic import Array, LinearQuadraticBOCMDP
from bocmdp_gym.options import as_array, check_instance, check_number, check_render_mode
from bocmdp_gym.validation import check_horizon
from bocmdp_gym.vector_env import NativeVectorEnv, Taken


class _Simulator(NamedTuple):
    """The model's matrices at one x and context, as stepping needs them."""

    state_matrix: Array
    input_matrix: Array
    noise_factor: Array
    cost: Array
    leader_cost: Array
    leader_bonus: float
    initial_mean: Array
    initial_factor: Array

    @classmethod
    def of(cls, model: LinearQuadraticBOCMDP, x: Array, context: int) -> _Simulator:
        with torch.no_grad():
            parts = model.parts(torch.tensor(x), context)
        a, b, noise, cost, leader_cost, bonus, mean, start = (part.numpy() for part in parts)
        return cls(a, b, _factor(noise), cost, leader_cost, float(bonus), mean, _factor(start))

    def starts(self, normal: Array) -> Array:
        """First states of normal numbers ``(..., n)``."""
        states: Array = self.initial_mean + normal @ self.initial_factor.T
        return states

    def step(self, states: Array, actions: Array, normal: Array) -> tuple[Array, Array, Array]:
        """Rewards ``(...)``, leader's rewards ``(...)`` and next states ``(..., n)``."""
        joint = np.concatenate([states, actions], -1)
        following: Array = states @ self.state_matrix.T + actions @ self.input_matrix.T + normal @ self.noise_factor.T
        reward, leader_reward = (-((joint @ matrix) * joint).sum(-1) for matrix in (self.cost, self.leader_cost))
        return reward, self.leader_bonus + leader_reward, following


def _factor(covariance: Array) -> Array:
    """F with F F' = covariance, which may be singular."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    factor: Array = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    return factor


class LinearQuadraticEnv(ConfigurableEnv):
    """A linear-quadratic model as an environment.

    ## Action space
    ``Box(-action_bound, action_bound, (m,), float32)``. The model's actions are unbounded: give a bound that they
    hardly reach.

    ## Observation space
    ``Box(-clip, clip, (n,), float64)``: the state.

    ## Rewards
    -z'C z of the model, with z = (state, action), the follower's; ``info["leader_reward"]`` is -z'Cbar z + b.

    ## Episode start and end
    States start at N(m, S_0). Episodes never terminate, and are truncated after ``horizon`` steps.

    ## Arguments
    model: the `LinearQuadraticBOCMDP`.
    horizon: steps after which an episode is truncated, or None for no limit.
    clip: bound > 0 on the states' entries, which are cut there; None: none, as in the model.
    action_bound: bound > 0 on the actions' entries.
    render_mode: None.

    Raises:
        OptionError: no model, or an argument out of range.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    model: LinearQuadraticBOCMDP

    def __init__(
        self,
        model: LinearQuadraticBOCMDP,
        horizon: int | None = 200,
        clip: float | None = None,
        action_bound: float = 100.0,
        render_mode: str | None = None,
    ):
        check_instance("model", model, LinearQuadraticBOCMDP)
        self._setup_linear_quadratic(model, horizon, clip, action_bound, render_mode)

    def _setup_linear_quadratic(
        self,
        model: LinearQuadraticBOCMDP,
        horizon: int | None,
        clip: float | None,
        action_bound: float,
        render_mode: str | None,
    ) -> None:
        self.model, self.horizon = model, check_horizon(horizon)
        self.render_mode = check_render_mode(render_mode, self.metadata)
        self.clip = np.inf if clip is None else check_number("clip", clip, above=0.0)
        self.action_bound = check_number("action_bound", action_bound, maximum=1e9, above=0.0)
        self._setup_configuration(
            model.leader_space,
            model.context_space,
            model.discount,
            model.leader_discount,
            model.context_probabilities,
            leader=model.example,
        )
        self.action_space = gym.spaces.Box(-self.action_bound, self.action_bound, (model.n_actions,), np.float32)
        self.observation_space = gym.spaces.Box(-self.clip, self.clip, (model.n_states,), np.float64)
        self._state: Array = np.zeros(model.n_states)
        self._simulator: _Simulator | None = None
        self._age = 0

    def _configured(self) -> None:
        self._simulator = None

    def simulator(self, x: Array, context: int) -> _Simulator:
        """What steps at x in a context."""
        return _Simulator.of(self.model, x, context)

    def _current(self) -> _Simulator:
        if self._simulator is None:
            if self._episode_context is None:
                raise ResetError(f"{type(self).__name__}.step was called before reset; call reset() first.")
            self._simulator = self.simulator(self._episode_leader, self._episode_context)
        return self._simulator

    def bounded(self, states: Array) -> Array:
        """States cut at ``clip``."""
        return np.clip(states, -self.clip, self.clip)

    def _reset(self, state: Any | None) -> tuple[Array, dict[str, Any]]:
        if state is None:
            self._state = self.bounded(self._current().starts(self.np_random.standard_normal(self.model.n_states)))
        else:
            self._state = self.check_state(state)
        self._age = 0
        return self._state.copy(), {}

    def check_state(self, state: Any) -> Array:
        """A state ``(n,)``.

        Raises:
            StateError: other numbers than those of the observation space.
        """
        array = as_array(state)
        if array is None or array.shape != self._state.shape or not self.observation_space.contains(array):
            raise StateError(f"start state {state!r} is out of range; expected an element of {self.observation_space}.")
        return array

    def check_actions(self, actions: Any, shape: tuple[int, ...]) -> Array:
        """Actions ``(..., m)`` as float64.

        Raises:
            ActionError: another shape, or a number that is not finite or beyond ``action_bound``.
        """
        array = as_array(actions)
        if array is None or array.shape != shape or not (np.abs(array) <= self.action_bound * (1.0 + 1e-6)).all():
            raise ActionError(f"action {actions!r} is illegal; expected elements of {self.action_space}, shape {shape}.")
        return array

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act, and see the next state. ``info["leader_reward"]`` is the leader's reward.

        Raises:
            ActionError: an action outside the action space.
            ResetError: no episode was started yet.
        """
        simulator, normal = self._current(), self.np_random.standard_normal(self.model.n_states)
        chosen = self.check_actions(action, (self.model.n_actions,))
        reward, leader_reward, following = simulator.step(self._state, chosen, normal)
        self._state = self.bounded(following)
        self._age += 1
        info = {"leader_reward": float(leader_reward), "context": self._episode_context}
        return self._state.copy(), float(reward), False, self._age == self.horizon, info


class LinearQuadraticVectorEnv(NativeVectorEnv):
    """Many copies of a `LinearQuadraticEnv`; see `NativeVectorEnv`.

    Args:
        env: the environment to copy.
        num_envs: number of copies.
        autoreset_mode: "NextStep" (default), "SameStep" or "Disabled".
    """

    env: LinearQuadraticEnv

    def __init__(self, env: LinearQuadraticEnv, num_envs: int, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP):
        check_instance("env", env, LinearQuadraticEnv)
        super().__init__(env, num_envs, autoreset_mode)
        self._states: Array = np.zeros((self.num_envs, env.model.n_states))
        self._final = self._states
        self._simulators: list[_Simulator] = []

    def _prepare(self) -> None:
        self._simulators = [self.env.simulator(self._leader, context) for context in range(self.env.model.n_contexts)]

    def _groups(self, mask: npt.NDArray[np.bool_]) -> list[tuple[_Simulator, npt.NDArray[np.int64]]]:
        """The copies of ``mask`` by their context."""
        groups = [np.flatnonzero(mask & (self._contexts == context)) for context in range(len(self._simulators))]
        return [(simulator, copies) for simulator, copies in zip(self._simulators, groups, strict=True) if len(copies)]

    def _place(self, mask: npt.NDArray[np.bool_], state: Any | None) -> None:
        if state is not None:
            self._states[mask] = self.env.check_state(state)
            return
        normal = self.np_random.standard_normal(self._states.shape)
        for simulator, copies in self._groups(mask):
            self._states[copies] = self.env.bounded(simulator.starts(normal[copies]))

    def _observations(self) -> Any:
        return self._states.copy()

    def _final_observations(self, ended: npt.NDArray[np.bool_]) -> Any:
        return self._final[ended]

    def _state_of(self, copy: int) -> Any:
        return self._states[copy].copy()

    def _checked_actions(self, actions: npt.NDArray[Any]) -> Any:
        return self.env.check_actions(actions, (self.num_envs, self.env.model.n_actions))

    def _advance(self, actions: Any, taken: Taken) -> None:
        acts, normal = ~self._needs_reset, self.np_random.standard_normal(self._states.shape)
        taken.rewards[:] = taken.leader_rewards[:] = 0.0
        for simulator, copies in self._groups(acts):
            found = simulator.step(self._states[copies], actions[copies], normal[copies])
            taken.rewards[copies], taken.leader_rewards[copies] = found[:2]
            self._states[copies] = self.env.bounded(found[2])
        self._final = self._states.copy()
        self._truncate_and_restart(acts, taken)
