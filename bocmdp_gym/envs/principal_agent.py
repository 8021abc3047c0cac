r"""Population principal-agent reward shaping (paper, appendix A).

The mathematics. Agent xi of a population maximises E sum gamma^t (r_xi + B_x)(s_t, a_t); the principal chooses the bonus
B_x >= 0, the same for all agents, to maximise E_xi E sum gamma_L^t (rbar - price * B_x)(s_t, a_t). Two kinds of budget:

    "sum":   sum c B_x <= budget      by construction: B_x = budget * softmax(x) / c, the last share being left unused
    "paid":  E sum gamma^t B_x(s_t, a_t) <= budget for every agent       a constraint, B_x = softplus(x)

In a layered graph c = gamma^n for what is paid in layer n, so that "sum" bounds what any path can be paid; in a grid c = 1.
The second kind of budget, and participation (each agent's E sum gamma^t (r_xi + B_x) >= outside option), depend on the agents'
behaviour: `PrincipalAgent.constraints` states them for a leader. As lambda -> 0 optima tend to those of hard-max agents, which
`bocmdp_gym.incentives` finds exactly on small deterministic instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.errors import DiscountError, UnsupportedError
from bocmdp_gym.grid import Grid
from bocmdp_gym.incentives import IncentiveProblem
from bocmdp_gym.options import check_choice, check_count, check_distribution, check_number
from bocmdp_gym.pictures import AGENT, INK, Canvas, PicturedEnv, blend
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.tabular_env import TabularVectorEnv
from bocmdp_gym.transitions import SuccessorTransitions
from bocmdp_gym.validation import check_discount

Array = npt.NDArray[np.float64]
InstanceName = Literal["layered", "grid"]
BonusOn = Literal["state", "state_action"]
BudgetOn = Literal["sum", "paid"]
INSTANCES, BONUSES, BUDGETS = get_args(InstanceName), get_args(BonusOn), get_args(BudgetOn)


class Instance(NamedTuple):
    """A principal and its agents, before any bonus. Everybody starts in state 0."""

    rewards: Array  # (C, S, A)
    principal: Array  # (S, A)
    successors: npt.NDArray[np.int64]  # (S, A, K)
    probabilities: Array  # (S, A, K)
    ends: npt.NDArray[np.bool_]  # (S,)


class PrincipalAgent(PicturedEnv):
    r"""A principal pays a population of agents for states or actions, within a budget, to change what they do.

    ## Description
    *Layered graph*: from a root, agents choose one of ``n_actions`` edges through ``layers`` layers of ``width`` nodes. Nodes
    have an appeal, uniform on [0, 1]. Agents like edges to appealing nodes (0.7 times the appeal, plus a taste of their own
    of up to 0.3 per edge); the principal gains where they do not go: 1 - appeal in a node. *Grid*: agents walk to one of
    three exits, which they and the principal value differently, and dislike cells differently; walking in circles to collect
    a bonus is possible. Instances are drawn from ``seed``. Constraints that depend on behaviour are `constraints`; a leader
    that is not given them ignores them.

    ## Leader parameter
    ``budget_on="sum"``: x in R^(n+1), B = budget * softmax(x) / c, the last share unused, c = gamma^layer (layered) or 1
    (grid). ``"paid"``: x in R^n, B = softplus(x). n = S (``bonus_on="state"``) or S A (``"state_action"``). `initial_leader`:
    N(0, 0.01^2), around -3 for "paid" (B = 0.05).

    ## Context
    ``Discrete(n_agents)`` with ``agent_probabilities``: which agent acts. It is not observed.

    ## Action space
    Layered: ``Discrete(n_actions)``, the edge. Grid: ``Discrete(4)``: up, right, down, left.

    ## Observation space
    ``Discrete(S)``: the node (the root is 0, then layer by layer) or the free cell in reading order.

    ## Rewards
    Follower: r_xi(s, a) + B_x. Leader: rbar(s, a) - ``price`` * B_x.

    ## Episode start and end
    Starts in the root, or the first free cell. Terminates after acting in the last layer, or in an exit; truncated after
    ``horizon`` steps.

    ## Arguments
    seed: seed that the instance is drawn from.
    instance: a "layered" graph, or a "grid".
    n_agents: size of the population, one context each.
    layers: layers of the layered graph.
    width: nodes per layer of the layered graph.
    n_actions: edges to choose from in each node of the layered graph, at most ``width``.
    size: rows and columns of the grid, at least 3.
    bonus_on: what a bonus is attached to, "state" or "state_action".
    budget: budget of the bonus, > 0.
    budget_on: whether the budget limits the sum of all bonuses ("sum"), or what every agent is expected to be paid ("paid", a
    constraint).
    price: what the principal pays per unit of bonus, at least 0.
    outside_option: value that every agent must at least get, or it would stay away (a constraint); None: no such constraint.
    agent_probabilities: probabilities of the agents, P_xi; uniform if None.
    slip_probability: probability that another node (layered: any, with equal probabilities) or direction (grid) is taken.
    horizon: steps until truncation, or None for no limit.
    discount: the agents' gamma.
    leader_discount: the principal's gamma_L; None: gamma.
    render_mode: "rgb_array" or "human".

    Raises:
        OptionError, DiscountError: an argument out of range.

    ## Version history
    v0: first version.

    References: Thoma et al., "Bilevel Optimization with Lower-Level Contextual MDPs", 2024, appendix A; Ben-Porat et al.,
    "Principal-agent reward shaping in MDPs", 2024; Zhang and Parkes, "Value-based policy teaching with active indirect
    elicitation", 2008.
    """

    def __init__(
        self,
        seed: int = 0,
        instance: InstanceName = "layered",
        n_agents: int = 2,
        layers: int = 3,
        width: int = 3,
        n_actions: int = 2,
        size: int = 5,
        bonus_on: BonusOn = "state_action",
        budget: float = 1.0,
        budget_on: BudgetOn = "sum",
        price: float = 0.0,
        outside_option: float | None = None,
        agent_probabilities: Sequence[float] | None = None,
        slip_probability: float = 0.0,
        horizon: int | None = 200,
        discount: float = 0.95,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        rng = np.random.default_rng(check_count("seed", seed, 0))
        check_choice("instance", instance, INSTANCES)
        self.bonus_on, self.budget_on = check_choice("bonus_on", bonus_on, BONUSES), check_choice("budget_on", budget_on, BUDGETS)
        discount = check_discount(discount)
        self.budget = check_number("budget", budget, above=0.0)
        self.price = check_number("price", price, 0.0)
        self.outside_option = None if outside_option is None else check_number("outside_option", outside_option)
        agents = check_count("n_agents", n_agents)
        self.slip_probability = check_number("slip_probability", slip_probability, 0.0, 1.0)
        self.layers, self.width = check_count("layers", layers), check_count("width", width)
        edges, size = check_count("n_actions", n_actions, 1, self.width), check_count("size", size, 3)
        self.grid: Grid | None = None
        if instance == "grid":
            self.grid = random_grid(size, rng)
            self.instance = grid_instance(self.grid, agents, self.slip_probability, rng)
        else:
            self.instance = layered_instance(self.layers, self.width, edges, agents, self.slip_probability, rng)
        super().__init__(self._make_model(agent_probabilities, discount, leader_discount), horizon, render_mode)

    def _make_model(
        self, agent_probabilities: Sequence[float] | None, discount: float, leader_discount: float | None
    ) -> TabularBOCMDP:
        rewards, principal = torch.from_numpy(self.instance.rewards), torch.from_numpy(self.instance.principal)
        n_agents, n_states, n_actions = rewards.shape
        paid_for = (n_states, n_actions if self.bonus_on == "state_action" else 1)

        weights = torch.from_numpy(self.budget / self._costs(discount)).unsqueeze(-1)

        def bonus(x: Tensor) -> Tensor:
            if self.budget_on == "sum":
                return weights * torch.softmax(x, 0)[:-1].reshape(paid_for)
            return torch.nn.functional.softplus(x).reshape(paid_for)

        self._bonus = bonus
        initial = torch.zeros(n_states, dtype=torch.float64)
        initial[0] = 1.0
        n_entries = paid_for[0] * paid_for[1]
        return TabularBOCMDP(
            reward=lambda b: rewards + b,
            leader_reward=principal.unsqueeze(0) if self.price == 0.0 else lambda b: (principal - self.price * b).unsqueeze(0),
            transition=SuccessorTransitions(self.instance.successors, torch.from_numpy(self.instance.probabilities)),
            initial=initial,
            termination=torch.from_numpy(self.instance.ends[None].astype(np.float64)),
            context_probabilities=check_distribution("agent_probabilities", agent_probabilities, n_agents),
            discount=discount,
            leader_discount=leader_discount,
            leader_dim=n_entries + (self.budget_on == "sum"),
            parametrization=bonus,
        )

    def _costs(self, discount: float) -> Array:
        """What a unit of bonus in each state counts in the sum that the budget bounds, ``(S,)``.

        Raises:
            DiscountError: discount 0 in a layered graph.
        """
        n_states = len(self.instance.ends)
        if self.grid is not None:
            return np.ones(n_states)
        if not discount > 0.0:
            raise DiscountError(f"discount is {discount}; expected more than 0, or agents care for their first step only.")
        layer = 1 + (np.arange(n_states) - 1) // self.width
        return discount ** layer.astype(np.float64)

    def initial_leader(self, rng: np.random.Generator) -> Array:
        """x_0: small noise around equal shares of the budget, or around a small bonus everywhere."""
        return 0.01 * rng.standard_normal(self.model.leader_dim) - (3.0 if self.budget_on == "paid" else 0.0)

    def bonus(self, x: npt.ArrayLike | Tensor) -> Array:
        """The bonus of x, ``(S, A)``."""
        bonus = self._bonus(self.model.check_leader(x).detach())
        table: Array = bonus.expand(self.model.n_states, self.model.n_actions).numpy().copy()
        return table

    # what depends on the agents' behaviour

    def spending(self, x: Any, regularization: float) -> Tensor:
        """E sum gamma^t B_x under each agent's optimum, ``(C,)``, differentiable in x."""
        mdps = self.model.configure(x)
        return mdps.discounted_sum(mdps.solve(regularization).policy, self._bonus(mdps.x))

    def participation(self, x: Any, regularization: float) -> Tensor:
        """Each agent's E sum gamma^t (r_xi + B_x) under its optimum, minus the outside option (0 if None), ``(C,)``.

        Entropy is not counted. Differentiable in x; an agent with a negative number would rather stay away.
        """
        mdps = self.model.configure(x)
        value = mdps.discounted_sum(mdps.solve(regularization).policy, mdps.reward)
        return value - (self.outside_option or 0.0)

    def constraints(self) -> list[dict[str, Any]]:
        """What a principal's choice must satisfy: keywords of ``leaders.Constraint``, one dictionary each.

            leaders.optimize(env, ..., constraints=[leaders.Constraint(**c) for c in core.constraints()])

        The budget on what is paid (``budget_on="paid"``) and participation (``outside_option``); empty if there is neither.

        Raises:
            UnsupportedError: leader_discount differs from discount: leaders discount constraints with their own.
        """
        found: list[dict[str, Any]] = []
        if self.budget_on == "paid":
            found.append({"name": "budget", "outcome": lambda bonus: -bonus.unsqueeze(0), "at_least": -self.budget})
        if self.outside_option is not None:
            found.append({"name": "participation", "outcome": "follower", "at_least": self.outside_option})
        if found and self.leader_discount != self.discount:
            raise UnsupportedError(
                f"the constraints are discounted with the agents' {self.discount}, and leaders discount theirs with "
                f"leader_discount = {self.leader_discount}; leave leader_discount out."
            )
        return found

    # known optima

    def incentives(self) -> IncentiveProblem:
        """The same problem with hard-max agents, for exact answers.

        Raises:
            UnsupportedError: moves are random.
        """
        if self.slip_probability > 0.0:
            raise UnsupportedError("moves are random (slip_probability > 0); exact answers are for deterministic instances.")
        n_states, n_actions = self.instance.principal.shape
        entries = np.arange(n_states * n_actions).reshape(n_states, n_actions)
        assert self.model.context_probabilities is not None
        return IncentiveProblem(
            rewards=self.instance.rewards,
            principal=self.instance.principal,
            successors=self.instance.successors[np.arange(n_states)[:, None], np.arange(n_actions), self._chosen],
            ends=np.broadcast_to(self.instance.ends, (self.model.n_contexts, n_states)),
            start=0,
            probabilities=self.model.context_probabilities,
            entries=entries if self.bonus_on == "state_action" else entries // n_actions,
            budget=self.budget,
            costs=np.repeat(self._costs(self.discount), n_actions if self.bonus_on == "state_action" else 1),
            budget_on_paid=self.budget_on == "paid",
            price=self.price,
            outside_option=self.outside_option,
            discount=self.discount,
            principal_discount=self.leader_discount,
        )

    @property
    def _chosen(self) -> npt.NDArray[np.int64]:
        """The slot of the successor that action a leads to: slot a on a grid, slot 0 in a layered graph."""
        n_actions = self.instance.principal.shape[1]
        return np.arange(n_actions) if self.grid is not None else np.zeros(n_actions, dtype=np.int64)

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The principal's optimum as lambda -> 0, within its constraints: `hard_optimum`; None at any other lambda."""
        return self.hard_optimum() if regularization in (None, 0.0) else None

    def hard_optimum(self, limit: int = 2000) -> Benchmark | None:
        """The principal's optimum as lambda -> 0, within its constraints.

        None where moves are random, no bonus satisfies the constraints, or there are too many paths.

        Args:
            limit: profiles of paths above which brute force is not tried (each may take a linear program).
        """
        if self.slip_probability > 0.0:
            return None
        problem = self.incentives()
        is_optimum = True
        try:
            if self.budget_on == "paid":
                value, source = problem.mixed_optimum(), "closed form: concave envelope of V_P(path) over V_A* - V_A(path)"
            else:
                value, source = problem.single_agent_optimum().value, "closed form: max V_P(path), V_A* - V_A(path) <= budget"
        except UnsupportedError:
            try:
                value, source = problem.optimum(limit).value, "brute force over paths, a linear program for each"
            except UnsupportedError:
                return None
            if self.budget_on == "paid":
                is_optimum, source = False, f"{source}; agents who mix paths may allow more"
        return Benchmark(
            value=value,
            objective="leader return within the constraints, maximised",
            source=f"{source} (bocmdp_gym.incentives)",
            regularization=0.0,
            is_optimum=is_optimum,
        )

    # pictures

    def leader_outlines(self) -> list[Array] | None:
        """In a grid: the cells, or their quarters towards each neighbour, and beneath them a bar for what is not spent."""
        if self.grid is None:
            return None
        outlines = self.grid.outlines(actions=self.bonus_on == "state_action")
        return [*outlines, self.grid.bar()] if self.budget_on == "sum" else outlines

    def picture(self) -> npt.NDArray[np.uint8]:
        """Bonus in red; the principal's rewards in green (layered graph) or as numbers at exits (grid); the agent.

        Layered: an edge is as dark as the context's agent is likely to take it (its optimum at lambda = 0.05).
        """
        bonus = self.bonus(self._episode_leader)
        if self.grid is not None:
            exits = np.flatnonzero(self.instance.ends)
            marks = {0: "S"} | {int(s): str(round(10 * self.instance.principal[s, 0])) for s in exits}
            heat = bonus.max(1)
            return self.grid.picture(heat / max(heat.max(), 1e-12), marks, self._state)
        context = self._episode_context or 0
        policy = self.model.solve(self._episode_leader, 0.05).policy[context].numpy()
        step = 110
        canvas = Canvas(step * (self.layers + 1) + 40, max(step * self.width, 220) + 60)
        middle = (canvas.height + 40) / 2
        rows = (np.arange(self.width) - (self.width - 1) / 2) * step + middle
        places = [(60.0, middle)] + [(60.0 + step * (1 + n), row) for n in range(self.layers) for row in rows]
        top = max(bonus.max(), 1e-12)
        lines = []
        for s, a in np.ndindex(self.model.n_states, self.model.n_actions):
            start = places[s]
            target = (start[0] + 50, start[1] - 25 + 50 * a / max(policy.shape[1] - 1, 1))  # stubs after the last layer
            if not self.instance.ends[s]:
                target = places[int(self.instance.successors[s, a, 0])]
            lines.append((start, target, float(bonus[s, a]) / top, float(policy[s, a])))
        for start, target, share, _ in sorted(lines, key=lambda line: line[2]) if self.bonus_on == "state_action" else ():
            canvas.line(start, target, blend((255, 255, 255), (215, 60, 40), share), 13)
        for start, target, _, likely in sorted(lines, key=lambda line: line[3]):
            canvas.line(start, target, blend((222, 224, 228), AGENT, likely), 1 + 4 * likely)
        for s, place in enumerate(places):
            if self.bonus_on == "state":
                canvas.disc(place, 26, blend((255, 255, 255), (215, 60, 40), bonus[s, 0] / top), (255, 255, 255))
            here = s == self._state
            fill = blend((255, 255, 255), (30, 140, 70), float(self.instance.principal[s, 0]))
            canvas.disc(place, 18, fill, AGENT if here else INK, 4 if here else 1)
            canvas.text(place, f"{self.instance.principal[s, 0]:.1f}", size=12)
        canvas.text((10, 8), f"agent {context}   green: principal's reward   red: bonus, up to {top:.2g}", anchor="la")
        canvas.text((10, 26), "blue: what the agent does", colour=AGENT, anchor="la")
        return canvas.array()


def layered_instance(layers: int, width: int, edges: int, agents: int, slip: float, rng: np.random.Generator) -> Instance:
    """A root and ``layers`` layers of ``width`` nodes; each node has ``edges`` edges to different nodes of the next layer."""
    n_states = 1 + layers * width
    successors = np.zeros((n_states, edges, 1 + width), dtype=np.int64)
    for s in range(n_states - width):
        first = 1 + width * ((s - 1) // width + 1)  # of the next layer
        successors[s, :, 0] = first + rng.permutation(width)[:edges]
        successors[s, :, 1:] = first + np.arange(width)
    probabilities = np.broadcast_to(np.append(1.0 - slip, np.full(width, slip / width)), successors.shape).copy()
    ends = np.arange(n_states) >= n_states - width
    appeal = rng.random(n_states)
    liked = np.where(ends[:, None], 0.0, appeal[successors[..., 0]])  # of the node an edge leads to
    principal = np.repeat(1.0 - appeal[:, None], edges, 1)
    principal[0] = 0.0
    slots = slice(None) if slip > 0.0 else slice(1)
    return Instance(
        rewards=0.7 * liked + 0.3 * rng.random((agents, n_states, edges)),
        principal=principal,
        successors=successors[..., slots],
        probabilities=np.ascontiguousarray(probabilities[..., slots]),
        ends=ends,
    )


def random_grid(size: int, rng: np.random.Generator) -> Grid:
    """A size x size grid with walls in about a fifth of the cells, all free cells connected, the top left one free."""
    while True:
        walls = rng.random((size, size)) < 0.2
        walls[0, 0] = False
        grid = Grid(["".join("x" if wall else " " for wall in row) for row in walls])
        moves = grid.slippery_moves(0.0)[0][:, 0]
        reached, frontier = {0}, [0]
        while frontier:
            new = set(moves[frontier.pop()].tolist()) - reached
            reached |= new
            frontier += new
        if len(reached) == len(grid) >= 4:
            return grid


def grid_instance(grid: Grid, agents: int, slip: float, rng: np.random.Generator) -> Instance:
    """Three exits, valued on [0, 1] by the principal and on [0.5, 1.5] by agents, who pay up to 0.1 for a step in a cell."""
    n_states = len(grid)
    exits = 1 + rng.permutation(n_states - 1)[:3]
    rewards = -0.1 * rng.random((agents, n_states, 1))
    rewards[:, exits, 0] = 0.5 + rng.random((agents, len(exits)))
    principal = np.zeros((n_states, 4))
    principal[exits] = rng.random((len(exits), 1))
    successors, probabilities = grid.slippery_moves(slip)
    return Instance(
        rewards=np.repeat(rewards, 4, 2),
        principal=principal,
        successors=successors.astype(np.int64),
        probabilities=probabilities,
        ends=np.isin(np.arange(n_states), exits),
    )


def principal_agent_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> TabularVectorEnv:
    """Many copies of `PrincipalAgent` in one compiled environment; keywords as for `PrincipalAgent`."""
    return TabularVectorEnv(PrincipalAgent(**kwargs), num_envs, autoreset_mode)
