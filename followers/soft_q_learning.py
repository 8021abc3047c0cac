"""Soft Q-learning (paper, Algorithm 4, corrected)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bocmdp_gym.action_mask import check_exist
from bocmdp_gym.errors import DiscountError, OptionError, suggest
from bocmdp_gym.kernels.alias import AliasTables, alias_tables
from bocmdp_gym.options import as_array, check_choice, check_count, check_number
from followers._soft_q_learning_kernels import soft_q_learning
from followers.base import Task
from followers.evaluation import largest_gap, q_values
from followers.iterative import MAX_ITERATIONS, IterativeFollower, Solve
from followers.policies import Array
from followers.softmax import SoftmaxState
from followers.step_sizes import StepSize, check_step_size

BEHAVIOURS = ("softmax", "uniform")
SAMPLINGS = ("trajectory", "pairs")
_NO_PAIRS = np.empty(0, dtype=np.int64)


class SoftQLearning(IterativeFollower):
    r"""Q(s_t, a_t) += alpha_t (r(s_t, a_t) + gamma lambda logsumexp(Q(s_{t+1}, .) / lambda) - Q(s_t, a_t)), from Q = 0.

    It sees one sampled transition per update: along one trajectory of a behaviour policy, begun again in the initial
    distribution where an episode ends (acting then pays r and nothing follows), or at state-action pairs drawn uniformly.
    The policy is softmax(Q / lambda). As a behaviour policy it begins uniform and, where rewards are far above lambda, soon
    repeats what paid first; ``exploration`` keeps it trying. With steps h / (t + t0) the mean squared error is O(log T / T)
    (Proposition E.5), provided the behaviour policy keeps visiting every pair.

    Only its residual, max |r + g P V(Q) - Q|, is read off the model: Q is within 1 / (1 - gamma) times it of Q*. Warm
    starts keep Q and begin the step sizes from scratch.

    Args:
        regularization: lambda > 0.
        iterations: updates per response.
        tolerance: bound on the residual in units of lambda; looked at every ``check_every`` updates.
        behaviour: "softmax" (of the current Q), "uniform", or a table of probabilities ``(S, A)``, or ``(C, S, A)``.
        exploration: probability of a uniformly drawn action instead.
        sampling: "trajectory", or "pairs".
        step_size: a `StepSize`, or a number for a constant one; at most 1. None: `StepSize.visits` with
            h = n0 = 2 / (1 - gamma).
        check_every: updates between two looks at the residual.
        max_iterations, warm_start, discount: see `IterativeFollower`.

    Raises:
        OptionError: an unknown behaviour or sampling, a table that is no policy, or a value out of range; and as
            `IterativeFollower`. On `respond`: a table that does not fit the model.
        DiscountError: on `respond`, if the discount is 1 and step_size is None.
    """

    def __init__(
        self,
        regularization: float,
        *,
        iterations: int | None = None,
        tolerance: float | None = None,
        behaviour: str | npt.ArrayLike = "softmax",
        exploration: float = 0.1,
        sampling: str = "trajectory",
        step_size: StepSize | float | None = None,
        check_every: int = 20_000,
        max_iterations: int = 100 * MAX_ITERATIONS,
        warm_start: bool = True,
        discount: float | None = None,
    ):
        super().__init__(regularization, iterations, tolerance, max_iterations, warm_start, discount)
        self.behaviour: str | Array = check_behaviour(behaviour)
        self.exploration = check_number("exploration", exploration, 0.0, 1.0)
        self.sampling = check_choice("sampling", sampling, SAMPLINGS)
        self.step_size = None if step_size is None else check_step_size(step_size, 1.0)
        self.check_every = check_count("check_every", check_every)

    def _begin(self, task: Task, rng: np.random.Generator, state: Array | None) -> SoftQLearningSolve:
        return SoftQLearningSolve(task, self, rng.bit_generator.random_raw(4), state)

    def policy_gap(self, residual: float, discount: float) -> float:
        return residual / (2.0 * self.regularization * (1.0 - discount)) if discount < 1.0 else np.inf


class _Behaviour(NamedTuple):
    """What the kernel draws actions from: with probability ``fixed`` a row of the tables, else softmax(Q / lambda)."""

    tables: AliasTables  # (S, A, 2)
    fixed: float


class SoftQLearningSolve(Solve):
    """Updates from sampled transitions; see `SoftQLearning`."""

    name = "soft Q-learning"

    def __init__(self, task: Task, settings: SoftQLearning, rng_state: npt.NDArray[np.uint64], state: Array | None):
        super().__init__(task, settings.regularization)
        self.stride = settings.check_every
        shape = self.arrays.reward.shape
        self._step_size = settings.step_size or _default_step_size(task.discount)
        self._pairs = np.flatnonzero(self.arrays.available) if settings.sampling == "pairs" else _NO_PAIRS
        self._behaviour = _behaviour_tables(settings, self.arrays.available, task.context)
        self._successors = self.arrays.draws.tables
        self._softmax = SoftmaxState.begin(self.arrays, state, self.regularization)
        self._counts: npt.NDArray[np.int64] = np.zeros(shape, dtype=np.int64)
        self._cursor = np.array([-1])
        self._rng = rng_state

    @property
    def state(self) -> Any:
        return self._softmax.kept()

    @property
    def q(self) -> Array:
        """The current Q ``(S, A)`` (a copy), -inf for actions that do not exist."""
        return self._softmax.q.copy()

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Updates of each pair so far, ``(S, A)`` (a copy)."""
        return self._counts.copy()

    def _advance(self, iterations: int, tolerance: float | None) -> int:
        del tolerance
        rule = self._step_size
        bad = soft_q_learning(
            *self._softmax,
            self._counts,
            self.arrays.reward,
            self.arrays.termination,
            self._successors,
            self.arrays.rows,
            self.arrays.starts,
            *self._behaviour,
            self._pairs,
            self.task.discount,
            self.regularization,
            rule.scale,
            -1.0 if rule.offset is None else rule.offset,
            rule.per_pair,
            self.iterations,
            iterations,
            self._cursor,
            self._rng,
        )
        if bad >= 0:
            state, action = divmod(bad, len(self._counts[0]))
            self._diverged(f"at state {state}, action {action}")
        return iterations

    def _assess(self) -> tuple[Array, Array]:
        value = self._softmax.value
        return value, largest_gap(self.arrays, value, q_values(self.arrays, value) - self._softmax.q)

    def _table(self) -> Array:
        return self._softmax.table()


def check_behaviour(behaviour: str | npt.ArrayLike) -> str | Array:
    """A behaviour policy's name, or its table as float64.

    Raises:
        OptionError: an unknown name, or rows that are no distributions.
    """
    if isinstance(behaviour, str):
        if behaviour not in BEHAVIOURS:
            raise OptionError(f"unknown behaviour {behaviour!r}. {suggest(behaviour, BEHAVIOURS)} Or a table (S, A).")
        return behaviour
    table = as_array(behaviour)
    if table is None:
        raise OptionError(f"behaviour is {behaviour!r}; expected a name, or probabilities (S, A) or (C, S, A).")
    if table.ndim not in (2, 3) or not ((table >= 0.0).all() and (np.abs(table.sum(-1) - 1.0) <= 1e-8).all()):
        raise OptionError(
            f"behaviour is an array of shape {table.shape}; expected probabilities (S, A) or (C, S, A), rows that sum to 1."
        )
    return table


def _default_step_size(discount: float) -> StepSize:
    if discount == 1.0:
        raise DiscountError(
            "with discount 1 soft Q-learning has no default step size, 2 / (1 - gamma) being infinite; pass "
            "step_size=StepSize.visits(h), with h about twice the length of an episode."
        )
    return StepSize.visits(2.0 / (1.0 - discount))


def _behaviour_tables(settings: SoftQLearning, available: npt.NDArray[np.bool_], context: int) -> _Behaviour:
    shape = available.shape
    uniform = available / available.sum(-1, keepdims=True)
    table, fixed = uniform, 1.0
    if isinstance(settings.behaviour, str):
        if settings.behaviour == "softmax":
            fixed = settings.exploration
    else:
        given = settings.behaviour
        if given.shape[-2:] != shape or (given.ndim == 3 and len(given) <= context):
            raise OptionError(
                f"the behaviour policy has shape {given.shape}; expected {shape}, or one such table for each context."
            )
        table = given if given.ndim == 2 else given[context]
        check_exist(table, available, f" in context {context}")
        table = settings.exploration * uniform + (1.0 - settings.exploration) * table
    actions = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
    return _Behaviour(alias_tables(table, actions), fixed)
