"""`EscapeRoom`: a social dilemma that three actions suffice for, and its leader, who pays for actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed, known_options
from bocmdp_gym.errors import OptionError, ResetError
from bocmdp_gym.games.markov_game import GameStep, MarkovGame
from bocmdp_gym.options import check_count, check_number

try:
    from pettingzoo import ParallelEnv
except ModuleNotFoundError as error:
    raise OptionError("EscapeRoom takes PettingZoo, which is not installed: pip install 'bocmdp-gym[multi-agent]'.") from error

LEVER, START, DOOR = range(3)
#: What one who escapes is paid, and what any other move costs.
PRIZE, COST = 10.0, 1.0


class EscapeRoom(Constructed, ParallelEnv):  # type: ignore[misc, unused-ignore]  # PettingZoo ships no type information
    r"""Escape Room ER(N, M): a door that opens only while M of N agents go to a lever, which nobody is paid for.

    Each agent is at the lever, at the start or at the door, and chooses where to be next, all at the same time. If at least M
    choose the lever, those who choose the door escape, and the episode ends. Any other move costs 1; staying is free. So the
    M at the lever lose 1 each for what another gains, and agents who learn for themselves alone soon stay where they are; they
    would cooperate if somebody paid them more than 1 for the lever.

    ## Action space
    ``Discrete(3)`` for each agent: 0 lever, 1 start, 2 door.

    ## Observation space
    ``Box(0, 1, (3 N,), float32)``: where each agent is, one-hot, beginning with the agent itself, then the others in their order.

    ## Rewards
    10 for each who escapes; -1 for any other move; 0 for staying.

    ## Episode start and end
    All agents begin at the start. Terminated for all when somebody escapes; truncated after ``horizon`` steps.

    ## Arguments
    n_agents: N.
    n_levers: M, how many must choose the lever at the same time, fewer than N.
    horizon: steps of an episode.

    Source: J. Yang, A. Li, M. Farajtabar, P. Sunehag, E. Hughes, H. Zha, "Learning to Incentivize Other Learning Agents", NeurIPS
    2020, section 4: ER(2, 1) and ER(3, 2), whose largest total rewards are 9 and 8.

    Raises:
        OptionError: arguments out of range, or (as `UnknownOptionError`) one that it does not have.
        ResetError: a step outside an episode.
    """

    metadata = {"name": "escape_room", "render_modes": []}
    render_mode = None

    def __init__(self, n_agents: int = 2, n_levers: int = 1, horizon: int = 5):
        self.n_agents, self.n_levers = check_count("n_agents", n_agents, 2), check_count("n_levers", n_levers)
        if self.n_levers >= self.n_agents:
            raise OptionError(f"n_levers is {n_levers} for {n_agents} agents; expected fewer, so that somebody can escape.")
        self.horizon = check_count("horizon", horizon)
        self.possible_agents = [f"agent_{i}" for i in range(self.n_agents)]
        self.agents: list[str] = []
        size = (3 * self.n_agents,)
        self._observation_spaces = {a: gym.spaces.Box(0.0, 1.0, size, np.float32) for a in self.possible_agents}
        self._action_spaces = {a: gym.spaces.Discrete(3) for a in self.possible_agents}
        self._places = [START] * self.n_agents
        self._steps = 0

    def observation_space(self, agent: str) -> gym.spaces.Box:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> gym.spaces.Discrete:
        return self._action_spaces[agent]

    def _observations(self) -> dict[str, npt.NDArray[np.float32]]:
        shown: dict[str, npt.NDArray[np.float32]] = {}
        for i, agent in enumerate(self.possible_agents):
            places = [self._places[i], *self._places[:i], *self._places[i + 1 :]]
            shown[agent] = np.zeros(3 * self.n_agents, dtype=np.float32)
            shown[agent][[3 * k + place for k, place in enumerate(places)]] = 1.0
        return shown

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Put everybody at the start; nothing is random."""
        del seed, options
        self.agents = list(self.possible_agents)
        self._places, self._steps = [START] * self.n_agents, 0
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, int]) -> tuple[dict[str, Any], ...]:
        """Move. Each one's info has ``escaped``: whether it did."""
        if not self.agents:
            raise ResetError("the episode is over, or has not begun; call reset().")
        agents, chosen = self.agents, [int(actions[agent]) for agent in self.agents]
        is_open = chosen.count(LEVER) >= self.n_levers
        escaped = [is_open and place == DOOR for place in chosen]
        costs = [0.0 if place == before else -COST for place, before in zip(chosen, self._places, strict=True)]
        rewards = [PRIZE if escapes else cost for escapes, cost in zip(escaped, costs, strict=True)]
        self._places, self._steps = chosen, self._steps + 1
        is_over = any(escaped)
        is_late = not is_over and self._steps == self.horizon
        if is_over or is_late:
            self.agents = []
        return (
            self._observations(),
            dict(zip(agents, rewards, strict=True)),
            dict.fromkeys(agents, is_over),
            dict.fromkeys(agents, is_late),
            {agent: {"escaped": escapes} for agent, escapes in zip(agents, escaped, strict=True)},
        )


def payments(x: npt.NDArray[np.float64], step: GameStep) -> dict[str, float]:
    """x[action] to each agent."""
    return {agent: float(x[action]) for agent, action in step.actions.items()}


def escapes_less_payments(x: npt.NDArray[np.float64], step: GameStep) -> float:
    """10 in a step in which somebody escapes, less all that the leader pays."""
    del x
    return PRIZE * any(info.get("escaped", False) for info in step.infos.values()) - sum(step.bonuses.values())


@known_options()
def paid_escape_room(
    n_agents: int = 2, n_levers: int = 1, horizon: int = 5, highest: float = 3.0, discount: float = 0.99
) -> MarkovGame:
    """An `EscapeRoom` with a leader who pays for actions: x = what an agent gets for choosing lever, start and door, each step.

    The leader's reward is 10 when somebody escapes, less what it pays. It starts at x = 0.

    Args:
        n_agents, n_levers, horizon: as for `EscapeRoom`.
        highest: the most it can pay for an action.
        discount: gamma, of agents and leader.

    Raises:
        OptionError: PettingZoo is missing, or arguments out of range.
        DiscountError: gamma outside [0, 1].
    """
    space = gym.spaces.Box(0.0, check_number("highest", highest, above=0.0), (3,), np.float64)
    return MarkovGame(EscapeRoom(n_agents, n_levers, horizon), payments, space, escapes_less_payments, discount)
