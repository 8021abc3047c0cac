r"""The unregularised follower (lambda = 0), by linear programming; ties are broken in the leader's favour.

The mathematics. V* is the least V with V(s) >= r(s, a) + g(s, a) (P V)(s, a) for every pair, so it solves

    min sum_s V(s)   subject to   V(s) - g(s, a) (P V)(s, a) >= r(s, a).

A policy is optimal in every state if and only if it acts within A*(s) = {a : r + g P V* = V*}, the optimal face. Where that
leaves a choice the leader makes it: the same program with rbar and g_L, over the pairs of A* alone, gives the policy that is
best for the leader, from every state, among all policies that are optimal for the follower.

Both programs are solved by HiGHS to its feasibility tolerance. Its multipliers are the discounted visits of an optimal policy,
which is evaluated exactly by one linear solve and, should any action still be better by more than the tolerance, improved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from bocmdp_gym.errors import ConvergenceError, DamagedError
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import check_count, check_flag, check_number
from bocmdp_gym.saved_state import arrays_by_context
from bocmdp_gym.validation import check_discount
from followers.base import Follower, Task
from followers.evaluation import PolicyValues, evaluate
from followers.policies import Array, TabularPolicy

Actions = npt.NDArray[np.int64]


class LinearProgramming(Follower):
    r"""Maximises its plain return (lambda = 0), and among equally good policies takes the leader's favourite.

    Its policies are deterministic. They jump as x moves, so the leader's return has no derivative: leaders for it are
    `FirstOrder`, whose surrogate has one, and `ZeroOrder`, which smooths.

    Warm start: the context's last policy is tried first, and the programs are solved only where it is no longer optimal. The
    answer does not depend on it, up to actions that tie for both follower and leader.

    Args:
        tolerance: actions whose values differ by less, relative to the rewards and values added up in their state, tie.
        max_iterations: simplex iterations allowed per program; as many as HiGHS needs if None.
        warm_start: try the last policy first.
        discount: gamma, taken from the environment; one that contradicts it is an error.

    Raises:
        OptionError: a value out of range.
        DiscountError: a discount outside [0, 1] (or, when the oracle is made, another than the environment's).
    """

    plans = True
    greedy = True
    exposes_probabilities = True

    def __init__(
        self,
        *,
        tolerance: float = 1e-9,
        max_iterations: int | None = None,
        warm_start: bool = True,
        discount: float | None = None,
    ):
        self.tolerance = check_number("tolerance", tolerance, above=0.0)
        self.max_iterations = None if max_iterations is None else check_count("max_iterations", max_iterations)
        self.warm_start = check_flag("warm_start", warm_start)
        self.discount = None if discount is None else check_discount(discount)
        self._actions: dict[int, Actions] = {}

    def respond(self, task: Task, rng: np.random.Generator) -> TabularPolicy:
        """The optimal policy the leader likes best; ``metrics``: simplex iterations, and max (r + g P V - V).

        Raises:
            ModelError: an array of the model is not finite at this x.
            ConvergenceError: HiGHS found no optimum within its limits.
            DamagedError: `load_state` was given the state of another problem.
        """
        del rng
        mdps, context = task.mdps, task.context
        arrays = mdps.arrays(context)
        if not (np.isfinite(arrays.reward).all() and np.isfinite(arrays.leader_reward).all()):
            mdps.validate()
        program = _Program(arrays, self.tolerance, self.max_iterations)
        start = self._actions.get(context) if self.warm_start else None
        n_states, n_actions = arrays.reward.shape
        if start is not None and (len(start) != n_states or (start < 0).any() or (start >= n_actions).any()):
            raise DamagedError(
                f"the actions saved for context {context} are no policy of {n_states} states and {n_actions} actions."
            )
        available = arrays.available
        actions, value, q = program.solve(arrays.reward, arrays.continuation, available, start)
        slack = program.slack(arrays.reward, arrays.continuation, actions, value)
        face = available & (q >= (value - slack)[:, None])
        if (face.sum(-1) > 1).any():
            actions, _, _ = program.solve(arrays.leader_reward, arrays.leader_continuation, face, start)
        if self.warm_start:
            self._actions[context] = actions
        residual = max(0.0, float((q - value[:, None]).max()))
        table = _deterministic(actions, arrays.reward.shape[1])
        return task.tabular_policy(table, value, follower_iterations=program.iterations, follower_residual=residual)

    def reset(self) -> None:
        self._actions.clear()

    def state(self) -> dict[Any, Any]:
        return dict(self._actions)

    def load_state(self, state: dict[Any, Any]) -> None:
        self._actions = arrays_by_context(state, (-1,), "i")


def plain_optimum(
    arrays: ContextArrays, tolerance: float = 1e-9, max_iterations: int | None = None
) -> tuple[Actions, Array, Array]:
    """Actions ``(S,)``, values ``(S,)`` and Q ``(S, A)`` that are optimal for the follower's plain return (lambda = 0).

    Raises:
        ConvergenceError: HiGHS found no optimum within its limits.
    """
    everything = np.ones(arrays.reward.shape, dtype=np.bool_)
    return _Program(arrays, tolerance, max_iterations).solve(arrays.reward, arrays.continuation, everything, None)


class _Program:
    """Plain MDPs on one context's transitions, with rewards and continuations to be given; counts simplex iterations."""

    def __init__(self, arrays: ContextArrays, tolerance: float, max_iterations: int | None):
        self._arrays, self._tolerance, self._max_iterations = arrays, tolerance, max_iterations
        self._states = np.arange(len(arrays.reward))
        self.iterations = 0

    def slack(self, reward: Array, continuation: Array, actions: Actions, value: Array) -> Array:
        """How far below the best an action's value may be to count as tied, ``(S,)``: in proportion to what is added up there."""
        chosen = (self._states, actions)
        future = self._arrays.expectation(np.abs(value))[chosen]
        level: Array = self._tolerance * (np.abs(reward[chosen]) + continuation[chosen] * future)
        return level

    def solve(
        self, reward: Array, continuation: Array, allowed: npt.NDArray[np.bool_], start: Actions | None
    ) -> tuple[Actions, Array, Array]:
        """Optimal actions ``(S,)`` among the allowed pairs, their values V ``(S,)`` and Q ``(S, A)``.

        ``start`` is returned if it is optimal. Otherwise the program names the actions; improving them then is a formality
        that makes up for HiGHS's feasibility tolerance.
        """
        if start is not None and allowed[self._states, start].all():
            value, q = self._evaluate(reward, continuation, start)
            if not self._better(q, value + self.slack(reward, continuation, start, value), allowed).any():
                return start, value, q
        actions = self._program(reward, continuation, allowed)
        while True:
            value, q = self._evaluate(reward, continuation, actions)
            better = self._better(q, value + self.slack(reward, continuation, actions, value), allowed)
            if not better.any():
                return actions, value, q
            actions = np.where(better, np.where(allowed, q, -np.inf).argmax(-1), actions)

    def _better(self, q: Array, value: Array, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """States in which some allowed action is worth more than ``value``."""
        best: Array = np.where(allowed, q, -np.inf).max(-1)
        return best > value

    def _evaluate(self, reward: Array, continuation: Array, actions: Actions) -> PolicyValues:
        """V and Q of a deterministic policy, exactly."""
        values = evaluate(self._arrays, _deterministic(actions, reward.shape[1]), reward, continuation)
        if not np.isfinite(values.value).all():
            raise ConvergenceError(
                "linear programming met a policy whose values are not finite; check that rewards are of a reasonable size "
                "and the discount is below 1 wherever an episode need not end."
            )
        return values

    def _program(self, reward: Array, continuation: Array, allowed: npt.NDArray[np.bool_]) -> Actions:
        """The linear program; in each state the action whose constraint carries the most weight."""
        arrays = self._arrays
        s, a = np.nonzero(allowed)
        row = arrays.rows[a]
        n_states, width = len(self._states), arrays.stored_probabilities.shape[-1]
        rows = np.repeat(np.arange(len(s)), width)
        inflow = (continuation[s, a, None] * arrays.stored_probabilities[s, row]).reshape(-1)
        columns = arrays.stored_successors[s, row].reshape(-1)
        matrix = coo_array((inflow, (rows, columns)), shape=(len(s), n_states))
        matrix = (matrix - coo_array((np.ones(len(s)), (np.arange(len(s)), s)), shape=matrix.shape)).tocsr()
        unit = float(np.abs(reward[s, a]).max()) or 1.0  # HiGHS's tolerances are absolute
        from scipy.optimize import linprog  # which takes its time to import

        found = linprog(
            np.ones(n_states),
            A_ub=matrix,
            b_ub=-reward[s, a] / unit,
            bounds=(None, None),
            method="highs-ds",
            options={} if self._max_iterations is None else {"maxiter": self._max_iterations},
        )
        self.iterations += int(found.nit)
        if found.status != 0:
            raise ConvergenceError(
                f"the follower's linear program ended without an optimum after {found.nit} iterations: {found.message} "
                "Raise max_iterations, or check that rewards are of a reasonable size."
            )
        weight = np.full(allowed.shape, -1.0)
        weight[s, a] = -found.ineqlin.marginals
        actions: Actions = weight.argmax(-1)
        return actions


def _deterministic(actions: Actions, n_actions: int) -> Array:
    """The table ``(S, A)`` of a policy that always takes ``actions`` ``(S,)``."""
    table: Array = np.eye(n_actions)[actions]
    return table
