"""A game as one of its agents sees it: the others play by policies of their own.

With the others' policies fixed, what is left of a Markov game is one agent's decision problem, so that any follower can train
there. `Lineup` holds the policies: whoever sits in the game, in the environment itself or in copies of it, plays against those
who are in it now.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym.env import layer_rng
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.hooks import Hooks
from followers.environments import AnyEnv, stacked
from followers.policies import Policy

#: Stream of the others' choices, apart from the game's own at the same seed.
_OTHERS_STREAM = 3


class JointPolicy(Policy):
    """The policies of several agents, each of whom sees its own part of a joint observation.

    Args:
        policies: by the names of the agents.
        leader, context, metrics: as of any policy.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        leader: npt.NDArray[np.float64],
        context: Any,
        metrics: Mapping[str, float] | None = None,
    ):
        self.policies, self.leader, self.context = dict(policies), leader, context
        self.metrics = metrics or {}
        self.batched = all(policy.batched for policy in self.policies.values())

    def begin(self, env: AnyEnv) -> JointPolicy:
        begun = {agent: policy.begin(env) for agent, policy in self.policies.items()}
        if all(begun[agent] is policy for agent, policy in self.policies.items()):
            return self
        return JointPolicy(begun, self.leader, self.context, self.metrics)

    def restart(self, copies: npt.NDArray[np.bool_]) -> None:
        for policy in self.policies.values():
            policy.restart(copies)

    def act(self, observation: Any, rng: np.random.Generator) -> dict[str, Any]:
        return {agent: policy.act(observation[agent], rng) for agent, policy in self.policies.items()}

    def act_batch(self, observations: Any, rng: np.random.Generator) -> list[dict[str, Any]]:
        joint = observations if isinstance(observations, dict) else stacked(list(observations))
        chosen = {agent: policy.act_batch(joint[agent], rng) for agent, policy in self.policies.items()}
        return [dict(zip(chosen, row, strict=True)) for row in zip(*chosen.values(), strict=True)]


class Lineup:
    """The present policy of each agent. Copies of a seat share it, and only within this process."""

    def __init__(self) -> None:
        self.policies: dict[str, Policy] = {}
        self._process = os.getpid()

    def others(self, agent: str) -> JointPolicy:
        """Everybody's policies but one agent's.

        Raises:
            UnsupportedError: in another process, where nobody would hear of later policies.
        """
        if os.getpid() != self._process:
            raise self._elsewhere()
        some = next(iter(self.policies.values()))
        return JointPolicy({a: policy for a, policy in self.policies.items() if a != agent}, some.leader, some.context)

    def __deepcopy__(self, memo: dict[int, Any]) -> Lineup:
        return self

    def __reduce__(self) -> Any:
        raise self._elsewhere()

    @staticmethod
    def _elsewhere() -> UnsupportedError:
        return UnsupportedError(
            "learners of a game play against each other's present policies, which copies in another process do not hear of; "
            "leave out vec_env_class, or run copies in this process (DummyVecEnv)."
        )


class Seat(Hooks, gym.Env[Any, Any]):
    """A game as one agent sees it.

    Its episode ends when the agent leaves, or with the game.

    Args:
        env: the game, under wrappers that change nothing or without.
        core: its `bocmdp_gym.games.MarkovGame`.
        agents: who sits here: one, or several of equal spaces who take turns, drawn anew for each episode.
        lineup: how the others play.
    """

    def __init__(self, env: gym.Env[Any, Any], core: Any, agents: tuple[str, ...], lineup: Lineup):
        self.env, self._core, self._agents, self._lineup = env, core, agents, lineup
        self.observation_space, self.action_space = core.observation_space[agents[0]], core.action_space[agents[0]]
        self.leader_space, self.context_space = core.leader_space, core.context_space
        self.discount, self.leader_discount = core.discount, core.leader_discount
        self.context_probabilities = core.context_probabilities
        self._agent = agents[0]
        self._others: Any = None
        self._chosen: dict[str, Any] | None = None  # what the others will do, where somebody has asked them already
        self._seen: Any = None
        self._rng: np.random.Generator | None = None

    def set_leader(self, x: npt.ArrayLike | Tensor) -> None:
        """Set x in the game."""
        self._core.set_leader(x)

    def set_context(self, context: Any) -> None:
        """Fix the game's context."""
        self._core.set_context(context)

    def sample_context(self, rng: np.random.Generator) -> Any:
        """A draw of the game's context."""
        return self._core.sample_context(rng)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game, in the place of the agent whose turn it is."""
        super().reset(seed=seed)
        if seed is not None or self._rng is None:
            self._rng = layer_rng(seed, _OTHERS_STREAM)
        if len(self._agents) > 1:
            self._agent = self._agents[int(self._rng.integers(len(self._agents)))]
        self._others = self._lineup.others(self._agent).begin(self.env)
        self._chosen = None
        self._seen, info = self.env.reset(seed=seed, options=options)
        return self._seen[self._agent], {"context": info["context"], "agent": self._agent}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act, while the others do."""
        agent = self._agent
        assert self._rng is not None
        others = self._others.act(self._seen, self._rng) if self._chosen is None else self._chosen
        joint, self._chosen = {agent: action, **others}, None
        self._seen, _, terminated, truncated, info = self.env.step(joint)
        has_left = info["terminations"][agent], info["truncations"][agent]
        if not any(has_left):  # then a time limit around the game has cut it
            has_left = bool(terminated), bool(truncated)
        told = {"leader_reward": info["leader_reward"], "context": info["context"], "agent": agent}
        return self._seen[agent], float(info["rewards"][agent]), *has_left, told

    def close(self) -> None:
        """Close the game."""
        self.env.close()

    @staticmethod
    def ask_others(seats: Sequence[Seat]) -> None:
        """Have the others choose in several copies of a game at once, where their policies answer batches."""
        for agent in {seat._agent: None for seat in seats}:
            some = [seat for seat in seats if seat._agent == agent]
            policy, rng = some[0]._others, some[0]._rng
            if policy.batched and rng is not None:
                shown = stacked([{other: seat._seen[other] for other in policy.policies} for seat in some])
                for seat, chosen in zip(some, policy.act_batch(shown, rng), strict=True):
                    seat._chosen = chosen
