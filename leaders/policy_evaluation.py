"""What an x is worth: returns of leader and follower at one x, from fresh episodes, and exactly where they are known.

Intervals. In one context, Student's t over episodes. Together, finitely many contexts are all taken, so only their episodes are
random: variances add, weighted by P_xi squared, with Satterthwaite's degrees of freedom. Continuous contexts are drawn, and one
draw is one observation: the interval is Student's t over the contexts' means, which vary with the context and with its episodes
alike. How a follower that learns would have learnt another time enters only through contexts that are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit
from torch import Tensor

from bocmdp_gym import TabularBOCMDP, Trajectories
from bocmdp_gym.arguments import Constructed, known_options
from bocmdp_gym.errors import OptionError
from bocmdp_gym.inequality import atkinson, gini
from bocmdp_gym.options import as_array, check_choice, check_count, check_number
from bocmdp_gym.validation import check_leader
from followers import Follower, TrajectoryOracle
from followers.evaluation import policy_values
from leaders.contexts import every_context
from leaders.gradients.exact import policy_return, response_return, values_responses
from leaders.objectives import EqualityTimesProductivity, Mean, Min, Objective, as_objective
from leaders.run_arguments import generator

_CONFIDENCE = 0.95
#: What is reported of the contexts' returns if nothing else is asked for.
OBJECTIVES: tuple[Objective, ...] = (Mean(), Min(), EqualityTimesProductivity())

#: Trajectories to one number per episode, ``(E,)``.
Outcome = Callable[[Trajectories], npt.ArrayLike]


class Interval(NamedTuple):
    """An estimate and the half-width of its 95% confidence interval, infinite where one observation is all there is."""

    mean: float
    half_width: float


class Inequality(NamedTuple):
    """Gini's and Atkinson's index across contexts: 0 if all have the same."""

    gini: float
    atkinson: float


@dataclass(frozen=True)
class ContextReport(Constructed):
    """One context at one x.

    Attributes:
        context: xi; a number, or a list where contexts are continuous.
        probability: P_xi, or 1 / number of contexts drawn.
        leader_return: mean discounted leader return over fresh episodes; ``leader_interval`` its 95% half-width, infinite
            where there was one episode.
        episodes: how many.
        exact_leader_return: the exact value, None without a tabular model.
        follower_value: the follower's value, exact and regularised where the model is tabular, else the mean discounted
            return of the fresh episodes.
        outcomes: the outcomes asked for, by name, with their 95% half-widths.
    """

    context: Any
    probability: float
    leader_return: float
    leader_interval: float
    episodes: int
    exact_leader_return: float | None
    follower_value: float
    outcomes: dict[str, Interval]


@dataclass(frozen=True)
class PolicyEvaluation(Constructed):
    """What `evaluate_policy` found at one x.

    Attributes:
        contexts: per context.
        sampled: whether contexts were drawn, as where there are infinitely many; else all of them were taken.
        leader_return: mean over contexts, with its interval (module docstring).
        exact_leader_return: F(x), None without a tabular model (or another with exact solutions, and an exact follower).
        follower_value: mean over contexts, exact where it is known in each.
        gini: Gini coefficient of follower values across contexts; None where a value is negative.
        objectives: of the contexts' returns (exact where they are known), by name; empty where contexts are drawn.
        outcomes: the outcomes asked for: means over contexts, with their intervals.
        env_steps: steps of the episodes.
        follower_training_steps: steps that the follower used to learn.
    """

    contexts: list[ContextReport]
    sampled: bool
    leader_return: Interval
    exact_leader_return: float | None
    follower_value: float
    gini: float | None
    objectives: dict[str, float]
    outcomes: dict[str, Interval]
    env_steps: int
    follower_training_steps: int

    def inequality(self, outcome: str | None = None, epsilon: float = 1.0) -> Inequality | None:
        """How unequal contexts are, weighted by their probabilities (`bocmdp_gym.inequality`).

        Args:
            outcome: the name of one of ``outcomes``, whose means are compared; None: the follower's values.
            epsilon: aversion to inequality of Atkinson's index, >= 0.

        Returns:
            None where a context's mean is negative, or all are 0.

        Raises:
            OptionError: no such outcome was asked for, or a negative epsilon.
        """
        if outcome is not None:
            check_choice("outcome", outcome, self.outcomes)
        values = [r.follower_value if outcome is None else r.outcomes[outcome].mean for r in self.contexts]
        return inequality_of(values, [r.probability for r in self.contexts], check_number("epsilon", epsilon, 0.0))


@known_options()
def evaluate_policy(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    follower: Follower,
    x: npt.ArrayLike | Tensor,
    *,
    env_steps: int = 50_000,
    contexts: int = 10,
    seed: int | np.random.Generator = 1_000_003,
    objectives: Sequence[Objective] = OBJECTIVES,
    outcomes: Mapping[str, Outcome] | None = None,
) -> PolicyEvaluation:
    """Let a follower answer x in every context, and watch it.

    Args:
        env: a configurable environment, copies of one, or a `TabularBOCMDP`.
        follower: who responds, starting from scratch.
        x: ``(d,)``.
        env_steps: fresh steps per context; the last episode is finished.
        contexts: how many contexts to draw where they are continuous; finitely many are all taken.
        seed: of contexts, responses and episodes.
        objectives: to report of the contexts' returns.
        outcomes: what else to report, by name: functions of trajectories that return one number per episode, such as
            ``{"crashes": lambda batch: batch.terminated}``.

    Raises:
        OptionError: a value out of range, or an outcome that is not one number per episode.
        LeaderParameterError: x has another shape, or is outside ``leader_space``.
    """
    env_steps, contexts = check_count("env_steps", env_steps), check_count("contexts", contexts)
    rng, functions, asked = generator(seed), _check_outcomes(outcomes), _check_objectives(objectives)
    oracle = TrajectoryOracle(env, follower)
    point = check_leader(x, oracle.core.leader_space)
    drawn = draw_contexts(oracle.core, contexts, rng)
    return evaluate_contexts(oracle, point, drawn, env_steps, rng, asked, functions)


def _check_objectives(objectives: Sequence[Objective]) -> list[Objective]:
    if not isinstance(objectives, (list, tuple)):
        raise OptionError(f"objectives is {objectives!r}; expected a list of them, such as [leaders.objectives.Min()].")
    return [as_objective(one) or Mean() for one in objectives]


def _check_outcomes(outcomes: Mapping[str, Outcome] | None) -> Mapping[str, Outcome]:
    if outcomes is None:
        return {}
    if not isinstance(outcomes, Mapping) or not all(isinstance(k, str) and callable(v) for k, v in outcomes.items()):
        raise OptionError(f"outcomes is {outcomes!r}; expected functions of trajectories by name.")
    return outcomes


def draw_contexts(core: Any, number: int, rng: np.random.Generator) -> list[tuple[Any, float]]:
    """All contexts with their probabilities, or ``number`` of them, drawn, where they are not finitely many."""
    every = every_context(core)
    return [(core.sample_context(rng), 1.0 / number) for _ in range(number)] if every is None else every


def evaluate_contexts(
    oracle: TrajectoryOracle,
    x: Any,
    drawn: Sequence[tuple[Any, float]],
    env_steps: int,
    rng: np.random.Generator,
    objectives: Sequence[Objective] = OBJECTIVES,
    outcomes: Mapping[str, Outcome] | None = None,
) -> PolicyEvaluation:
    """`evaluate_policy` in the contexts ``drawn``, with their probabilities (`draw_contexts`)."""
    functions = outcomes or {}
    reports = [_report(oracle, x, context, p, env_steps, rng, functions) for context, p in drawn]
    sampled = every_context(oracle.core) is None
    exact = [r.exact_leader_return for r in reports if r.exact_leader_return is not None]

    def mean(values: Sequence[float]) -> float:
        return float(sum(p * value for (_, p), value in zip(drawn, values, strict=True)))

    def interval(parts: Sequence[Interval]) -> Interval:
        means = [part.mean for part in parts]
        return Interval(mean(means), spread(means) if sampled else pooled(reports, [part.half_width for part in parts]))

    unequal = inequality_of([r.follower_value for r in reports], [r.probability for r in reports])
    return PolicyEvaluation(
        contexts=reports,
        sampled=sampled,
        leader_return=interval([Interval(r.leader_return, r.leader_interval) for r in reports]),
        exact_leader_return=mean(exact) if len(exact) == len(reports) else None,
        follower_value=mean([r.follower_value for r in reports]),
        gini=None if unequal is None else unequal.gini,
        objectives={} if sampled else {repr(one): objective_value(one, reports) for one in objectives},
        outcomes={name: interval([r.outcomes[name] for r in reports]) for name in functions},
        env_steps=oracle.env_steps,
        follower_training_steps=oracle.follower.training_steps,
    )


def _report(
    oracle: TrajectoryOracle,
    x: Any,
    context: Any,
    probability: float,
    env_steps: int,
    rng: np.random.Generator,
    outcomes: Mapping[str, Outcome],
) -> ContextReport:
    policy = oracle.respond(x, context, rng)
    batch = oracle.sample(policy, env_steps, rng)
    leader = batch.discounted_returns(oracle.core.leader_discount, leader=True)
    exact, value = None, float(batch.discounted_returns(oracle.core.discount).mean())
    table = policy.table
    unchanged = oracle.layers.changing is None  # else the model is that of another problem
    if isinstance(oracle.model, TabularBOCMDP) and table is not None and unchanged:
        exact, value = _exact_values(oracle, x, context, table, oracle.follower.regularization or 0.0)
    elif values_responses(oracle) and unchanged:
        exact = response_return(oracle, x, context, policy)
    return ContextReport(
        context=np.asarray(context).tolist(),
        probability=probability,
        leader_return=float(leader.mean()),
        leader_interval=spread(leader.tolist()),
        episodes=len(leader),
        exact_leader_return=exact,
        follower_value=value,
        outcomes={name: _outcome(name, function, batch) for name, function in outcomes.items()},
    )


def _outcome(name: str, function: Outcome, batch: Trajectories) -> Interval:
    found = function(batch)
    values = as_array(found.astype(np.float64) if isinstance(found, np.ndarray) and found.dtype == np.bool_ else found)
    if values is None or values.shape != (batch.n_episodes,) or not np.isfinite(values).all():
        got = "something else" if values is None else f"an array of shape {values.shape}"
        raise OptionError(
            f"outcome {name!r} returned {got}; expected one finite number for each of the {batch.n_episodes} episodes, such as "
            "batch.terminated or batch.discounted_returns(1.0)."
        )
    return Interval(float(values.mean()), spread(values.tolist()))


def _exact_values(oracle: TrajectoryOracle, x: Any, context: int, table: Any, regularization: float) -> tuple[float, float]:
    """The leader's and the follower's exact value of a policy table ``(S, A)``."""
    arrays = oracle.configure(x).arrays(context)
    value = policy_values(arrays, table, regularization).value
    return policy_return(arrays, table), float(arrays.initial @ value)


# ------------------------------------------------------------------------------------------------------------- together


def half_width(error: float, freedom: float) -> float:
    """Half-width of a confidence interval from a standard error with that many degrees of freedom; infinite for none."""
    return float(stdtrit(freedom, 0.5 + _CONFIDENCE / 2) * error) if freedom > 0 else float("inf")


def spread(values: Sequence[float]) -> float:
    """Half-width for the mean of independent draws, one number each."""
    n = len(values)
    return half_width(float(np.std(values, ddof=1) / n**0.5), n - 1) if n > 1 else float("inf")


def pooled(reports: Sequence[ContextReport], half_widths: Sequence[float]) -> float:
    """Half-width for a sum over contexts, weighted by their probabilities, each from its own episodes."""
    if any(r.episodes < 2 for r in reports):
        return float("inf")
    n = np.array([r.episodes for r in reports])
    errors = [width / half_width(1.0, r.episodes - 1) for r, width in zip(reports, half_widths, strict=True)]
    variances = (np.array([r.probability for r in reports]) * errors) ** 2
    total = float(variances.sum())
    return half_width(total**0.5, total**2 / float((variances**2 / (n - 1)).sum())) if total > 0 else 0.0


def inequality_of(values: Sequence[float], weights: Sequence[float], epsilon: float = 1.0) -> Inequality | None:
    """Both indices of what contexts have; None where a value is negative or not finite, or all are 0."""
    v = np.asarray(values)
    if not (np.isfinite(v).all() and (v >= 0.0).all() and np.asarray(weights) @ v > 0.0):
        return None
    return Inequality(gini(values, weights), atkinson(values, epsilon, weights))


def objective_value(objective: Objective, reports: Sequence[ContextReport]) -> float:
    """An objective of the contexts' returns, exact where they are known."""
    returns = [r.leader_return if r.exact_leader_return is None else r.exact_leader_return for r in reports]
    return objective.value(np.array(returns), np.array([r.probability for r in reports]))
