"""`IndependentLearners`: the agents of a Markov game, each with a learner of Stable-Baselines3 of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from bocmdp_gym.errors import OptionError, UnsupportedError, suggest
from bocmdp_gym.options import check_count, check_flag
from bocmdp_gym.saved_state import count_entry, entry
from followers.base import Follower, Task
from followers.environments import AnyEnv, inspect_layers
from followers.oracle import TrajectoryOracle
from followers.policies import Policy
from followers.sb3.follower import SB3Follower
from followers.sb3.saving import SavedInFolder
from followers.seat import JointPolicy, Lineup, Seat

#: The name of the learner whom all agents share.
_ALL = "all_agents"


class SeatedTogether(DummyVecEnv):
    """Copies of a seat, in which the others choose all at once: asking a network once for each copy is most of a step's cost."""

    def step_async(self, actions: Any) -> None:
        super().step_async(actions)
        Seat.ask_others([env.unwrapped for env in self.envs])  # type: ignore[misc]


class IndependentLearners(SavedInFolder):
    """Learners who meet in a `bocmdp_gym.games.MarkovGame`: each trains on its own rewards, and takes the others as they come.

    A response is made in ``rounds``. In each, every learner trains ``total_timesteps`` of its own in the game, while the others
    act by the policies they had when the round began; then all show their new ones. So learners change at the same time, and none
    goes first. Many short rounds come near to learning all at once; few long ones, to best responses in turn. Each learner
    collects the steps that it learns from itself: a response takes ``rounds * total_timesteps`` steps of the game for each.

    Nothing says that this ends in an equilibrium, or in which. What a leader is told is how these learners behave where they got
    to, so leaders that compare returns can lead them (``leaders.ZeroOrder``, ``leaders.LeaderEnv``); others are refused.

    Args:
        learner: an `SB3Follower` with the settings of all, whose ``total_timesteps`` are those of one round; or a dictionary of
            one for each agent, by name. With ``warm_start=False``, each response begins with new learners.
        rounds: of a response.
        shared: one learner for all agents, who then need equal spaces: it trains in the place of each in turn, drawn for each
            episode, against its own policy. Only observations can tell agents apart.

    Attributes:
        learners: the follower of each agent, by name, once an oracle is made.

    Raises:
        OptionError: something else than SB3 followers; names that are not those of the agents; learners shared and different.
        UnsupportedError: when an oracle is made: an environment that is no game, wrappers that change it, a vector environment,
            agents who share a learner and differ in their spaces; as `SB3Follower`, for each agent.
        DiscountError: as `SB3Follower`.
    """

    exposes_probabilities = False

    def __init__(self, learner: SB3Follower | Mapping[str, SB3Follower], *, rounds: int = 1, shared: bool = False):
        self.rounds, self.shared_learner = check_count("rounds", rounds), check_flag("shared", shared)
        given = learner if isinstance(learner, Mapping) else {_ALL: learner}
        for name, one in given.items():
            if not isinstance(one, SB3Follower):
                raise OptionError(f"the learner of {name} is {one!r}; expected a followers.SB3Follower.")
        if not given or (isinstance(learner, Mapping) and self.shared_learner):
            raise OptionError("learner is a dictionary; expected one for each agent, or a single SB3Follower with shared=True.")
        self._given, self._is_one = dict(given), not isinstance(learner, Mapping)
        self.discount = next((one.discount for one in given.values() if one.discount is not None), None)
        self.greedy = all(one.greedy for one in given.values())
        self.markov = all(one.markov for one in given.values())
        self.learners: dict[str, SB3Follower] = {}
        self._oracles: dict[str, TrajectoryOracle] = {}
        self._warm: dict[str, bool] = {}
        self._lineup: Any = None  # a `Lineup`, once there is a game

    def bind(self, env: AnyEnv, core: Any) -> None:
        """Refuse what cannot work, and seat a learner for each agent (see the class)."""
        super().bind(env, core)
        agents: tuple[str, ...] = core.agents
        name = type(core.layer).__name__
        if not agents:
            raise UnsupportedError(
                f"{name} has one agent, and IndependentLearners are for games of several; use SB3Follower, or wrap a PettingZoo "
                "parallel environment in bocmdp_gym.games.MarkovGame."
            )
        if isinstance(env, VectorEnv):
            raise UnsupportedError("IndependentLearners got a vector environment; give the oracle a single game.")
        changing = inspect_layers(env, core)
        if not changing.plain:
            raise UnsupportedError(
                f"{changing.changing or 'a wrapper'} around {name} may change what agents see, do or are paid, and nothing says "
                "of whom; wrap the PettingZoo environment inside instead."
            )
        if not self._is_one and set(self._given) != set(agents):
            wrong = next(iter(set(self._given) - set(agents)), None)
            raise OptionError(
                f"there is no agent {wrong!r}. {suggest(str(wrong), agents)}"
                if wrong is not None
                else f"no learner is given for {sorted(set(agents) - set(self._given))}; expected one for each of {agents}."
            )
        self._lineup = Lineup()
        self.learners, self._oracles, self._warm = {}, {}, {}
        for seat, (key, places) in self._seats(agents, core).items():
            learner = self._given[key].copy(seat)
            assert isinstance(learner, SB3Follower)
            self._warm[seat], learner.warm_start = learner.warm_start, True
            learner.run_copies_by(SeatedTogether)
            self._oracles[seat] = TrajectoryOracle(Seat(env, core, places, self._lineup), learner)
            self.learners[seat] = learner

    def _seats(self, agents: tuple[str, ...], core: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Of each learner, by name: which of those given it is like, and in whose places it sits."""
        if not self.shared_learner:
            return {agent: (_ALL if self._is_one else agent, (agent,)) for agent in agents}
        for agent in agents[1:]:
            for what, space in (("observations", core.observation_space), ("actions", core.action_space)):
                if space[agent] != space[agents[0]]:
                    raise UnsupportedError(
                        f"{agents[0]!r} and {agent!r} cannot share a learner: their {what} are {space[agents[0]]} and "
                        f"{space[agent]}; use shared=False, or make them equal, as wrappers of SuperSuit pad them."
                    )
        return {_ALL: (_ALL, agents)}

    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        """Train all learners and answer with their policies together; ``metrics``: training steps so far, of all.

        Raises:
            ObservationError, ConvergenceError: as `SB3Follower.respond`.
        """
        x, context = task.leader, task.context
        for seat, learner in self.learners.items():
            if not self._warm[seat]:
                learner.start_over()
        self._show({s: learner.present(self._oracles[s].task(x, context), rng) for s, learner in self.learners.items()}, task)
        for _ in range(self.rounds):
            answers: dict[str, Policy] = {}
            for seat, learner in self.learners.items():
                before = learner.training_steps
                answers[seat] = self._oracles[seat].respond(x, context, rng)
                self.training_steps += learner.training_steps - before
            self._show(answers, task)
        metrics = {"follower_training_steps": float(self.training_steps)}
        return JointPolicy(self._lineup.policies, x, context, metrics)

    def _show(self, answers: Mapping[str, Policy], task: Task) -> None:
        """Let everybody play against these policies of the learners from now on."""
        agents: tuple[str, ...] = task.core.agents
        self._lineup.policies = {agent: answers[_ALL if self.shared_learner else agent] for agent in agents}

    def reset(self) -> None:
        """Forget all learners, and close their logs."""
        self.training_steps = 0
        for learner in self.learners.values():
            learner.reset()

    def copy(self, name: str | None = None) -> Follower:
        """As `Follower.copy`; logs of a named copy go into a folder of that name."""
        self.reset()
        copies: dict[str, Any] = {key: one.copy(name) for key, one in self._given.items()}
        return IndependentLearners(copies[_ALL] if self._is_one else copies, rounds=self.rounds, shared=self.shared_learner)

    def state(self) -> dict[str, Any]:
        """The states of all learners."""
        learners = {i: {"agent": seat, "state": one.state()} for i, (seat, one) in enumerate(self.learners.items())}
        return {"training_steps": self.training_steps, "learners": learners}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`: equal settings and an equal generator then give equal answers.

        Raises:
            OptionError: no oracle has been made, so that there is no game yet; learners of other agents, or as `SB3Follower`.
            DamagedError: entries are missing, or are not what they should be.
        """
        if not self.learners:
            raise OptionError("there is no game yet whose learners could continue; make an oracle first, then load.")
        saved = entry(state, "learners", dict).values()
        states = {entry(one, "agent", str): entry(one, "state", dict) for one in saved}
        if states.keys() != self.learners.keys():
            raise OptionError(f"these are learners of {sorted(states)}; expected {sorted(self.learners)}.")
        steps = count_entry(state, "training_steps")
        for seat, learner in self.learners.items():
            learner.load_state(states[seat])
        self.training_steps = steps
