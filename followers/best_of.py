"""`BestOf`: a choice among given agents, tried out at each x: the best response within a finite class of policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.memory import owned
from bocmdp_gym.options import check_count, check_flag
from followers.adapters import Agent
from followers.base import Follower, Task
from followers.callable import AgentPolicy, ExposedPolicy
from followers.environments import AnyEnv, action_space
from followers.policies import Policy


class BestOf(Follower):
    """Tries every agent at the x and context it is shown, and answers with the one that pays best; the first of several.

    All begin their episodes with the same seeds, so that luck does not decide between agents that are alike. Where they are
    rules, this is a learner that answers x in jumps and exposes no probabilities: ``ZeroOrder`` and ``FirstOrder`` serve it.

    Args:
        agents: each a function ``observation -> action``, or an object with ``predict``, as for `CallableFollower`.
        episodes: how many each plays for a response; their discounted returns are averaged.
        greedy: whether every agent takes one action alone in each state, as a rule does (see `Follower.greedy`).

    Attributes:
        training_steps: environment steps of all tries.

    Raises:
        OptionError: no agents, something that is none, no episodes, or a flag that is none.
        UnsupportedError: when an oracle is made: copies of the environment.
        ActionError: when it is asked: answers that are no actions.
    """

    def __init__(self, agents: Sequence[Any], episodes: int = 1, *, greedy: bool = False):
        if not isinstance(agents, Sequence):
            raise OptionError(f"agents is {agents!r}; expected a list of agents, as in BestOf([one, another]).")
        self._agents = [Agent(agent) for agent in agents]
        if not self._agents:
            raise OptionError("there are no agents; expected at least one to choose.")
        self._episodes = check_count("episodes", episodes)
        self.greedy = check_flag("greedy", greedy)
        self.exposes_probabilities = all(agent.exposes for agent in self._agents)

    def bind(self, env: AnyEnv, core: Any) -> None:
        super().bind(env, core)
        if isinstance(env, VectorEnv):
            raise UnsupportedError("BestOf tries agents in a single environment, and was given copies; pass one of them.")

    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        """Try the agents, and answer with the best.

        ``metrics``: ``follower_training_steps`` so far, and ``agent_calls``, how often the agent was called since it was chosen.
        """
        seeds = rng.integers(2**31, size=self._episodes)
        for agent in self._agents:
            agent.space = action_space(task.env)
        best = max(self._agents, key=lambda agent: sum(self._play(agent, task, int(seed)) for seed in seeds))
        metrics = {"agent_calls": 0.0, "follower_training_steps": float(self.training_steps)}
        return (ExposedPolicy if self.exposes_probabilities else AgentPolicy)(best, task, metrics)

    def reset(self) -> None:
        self.training_steps = 0

    def _play(self, agent: Agent, task: Task, seed: int) -> float:
        """The discounted return of an episode."""
        env, rng = task.env, np.random.default_rng(seed)
        observation, _ = env.reset(seed=seed)
        value, weight, ended = 0.0, 1.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(agent.act(owned(observation), rng))
            value += weight * float(reward)
            weight, ended = weight * task.core.discount, terminated or truncated
            self.training_steps += 1
        return value
