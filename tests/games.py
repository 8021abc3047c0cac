"""Small games in the style of PettingZoo's parallel environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from bocmdp_gym.games import GameStep, MarkovGame


class Game:
    """Agents a, b, c, who leave after so many steps each, terminated (1), truncated (-1); who acts is paid its action."""

    metadata = {"name": "game"}
    possible_agents = ["a", "b", "c"]
    lasts = {"a": 1, "b": 2, "c": 3}
    signs = {"a": 1, "b": -1, "c": 1}

    def __init__(self) -> None:
        self.agents: list[str] = []
        self.time = 0
        self.rules = np.zeros(1)
        self.actions: list[dict[str, Any]] = []
        self.buffers = {agent: np.zeros(1, dtype=np.float32) for agent in self.possible_agents}

    @property
    def unwrapped(self) -> Game:
        return self

    def observation_space(self, agent: str) -> gym.Space[Any]:
        return gym.spaces.Box(-10.0, 10.0, (1,), np.float32)

    def action_space(self, agent: str) -> gym.Space[Any]:
        return gym.spaces.Discrete(2)

    def _shown(self, agents: list[str]) -> dict[str, Any]:
        for agent in agents:
            self.buffers[agent][:] = self.time
        return {agent: self.buffers[agent] for agent in agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.time = list(self.possible_agents), 0
        return self._shown(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.actions.append(actions)
        assert list(actions) == self.agents
        self.time += 1
        acting, over = self.agents, [agent for agent in self.agents if self.lasts[agent] == self.time]
        self.agents = [agent for agent in acting if agent not in over]
        return (
            self._shown(acting),
            {agent: float(actions[agent]) for agent in acting},
            {agent: agent in over and self.signs[agent] > 0 for agent in acting},
            {agent: agent in over and self.signs[agent] < 0 for agent in acting},
            {agent: {"time": self.time} for agent in acting},
        )

    def render(self) -> None:
        return None

    def close(self) -> None:
        self.time = -1


class Dilemma(Game):
    """One step; action 1 costs 1 and gives each other agent 3. Nobody would, but for a bonus above 1."""

    possible_agents = ["a", "b"]
    lasts = {"a": 1, "b": 1}
    signs = {"a": 1, "b": 1}

    def step(self, actions: dict[str, Any]) -> Any:
        observations, _, *rest = super().step(actions)
        given = sum(actions.values())
        return observations, {agent: 3.0 * (given - action) - action for agent, action in actions.items()}, *rest


def bonus(x: Any, step: GameStep) -> dict[str, float]:
    """x for action 1."""
    return {agent: float(x[0]) * action for agent, action in step.actions.items()}


def leader_reward(x: Any, step: GameStep) -> float:
    """What the agents earn, less what they are paid."""
    return sum(step.rewards.values()) - sum(step.bonuses.values())


def game(kind: type[Game] = Game, **options: Any) -> MarkovGame:
    """A game with its leader, x in [-5, 5]."""
    space = gym.spaces.Box(-5.0, 5.0, (1,), np.float64)
    return MarkovGame(**{
        "env": kind(), "bonus": bonus, "leader_space": space, "leader_reward": leader_reward, "discount": 0.9, **options
    })  # fmt: skip
