"""Playing a policy in an environment, one copy or many: the plain Gymnasium path of the trajectory oracle.

Episodes are played to their end: one that runs when the budget is reached is finished, and its steps count. Several may be
played at once, so that the policy is asked once for all of them (`followers.schedule` says why that has no bias). A vector
environment's autoreset rows (reward 0, the action ignored) are no steps: they enter neither trajectories nor the budget, and no
policy is asked there. Its copies move together, so those that are done wait for the last episode to end; what they do meanwhile
is counted as idle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from bocmdp_gym import TabularEnv, Trajectories, configurable
from bocmdp_gym.errors import ActionError, ObservationError, StateError
from bocmdp_gym.memory import owned
from bocmdp_gym.options import as_list
from bocmdp_gym.sampling import check_starts
from followers.copies import COPIES, can_be_copied, copied
from followers.environments import check_action, check_observation, configure, model_of, rows, stacked
from followers.policies import Policy
from followers.schedule import Schedule


class Play(NamedTuple):
    """What was played.

    Attributes:
        batch: the trajectories; their steps are the budget's.
        idle_steps: steps that are not part of the trajectories: of copies that waited for others to finish, and of episodes
            beyond those that the budget asked for.
    """

    batch: Trajectories
    idle_steps: int


class _Episode:
    """One episode in the making."""

    def __init__(self, order: tuple[int, int]):
        self.order = order
        self.observations: list[Any] = []
        self.actions: list[Any] = []
        self.rewards: list[float] = []
        self.leader_rewards: list[float] = []
        self.outcomes: list[dict[str, Any]] = []
        self.states: list[int] = []
        self.terminated = False
        self.final_observation: Any = None
        self.final_state = -1

    def step(self, observation: Any, action: Any, reward: float, leader_reward: float) -> None:
        """Add one step.

        Raises:
            ObservationError: a reward that is not finite.
        """
        if not (math.isfinite(reward) and math.isfinite(leader_reward)):
            raise ObservationError(
                f"step {len(self.rewards)} of episode {self.order} paid the follower {reward} and the leader {leader_reward}; "
                "expected finite rewards. Check the environment at this leader parameter."
            )
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(reward)
        self.leader_rewards.append(leader_reward)

    def end(self, terminated: bool, observation: Any) -> None:
        self.terminated, self.final_observation = terminated, observation


def play(
    env: gym.Env[Any, Any],
    core: Any,
    policy: Policy,
    env_steps: int,
    rng: np.random.Generator,
    start: Any = None,
    *,
    plain: bool = False,
    horizon: int | None = None,
    paired: bool = False,
    copies: int = COPIES,
) -> Play:
    """Play ``policy`` at its own (x, context) for ``env_steps`` steps in one environment, or in copies of it at once.

    Copies are made where the policy answers batches (`Policy.batched`) and the environment can be copied, as many as the
    budget has use for. Which episodes are played does not depend on them (`followers.schedule`).

    Args:
        env, core: the environment and its configurable layer.
        policy: who acts.
        env_steps: the budget.
        rng: seeds the environment, and is the policy's source of randomness.
        start: pairs of start state and first action (-1 or None: the policy's), one episode each, while the budget lasts.
        plain: whether observations are the core's own; those of a tabular one then have the types of the compiled path.
        horizon: steps after which an episode is stopped.
        paired: give every episode a seed and a generator of its own, made from ``rng``; they are then played one by one.
        copies: episodes played at once, at most.

    Raises:
        StateError: a start that does not exist, or no pairs.
        UnsupportedError: starts asked of an environment that cannot be put into a state.
        ActionError: the policy did something that is no action.
        ObservationError: an observation or a reward that is not finite.
    """
    configure(env, core, policy.leader, policy.context)
    tabular, keeps_outcomes = isinstance(core, TabularEnv), _keeps_outcomes(core)
    starts = None if start is None else _start_pairs(start, core, policy.context)
    at_once = policy.batched and not paired and copies > 1 and env_steps > 1 and can_be_copied(env)
    limit = min((steps for steps in (horizon, core.horizon) if steps is not None), default=None)
    schedule = Schedule(env_steps, copies if at_once else 1, limit, None if starts is None else len(starts))
    seeds = rng.integers(2**32, size=4).tolist() if paired else []
    players, episodes = [_Player(env, core)], list[_Episode]()
    later = bool(core.pays_later) and env is core  # else somebody around it may look at what steps pay
    with _deferred(core) if later else nullcontext():
        while True:
            while schedule.begins_another:
                player = next((one for one in players if one.episode is None), None)
                if player is None:
                    copy = copied(env)
                    player = _Player(copy, configurable(copy))
                    players.append(player)
                state, first = (None, None) if starts is None else starts[len(episodes)]
                episode = _Episode((schedule.begin(), 0))
                if paired:
                    rng = np.random.default_rng([*seeds, len(episodes)])
                seed = int(rng.integers(2**31)) if paired or not player.is_seeded else None
                player.begin(policy, episode, seed, None if starts is None else {"state": state}, first)
                episodes.append(episode)
            playing = [player for player in players if player.episode is not None]
            if not playing:
                break
            for player, action in zip(playing, _actions(policy, playing, rng, at_once), strict=True):
                player.step(action, tabular, keeps_outcomes, horizon)
            schedule.step([number for player in playing if (number := player.ended) is not None])
            del episodes[len(schedule.lengths) :]
            for player in playing:
                player.leave(len(episodes))
    batch = _assemble(episodes, policy, tabular)
    if later:
        batch = core.pay(batch)
    if plain and batch.states is not None:
        shown = {"observations": core.observe(batch.states), "final_observations": core.observe(batch.final_states)}
        batch = replace(batch, **shown)
    return Play(batch, schedule.dropped_steps)


@contextmanager
def _deferred(core: Any) -> Iterator[None]:
    """Let steps pay what does not depend on x alone (`bocmdp_gym.Hooks.pays_later`); copies made meanwhile do likewise."""
    core.is_deferred = True
    try:
        yield
    finally:
        core.is_deferred = False


class _Player:
    """An environment, and the episode that is played in it."""

    episode: _Episode | None = None
    is_seeded = False

    def __init__(self, env: gym.Env[Any, Any], core: Any):
        self.env, self.core = env, core
        self.seen: Any = None
        self.first: Any = None  # the action it is to begin with
        self.actor: Any = None  # what acts in it
        self.is_over = False

    def begin(self, policy: Policy, episode: _Episode, seed: int | None, options: dict[str, Any] | None, first: Any) -> None:
        """Reset the environment for an episode."""
        observation, _ = self.env.reset(seed=seed, options=options)
        self.episode, self.first, self.seen, self.is_seeded, self.is_over = episode, first, owned(observation), True, False
        check_observation(observation, f"at the start of episode {episode.order[0]}")
        self.actor = policy.begin(self.env)

    def step(self, action: Any, tabular: bool, keeps_outcomes: bool, horizon: int | None) -> None:
        """Take a step of the episode."""
        episode, seen = self.episode, self.seen
        assert episode is not None
        self.first = None
        if tabular:
            episode.states.append(self.core.state)
        acted = owned(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        episode.step(seen, acted, float(reward), float(info["leader_reward"]))
        if keeps_outcomes:
            episode.outcomes.append(info["outcomes"])
        self.seen = owned(observation)
        check_observation(observation, f"after step {len(episode.rewards) - 1} of episode {episode.order[0]}")
        self.is_over = bool(terminated or truncated) or len(episode.rewards) == horizon
        if self.is_over:
            episode.end(bool(terminated), self.seen)
            if tabular:
                episode.final_state = self.core.state

    @property
    def ended(self) -> int | None:
        """The number of the episode, if it is over."""
        return self.episode.order[0] if self.episode is not None and self.is_over else None

    def leave(self, kept: int) -> None:
        """Be free for another, if the episode is over or not among the first ``kept``, which the budget asks for."""
        if self.episode is not None and (self.is_over or self.episode.order[0] >= kept):
            self.episode = None


def _actions(policy: Policy, playing: list[_Player], rng: np.random.Generator, at_once: bool) -> list[Any]:
    """The next action in each environment: what the episode is to begin with, else the policy's.

    Raises:
        ActionError: one is outside the action space.
    """
    space = playing[0].env.action_space
    asked = [player for player in playing if player.first is None]
    answers: Any = []
    if asked and at_once:
        answers = policy.act_batch(stacked([player.seen for player in asked]), rng)
    elif asked:
        answers = [player.actor.act(owned(player.seen), rng) for player in asked]  # which may write into what it sees
    own = iter(_checked_actions(answers, space, len(asked)))
    return [next(own) if player.first is None else check_action(player.first, space) for player in playing]


def play_copies(
    envs: VectorEnv[Any, Any, Any],
    core: Any,
    policy: Policy,
    env_steps: int,
    rng: np.random.Generator,
    *,
    plain: bool,
    horizon: int | None = None,
) -> Play:
    """The same in all copies of a vector environment, in any of Gymnasium's three autoreset modes.

    Args:
        envs, core: the vector environment and the configurable layer of a single copy.
        policy, env_steps, rng: as for `play`.
        plain: whether observations are the core's own, so that they can be read as states.
        horizon: steps after which an episode is stopped, and its copy reset alone.

    Raises:
        ActionError, ObservationError: as for `play`.
    """
    configure(envs, core, policy.leader, policy.context)
    keeps_outcomes = _keeps_outcomes(core)
    mode = AutoresetMode(envs.metadata["autoreset_mode"])
    space, n = envs.single_action_space, envs.num_envs
    running: list[_Episode | None] = [_Episode((0, i)) if i < env_steps else None for i in range(n)]
    finished: list[_Episode] = []
    resetting = np.zeros(n, dtype=np.bool_)
    steps = idle = time = 0
    observations, _ = envs.reset(seed=int(rng.integers(2**31)))
    check_observation(observations, "at the first reset")
    seen = rows(observations)
    finals: list[Any] = [None] * n
    actions: list[Any] = [None] * n
    actor = policy.begin(envs)
    # what copies are about, or which actions they have: then all of them are shown, always
    remembers = actor is not policy or (isinstance(core, TabularEnv) and core.model.mask is not None)
    while any(running):
        asked = [i for i in range(n) if remembers or (running[i] is not None and not resetting[i])]
        if asked:
            answers = actor.act_batch(observations if len(asked) == n else stacked([seen[i] for i in asked]), rng)
            chosen = _checked_actions(answers, space, len(asked))
            actions = [chosen[0]] * n  # of copies that wait or reset, too: theirs are of no consequence
            for i, action in zip(asked, chosen, strict=True):
                actions[i] = action
        before = seen
        taken: Any = create_empty_array(space, n=n)
        observations, rewards, terminations, truncations, infos = envs.step(concatenate(space, actions, taken))
        check_observation(observations, f"after step {time} of the copies")
        seen = rows(observations)
        time += 1
        ended = terminations | truncations
        started = 0  # episodes that begin now: they will take at least one step each
        cut = np.zeros(n, dtype=np.bool_)  # copies whose episode is stopped here
        begun = ended.copy() if mode == AutoresetMode.SAME_STEP else resetting.copy()  # copies that show a first observation
        for i, row in enumerate(before):
            episode = running[i]
            if resetting[i]:  # the autoreset row
                resetting[i] = False
                continue
            if episode is None:
                idle += 1
            else:
                steps += 1
                last = mode == AutoresetMode.SAME_STEP and ended[i]
                told = infos["final_info"] if last else infos
                episode.step(row, owned(actions[i]), float(rewards[i]), float(told["leader_reward"][i]))
                if keeps_outcomes:
                    episode.outcomes.append(_of_copy(told["outcomes"], i))
            cut[i] = episode is not None and len(episode.rewards) == horizon and not ended[i]
            if not (ended[i] or cut[i]):
                continue
            resetting[i] = ended[i] and mode == AutoresetMode.NEXT_STEP
            if episode is not None:
                final = infos["final_obs"][i] if last else seen[i]
                if last:
                    _check_fresh(final, finals[i])
                    finals[i] = final
                episode.end(bool(terminations[i]), owned(final))
                finished.append(episode)
                running[i] = None
                pending = sum(1 for other in running if other is not None and not other.rewards) + started
                if steps + pending < env_steps:
                    running[i] = _Episode((time, i))
        stopped = cut | ended if mode == AutoresetMode.DISABLED else cut
        if stopped.any():
            observations, _ = envs.reset(options={"reset_mask": stopped})
            seen = rows(observations)
        if (begun | stopped).any():
            actor.restart(begun | stopped)
    finished.sort(key=lambda episode: episode.order)
    batch = _assemble(finished, policy, False)
    if plain and isinstance(core, TabularEnv):
        states, final = (core.states_of(o).astype(np.int32) for o in (batch.observations, batch.final_observations))
        batch = replace(batch, states=states, final_states=final)
    return Play(batch, idle)


def _checked_actions(actions: Any, space: gym.Space[Any], n: int) -> list[Any]:
    """A batch of actions one by one, as an environment takes them; none is the policy's own array.

    Raises:
        ActionError: one is outside the action space, or there are not ``n``.
    """
    if len(actions) != n:
        raise ActionError(f"the agent answered {n} observations with {len(actions)} actions; expected one for each.")
    if (
        isinstance(space, gym.spaces.MultiDiscrete)
        and isinstance(actions, np.ndarray)
        and actions.dtype.kind in "iu"
        and actions.shape == (n, *space.shape)
        and ((actions >= space.start) & (actions < space.start + space.nvec)).all()
    ):
        return list(actions.astype(space.dtype))  # all at once: one by one is half of the time of a rollout
    return [owned(check_action(action, space)) for action in actions]


def _check_fresh(final: Any, earlier: Any) -> None:
    """Refuse a last observation that is the same array as an episode's before: the reset in the same step has overwritten it.

    Raises:
        ObservationError: it is.
    """
    if isinstance(final, np.ndarray) and final.ndim and final is earlier:
        raise ObservationError(
            "the environment returns one array again and again, and in autoreset mode 'SameStep' the reset overwrites an "
            "episode's last observation before it can be read; return a new array from step and reset, or use another mode."
        )


def _start_pairs(start: Any, core: Any, context: Any) -> list[tuple[Any, Any]]:
    """Start states and first actions (None: the policy's)."""
    pairs: list[Any]
    if isinstance(core, TabularEnv):
        model = core.model
        mask = None if model.mask is None else model.mask.of(context)
        pairs = check_starts(np.atleast_2d(np.asarray(start)), (model.n_states, model.n_actions), mask).tolist()
    else:
        listed = list(start) if isinstance(start, Iterable) and not isinstance(start, np.ndarray) else as_list(start) or []
        pairs = [as_list(pair) or [] for pair in listed]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise StateError(f"start is {start!r}; expected pairs of a start state and a first action (None: the policy's).")
    return [(state, None if action is None or np.array_equal(action, -1) else action) for state, action in pairs]


def _keeps_outcomes(core: Any) -> bool:
    """Whether the model's rewards take more of a step than observations and actions, which info then carries."""
    model = model_of(core)
    return model is not None and not set(model.outcomes) <= {"next_observations"}


def _of_copy(infos: Any, index: int) -> dict[str, Any]:
    """One copy's entries of a vector environment's infos, without their masks."""
    return {
        name: _of_copy(value, index) if isinstance(value, dict) else value[index]
        for name, value in infos.items()
        if not (name.startswith("_") and name[1:] in infos)
    }


def _joined_outcomes(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What all steps say of themselves for the model's sake, as arrays; None where they say nothing."""
    if not steps:
        return None
    return {
        name: _joined_outcomes([step[name] for step in steps])
        if isinstance(value, dict)
        else np.asarray([step[name] for step in steps])
        for name, value in steps[0].items()
    }


def _assemble(episodes: list[_Episode], policy: Policy, tabular: bool) -> Trajectories:
    """Episodes laid end to end."""

    def joined(name: str, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        return _array([value for episode in episodes for value in getattr(episode, name)], dtype)

    return Trajectories(
        observations=joined("observations"),
        actions=joined("actions"),
        rewards=joined("rewards", np.float64),
        leader_rewards=joined("leader_rewards", np.float64),
        ends=np.cumsum([len(episode.rewards) for episode in episodes]).astype(np.int64),
        terminated=np.array([episode.terminated for episode in episodes], dtype=np.bool_),
        final_observations=_array([episode.final_observation for episode in episodes]),
        leader=policy.leader,
        context=policy.context,
        states=joined("states", np.int32) if tabular else None,
        final_states=np.array([episode.final_state for episode in episodes], dtype=np.int32) if tabular else None,
        outcomes=_joined_outcomes([outcomes for episode in episodes for outcomes in episode.outcomes]),
    )


def _array(values: list[Any], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Values as an array; tuples, of parts that may differ in shape, stay tuples."""
    if values and isinstance(values[0], tuple):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    return np.asarray(values, dtype=dtype)
