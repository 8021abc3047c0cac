"""`TabularEnv`: a `TabularBOCMDP` as a Gymnasium environment, one copy or many."""

from __future__ import annotations

from operator import index as as_index
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode

from bocmdp_gym import kernels
from bocmdp_gym.alias import AliasTables, alias_tables, generator_state, initial_tables
from bocmdp_gym.env import RESET_OPTIONS, ConfigurableEnv, _Configuration, check_context
from bocmdp_gym.errors import ActionError, OptionError, ResetError, StateError, UnsupportedError, suggest
from bocmdp_gym.sampling import successor_tables
from bocmdp_gym.tabular import ConfiguredMDPs, ContextArrays, TabularBOCMDP, check_proper


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

    ## Arguments
    model: the `TabularBOCMDP`.
    horizon: steps after which an episode is truncated; None only where every episode ends with certainty.

    Raises:
        OptionError: a horizon that is not a positive integer.
        DiscountError: no horizon although some policy's episodes never end.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, model: TabularBOCMDP, horizon: int | None = 200, render_mode: str | None = None):
        self.model = model
        self.horizon = check_horizon(horizon)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise OptionError(f"unknown render_mode {render_mode!r}. {suggest(render_mode, self.metadata['render_modes'])}")
        self.render_mode = render_mode
        self._mdps: ConfiguredMDPs | None = None
        self._constant_tables: dict[int, AliasTables] = {}
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
        tables = self._constant_tables.get(context) or successor_tables(arrays)
        if "transition" not in self.model.moving:
            self._constant_tables[context] = tables
        self._threshold, self._successor = tables.threshold.reshape(-1), tables.packed.reshape(-1)
        self._n_moves, self._width = arrays.stored_probabilities.shape[1:]
        self._index = None if arrays.moves is None else arrays.moves.tolist()
        self._n_actions = self.model.n_actions
        self._ready = True

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        if state is None:
            initial = self.mdps.arrays(self._episode_context).initial
            self._state = int(np.searchsorted(initial.cumsum(), self.np_random.random() * initial.sum(), side="right"))
        else:
            self._state = check_state(state, self.model.n_states)
        self._age = 0
        return self._observe_one(self._state), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act. ``info["leader_reward"]`` is the leader's reward, ``info["context"]`` the context.

        Raises:
            ActionError: an action outside the action space.
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
            {"leader_reward": self._leader_reward.item(pair), "context": self._episode_context},
        )

    def _illegal(self, action: Any) -> ActionError:
        return ActionError(f"action {action!r} is illegal; expected an integer in 0..{self._n_actions - 1}.")


class TabularVectorEnv(_Configuration, gym.vector.VectorEnv[Any, Any, Any]):
    """Many copies of a `TabularEnv`, stepped by one compiled kernel.

    All copies share x; each has its own context, drawn anew at each of its resets unless `set_context` fixed it. All three
    autoreset modes of Gymnasium are supported. Infos follow Gymnasium's vector convention (arrays with ``_key`` masks).

    Args:
        env: the environment to copy.
        num_envs: number of copies.
        autoreset_mode: "NextStep" (default), "SameStep" or "Disabled".
    """

    def __init__(self, env: TabularEnv, num_envs: int, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP):
        self.env, self.model, self.num_envs, self.horizon = env, env.model, int(num_envs), env.horizon
        if self.num_envs < 1:
            raise OptionError(f"num_envs is {num_envs}; expected at least 1.")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self._mode = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED].index(self.autoreset_mode)
        self.metadata = {**env.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = env.render_mode
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self._setup_configuration(
            env.leader_space,
            env.context_space,
            env.discount,
            env.leader_discount,
            env.context_probabilities,
            leader=env.leader,
        )
        n = self.num_envs
        self._states, self._contexts = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self._ages, self._needs_reset = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
        self._final_states, self._final_contexts = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self._prepared = False
        self._rng_state: npt.NDArray[np.uint64] | None = None

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method or read an attribute, as `gymnasium.vector.SyncVectorEnv.call`; one (equal) result per copy."""
        attribute = getattr(self, name) if hasattr(self, name) else getattr(self.env, name)
        result = attribute(*args, **kwargs) if callable(attribute) else attribute
        return (result,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute, once per copy."""
        return self.call(name)

    def _configured(self) -> None:
        self._prepared = False

    def _prepare(self) -> None:
        mdps = self.model.configure(torch.tensor(self._leader))
        arrays: list[ContextArrays] = [mdps.arrays(c) for c in range(self.model.n_contexts)]
        self._rewards_table = np.stack([a.reward for a in arrays])
        self._leader_table = np.stack([a.leader_reward for a in arrays])
        self._termination_table = np.stack([a.termination for a in arrays])
        per_context = [successor_tables(a) for a in arrays]
        self._successors = AliasTables(*(np.concatenate(parts) for parts in zip(*per_context, strict=True)))
        index = arrays[0].moves
        self._index = np.arange(self.model.n_actions) if index is None else index
        self._starts = initial_tables(np.stack([a.initial for a in arrays]))
        assert self.context_probabilities is not None
        self._context_table = alias_tables(
            self.context_probabilities[None], np.arange(self.model.n_contexts, dtype=np.int32)[None]
        )
        self._prepared = True

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every copy, or in those of ``options["reset_mask"]``.

        The copies draw from one stream. A list of seeds, one per copy, seeds that stream with all its entries together, so
        that one copy's episodes are not those of another batch with the same entry at its place.

        Raises:
            OptionError: unknown options, or a list of other than one seed per copy.
            UnsupportedError: x for one episode only (copies share x: use `set_leader`).
        """
        options = dict(options or {})
        mask: npt.NDArray[np.bool_] = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        for name in options:
            if name not in RESET_OPTIONS:
                raise OptionError(f"unknown reset option {name!r}. {suggest(name, (*RESET_OPTIONS, 'reset_mask'))}")
        if options.get("leader") is not None:
            raise UnsupportedError(
                "the copies of a native vector environment share x, so it cannot hold for one episode only; call "
                "set_leader(x), or make_vec with vectorization_mode='sync'."
            )
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise OptionError(f"reset_mask has shape {mask.shape} and type {mask.dtype}; expected ({self.num_envs},) bool.")
        joint = _joint_seed(seed, self.num_envs)
        if joint is not None or self._rng_state is None:
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(joint)
            self._rng_state = generator_state(self.np_random)
        if not self._prepared:
            self._prepare()
        context = options.get("context", self._context)
        n = int(mask.sum())
        if context is None:
            assert self.context_probabilities is not None
            contexts = self.np_random.choice(self.model.n_contexts, size=n, p=self.context_probabilities)
        else:
            contexts = np.full(n, check_context(context, self.context_space))
        self._contexts[mask] = contexts
        if options.get("state") is not None:
            self._states[mask] = check_state(options["state"], self.model.n_states)
        else:
            rows, u = contexts, self.np_random.random(n) * self.model.n_states
            slots = u.astype(np.int64)
            second = (u - slots >= self._starts.threshold[rows, slots]).astype(np.int64)
            self._states[mask] = self._starts.packed[rows, slots, second].astype(np.int64)
        self._ages[mask] = 0
        self._needs_reset[mask] = False
        return self.env.observe(self._states.copy()), {"context": self._contexts.copy(), "_context": mask}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in every copy.

        Raises:
            ActionError: an action outside the action space.
            OptionError: a copy that needs a reset in mode "Disabled".
            ResetError: no episode was started yet.
        """
        if self._rng_state is None:
            raise ResetError("TabularVectorEnv.step was called before reset; call reset() first.")
        if not self._prepared:
            self._prepare()
        n = self.num_envs
        actions = np.asarray(actions)
        if actions.shape != (n,) or actions.dtype.kind not in "biu" or actions.min() < 0 or actions.max() >= self.model.n_actions:
            raise ActionError(f"actions must be {n} integers in 0..{self.model.n_actions - 1}; got {actions!r}.")
        if self._mode == 2 and self._needs_reset.any():
            raise OptionError(
                f"copy {int(np.argmax(self._needs_reset))} has ended and autoreset is disabled; call "
                "reset(options={'reset_mask': terminations | truncations}) first."
            )
        rewards, leader_rewards = np.empty(n), np.empty(n)
        terminations, truncations = np.empty(n, dtype=np.bool_), np.empty(n, dtype=np.bool_)
        resetting = self._needs_reset.copy() if self._mode == 0 else None
        kernels.vector_step(
            self._states,
            self._ages,
            self._contexts,
            self._needs_reset,
            actions.astype(np.int64, copy=False),
            self._mode,
            self._rewards_table,
            self._leader_table,
            self._termination_table,
            self._index,
            *self._successors,
            *self._starts,
            *(self._context_table if self._context is None else _FIXED_CONTEXT),
            -1 if self.horizon is None else self.horizon,
            self._rng_state,
            rewards,
            leader_rewards,
            terminations,
            truncations,
            self._final_states,
            self._final_contexts,
        )
        all_copies = np.ones(n, dtype=np.bool_)
        acted = all_copies if resetting is None else ~resetting
        infos: dict[str, Any] = {"context": self._contexts.copy(), "_context": all_copies}
        ended = terminations | truncations
        if self._mode == 1 and ended.any():
            # as Gymnasium: the last step of an ended copy is in final_info, the outer info is that of its reset
            acted = ~ended
            final_obs = np.full(n, None, dtype=object)
            for copy, observation in zip(np.flatnonzero(ended), self.env.observe(self._final_states[ended]), strict=True):
                final_obs[copy] = observation
            infos |= {
                "final_obs": final_obs,
                "_final_obs": ended,
                "final_info": {
                    "leader_reward": np.where(ended, leader_rewards, 0.0),
                    "_leader_reward": ended,
                    "context": np.where(ended, self._final_contexts, 0),
                    "_context": ended,
                },
                "_final_info": ended,
            }
            leader_rewards = np.where(acted, leader_rewards, 0.0)
        infos |= {"leader_reward": leader_rewards, "_leader_reward": acted}
        return self.env.observe(self._states.copy()), rewards, terminations, truncations, infos

    def render(self) -> tuple[Any, ...] | None:
        """A picture of every copy, if the environment has pictures."""
        frames = []
        for state, context in zip(self._states, self._contexts, strict=True):
            self.env.reset(options={"leader": self._leader, "context": int(context), "state": int(state)})
            frames.append(self.env.render())
        return tuple(frames)


_FIXED_CONTEXT = AliasTables(np.empty((1, 0)), np.empty((1, 0, 2), dtype=np.uint64))


def _joint_seed(seed: int | list[int | None] | None, n: int) -> int | None:
    """One seed to which every entry of a list matters; None where no entry is given.

    Raises:
        OptionError: other than n entries.
    """
    if seed is None or isinstance(seed, (int, np.integer)):
        return seed
    seeds = list(seed)
    if len(seeds) != n:
        raise OptionError(f"seed has {len(seeds)} entries; expected one number, or one per copy ({n}).")
    if all(s is None for s in seeds):
        return None
    entropy = [0 if s is None else s + 1 for s in seeds]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def check_horizon(horizon: Any) -> int | None:
    """A positive int, or None.

    Raises:
        OptionError: anything else.
    """
    if horizon is None or (isinstance(horizon, (int, np.integer)) and not isinstance(horizon, bool) and horizon > 0):
        return None if horizon is None else int(horizon)
    raise OptionError(f"horizon is {horizon!r}; expected a positive number of steps, or None for no limit.")


def check_state(state: Any, n_states: int) -> int:
    """A state as int.

    Raises:
        StateError: outside 0..S-1.
    """
    if isinstance(state, (int, np.integer)) and not isinstance(state, bool) and 0 <= state < n_states:
        return int(state)
    raise StateError(f"start state {state!r} is out of range; expected an integer in 0..{n_states - 1}.")
