"""Who gains and who loses between two x: returns of the leader and the follower in every context, before and after.

They are exact where the problem is tabular: those of the follower's optimum at the run's lambda, as ``leader_return`` in the
history. Elsewhere they are those of ``leaders.evaluate``, once it was asked, or else what the iterations themselves sampled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import DamagedError
from bocmdp_gym.optimum import WarmSolver
from followers import TrajectoryOracle
from leaders.contexts import every_context
from leaders.gradients.exact import policy_return
from leaders.report.run_record import RunRecord
from leaders.run_folder import EVALUATION
from leaders.settings import RunSettings

Array = npt.NDArray[np.float64]
#: Sampled returns are averaged over this share of the iterations, the first and the last ones.
_SHARE = 0.1


@dataclass(frozen=True)
class Side:
    """One side's return, before and after; NaN where it is not known. ``*_error``: what is added to and taken from it, or NaN."""

    before: float
    after: float
    before_error: float = float("nan")
    after_error: float = float("nan")

    @property
    def change(self) -> float:
        """What it gained."""
        return self.after - self.before

    @property
    def error(self) -> float:
        """Of the change."""
        return float(np.hypot(self.before_error, self.after_error))

    @property
    def verdict(self) -> str:
        """Whether it gains: "unchanged" where the change is within its error or rounding, "" where it is not known."""
        if not np.isfinite(self.change):
            return ""
        least = self.error if np.isfinite(self.error) else 1e-9 * max(abs(self.before), abs(self.after), 1.0)
        return "unchanged" if abs(self.change) <= least else "gains" if self.change > 0 else "loses"


UNKNOWN = Side(float("nan"), float("nan"))


@dataclass(frozen=True)
class ContextOutcome:
    """One context's outcome: its name, its probability, and both sides."""

    context: str
    probability: float
    leader: Side
    follower: Side = UNKNOWN


@dataclass(frozen=True)
class Outcomes:
    """What changed between two x.

    Attributes:
        contexts: per context; one line for all where contexts are continuous.
        leader, follower: means over contexts.
        source: how the numbers were found.
        policies: of the follower at x0 and x, ``(C, S, A)`` each, where they were asked for and are known.
    """

    contexts: list[ContextOutcome]
    leader: Side
    follower: Side
    source: str
    policies: list[Array] = field(default_factory=list)


def outcomes_of(record: RunRecord, oracle: TrajectoryOracle) -> Outcomes | None:
    """The outcomes of a run; None where nothing is known of them.

    Args:
        record: of the run.
        oracle: its environment and follower.

    Raises:
        DamagedError: its evaluation is damaged.
    """
    exact = exact_outcomes(record.settings, oracle, record.x0, record.x)
    return exact or evaluated_outcomes(record) or _sampled(record, oracle.core)


def exact_outcomes(settings: RunSettings, oracle: TrajectoryOracle, x0: Array, x: Array) -> Outcomes | None:
    """The exact outcomes under the follower's optimum; None without a tabular model of the problem played."""
    if not isinstance(oracle.model, TabularBOCMDP) or oracle.layers.changing is not None:
        return None
    regularization = oracle.follower.regularization or settings.regularization
    solver = WarmSolver()
    before, after = (answers(oracle, x, regularization, solver) for x in (x0, x))
    shares = np.asarray(oracle.model.context_probabilities, dtype=np.float64)
    values = np.stack([before.returns, after.returns])
    lines = [
        ContextOutcome(str(c), float(share), *(Side(*map(float, values[:, side, c])) for side in (0, 1)))
        for c, share in enumerate(shares)
    ]
    leader, follower = (Side(*map(float, values[:, side] @ shares)) for side in (0, 1))
    source = f"Exact values under the follower's optimum at lambda = {regularization:g}; the follower's are regularised."
    pictured = oracle.core.result_name is not None
    return Outcomes(lines, leader, follower, source, [before.policies, after.policies] if pictured else [])


class Answers(NamedTuple):
    """The follower's optimum at one x, in all contexts: its policies ``(C, S, A)``, and both sides' returns ``(2, C)``."""

    returns: Array
    policies: Array


def answers(oracle: TrajectoryOracle, x: Any, regularization: float, solver: WarmSolver) -> Answers:
    """The follower's optimum at x, from the model of a tabular problem; the leader's returns come first, then the follower's."""
    mdps, returns, policies = oracle.configure(x), [], []
    for context in range(mdps.model.n_contexts):
        arrays, solution = mdps.arrays(context), solver.solve(mdps, context, regularization)
        returns.append((policy_return(arrays, solution.policy), float(arrays.initial @ solution.value)))
        policies.append(solution.policy)
    return Answers(np.array(returns).T, np.array(policies))


def evaluated_outcomes(record: RunRecord) -> Outcomes | None:
    """What `leaders.evaluate` measured at the run's x; None where it did not.

    Raises:
        DamagedError: its file is damaged.
    """
    path = record.folder / EVALUATION
    try:
        found = json.loads(path.read_text())
        if found.get("x") != record.x.tolist():
            return None  # of an earlier x
        lines = [_line(before, after) for before, after in zip(found["before"], found["after"], strict=True)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({type(error).__name__}: {error}); run leaders.evaluate again.") from error
    shares = np.array([line.probability for line in lines])
    return Outcomes(
        lines,
        _mean([line.leader for line in lines], shares),
        _mean([line.follower for line in lines], shares),
        "Fresh followers and episodes (leaders.evaluate); ± is the half-width of a 95% interval over episodes.",
    )


def _line(before: Any, after: Any) -> ContextOutcome:
    leader = Side(*(float(one[name]) for name in ("leader_return", "leader_interval") for one in (before, after)))
    follower = Side(*(float(one["follower_value"]) for one in (before, after)))
    return ContextOutcome(str(after["context"]), float(after["probability"]), leader, follower)


def _sampled(record: RunRecord, core: Any) -> Outcomes | None:
    """The leader's returns as the first and the last iterations sampled them."""
    columns = record.history.columns
    if "sampled_return" not in columns or not len(record.history):
        return None
    returns = record.history["sampled_return"]
    every = every_context(core) if "context" in columns else None
    groups = [("all", 1.0, np.arange(len(returns)))]
    if every is not None:
        seen = record.history["context"]
        groups = [(str(context), p, np.flatnonzero(seen == context)) for context, p in every]
    lines = [ContextOutcome(name, p, _ends(returns[rows])) for name, p, rows in groups]
    leader = _mean([line.leader for line in lines], np.array([p for _, p, _ in groups]))
    source = (
        f"The leader's returns as sampled in the first and the last {_SHARE:.0%} of the iterations, ± the standard error; "
        "python -m leaders.evaluate measures both sides with fresh followers and episodes."
    )
    return Outcomes(lines, leader, UNKNOWN, source)


def _ends(returns: Array) -> Side:
    """Means over the first and the last of some returns."""
    returns = returns[np.isfinite(returns)]
    if not len(returns):
        return UNKNOWN
    n = max(1, round(_SHARE * len(returns)))
    first, last = returns[:n], returns[-n:]
    errors = [float(np.std(part, ddof=1) / n**0.5) if n > 1 else float("nan") for part in (first, last)]
    return Side(float(first.mean()), float(last.mean()), *errors)


def _mean(sides: Sequence[Side], shares: Array) -> Side:
    """The mean over contexts of independent outcomes."""
    values = np.array([[side.before, side.after] for side in sides])
    errors = np.array([[side.before_error, side.after_error] for side in sides])
    return Side(*map(float, shares @ values), *map(float, np.sqrt(shares**2 @ errors**2)))
