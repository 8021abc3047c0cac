r"""Which behaviour can a bonus implement, and what is the best of it? Exact answers on small deterministic problems.

The mathematics. Agents i with rewards r_i maximise sum_t gamma^t (r_i + B), B(s, a) >= 0 the principal's bonus, in an MDP with
deterministic moves s' = T(s, a) and g_i = gamma where agent i's episode continues, else 0. A stationary path tau_i is optimal for
agent i if and only if some V_i satisfies

    V_i(s) >= r_i(s,a) + B(s,a) + g_i(s,a) V_i(T(s,a))   for all (s, a), with equality along tau_i :

V_i is above every value then, and tau_i earns it. All of this is linear in (B, V), and so are a budget on sum B or on the
discounted bonus paid along each path, and participation V_i(s_0) >= outside option. So the principal's optimum under
hard-max agents who break ties in its favour is the largest sum_i p_i (V_P(tau_i) - price * bonus paid) over profiles of paths
whose linear program is feasible; `IncentiveProblem.optimum` tries them from the best.

One agent, a bonus per state and action, a budget on the bonus paid along the path: the least bonus that implements tau is
V_A* - V_A(tau), so OPT = max V_P(tau) subject to V_A* - V_A(tau) <= budget (`IncentiveProblem.single_agent_optimum`). A budget
on sum_{s,a} c(s,a) B(s,a) is the same where every path takes (s, a) with discounted frequency 0 or c(s, a).

Agents who mix. An entropy-regularised agent mixes paths between which it is nearly indifferent, also as lambda -> 0. That
helps the principal only against a budget on the *expected* bonus paid: one agent can then be held indifferent between all
paths, each at its own least bonus, and OPT is the concave envelope, max sum p_k V_P(tau_k) subject to
sum p_k (V_A* - V_A(tau_k)) <= budget (`IncentiveProblem.mixed_optimum`). All other constraints bind B, or values that mixing
does not change, and the best path of a mixture is as good as the mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.options import check_array, check_count, check_distribution, check_flag, check_number
from bocmdp_gym.validation import check_discount

__all__ = ["Implementation", "IncentiveProblem", "Path"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Path(Constructed):
    """What a stationary deterministic policy does from the start.

    Attributes:
        states, actions: in order, each state once.
        loop: index of the state it returns to after its last action; None if the episode ends there.
    """

    _records = True

    states: tuple[int, ...]
    actions: tuple[int, ...]
    loop: int | None

    def visits(self, discount: float, shape: tuple[int, int]) -> Array:
        """Discounted number of times each (state, action) is taken, ``(S, A)``."""
        weights = discount ** np.arange(len(self.states), dtype=np.float64)
        if self.loop is not None:
            weights[self.loop :] /= 1.0 - discount ** (len(self.states) - self.loop)
        visits = np.zeros(shape)
        visits[list(self.states), list(self.actions)] = weights
        return visits


@dataclass(frozen=True)
class Implementation(Constructed):
    """The best profile of paths a bonus can implement.

    Attributes:
        value: the principal's value, the price of the bonus subtracted.
        paths: one per agent.
        bonus: a bonus that implements them, one number per entry (per state, or per state-action pair).
    """

    _records = True

    value: float
    paths: tuple[Path, ...]
    bonus: Array


@dataclass(frozen=True)
class IncentiveProblem(Constructed):
    """A principal and its agents in a deterministic MDP, hard-max agents.

    Attributes:
        rewards: the agents', ``(C, S, A)``.
        principal: the principal's reward, ``(S, A)``.
        successors: T, ``(S, A)``.
        ends: whether agent i's episode ends after acting, ``(C, S)``.
        start: the first state.
        probabilities: of the agents, ``(C,)``.
        entries: which entry of the bonus pays for (s, a), ``(S, A)``.
        budget: bound on the sum of all entries, weighted by ``costs``, or, with ``budget_on_paid``, on the discounted bonus
            paid to each agent.
        costs: of the entries in that sum, ``(n,)``.
        price: what a unit of bonus paid costs the principal.
        outside_option: the value each agent must at least get; None for no such constraint.
        discount, principal_discount: gamma of the agents, of the principal.

    Raises:
        OptionError, DiscountError: a part of a wrong shape, or out of range.
    """

    _records = True

    rewards: Array
    principal: Array
    successors: npt.NDArray[np.int64]
    ends: npt.NDArray[np.bool_]
    start: int
    probabilities: Array
    entries: npt.NDArray[np.int64]
    budget: float
    costs: Array
    budget_on_paid: bool
    price: float
    outside_option: float | None
    discount: float
    principal_discount: float

    def __post_init__(self) -> None:
        """Check every part against the shapes of the successors."""
        for name in ("rewards", "principal", "successors", "ends", "probabilities", "entries", "costs"):
            object.__setattr__(self, name, np.array(getattr(self, name)))
        if np.ndim(self.successors) != 2:
            raise OptionError(f"successors has shape {np.shape(self.successors)}; expected (S, A).")
        (s, a), c = self.shape, len(check_array("probabilities", self.probabilities, (None,)))
        _check_indices("successors", self.successors, (s, a), s)
        _check_indices("ends", self.ends, (c, s), 2)
        _check_indices("entries", self.entries, (s, a), s * a)
        checked: dict[str, Any] = {
            "probabilities": check_distribution("probabilities", self.probabilities, c),
            "rewards": check_array("rewards", self.rewards, (c, s, a)),
            "principal": check_array("principal", self.principal, (s, a)),
            "costs": check_array("costs", self.costs, (int(self.entries.max()) + 1,)),
            "start": check_count("start", self.start, 0, s - 1),
            "budget": check_number("budget", self.budget, 0.0),
            "price": check_number("price", self.price, 0.0),
            "budget_on_paid": check_flag("budget_on_paid", self.budget_on_paid),
            "discount": check_discount(self.discount),
            "principal_discount": check_discount(self.principal_discount, "principal_"),
        }
        if self.outside_option is not None:
            checked["outside_option"] = check_number("outside_option", self.outside_option)
        if (checked["costs"] < 0).any():
            raise OptionError(f"costs are {self.costs.tolist()}; expected numbers of at least 0, one for each entry.")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int]:
        """(S, A)."""
        n_states, n_actions = self.successors.shape
        return n_states, n_actions

    def paths(self, agent: int, limit: int = 20_000) -> list[Path]:
        """All stationary paths of an agent from the start.

        Raises:
            UnsupportedError: more than ``limit``.
        """
        found: list[Path] = []
        stack: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((self.start,), ())]
        while stack:
            states, actions = stack.pop()
            for action, successor in enumerate(self.successors[states[-1]].tolist()):
                done = (*actions, action)
                if self.ends[agent, states[-1]]:
                    found.append(Path(states, done, None))
                elif successor in states:
                    found.append(Path(states, done, states.index(successor)))
                else:
                    stack.append(((*states, successor), done))
            if len(found) > limit:
                raise UnsupportedError(f"there are more than {limit} paths; brute force is for small instances.")
        return found

    def path_value(self, path: Path, reward: Array, discount: float) -> float:
        """Discounted reward ``(S, A)`` along a path."""
        return float((path.visits(discount, self.shape) * reward).sum())

    def single_agent_optimum(self) -> Implementation:
        """The closed form for one agent with a bonus per state and action and a budget on the bonus paid along its path.

        Raises:
            UnsupportedError: a problem of another form.
        """
        paths, cost, value = self._single_agent()
        best = int(np.where(cost <= self.budget + 1e-12, value, -np.inf).argmax())
        bonus = np.zeros(self.entries.size)
        future = self._values(0)
        for s, a in zip(paths[best].states, paths[best].actions, strict=True):
            after = 0.0 if self.ends[0, s] else self.discount * future[self.successors[s, a]]
            bonus[self.entries[s, a]] = future[s] - self.rewards[0, s, a] - after  # minus the advantage
        return Implementation(float(value[best]), (paths[best],), bonus)

    def mixed_optimum(self) -> float:
        """The same for an agent who may mix paths, under a budget on the expected bonus paid: the concave envelope.

        Raises:
            UnsupportedError: a problem of another form.
        """
        _, cost, value = self._single_agent()
        within, beyond = cost <= self.budget, cost > self.budget
        best = float(value[within].max())
        if beyond.any():  # two paths suffice: one within the budget, one beyond it
            share = (self.budget - cost[within]) / (cost[beyond][:, None] - cost[within])
            best = max(best, float(((1 - share) * value[within] + share * value[beyond][:, None]).max()))
        return best

    def _single_agent(self) -> tuple[list[Path], Array, Array]:
        """Paths, their least bonus V_A* - V_A(tau) and their value for the principal, where the closed forms hold."""
        per_pair = len(np.unique(self.entries)) == self.entries.size
        plain = self.price == 0.0 and self.outside_option is None
        if len(self.rewards) == 1 and per_pair and plain:
            paths = self.paths(0)
            visits = np.stack([path.visits(self.discount, self.shape) for path in paths])
            if self.budget_on_paid or np.isclose(visits, np.where(visits > 0, self.costs[self.entries], 0.0)).all():
                own = (visits * self.rewards[0]).sum((1, 2))
                value = np.array([self.path_value(path, self.principal, self.principal_discount) for path in paths])
                return paths, own.max() - own, value
        raise UnsupportedError(
            "the closed forms hold for one agent, a bonus per state and action, a budget on the bonus paid along a path, and "
            "neither price nor outside option; use optimum()."
        )

    def _values(self, agent: int) -> Array:
        """V* of an agent without a bonus, by value iteration."""
        v = np.zeros(self.shape[0])
        for _ in range(100_000):
            following = self.discount * v[self.successors] * ~self.ends[agent][:, None]
            new = (self.rewards[agent] + following).max(1)
            if np.abs(new - v).max() < 1e-14:
                break
            v = new
        return v

    def cheapest_bonus(self, paths: Sequence[Path]) -> tuple[float, Array] | None:
        """The bonus that implements a profile of paths at the least price (of the least sum, at price 0).

        Returns:
            What the principal pays for it, and the bonus by entry; None if no bonus within the budget does.
        """
        n_agents, n_states, n_entries = len(self.rewards), self.shape[0], int(self.entries.max()) + 1
        n_columns = n_entries + n_agents * n_states  # z = (B, V_1, V_2, ...)
        s, a = np.indices(self.shape)
        bellman = np.zeros((n_agents, *self.shape, n_columns))  # r + B + g V(T) - V <= 0, as rows . z <= -r
        equal = np.zeros((n_agents, *self.shape), dtype=np.bool_)
        paid, cost = np.zeros((n_agents, n_columns)), np.zeros(n_columns)
        for agent, path in enumerate(paths):
            first = n_entries + agent * n_states
            bellman[agent, s, a, self.entries] += 1.0
            bellman[agent, s, a, first + s] -= 1.0
            bellman[agent, s, a, first + self.successors] += self.discount * ~self.ends[agent][:, None]
            equal[agent, path.states, path.actions] = True
            np.add.at(paid[agent], self.entries, path.visits(self.discount, self.shape))
            np.add.at(
                cost, self.entries, self.price * self.probabilities[agent] * path.visits(self.principal_discount, self.shape)
            )
        total = np.zeros(n_columns)
        total[:n_entries] = self.costs
        rows, limits = (list(paid), [self.budget] * n_agents) if self.budget_on_paid else ([total], [self.budget])
        if self.outside_option is not None:
            for agent in range(n_agents):
                row = np.zeros(n_columns)
                row[n_entries + agent * n_states + self.start] = -1.0
                rows.append(row)
                limits.append(-self.outside_option)
        from scipy.optimize import linprog  # which takes its time to import

        result = linprog(
            cost if self.price > 0 else total,
            A_ub=np.vstack([bellman[~equal], rows]),
            b_ub=np.concatenate([-self.rewards[~equal], limits]),
            A_eq=bellman[equal],
            b_eq=-self.rewards[equal],
            bounds=[(0, None)] * n_entries + [(None, None)] * (n_columns - n_entries),
        )
        if result.status != 0:
            return None
        bonus = result.x[:n_entries].clip(0.0)
        return float(cost[:n_entries] @ bonus), bonus

    def optimum(self, limit: int = 20_000) -> Implementation:
        """The best profile of paths within the budget, by trying all of them from the best.

        Args:
            limit: number of profiles above which it is refused.

        Raises:
            UnsupportedError: too many profiles, or none that meets the outside option within the budget.
        """
        choices = [self.paths(agent, limit) for agent in range(len(self.rewards))]
        if np.prod([float(len(paths)) for paths in choices]) > limit:
            raise UnsupportedError(f"there are more than {limit} profiles of paths; brute force is for small instances.")
        values = [
            [p * self.path_value(path, self.principal, self.principal_discount) for path in paths]
            for p, paths in zip(self.probabilities, choices, strict=True)
        ]
        profiles = np.array(list(product(*(range(len(paths)) for paths in choices))))
        gross = sum(np.array(value)[profiles[:, agent]] for agent, value in enumerate(values))
        best: Implementation | None = None
        for index in np.argsort(-np.asarray(gross), kind="stable"):
            if best is not None and gross[index] <= best.value:
                break
            paths = tuple(choices[agent][k] for agent, k in enumerate(profiles[index]))
            implemented = self.cheapest_bonus(paths)
            if implemented is not None and (best is None or gross[index] - implemented[0] > best.value):
                best = Implementation(float(gross[index] - implemented[0]), paths, implemented[1])
        if best is None:
            raise UnsupportedError("no bonus within the budget gives every agent its outside option.")
        return best


def _check_indices(name: str, value: Any, shape: tuple[int, ...], n: int) -> None:
    """Check whole numbers, or booleans for n = 2.

    Raises:
        OptionError: another shape or kind, or numbers outside 0..n-1.
    """
    array = np.asarray(value)
    if array.shape != shape or array.dtype.kind not in "biu" or (array < 0).any() or (array >= n).any():
        raise OptionError(f"{name} is {array.dtype} of shape {array.shape}; expected whole numbers in 0..{n - 1}, {shape}.")
