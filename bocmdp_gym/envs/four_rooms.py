"""Four-Rooms with penalties (paper, sections 3 and F.2)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from bocmdp_gym.affine import Affine
from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.errors import OptionError
from bocmdp_gym.grid import Grid
from bocmdp_gym.options import as_list, check_choice, check_count, check_number
from bocmdp_gym.parametrizations import Softmax
from bocmdp_gym.pictures import PicturedEnv
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.tabular_env import TabularVectorEnv
from bocmdp_gym.transitions import SuccessorTransitions

LAYOUT = """
xxxxxxxxxxxxx
x     x     x
x     x     x
x           x
x     x     x
x     x     x
xx xxxx     x
x     xxx xxx
x     x     x
x     x     x
x           x
x     x     x
xxxxxxxxxxxxx
"""
Observation = Literal["index", "coordinates"]
OBSERVATIONS = get_args(Observation)
DISCOUNT = 0.99
#: One per context, for most likely paths.
_PATH_COLOURS = ("#2668be", "#7a3fb0", "#c07a00", "#00857a")
#: The published table's settings: slip, budget, discounts, layout, start, goals, marked cell.
PUBLISHED = (0.44, 0.2, DISCOUNT, DISCOUNT, LAYOUT.strip("\n").split("\n"), (4, 1), [(1, 9), (11, 11)], (8, 4))
#: Best leader returns known there, by (lambda, penalty_cost).
BEST_KNOWN = {
    (0.001, 1.0): 1.1772,
    (0.001, 3.0): 0.946,
    (0.001, 5.0): 0.745,
    (0.003, 1.0): 1.018,
    (0.003, 3.0): 0.798,
    (0.003, 5.0): 0.581,
    (0.005, 1.0): 1.474,
    (0.005, 3.0): 1.354,
    (0.005, 5.0): 1.236,
}


class FourRooms(PicturedEnv):
    r"""A follower walks to a goal; a leader spreads penalties over the cells to lead it past a marked cell.

    ## Description
    The follower starts in one cell and walks to a goal that depends on the context. The leader has a budget of penalties,
    spread over the S free cells by softmax(x), and wants the follower to pass through a marked cell (``waypoint``) on its way:
    a detour the follower makes only if the direct way is penalised. The last entry of x is budget left unused.

    ## Leader parameter
    x in R^(S+1), unbounded. Cell s carries the penalty ``penalty_budget * softmax(x)[s]``. `initial_leader` draws
    x_0 ~ N(0, 0.01^2).

    ## Context
    ``Discrete(number of goals)``, uniform: the goal in force.

    ## Action space
    ``Discrete(4)``: up, right, down, left. With probability ``slip_probability`` one of the three other directions is taken,
    each equally likely. Moving into a wall stays.

    ## Observation space
    ``observation="index"``: ``Discrete(S)``, free cells in reading order. ``"coordinates"``: ``Box(0, 1, (2,), float32)``, row
    and column divided by the grid's largest row and column. The goal is not observed.

    ## Rewards
    Follower: 1 when acting in the goal; minus the cell's penalty in every other cell. Leader: 1 for every step in the
    marked cell; minus ``penalty_cost * penalty_budget * (1 - softmax(x)[S])`` when the follower acts in the goal.

    ## Episode start and end
    Starts in ``start``; terminates after acting in the goal; truncated after ``horizon`` steps.

    ## Arguments
    slip_probability: probability that a move goes another way than chosen; the paper's text says 1/3, its
    table was made with 0.44.
    penalty_cost: what the leader pays per unit of penalty placed (the paper's beta), at least 0.
    penalty_budget: sum of all penalties, > 0.
    start: row and column of the start, counted from 0; None: any cell, all equally likely.
    goals: rows and columns of the goals, one per context.
    waypoint: row and column of the marked cell that the leader wants visited.
    layout: the rows of the map, ``x`` is a wall.
    horizon: steps until truncation, or None for no limit.
    observation: "index" or "coordinates".
    discount: the follower's gamma.
    leader_discount: the leader's gamma_L; None: gamma.
    render_mode: "ansi", "rgb_array" or "human".
    scale: every cell of the layout becomes ``scale`` x ``scale`` cells (100: 1.04 million states). The named cells are counted
    in the layout before; each becomes the middle of its block. Penalties are spread thinner, over more cells.

    Raises:
        LayoutError: a cell in a wall or off the grid. OptionError: any other argument out of range.

    ## Version history
    v0: first version.

    Reference: Thoma et al., "Bilevel Optimization with Lower-Level Contextual MDPs", 2024, sections 3 and F.2.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 8}

    def __init__(
        self,
        slip_probability: float = 1 / 3,
        penalty_cost: float = 1.0,
        penalty_budget: float = 0.2,
        start: Sequence[int] | None = (4, 1),
        goals: Sequence[Sequence[int]] = ((1, 9), (11, 11)),
        waypoint: Sequence[int] = (8, 4),
        layout: str | Sequence[str] = LAYOUT,
        horizon: int | None = 200,
        observation: Observation = "index",
        discount: float = DISCOUNT,
        leader_discount: float | None = None,
        render_mode: str | None = None,
        scale: int = 1,
    ):
        self.penalty_budget = check_number("penalty_budget", penalty_budget, above=0.0)
        self.penalty_cost = check_number("penalty_cost", penalty_cost, 0.0, note=" (the paper's beta)")
        check_choice("observation", observation, OBSERVATIONS)
        cells = as_list(goals)
        if not cells:
            raise OptionError(f"goals is {goals!r}; expected a list of cells [row, column], at least one.")
        small = Grid(layout)
        scale = check_count("scale", scale, maximum=isqrt((2**31 - 1) // len(small)))  # states are counted by int32
        self.grid = small if scale == 1 else small.scaled(scale)

        def middle(cell: Any, name: str) -> int:
            row, column = small.coordinates[small.state(cell, name)]
            return self.grid.state((row * scale + scale // 2, column * scale + scale // 2), name)

        self.start = None if start is None else middle(start, "start")
        self.goals = [middle(goal, f"goals[{i}]") for i, goal in enumerate(cells)]
        self.waypoint = middle(waypoint, "waypoint")
        super().__init__(self._make_model(slip_probability, discount, leader_discount), horizon, render_mode)
        where = self.grid.coordinates.tolist()
        start_cell = None if self.start is None else tuple(where[self.start])
        places = (start_cell, [tuple(where[goal]) for goal in self.goals], tuple(where[self.waypoint]))
        discounts = (self.discount, self.leader_discount)
        self._settings = (slip_probability, self.penalty_budget, *discounts, self.grid.rows, *places)
        self._coordinates_observed = observation == "coordinates"
        if self._coordinates_observed:
            self.observation_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
            self._scale = np.maximum([self.grid.height - 1, self.grid.width - 1], 1)
            self._observations = (self.grid.coordinates / self._scale).astype(np.float32)

    def _make_model(self, slip_probability: float, discount: float, leader_discount: float | None) -> TabularBOCMDP:
        n_contexts, n_states = len(self.goals), len(self.grid)
        at_goal = torch.zeros(n_contexts, n_states, dtype=torch.float64)
        at_goal[range(n_contexts), self.goals] = 1.0
        goal_reward = at_goal.unsqueeze(-1)  # (C, S, 1): rewards do not depend on the action
        leader_base = -self.penalty_cost * self.penalty_budget * goal_reward
        leader_base[:, self.waypoint] += 1.0
        penalised = sparse.eye_array(n_states, n_states + 1)
        elsewhere = [sparse.diags_array(1.0 - goal.numpy()) @ penalised for goal in at_goal]
        goals = np.arange(n_contexts) * n_states + self.goals
        cost = np.full(n_contexts, self.penalty_cost * self.penalty_budget)
        unused = sparse.csr_array((cost, (goals, np.full(n_contexts, n_states))), shape=(n_contexts * n_states, n_states + 1))
        initial = torch.full((n_states,), 1.0 / n_states if self.start is None else 0.0, dtype=torch.float64)
        if self.start is not None:
            initial[self.start] = 1.0

        successors, probabilities = self.grid.slippery_moves(slip_probability)
        return TabularBOCMDP(
            reward=Affine(goal_reward, -self.penalty_budget * sparse.vstack(elsewhere)),
            leader_reward=Affine(leader_base, unused),
            transition=SuccessorTransitions(successors, torch.from_numpy(probabilities)),
            initial=initial,
            termination=at_goal,
            discount=discount,
            leader_discount=leader_discount,
            leader_dim=n_states + 1,
            parametrization=Softmax(),  # shares of the budget, (S + 1,)
        )

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """x_0 ~ N(0, 0.01^2) (the published runs' starting point)."""
        return 0.01 * rng.standard_normal(self.model.leader_dim)

    def penalties(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The penalty of every cell, ``(S,)``, for leader parameter x."""
        shares = torch.softmax(self.model.check_leader(x).detach(), 0).numpy()
        return self.penalty_budget * shares[:-1]

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The best leader return known at this lambda (None: 0.001); None at settings other than the published table's."""
        regularization = 0.001 if regularization is None else regularization
        value = BEST_KNOWN.get((regularization, self.penalty_cost))
        if value is None or self._settings != PUBLISHED:
            return None
        return Benchmark(
            value=value,
            objective="leader return, maximised",
            source="best of exact gradient ascent from many starting points, this project",
            regularization=regularization,
            is_optimum=False,
        )

    # observations

    def observe(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self._observations[states] if self._coordinates_observed else states

    def _observe_one(self, state: int) -> Any:
        return self._observations[state].copy() if self._coordinates_observed else state

    def states_of(self, observations: Any) -> Any:
        if not self._coordinates_observed:
            return observations
        cells = np.rint(np.asarray(observations) * self._scale).astype(np.int64)
        return self.grid.index[cells[..., 0], cells[..., 1]]

    # pictures

    def picture(self) -> npt.NDArray[np.uint8]:
        """The grid: penalties as heat, S start, G the context's goal, g the other goals, + the marked cell, and the agent."""
        return self.grid.picture(self._heat(self._episode_leader), self._marks(self._episode_context), self._state)

    def text(self) -> str:
        """The same as characters, without the penalties."""
        return self.grid.text({**self._marks(self._episode_context), self._state: "A"}) + "\n"

    def leader_outlines(self) -> list[npt.NDArray[np.float64]]:
        """The cells, and beneath them a bar for what is not spent."""
        return [*self.grid.outlines(), self.grid.bar()]

    def _marks(self, context: int | None) -> dict[int, str]:
        goals = {goal: "G" if context is None or i == context else "g" for i, goal in enumerate(self.goals)}
        start = {} if self.start is None else {self.start: "S"}
        return {self.waypoint: "+", **start, **goals}

    def _heat(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        penalties = self.penalties(x)
        return penalties / max(penalties.max(), 1e-12) * min(1.0, len(self.grid) * penalties.max() / self.penalty_budget / 4)

    def most_likely_path(self, policy: npt.NDArray[np.float64], context: int) -> list[int]:
        """States from the start (0 if that is anywhere), each the likeliest successor under ``policy`` (S, A).

        It ends at the goal, or before a repetition.
        """
        path = [self.start or 0]
        successors = self.grid.slippery_moves(0.0)[0]
        while path[-1] != self.goals[context] and len(path) <= len(self.grid):
            state = path[-1]
            following = int(successors[state, int(policy[state].argmax()), int(policy[state].argmax())])
            if following in path:
                break
            path.append(following)
        return path

    result_name = "penalty_map"

    def result_figure(self, x: npt.ArrayLike, policies: npt.NDArray[np.float64]) -> Any:
        """A matplotlib figure: the penalty map of x, and per context the most likely path under policies ``(C, S, A)``."""
        from matplotlib.figure import Figure

        n = len(self.goals)
        figure = Figure(figsize=(5.2 * n + 1.0, 5.2), layout="constrained")
        axes = figure.subplots(1, n, squeeze=False)[0]
        for context, ax in enumerate(axes):
            shown = self.draw_result(ax, x, policies, [context])
            ax.set_title(f"context {context}: most likely path to the goal G")
        figure.colorbar(shown, ax=axes, label="penalty per step in the cell", shrink=0.9)
        shares = torch.softmax(self.model.check_leader(x).detach(), 0)
        figure.suptitle(f"Penalties: {self.penalty_budget * (1 - float(shares[-1])):.3f} of {self.penalty_budget:g} spent")
        return figure

    def draw_result(
        self, ax: Any, x: npt.ArrayLike, policies: npt.NDArray[np.float64], contexts: Sequence[int] | None = None
    ) -> Any:
        """Draw the penalty map of x into matplotlib axes, and the most likely paths of ``contexts`` (None: all).

        Returns what a colour bar needs.
        """
        contexts = range(len(self.goals)) if contexts is None else contexts
        penalties = self.penalties(x)
        image = np.full((self.grid.height, self.grid.width), np.nan)
        image[tuple(self.grid.coordinates.T)] = penalties
        ax.set_facecolor("#3a3e48")
        uniform = 4.0 * self.penalty_budget / len(self.grid)  # a budget spread evenly is pale, as in `picture`
        shown = ax.imshow(image, cmap="Reds", vmin=0.0, vmax=max(penalties.max(), uniform))
        for state, mark in self._marks(contexts[0] if len(contexts) == 1 else None).items():
            row, column = self.grid.cells[state]
            ax.text(column, row, mark, ha="center", va="center", color="#0b5d33", fontsize=15, fontweight="bold")
        for context in contexts:
            path = np.array([self.grid.cells[s] for s in self.most_likely_path(policies[context], context)])
            shift = 0.08 * (contexts.index(context) - (len(contexts) - 1) / 2)  # paths that share cells stay apart
            colour = _PATH_COLOURS[context % len(_PATH_COLOURS)]
            ax.plot(path[:, 1] + shift, path[:, 0] + shift, color=colour, linewidth=2.5, alpha=0.85)
        ax.set(xticks=[], yticks=[])
        return shown


def four_rooms_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> TabularVectorEnv:
    """Many copies of `FourRooms` in one compiled environment; keywords as for `FourRooms`."""
    return TabularVectorEnv(FourRooms(**kwargs), num_envs, autoreset_mode)
