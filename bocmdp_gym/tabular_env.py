"""`TabularEnv`: a `TabularBOCMDP` as a Gymnasium environment, one copy or many."""

from __future__ import annotations

from collections.abc import Callable
from operator import index as as_index
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode

from bocmdp_gym.env import ConfigurableEnv
from bocmdp_gym.errors import ActionError, ResetError, StateError
from bocmdp_gym.kernels.alias import alias_tables, initial_tables, read_tables
from bocmdp_gym.kernels.vector_step import vector_step
from bocmdp_gym.mdps import ConfiguredMDPs, ContextArrays
from bocmdp_gym.options import as_integer, check_instance, check_render_mode
from bocmdp_gym.population import AmongOthers
from bocmdp_gym.proper import check_proper
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.validation import check_horizon
from bocmdp_gym.vector_env import NativeVectorEnv, Taken


class TabularEnv(ConfigurableEnv):
    """A tabular model as an environment.

    ## Action space
    ``Discrete(A)``.

    ## Observation space
    ``Discrete(S)``: the state.

    ## Rewards
    r(s, a) of the model, the follower's; ``info["leader_reward"]`` is rbar(s, a).

    ## Episode start and end
    States are drawn from mu. After acting an episode terminates with the model's probability q(s, a), and is truncated after
    ``horizon`` steps. The context is drawn from P_xi at each reset unless `set_context` fixed it.

    ## Actions that do not exist
    Where the model has an ``action_mask``, ``info["action_mask"]`` of `reset` and `step` is that of the state arrived in,
    ``(A,)`` int8 as `gymnasium.spaces.Discrete.sample` takes it, and ``action_masks()`` has it as booleans, as MaskablePPO asks
    for it. An action that does not exist in a state is an `ActionError`.

    ## Arguments
    model: the `TabularBOCMDP`.
    horizon: steps after which an episode is truncated; None only where every episode ends with certainty.

    Raises:
        OptionError: no model, or a horizon that is not a positive integer.
        DiscountError: no horizon although some policy's episodes never end.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    model: TabularBOCMDP
    exposes_states = True

    def __init__(self, model: TabularBOCMDP, horizon: int | None = 200, render_mode: str | None = None):
        check_instance("model", model, TabularBOCMDP)
        self.model = model
        self.met_regularization = model.regularization if isinstance(model, AmongOthers) else None
        self.horizon = check_horizon(horizon)
        self.render_mode = check_render_mode(render_mode, self.metadata)
        self._mdps: ConfiguredMDPs | None = None
        self._setup_configuration(
            model.leader_space,
            gym.spaces.Discrete(model.n_contexts),
            model.discount,
            model.leader_discount,
            model.context_probabilities,
            leader=model.example,
        )
        if self.horizon is None:
            mdps = self.mdps
            check_proper(mdps.transition, mdps.termination, "horizon is None")
        self.action_space: gym.Space[Any] = gym.spaces.Discrete(model.n_actions)
        self.observation_space: gym.Space[Any] = gym.spaces.Discrete(model.n_states)
        self._state = 0
        self._age = 0

    # observations: a subclass that shows states differently overrides these three

    def observe(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Observations of states ``(N,)``."""
        return states

    def _observe_one(self, state: int) -> Any:
        return state

    def states_of(self, observations: Any) -> Any:
        """States of observations, the inverse of `observe`."""
        return observations

    @property
    def mdps(self) -> ConfiguredMDPs:
        """The model's arrays at the x in force."""
        if self._mdps is None:
            self._mdps = self.model.configure(torch.tensor(self._episode_leader))
        return self._mdps

    @property
    def state(self) -> int:
        """The current state."""
        return self._state

    def _configured(self) -> None:
        if self._mdps is not None and not np.array_equal(self._mdps.x.numpy(), self._episode_leader):
            self._mdps = None
        self._ready = False

    _ready = False

    def _prepare(self) -> None:
        """Flat tables of the episode's x and context, for `step`."""
        context = self._episode_context
        if context is None:
            raise ResetError(f"{type(self).__name__}.step was called before reset; call reset() first.")
        arrays = self.mdps.arrays(context)
        self._reward, self._leader_reward = arrays.reward.reshape(-1), arrays.leader_reward.reshape(-1)
        self._termination = arrays.termination.reshape(-1)
        self._threshold, self._successor = arrays.draws.flat
        self._n_moves, self._width = arrays.stored_probabilities.shape[1:]
        self._index = None if arrays.moves is None else arrays.moves.tolist()
        self._mask = arrays.action_mask
        self._n_actions = self.model.n_actions
        self._ready = True

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        if state is None:
            initial = self.mdps.arrays(self._episode_context).initial
            self._state = int(np.searchsorted(initial.cumsum(), self.np_random.random() * initial.sum(), side="right"))
        else:
            self._state = check_state(state, self.model.n_states)
        self._age = 0
        return self._observe_one(self._state), self._told()

    def _told(self) -> dict[str, Any]:
        """What info says of the actions that exist in the current state."""
        mask = self.model.mask
        return {} if mask is None else {"action_mask": mask.of(self._episode_context)[self._state].astype(np.int8)}

    @property
    def action_masks(self) -> Callable[[], npt.NDArray[np.bool_]]:
        """``action_masks()``: which actions exist in the current state, ``(A,)``.

        Raises:
            AttributeError: all exist everywhere, so that nobody need ask.
        """
        if self.model.mask is None:
            raise AttributeError(f"all actions exist in every state of this {type(self).__name__}: it has no action_masks")
        return self._masks

    def _masks(self) -> npt.NDArray[np.bool_]:
        mask, context = self.model.mask, self._episode_context
        assert mask is not None
        if context is None:
            raise ResetError(f"{type(self).__name__}.action_masks was called before reset; call reset() first.")
        return mask.of(context)[self._state].copy()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act. ``info["leader_reward"]`` is the leader's reward, ``info["context"]`` the context.

        Raises:
            ActionError: an action outside the action space, or one that does not exist in the state.
            ResetError: no episode was started yet.
        """
        if not self._ready:
            self._prepare()
        try:
            action = as_index(action)
        except TypeError:
            raise self._illegal(action) from None
        if not 0 <= action < self._n_actions:
            raise self._illegal(action)
        if self._mask is not None and not self._mask[self._state, action]:
            raise missing_action(action, self._state, self._mask[self._state])
        pair = self._state * self._n_actions + action
        random = self.np_random.random
        stop = self._termination.item(pair)
        terminated = stop > 0.0 and (stop >= 1.0 or random() < stop)
        if not terminated:
            u = random() * self._width
            slot = int(u)
            row = pair if self._index is None else self._state * self._n_moves + self._index[action]
            index = row * self._width + slot
            self._state = self._successor.item(2 * index + (u - slot >= self._threshold.item(index)))
        self._age += 1
        return (
            self._observe_one(self._state),
            self._reward.item(pair),
            terminated,
            not terminated and self._age == self.horizon,
            {"leader_reward": self._leader_reward.item(pair), "context": self._episode_context, **self._told()},
        )

    def _illegal(self, action: Any) -> ActionError:
        return ActionError(f"action {action!r} is illegal; expected an integer in 0..{self._n_actions - 1}.")


class TabularVectorEnv(NativeVectorEnv):
    """Many copies of a `TabularEnv`, stepped by one compiled kernel; see `NativeVectorEnv`.

    Args:
        env: the environment to copy.
        num_envs: number of copies.
        autoreset_mode: "NextStep" (default), "SameStep" or "Disabled".
    """

    env: TabularEnv

    def __init__(self, env: TabularEnv, num_envs: int, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP):
        check_instance("env", env, TabularEnv)
        super().__init__(env, num_envs, autoreset_mode)
        self.model = env.model
        self._states, self._final_states = np.zeros((2, self.num_envs), dtype=np.int64)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As `NativeVectorEnv.call`; "action_masks" is each copy's own."""
        if name == "action_masks" and self.model.mask is not None:
            return tuple(self._masks(self._contexts, self._states))
        return super().call(name, *args, **kwargs)

    def _seeded(self) -> None:
        self._rng_state = self.np_random.bit_generator.random_raw(4)

    def _prepare(self) -> None:
        mdps = self.model.configure(torch.tensor(self._leader))
        arrays: list[ContextArrays] = [mdps.arrays(c) for c in range(self.model.n_contexts)]
        self._rewards_table = np.stack([a.reward for a in arrays])
        self._leader_table = np.stack([a.leader_reward for a in arrays])
        self._termination_table = np.stack([a.termination for a in arrays])
        self._successors = np.concatenate([a.draws.tables for a in arrays])
        self._rows = arrays[0].rows
        self._starts = initial_tables(np.stack([a.initial for a in arrays]))
        assert self.context_probabilities is not None
        self._context_table = alias_tables(
            self.context_probabilities[None], np.arange(self.model.n_contexts, dtype=np.int32)[None]
        )

    def _place(self, mask: npt.NDArray[np.bool_], state: Any | None) -> None:
        if state is not None:
            self._states[mask] = check_state(state, self.model.n_states)
            return
        rows, u = self._contexts[mask], self.np_random.random(int(mask.sum())) * self.model.n_states
        slots = u.astype(np.int64)
        thresholds, starts = read_tables(self._starts[rows, slots])
        self._states[mask] = np.where(u - slots >= thresholds, starts[:, 1], starts[:, 0])

    def _observations(self) -> Any:
        return self.env.observe(self._states.copy())

    def _state_of(self, copy: int) -> Any:
        return int(self._states[copy])

    def _checked_actions(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        n, n_actions = self.num_envs, self.model.n_actions
        if actions.shape != (n,) or actions.dtype.kind not in "biu" or actions.min() < 0 or actions.max() >= n_actions:
            raise ActionError(f"actions must be {n} integers in 0..{n_actions - 1}; got {actions!r}.")
        chosen = actions.astype(np.int64, copy=False)
        if self.model.mask is not None:
            told = self._masks(self._contexts, self._states)
            wrong = np.flatnonzero(~told[np.arange(n), chosen] & ~(self._needs_reset & (self._mode == 0)))
            if wrong.size:
                copy = int(wrong[0])
                raise missing_action(int(chosen[copy]), int(self._states[copy]), told[copy])
        return chosen

    def _masks(self, contexts: npt.NDArray[np.int64], states: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which actions exist, ``(N, A)``."""
        assert self.model.mask is not None
        return self.model.mask.of(contexts)[np.arange(len(states)), states]

    def _told(self, ended: npt.NDArray[np.bool_] | None = None) -> dict[str, npt.NDArray[Any]]:
        if self.model.mask is None:
            return {}
        contexts, states = (self._contexts, self._states) if ended is None else (self._final_contexts, self._final_states)
        return {"action_mask": self._masks(contexts, states).astype(np.int8)}

    def _advance(self, actions: npt.NDArray[np.int64], taken: Taken) -> None:
        vector_step(
            self._states,
            self._ages,
            self._contexts,
            self._needs_reset,
            actions,
            self._mode,
            self._rewards_table,
            self._leader_table,
            self._termination_table,
            self._rows,
            self._successors,
            self._starts,
            self._context_table,
            -1 if self._context is None else self._context,
            -1 if self.horizon is None else self.horizon,
            self._rng_state,
            *taken,
            self._final_states,
            self._final_contexts,
        )

    def _final_observations(self, ended: npt.NDArray[np.bool_]) -> Any:
        return self.env.observe(self._final_states[ended])


def missing_action(action: int, state: int, mask: npt.NDArray[np.bool_]) -> ActionError:
    """Of an action that does not exist in a state; ``mask``: those that do, ``(A,)``."""
    return ActionError(
        f"action {action} does not exist in state {state}; expected one of {np.flatnonzero(mask).tolist()}, as "
        "info['action_mask'] says."
    )


def check_state(state: Any, n_states: int) -> int:
    """A state as int.

    Raises:
        StateError: outside 0..S-1.
    """
    number = as_integer(state)
    if number is not None and 0 <= number < n_states:
        return int(state)
    raise StateError(f"start state {state!r} is out of range; expected an integer in 0..{n_states - 1}.")
