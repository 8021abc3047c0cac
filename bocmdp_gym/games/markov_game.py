"""`MarkovGame`: a PettingZoo parallel environment as a leader's problem, seen as one Gymnasium environment.

In a Markov game agents 1..N each see something of the state, act at the same time and are paid r_i(s, a_1..a_N) each. A leader
adds b_i(x, step) to what agent i is paid, or sets rules of the game by x, and is paid itself. What answers x is no optimal policy
of anybody but where the learners of all agents get to.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Mapping
from copy import deepcopy
from math import isfinite
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym.env import ConfigurableEnv
from bocmdp_gym.errors import (
    ActionError,
    ModelError,
    ObservationError,
    OptionError,
    ResetError,
    UnsupportedError,
    suggest,
)
from bocmdp_gym.memory import owned
from bocmdp_gym.options import as_number, check_function
from bocmdp_gym.spaces import check_numeric
from bocmdp_gym.validation import check_game
from bocmdp_gym.wrappers.leader_reward import check_leader_space


class GameStep(NamedTuple):
    """One step of a game, for the leader's functions: dictionaries by the names of the agents who acted.

    Attributes:
        observations, actions: what they saw, and did.
        next_observations, rewards, infos: what the game answered; the rewards are its own, without bonuses.
        bonuses: what the leader paid them; empty in ``bonus`` itself.
    """

    observations: dict[str, Any]
    actions: dict[str, Any]
    next_observations: dict[str, Any]
    rewards: dict[str, float]
    infos: dict[str, Any]
    bonuses: dict[str, float]


#: b(x, step): what each agent is paid besides; those it does not name get nothing.
BonusFunction = Callable[[npt.NDArray[np.float64], GameStep], Mapping[str, float]]
#: The leader's reward of a step.
LeaderRewardFunction = Callable[[npt.NDArray[np.float64], GameStep], float]


class MarkovGame(ConfigurableEnv):
    r"""A PettingZoo parallel environment with a leader: all of its agents together are one joint agent of this environment.

    ``followers.IndependentLearners`` play it, with a learner for each agent. Leaders that compare returns
    (``leaders.ZeroOrder``, ``leaders.LeaderEnv``) can lead it; nothing here can be differentiated, so there is no ``model``.
    An example: pay for cooperation in a repeated dilemma.

        game = MarkovGame(
            dilemma.parallel_env(),
            bonus=lambda x, step: {agent: x[0] * (action == COOPERATE) for agent, action in step.actions.items()},
            leader_space=gym.spaces.Box(0.0, 3.0, (1,), np.float64),
            leader_reward=lambda x, step: sum(step.rewards.values()) - sum(step.bonuses.values()),
            discount=0.99,
        )

    ## Action space
    ``Dict``: an action for each of ``possible_agents``. Those of agents who have left are ignored.

    ## Observation space
    ``Dict``: what each agent sees; of agents who have left, the last thing they saw.

    ## Rewards
    The sum of what the agents are paid, bonuses included. ``info["rewards"]`` has each one's, ``info["bonuses"]`` the leader's
    part of it, ``info["leader_reward"]`` the leader's own. Who has left is paid nothing, and is in no `GameStep`.

    ## Episode start and end
    All agents are there at the start. The episode ends when the last has left: truncated if one of those who leave then is
    truncated, else terminated. ``info["terminations"]`` and ``info["truncations"]`` say who has left, and how.

    ## Arguments
    env: the game.
    bonus: (x ``(d,)``, `GameStep`) -> what agents are paid besides, by name; None: nothing.
    leader_space: space of x, a float64 ``Box`` of shape ``(d,)``; or d, for all of R^d.
    leader_reward: (x, `GameStep`) -> the leader's reward; ``step.bonuses`` has what it paid.
    discount: gamma, of all agents.
    leader_discount: the leader's; gamma if None.
    initial_leader: where leaders start ``(d,)``; the point of ``leader_space`` nearest to zero if None.
    apply: ``apply(env.unwrapped, x)`` puts x into the game, whenever it changes and before each reset; None: bonuses alone.

    Attributes:
        agents: names of all agents.
        game: the PettingZoo environment.

    Raises:
        UnsupportedError: an environment of one agent, one whose agents take turns (AEC), or observations that are no numbers;
            a start state asked for; agents who join while the game goes on.
        OptionError: names of agents that are no strings.
        ModelError: a function that returns something else than numbers, or names an agent who is not there.
        LeaderParameterError, DiscountError: arguments out of range.
    """

    def __init__(
        self,
        env: Any,
        bonus: BonusFunction | None,
        leader_space: gym.spaces.Box | int,
        leader_reward: LeaderRewardFunction,
        discount: float,
        leader_discount: float | None = None,
        initial_leader: npt.ArrayLike | None = None,
        *,
        apply: Callable[[Any, npt.NDArray[np.float64]], None] | None = None,
    ):
        check_game(env, "MarkovGame")
        self.game = env
        self.agents: tuple[str, ...] = tuple(env.possible_agents)
        for agent in self.agents:
            if not isinstance(agent, str):
                raise OptionError(f"possible_agents has {agent!r}; expected names, as strings.")
            check_numeric(env.observation_space(agent), "MarkovGame")
        self.observation_space: gym.spaces.Dict = gym.spaces.Dict({agent: env.observation_space(agent) for agent in self.agents})
        self.action_space: gym.spaces.Dict = gym.spaces.Dict({agent: env.action_space(agent) for agent in self.agents})
        self.metadata = {"render_modes": [], **(getattr(env, "metadata", None) or {})}
        self.render_mode = getattr(env, "render_mode", None)
        self._bonus = None if bonus is None else check_function("bonus", bonus, "x, step")
        self._leader_reward = check_function("leader_reward", leader_reward, "x, step")
        self._apply = None if apply is None else check_function("apply", apply, "env.unwrapped, x")
        space = check_leader_space(leader_space)
        start = np.clip(np.zeros(space.shape), space.low, space.high) if initial_leader is None else initial_leader
        self._setup_configuration(space, gym.spaces.Discrete(1), discount, leader_discount, leader=start)
        self._start = self._leader
        self._present: tuple[str, ...] = ()
        self._seen: dict[str, Any] = {}
        self._left: dict[str, tuple[bool, bool]] = {}
        self._probe()

    def _probe(self) -> None:
        """Let mistakes of the leader's functions show before anything runs: play a step."""
        spaces = deepcopy(self.action_space)  # its generators are the user's
        spaces.seed(0)
        self.reset(seed=0)
        self.step(spaces.sample())
        self._present, self._np_random, self._np_random_seed = (), None, None

    def __reduce__(self) -> tuple[Any, ...]:
        """As any object: a game under way is part of it."""
        return copyreg.__newobj__, (type(self),), dict(vars(self))  # type: ignore[attr-defined]

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """The start given to the constructor."""
        del rng
        return self._start.copy()

    def _configured(self) -> None:
        if self._apply is not None:
            self._apply(getattr(self.game, "unwrapped", self.game), self._episode_leader)

    def _reset(self, state: Any) -> tuple[Any, dict[str, Any]]:
        if state is not None:
            raise UnsupportedError(f"{type(self.game).__name__} cannot be put into a state; start without one.")
        observations, infos = self.game.reset(seed=int(self.np_random.integers(2**31)))
        if set(observations) != set(self.agents):
            raise UnsupportedError(
                f"{type(self.game).__name__} begins with agents {sorted(observations)}, of {sorted(self.agents)}; expected all "
                "of its possible_agents at the start, who may leave and do not come back."
            )
        self._present, self._left = self.agents, {}
        self._seen = {agent: owned(observations[agent]) for agent in self.agents}
        return owned(self._seen), {"infos": dict(infos)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act: one action for each agent.

        Raises:
            ResetError: the episode is over, or has not begun.
            ActionError: an agent who is there has no action.
            UnsupportedError: the game's agents come and go against the rules.
            ObservationError: it pays somebody what is no finite number.
            ModelError: a bonus or the leader's reward is none.
        """
        if not self._present:
            raise ResetError("the episode is over, or has not begun; call reset().")
        acting, before = self._present, {agent: self._seen[agent] for agent in self._present}
        actions = {agent: self._action(action, agent) for agent in acting}
        observations, paid, terminations, truncations, infos = self.game.step(dict(actions))
        rewards = {agent: self._reward(paid, agent) for agent in acting}
        self._settle_present(observations, terminations, truncations)
        after = {agent: self._seen[agent] for agent in acting}
        step = GameStep(before, actions, after, rewards, {agent: infos.get(agent, {}) for agent in acting}, {})
        step = step._replace(bonuses=self._bonuses(step))
        leader_reward = as_number(self._leader_reward(self._episode_leader, step))
        if not isfinite(leader_reward):
            raise ModelError(
                f"leader_reward is {leader_reward} at x = {self._episode_leader.tolist()}, {step}; expected a number."
            )
        total = dict.fromkeys(self.agents, 0.0) | {agent: rewards[agent] + step.bonuses[agent] for agent in acting}
        is_over = not self._present
        truncated = is_over and any(self._left[agent][1] for agent in acting)
        info = {
            "leader_reward": leader_reward,
            "context": self._episode_context,
            "rewards": total,
            "bonuses": step.bonuses,
            "terminations": {agent: self._left.get(agent, (False, False))[0] for agent in self.agents},
            "truncations": {agent: self._left.get(agent, (False, False))[1] for agent in self.agents},
            "infos": step.infos,
        }
        return owned(self._seen), sum(total.values()), is_over and not truncated, truncated, info

    def _action(self, action: Any, agent: str) -> Any:
        if not isinstance(action, Mapping) or agent not in action:
            raise ActionError(f"the joint action is {action!r}; expected a dictionary with an action of {agent!r}.")
        own = action[agent]
        return int(own) if isinstance(self.action_space.spaces[agent], gym.spaces.Discrete) else own

    def _reward(self, paid: Mapping[str, Any], agent: str) -> float:
        reward = as_number(paid.get(agent, float("nan")))
        if not isfinite(reward):
            raise ObservationError(
                f"{type(self.game).__name__} pays {agent!r} {paid.get(agent)!r}; expected a finite number for each agent who "
                "acted. Check the game at this leader parameter."
            )
        return reward

    def _settle_present(
        self, observations: Mapping[str, Any], terminations: Mapping[str, Any], truncations: Mapping[str, Any]
    ) -> None:
        """Who is still there, what everybody saw last, and how those left who have.

        Raises:
            UnsupportedError: somebody came (back), or went without having been terminated or truncated.
        """
        name, still = type(self.game).__name__, set(self.game.agents)
        if not still <= set(self._present):
            raise UnsupportedError(
                f"{sorted(still - set(self._present))} joined {name} in the middle of an episode; expected agents who are there "
                "from the start and do not come back."
            )
        for agent in self._present:
            if agent in observations:
                self._seen[agent] = owned(observations[agent])
            flags = bool(terminations.get(agent, False)), bool(truncations.get(agent, False))
            if any(flags):
                self._left[agent] = flags
            elif agent not in still:
                raise UnsupportedError(f"{agent!r} left {name} without being terminated or truncated; expected one of these.")
            elif agent not in observations:
                raise UnsupportedError(f"{name} shows {agent!r} nothing, who is there; expected an observation for each agent.")
        self._present = tuple(agent for agent in self._present if agent not in self._left)

    def _bonuses(self, step: GameStep) -> dict[str, float]:
        """What each agent who acted is paid by the leader.

        Raises:
            ModelError: see the class.
        """
        paid: Any = {} if self._bonus is None else self._bonus(self._episode_leader, step)
        if not isinstance(paid, Mapping):
            raise ModelError(f"bonus returned {type(paid).__name__}; expected a dictionary: what each agent is paid, by name.")
        for agent in paid:
            if agent not in step.actions:
                raise ModelError(f"bonus pays {agent!r}, who did not act in this step. {suggest(str(agent), step.actions)}")
        bonuses = {agent: as_number(paid.get(agent, 0.0)) for agent in step.actions}
        for agent, value in bonuses.items():
            if not isfinite(value):
                raise ModelError(
                    f"bonus of {agent!r} is {paid[agent]!r} at x = {self._episode_leader.tolist()}, {step}; expected a finite "
                    "number."
                )
        return bonuses

    def render(self) -> Any:
        """As the game renders itself."""
        return self.game.render()

    def close(self) -> None:
        """Close the game."""
        self.game.close()
