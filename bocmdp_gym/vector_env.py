"""`NativeVectorEnv`: what the native vector environments share: settings, resets, autoreset modes and infos."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.env import RESET_OPTIONS, _Configuration
from bocmdp_gym.errors import ActionError, OptionError, ResetError, UnsupportedError, suggest
from bocmdp_gym.forked import limit_threads_after_fork
from bocmdp_gym.options import check_choice, check_count
from bocmdp_gym.validation import check_context

_MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


class Taken(NamedTuple):
    """What a step of N copies fills in; 0 and False where a copy was reset instead."""

    rewards: npt.NDArray[np.float64]
    leader_rewards: npt.NDArray[np.float64]
    terminations: npt.NDArray[np.bool_]
    truncations: npt.NDArray[np.bool_]


class NativeVectorEnv(_Configuration, Constructed, gym.vector.VectorEnv[Any, Any, Any]):
    """Many copies of an environment with finitely many contexts, stepped together.

    All copies share x; each has its own context, drawn at each of its resets unless `set_context` fixed it. All three
    autoreset modes of Gymnasium are supported. Infos follow Gymnasium's vector convention (arrays with ``_key`` masks).

    Subclasses keep the copies' states, and define the abstract methods at the end.

    Args:
        env: the environment to copy.
        num_envs: number of copies.
        autoreset_mode: "NextStep" (default), "SameStep" or "Disabled".

    Raises:
        OptionError: no copies, or an unknown mode.
    """

    _records = True

    def __init__(self, env: Any, num_envs: int, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP):
        self.env, self.num_envs, self.horizon = env, check_count("num_envs", num_envs), env.horizon
        name = getattr(autoreset_mode, "value", autoreset_mode)
        self.autoreset_mode = AutoresetMode(check_choice("autoreset_mode", name, [mode.value for mode in _MODES]))
        self._mode = _MODES.index(self.autoreset_mode)
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
        self._contexts, self._ages, self._final_contexts = np.zeros((3, n), dtype=np.int64)
        self._needs_reset = np.zeros(n, dtype=np.bool_)
        self._prepared = self._started = False

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method or read an attribute, as `gymnasium.vector.SyncVectorEnv.call`; one (equal) result per copy."""
        attribute = getattr(self, name) if hasattr(self, name) else getattr(self.env, name)
        result = attribute(*args, **kwargs) if callable(attribute) else attribute
        return (result,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute, once per copy."""
        return self.call(name)

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """A starting point x_0 for a leader: that of a copy."""
        x0: npt.NDArray[np.float64] = self.env.initial_leader(rng)
        return x0

    def _configured(self) -> None:
        self._prepared = False

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
        limit_threads_after_fork()
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
        if joint is not None or not self._started:
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(joint)
            self._started = True
            self._seeded()
        self._make_ready()
        context = options.get("context", self._context)
        if context is None:
            self._contexts[mask] = self._draw_contexts(int(mask.sum()))
        else:
            self._contexts[mask] = check_context(context, self.context_space)
        self._place(mask, options.get("state"))
        self._ages[mask] = 0
        self._needs_reset[mask] = False
        infos = {"context": self._contexts.copy(), "_context": mask}
        return self._observations(), infos | _keyed(self._told(), mask)

    def _draw_contexts(self, n: int) -> npt.NDArray[np.int64]:
        assert self.context_probabilities is not None
        drawn: npt.NDArray[np.int64] = self.np_random.choice(
            len(self.context_probabilities), size=n, p=self.context_probabilities
        )
        return drawn

    def _make_ready(self) -> None:
        if not self._prepared:
            self._prepare()
            self._prepared = True

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in every copy.

        Raises:
            ActionError: an action outside the action space.
            OptionError: a copy that needs a reset in mode "Disabled".
            ResetError: no episode was started yet.
        """
        if not self._started:
            raise ResetError(f"{type(self).__name__}.step was called before reset; call reset() first.")
        self._make_ready()
        n = self.num_envs
        actions = self._checked_actions(np.asarray(actions))
        if self._mode == 2 and self._needs_reset.any():
            raise OptionError(
                f"copy {int(np.argmax(self._needs_reset))} has ended and autoreset is disabled; call "
                "reset(options={'reset_mask': terminations | truncations}) first."
            )
        taken = Taken(np.empty(n), np.empty(n), np.empty(n, dtype=np.bool_), np.empty(n, dtype=np.bool_))
        resetting = self._needs_reset.copy() if self._mode == 0 else None
        self._advance(actions, taken)
        rewards, leader_rewards, terminations, truncations = taken
        all_copies = np.ones(n, dtype=np.bool_)
        acted = all_copies if resetting is None else ~resetting
        infos: dict[str, Any] = {"context": self._contexts.copy(), "_context": all_copies, **_keyed(self._told(), all_copies)}
        ended = terminations | truncations
        if self._mode == 1 and ended.any():
            # as Gymnasium: the last step of an ended copy is in final_info, the outer info is that of its reset
            acted = ~ended
            final_obs = np.full(n, None, dtype=object)
            for copy, observation in zip(np.flatnonzero(ended), self._final_observations(ended), strict=True):
                final_obs[copy] = observation
            infos |= {
                "final_obs": final_obs,
                "_final_obs": ended,
                "final_info": {
                    "leader_reward": np.where(ended, leader_rewards, 0.0),
                    "_leader_reward": ended,
                    "context": np.where(ended, self._final_contexts, 0),
                    "_context": ended,
                    **_keyed(self._told(ended), ended),
                },
                "_final_info": ended,
            }
            leader_rewards = np.where(acted, leader_rewards, 0.0)
        infos |= {"leader_reward": leader_rewards, "_leader_reward": acted}
        return self._observations(), rewards, terminations, truncations, infos

    def render(self) -> tuple[Any, ...] | None:
        """A picture of every copy, if the environment has pictures."""
        frames = []
        for copy, context in enumerate(self._contexts):
            self.env.reset(options={"leader": self._leader, "context": int(context), "state": self._state_of(copy)})
            frames.append(self.env.render())
        return tuple(frames)

    def _seeded(self) -> None:
        """Hook: ``np_random`` is a new generator."""

    def _told(self, ended: npt.NDArray[np.bool_] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Hook: what else infos say of the copies' states, of copies that ``ended`` in the last step: of their last states."""
        del ended
        return {}

    def _truncate_and_restart(self, acts: npt.NDArray[np.bool_], taken: Taken) -> None:
        """Where episodes end by their horizon alone: the ages after a step of the copies in ``acts``, and what is reset by it."""
        self._ages += acts
        taken.terminations[:] = False
        taken.truncations[:] = acts & (self._ages == self.horizon)
        self._final_contexts = self._contexts.copy()
        same_step = self.autoreset_mode == AutoresetMode.SAME_STEP
        restart = taken.truncations if same_step else ~acts
        self._needs_reset = np.zeros_like(acts) if same_step else taken.truncations.copy()
        if restart.any():
            self._contexts[restart] = self._draw_contexts(int(restart.sum())) if self._context is None else self._context
            self._place(restart, None)
            self._ages[restart] = 0

    @abstractmethod
    def _prepare(self) -> None:
        """Compute what stepping reads at the x in force."""

    @abstractmethod
    def _place(self, mask: npt.NDArray[np.bool_], state: Any | None) -> None:
        """Put the copies of ``mask`` into ``state``, or (None) into start states drawn for their contexts."""

    @abstractmethod
    def _observations(self) -> Any:
        """Observations of all copies; a fresh array."""

    @abstractmethod
    def _state_of(self, copy: int) -> Any:
        """A copy's state, as the environment's reset takes it."""

    def _checked_choices(self, actions: npt.NDArray[Any], sizes: int | tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Choices ``(N, ...)`` in 0..sizes-1, of as many factors as there are sizes.

        Raises:
            ActionError: anything else.
        """
        right = actions.shape == (self.num_envs, *np.shape(sizes)) and actions.dtype.kind in "iu"
        if not right or (actions < 0).any() or (actions >= sizes).any():
            raise ActionError(f"actions must be {self.num_envs} elements of {self.single_action_space}; got {actions!r}.")
        return actions.astype(np.int64)

    @abstractmethod
    def _checked_actions(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Actions as numbers ``(N,)``; raises `ActionError` where one is outside the action space."""

    @abstractmethod
    def _advance(self, actions: npt.NDArray[np.int64], taken: Taken) -> None:
        """Step every copy and fill ``taken`` and ``_final_contexts``, those acted in; reset copies as the mode asks."""

    @abstractmethod
    def _final_observations(self, ended: npt.NDArray[np.bool_]) -> Any:
        """The last observations of the copies that ``ended`` in the last step."""


def _keyed(told: dict[str, npt.NDArray[Any]], copies: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[Any]]:
    """Infos of these copies, with their ``_key`` masks."""
    return told | {f"_{name}": copies for name in told}


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
