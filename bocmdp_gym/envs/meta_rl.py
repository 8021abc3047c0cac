r"""Meta reinforcement learning: the prior policy that serves many tasks best (paper, appendix A).

The mathematics. The leader chooses a prior policy p_x(a|s) = softmax(x[s])_a; a task xi is drawn, and the follower maximises

    E sum_t gamma^t ( r_xi(s_t, a_t) - lambda' KL(pi(.|s_t) || p_x(.|s_t)) )          (lambda' is the paper's lambda / 2)

which is the entropy-regularised problem with reward r_xi + lambda' log p_x and regularization lambda': its optimum is
pi_xi(a|s) proportional to p_x(a|s) exp(Q_xi(s, a) / lambda'). Two objectives of the leader:

    task reward (the paper's)    F(x) = E_xi E sum gamma_L^t r_xi                 rbar = r_xi, the leader's return
    regularised value            G(x) = E_xi E_mu V_xi                            minus `MetaRL.value_loss`

At an optimum of G (gamma_L = gamma) the prior is the average of the followers' policies, weighted by how often they pass:
p(a|s) proportional to E_xi d_xi(s) pi_xi(a|s), with d_xi the discounted visitation.

One step, two actions, task 0 (probability p) pays 1 for action 0, task 1 pays 1 for action 1. With e = exp(1 / lambda') and
x = p_x(action 0), clipped to [0, 1]: G is largest at x = p + (2p - 1) / (e - 1), F at x = (e - q) / ((e - 1)(1 + q)) with
q = sqrt((1 - p) / p).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.errors import OptionError
from bocmdp_gym.grid import Grid
from bocmdp_gym.options import as_list, check_array, check_distribution, check_number
from bocmdp_gym.pictures import INK, PALETTE, Canvas, PicturedEnv, blend
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.tabular_env import TabularVectorEnv
from bocmdp_gym.transitions import SuccessorTransitions

LAYOUT = """
xxxxxxxxxxx
x    x    x
x    x    x
x         x
x    x    x
x    x    x
xxxxxxxxxxx
"""
_FLOOR = 1e-12  # a prior this small counts as 0 where logits are asked for


class MetaRL(PicturedEnv):
    r"""A leader chooses the prior policy that a follower, once told its task, departs from only at a price.

    ## Description
    *Grid* (default): tasks are goals in a gridworld. The prior should lead through what all tasks share (the door between
    two rooms) and keep its options open where they part. *One step* (``rewards`` given): a single choice among actions whose
    reward depends on the task; its optimum is known in closed form. The module docstring has the mathematics.

    **The follower's regularization must be ``kl_weight``**: then its entropy-regularised problem is the KL-regularised one.

    ## Leader parameter
    x in R^(S A), unbounded: the logits of the prior policy, states first (``x.reshape(S, A)``). `initial_leader` draws
    x_0 ~ N(0, 0.01^2): a prior close to uniform.

    ## Context
    ``Discrete(number of tasks)`` with ``task_probabilities``: the task. It is not observed.

    ## Action space
    ``Discrete(4)``: up, right, down, left; with ``slip_probability`` one of the others. One step: ``Discrete(A)``.

    ## Observation space
    ``Discrete(S)``: free cells in reading order. One step: ``Discrete(1)``.

    ## Rewards
    Leader: the task's reward: ``goal_reward`` when acting in a goal, ``step_reward`` in other cells; one step: the entry of
    ``rewards``. Follower: the same plus ``kl_weight * log prior(a|s)``.

    ## Episode start and end
    Starts in ``start``; terminates after acting in a goal of the task; truncated after ``horizon`` steps. One step: terminates
    at once.

    ## Arguments
    kl_weight: lambda' > 0, the price of departing from the prior, per unit of KL divergence.
    rewards: rewards of one-step tasks, ``(tasks, actions)``; None for the grid.
    layout: the rows of the map, ``x`` is a wall.
    start: row and column of the start, counted from 0.
    goals: for each task a cell ``[row, column]``, or a list of cells.
    slip_probability: probability that a move on the grid goes another way than chosen.
    goal_reward: what reaching a goal of the task pays.
    step_reward: what every other step on the grid pays.
    task_probabilities: probabilities of the tasks, P_xi; uniform if None.
    horizon: steps until truncation, or None for no limit.
    discount: the follower's gamma; 1 is allowed where steps cost.
    leader_discount: the leader's gamma_L; None: gamma.
    render_mode: "rgb_array" or "human".

    Raises:
        LayoutError: a cell in a wall or off the grid. OptionError, DiscountError: any other argument out of range.

    ## Version history
    v0: first version.

    Reference: Thoma et al., "Bilevel Optimization with Lower-Level Contextual MDPs", 2024, appendix A; for the random walk with
    discount 1, Todorov, "Linearly-solvable Markov decision problems", 2006.
    """

    def __init__(
        self,
        kl_weight: float = 0.1,
        rewards: Sequence[Sequence[float]] | None = None,
        layout: str | Sequence[str] = LAYOUT,
        start: Sequence[int] = (3, 1),
        goals: Sequence[Any] = ((1, 9), (3, 9), (5, 9)),
        slip_probability: float = 0.0,
        goal_reward: float = 1.0,
        step_reward: float = 0.0,
        task_probabilities: Sequence[float] | None = None,
        horizon: int | None = 200,
        discount: float = 0.95,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        self.kl_weight = check_number("kl_weight", kl_weight, above=0.0)
        self.grid: Grid | None = None
        self.start, self.goals = 0, []
        goal_reward, step_reward = check_number("goal_reward", goal_reward), check_number("step_reward", step_reward)
        slip_probability = check_number("slip_probability", slip_probability, 0.0, 1.0)
        if rewards is None:
            tasks = as_list(goals)
            if not tasks:
                raise OptionError(f"goals is {goals!r}; expected a cell [row, column], or a list of cells, for each task.")
            self.grid = Grid(layout)
            self.start = self.grid.state(start, "start")
            self.goals = [self._goal_states(goal, f"goals[{i}]") for i, goal in enumerate(tasks)]
            paid, ends = self._grid_rewards(goal_reward, step_reward)
            successors, probabilities = self.grid.slippery_moves(slip_probability)
        else:
            paid = torch.from_numpy(check_array("rewards", rewards, (None, None))).unsqueeze(1)
            ends = torch.ones(1, 1, dtype=torch.float64)
            shape = (1, paid.shape[-1], 1)
            successors, probabilities = np.zeros(shape, dtype=np.int32), np.ones(shape)
        n_states, n_actions, _ = successors.shape
        initial = torch.zeros(n_states, dtype=torch.float64)
        initial[self.start] = 1.0
        self.task_reward = paid
        model = TabularBOCMDP(
            reward=lambda x: paid + self.kl_weight * torch.log_softmax(x.reshape(n_states, n_actions), -1),
            leader_reward=paid,
            transition=SuccessorTransitions(successors, torch.from_numpy(probabilities)),
            initial=initial,
            termination=ends,
            context_probabilities=check_distribution("task_probabilities", task_probabilities, len(paid)),
            discount=discount,
            leader_discount=leader_discount,
            leader_dim=n_states * n_actions,
        )
        super().__init__(model, horizon, render_mode)

    def _goal_states(self, goal: Any, name: str) -> list[int]:
        assert self.grid is not None
        entries = as_list(goal)
        cells = entries if entries and as_list(entries[0]) is not None else [goal]
        return [self.grid.state(cell, name) for cell in cells]

    def _grid_rewards(self, goal_reward: float, step_reward: float) -> tuple[Tensor, Tensor]:
        """The tasks' rewards ``(C, S, 1)`` and where their episodes end ``(C, S)``."""
        assert self.grid is not None
        ends = torch.zeros(len(self.goals), len(self.grid), dtype=torch.float64)
        for task, states in enumerate(self.goals):
            ends[task, states] = 1.0
        paid = torch.full_like(ends, step_reward)  # in float64, as torch.where of two floats would not be
        paid[ends > 0] = goal_reward
        return paid.unsqueeze(-1), ends

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """x_0 ~ N(0, 0.01^2): close to the uniform prior."""
        return 0.01 * rng.standard_normal(self.model.leader_dim)

    def prior(self, x: npt.ArrayLike | Tensor) -> npt.NDArray[np.float64]:
        """The prior policy of x, ``(S, A)``."""
        logits = self.model.check_leader(x).detach().reshape(self.model.n_states, self.model.n_actions)
        probabilities: npt.NDArray[np.float64] = torch.softmax(logits, -1).numpy()
        return probabilities

    @staticmethod
    def logits(prior: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """An x ``(S A,)`` whose prior policy is ``prior`` ``(S, A)``, up to probabilities below 1e-12."""
        return np.log(np.maximum(np.array(prior, dtype=np.float64), _FLOOR)).reshape(-1)

    def value_loss(self, x: Tensor, policy: Tensor, context: int | None = None) -> Tensor:
        """Minus the regularised value of a policy: the loss that makes ``leaders.optimize`` maximise G(x).

        Args:
            x: ``(d,)``.
            policy: ``(S, A)``, or ``(C, S, A)`` for all tasks.
            context: the task; None for all of them.

        Returns:
            A scalar, or ``(C,)`` for ``context=None`` (the form `TabularBOCMDP.loss` takes).
        """
        mdps = self.model.configure(x)
        values = mdps.follower_return(policy.expand(self.model.n_contexts, -1, -1), self.kl_weight)
        return -values if context is None else -values[context]

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The largest leader's return F of two opposite one-step tasks, in closed form; None for other tasks.

        It holds at lambda = ``kl_weight``; None at any other.
        """
        return self._closed_form(False) if regularization in (None, self.kl_weight) else None

    def value_benchmark(self) -> Benchmark | None:
        """The largest regularised value G (minus `value_loss`) of two opposite one-step tasks; None for other tasks."""
        return self._closed_form(True)

    def _closed_form(self, of_value: bool) -> Benchmark | None:
        """The closed forms of the module docstring: of G if ``of_value``, else of F."""
        tasks = self.task_reward[:, 0].tolist()
        if self.grid is not None or tasks not in ([[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]):
            return None
        p, other = self.model.context_probabilities  # of the tasks that pay for their first and second action
        if tasks[0][0] == 0.0:
            p, other = other, p
        e = np.exp(1.0 / self.kl_weight)
        if of_value:
            best = p + (2 * p - 1) / (e - 1)
        elif p > 0:
            q = np.sqrt(other / p)
            best = (e - q) / ((e - 1) * (1 + q))
        else:
            best = 0.0
        x = float(np.clip(best, 0.0, 1.0))
        if of_value:
            value = self.kl_weight * (p * np.log(x * e + 1 - x) + other * np.log(x + (1 - x) * e))
        else:
            value = p * x * e / (x * e + 1 - x) + other * (1 - x) * e / (x + (1 - x) * e)
        return Benchmark(
            value=float(value),
            objective="value_loss, negated: the regularised value" if of_value else "leader return, maximised",
            source=f"closed form for two opposite one-step tasks: prior {x:.6g} for the first action",
            regularization=self.kl_weight,
            is_optimum=True,
            x=self.logits([x, 1.0 - x]),
        )

    # pictures

    def leader_outlines(self) -> list[npt.NDArray[np.float64]] | None:
        """In a grid: each cell's quarters towards its neighbours, those of the actions."""
        return None if self.grid is None else self.grid.outlines(actions=True)

    def picture(self) -> npt.NDArray[np.uint8]:
        """Grid: the prior as lines, as long as likely; S start, G the task's goal, g other tasks' goals, the agent.

        One step: per action the prior and the task's optimal answer, as bars.
        """
        context = self._episode_context or 0
        if self.grid is None:
            return self._bars(context)
        marks = {state: "g" for states in self.goals for state in states}
        marks |= {self.start: "S", **dict.fromkeys(self.goals[context], "G")}
        return self.grid.picture(None, marks, self._state, self.prior(self._episode_leader))

    def _bars(self, context: int) -> npt.NDArray[np.uint8]:
        prior = self.prior(self._episode_leader)[0]
        answer = self.model.solve(self._episode_leader, self.kl_weight).policy[context, 0].numpy()
        reward = self.task_reward[context, 0].numpy()
        width, height, base, tall = 120 + 130 * len(prior), 320, 270, 200
        canvas = Canvas(width, height)
        canvas.text(
            (10, 8), f"task {context}   grey: prior, colour: the follower's answer at price {self.kl_weight:g}", anchor="la"
        )
        for action, colour in enumerate(PALETTE[i % len(PALETTE)] for i in range(len(prior))):
            left = 60 + 130 * action
            canvas.rectangle((left, base - tall * prior[action], left + 40, base), (170, 174, 182))
            canvas.rectangle((left + 45, base - tall * answer[action], left + 85, base), colour)
            canvas.text((left + 42, base + 24), f"action {action}: reward {reward[action]:.3g}", colour=blend(INK, colour, 0.7))
        canvas.line((40, base), (width - 40, base), INK)
        return canvas.array()


def meta_rl_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> TabularVectorEnv:
    """Many copies of `MetaRL` in one compiled environment; keywords as for `MetaRL`."""
    return TabularVectorEnv(MetaRL(**kwargs), num_envs, autoreset_mode)
