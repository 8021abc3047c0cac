"""Evaluate a finished run: ``python -m leaders.evaluate RUN``.

Followers are solved (or trained) from scratch at the x the run found and, for comparison, at the x it started from. Reported, per
context and together: the leader's return with a confidence interval from fresh episodes, what it gained, the follower's value
before and after (who gains, who loses, and the Gini coefficient across contexts), objectives of the contexts' returns (the
run's own, the mean, the worst, and equality times productivity), and the leader's return if the follower's lambda was misjudged.

Intervals. In one context, Student's t over episodes. Together, finitely many contexts are all taken, so only their episodes are
random: variances add, weighted by P_xi squared, with Satterthwaite's degrees of freedom. Continuous contexts are drawn, and one
draw is one observation of F: the interval is Student's t over the contexts' means, which vary with the context and with its
episodes alike. Differences are paired by context. How a follower that learns would have learnt another time enters only through
contexts that are drawn.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import tyro
from scipy.stats import t

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import BOCMDPError, OptionError
from bocmdp_gym.files import write_atomically
from bocmdp_gym.options import as_array, check_count
from followers import Follower, TrajectoryOracle
from followers.evaluation import policy_values
from leaders.contexts import every_context
from leaders.gradients.exact import policy_return
from leaders.objectives import EqualityTimesProductivity, Mean, Min, Objective
from leaders.plots import save
from leaders.run_arguments import generator
from leaders.run_folder import SUMMARY
from leaders.settings import RunSettings, settings_from_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class ContextReport:
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
    """

    context: Any
    probability: float
    leader_return: float
    leader_interval: float
    episodes: int
    exact_leader_return: float | None
    follower_value: float


@dataclass(frozen=True)
class Evaluation:
    """The whole report.

    Attributes:
        after, before: per context, at the x found and at the baseline.
        leader_return, leader_interval: together, at the x found: mean over contexts and its 95% half-width (module docstring).
        leader_gain, gain_interval: the same of the difference to the baseline's, context by context.
        exact_leader_return: exact F(x), None without a tabular model.
        gini_after, gini_before: Gini coefficient of follower values across contexts; None where a value is negative.
        misjudged: the run's objective at the x found by factor on the follower's lambda; empty if the follower has none.
        objectives_after, objectives_before: objectives of the contexts' returns (exact where they are known), by name, the run's
            own first; empty where contexts are drawn.
    """

    after: list[ContextReport]
    before: list[ContextReport]
    leader_return: float
    leader_interval: float
    leader_gain: float
    gain_interval: float
    exact_leader_return: float | None
    gini_after: float | None
    gini_before: float | None
    misjudged: dict[str, float]
    objectives_after: dict[str, float]
    objectives_before: dict[str, float]


def evaluate(
    settings: RunSettings,
    x: npt.ArrayLike,
    baseline: npt.ArrayLike,
    *,
    env_steps: int = 50_000,
    contexts: int = 10,
    seed: int = 1_000_003,
    factors: tuple[float, ...] = (0.5, 1.0, 2.0),
) -> Evaluation:
    """Evaluate x against ``baseline`` under fresh followers of a run's settings.

    Args:
        settings: of the run.
        x, baseline: ``(d,)``.
        env_steps: fresh steps per context and x.
        contexts: how many contexts to draw where they are continuous; finitely many are all taken.
        seed: of contexts and episodes, which draw from generators of their own, held out from the run's.
        factors: on the follower's lambda, for the misjudged-lambda table.

    Raises:
        OptionError: ``env_steps`` or ``contexts`` is not a positive integer.
    """
    env_steps, contexts = check_count("env_steps", env_steps), check_count("contexts", contexts)
    env = settings.make_env()
    core = TrajectoryOracle(env, settings.make_follower()).core
    drawn, sampled = _contexts(core, contexts, generator(seed + 3)), every_context(core) is None
    after = _reports(env, settings.make_follower(), np.asarray(x), drawn, env_steps, seed)
    before = _reports(env, settings.make_follower(), np.asarray(baseline), drawn, env_steps, seed + 1)
    objective = settings.make_objective()
    misjudged = {}
    for factor in factors if settings.make_follower().regularization is not None else ():
        other = settings.make_follower(regularization=settings.regularization * factor)
        reports = _reports(env, other, np.asarray(x), drawn, env_steps, seed + 2)
        misjudged[f"{factor:g}"] = _value(objective, reports)
    env.close()
    exact = [r.exact_leader_return for r in after]
    gains = [a.leader_return - b.leader_return for a, b in zip(after, before, strict=True)]
    return Evaluation(
        after=after,
        before=before,
        leader_return=_mean([r.leader_return for r in after], drawn),
        leader_interval=_spread([r.leader_return for r in after]) if sampled else _pooled(after),
        leader_gain=_mean(gains, drawn),
        gain_interval=_spread(gains) if sampled else _pooled([*after, *before]),
        exact_leader_return=None if None in exact else _mean([e for e in exact if e is not None], drawn),
        gini_after=gini([r.follower_value for r in after], [p for _, p in drawn]),
        gini_before=gini([r.follower_value for r in before], [p for _, p in drawn]),
        misjudged=misjudged,
        objectives_after={} if sampled else _objectives(objective, after),
        objectives_before={} if sampled else _objectives(objective, before),
    )


def gini(values: list[float], weights: list[float]) -> float | None:
    """Gini coefficient: half the mean absolute difference over the mean; None where a value is negative or all are 0."""
    v, w = np.asarray(values), np.asarray(weights) / np.sum(weights)
    if (v < 0).any() or not v.any():
        return None
    return float(w @ np.abs(v[:, None] - v) @ w / (2 * (w @ v)))


def _value(objective: Objective, reports: list[ContextReport]) -> float:
    """An objective of the contexts' returns."""
    return objective.value(np.array([_best(r) for r in reports]), np.array([r.probability for r in reports]))


def _objectives(own: Objective, reports: list[ContextReport]) -> dict[str, float]:
    named = {repr(one): one for one in (own, Mean(), Min(), EqualityTimesProductivity())}
    return {name: _value(one, reports) for name, one in named.items()}


def _best(report: ContextReport) -> float:
    return report.leader_return if report.exact_leader_return is None else report.exact_leader_return


def _mean(values: list[float], drawn: list[tuple[Any, float]]) -> float:
    return float(sum(p * v for v, (_, p) in zip(values, drawn, strict=True)))


def _half_width(error: float, freedom: float) -> float:
    """Half-width of a confidence interval from a standard error with that many degrees of freedom; infinite for none."""
    return float(t.ppf(0.5 + _CONFIDENCE / 2, freedom) * error) if freedom > 0 else float("inf")


def _spread(values: list[float]) -> float:
    """Half-width for the mean of independent draws, one number each."""
    n = len(values)
    return _half_width(float(np.std(values, ddof=1) / n**0.5), n - 1) if n > 1 else float("inf")


def _pooled(reports: list[ContextReport]) -> float:
    """Half-width for a sum over contexts, weighted by their probabilities, each from its own episodes."""
    if any(r.episodes < 2 for r in reports):
        return float("inf")
    n = np.array([r.episodes for r in reports])
    errors = [r.leader_interval / _half_width(1.0, r.episodes - 1) for r in reports]
    variances = (np.array([r.probability for r in reports]) * errors) ** 2
    total = float(variances.sum())
    return _half_width(total**0.5, total**2 / float((variances**2 / (n - 1)).sum())) if total > 0 else 0.0


def _contexts(core: Any, number: int, rng: np.random.Generator) -> list[tuple[Any, float]]:
    every = every_context(core)
    return [(core.sample_context(rng), 1.0 / number) for _ in range(number)] if every is None else every


def _reports(
    env: gym.Env[Any, Any], follower: Follower, x: Any, drawn: list[tuple[Any, float]], env_steps: int, seed: int
) -> list[ContextReport]:
    oracle, rng = TrajectoryOracle(env, follower), generator(seed)
    reports = []
    for context, probability in drawn:
        policy = oracle.respond(x, context, rng)
        batch = oracle.sample(policy, env_steps, rng)
        leader = batch.discounted_returns(oracle.core.leader_discount, leader=True)
        own = batch.discounted_returns(oracle.core.discount)
        exact, value = None, float(own.mean())
        table = policy.table
        unchanged = oracle.layers.changing is None  # else the model is that of another problem
        if isinstance(oracle.model, TabularBOCMDP) and table is not None and unchanged:
            exact, value = _exact_values(oracle, x, context, table, follower.regularization or 0.0)
        reports.append(
            ContextReport(
                context=np.asarray(context).tolist(),
                probability=probability,
                leader_return=float(leader.mean()),
                leader_interval=_spread(leader.tolist()),
                episodes=len(leader),
                exact_leader_return=exact,
                follower_value=value,
            )
        )
    return reports


def _exact_values(oracle: TrajectoryOracle, x: Any, context: int, table: Any, regularization: float) -> tuple[float, float]:
    """The leader's and the follower's exact value of a policy table ``(S, A)``."""
    arrays = oracle.configure(x).arrays(context)
    value = policy_values(arrays, table, regularization).value
    return policy_return(arrays, table), float(arrays.initial @ value)


def report(evaluation: Evaluation) -> str:
    """The evaluation as a table."""
    lines = ["context  probability  leader's return (95%)      exact  follower before -> after"]
    for after, before in zip(evaluation.after, evaluation.before, strict=True):
        exact = "     -" if after.exact_leader_return is None else f"{after.exact_leader_return:6.3f}"
        change = after.follower_value - before.follower_value
        word = "gains" if change > 0 else "loses" if change < 0 else "unchanged"
        lines.append(
            f"{after.context!s:>7}  {after.probability:11.3f}  {after.leader_return:8.4f} +- {after.leader_interval:.4f}"
            f"      {exact}  {before.follower_value:.4f} -> {after.follower_value:.4f} ({word} {abs(change):.4f})"
        )
    exact = "" if evaluation.exact_leader_return is None else f", exact {evaluation.exact_leader_return:.4f}"
    lines.append(f"together: leader's return {evaluation.leader_return:.4f} +- {evaluation.leader_interval:.4f}{exact}")
    lines.append(f"gain over the start: {evaluation.leader_gain:.4f} +- {evaluation.gain_interval:.4f}")
    for name, value in evaluation.objectives_after.items():
        lines.append(f"objective {name} of the contexts' returns: {evaluation.objectives_before[name]:.4f} -> {value:.4f}")
    if evaluation.gini_after is not None and evaluation.gini_before is not None:
        lines.append(f"Gini of follower values: {evaluation.gini_before:.4f} before, {evaluation.gini_after:.4f} after")
    for factor, value in evaluation.misjudged.items():
        lines.append(f"if the follower's lambda is {factor} times what was assumed: leader's return {value:.4f}")
    return "\n".join(lines)


def picture(evaluation: Evaluation) -> Figure:
    """Leader's returns and follower values per context, before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(evaluation.after))
    for offset, label, reports, colour in (
        (-0.2, "before", evaluation.before, "#b9c7dc"),
        (0.2, "after", evaluation.after, "#2668be"),
    ):
        spread = [r.leader_interval for r in reports]
        left.bar(places + offset, [r.leader_return for r in reports], 0.38, yerr=spread, label=label, color=colour, capsize=3)
        right.bar(places + offset, [r.follower_value for r in reports], 0.38, label=label, color=colour)
    for ax, title in ((left, "leader's return (95% interval)"), (right, "follower's value")):
        ax.set(title=title, xlabel="context", xticks=places, xticklabels=[str(r.context) for r in evaluation.after])
        ax.axhline(0.0, color="black", linewidth=0.6)
        ax.legend(frameon=False)
    return figure


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Evaluate a finished run with fresh followers, contexts and episodes."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    env_steps: int = 50_000
    """Fresh environment steps per context."""
    contexts: int = 10
    """Contexts to draw where they are continuous; finitely many are all taken."""
    seed: int = 1_000_003
    """Seed of fresh contexts and episodes; keep it different from the run's."""
    module: str | None = None
    """The module of yours that the run needs; one that the run's summary alone names is never imported."""


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for a run that cannot be evaluated or files that cannot be written."""
    chosen = tyro.cli(EvaluateSettings, args=arguments, prog="python -m leaders.evaluate", description=__doc__)
    try:
        path = chosen.run / SUMMARY
        summary = _read(path)
        settings = settings_from_summary(summary, chosen.module)
        x, x0 = as_array(summary["x"]), as_array(summary["x0"])
        if x is None or x0 is None:
            raise OptionError(f"{path}: x or x0 is not a list of numbers; run the training again.")
        evaluation = evaluate(settings, x, x0, env_steps=chosen.env_steps, contexts=chosen.contexts, seed=chosen.seed)
        print(report(evaluation))
        write_atomically(chosen.run / "evaluation.json", json.dumps(asdict(evaluation), indent=2) + "\n")
        save(picture(evaluation), chosen.run / "evaluation.png")
    except (BOCMDPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _read(path: Path) -> Any:
    """A summary, as JSON.

    Raises:
        OptionError: there is none, or it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise OptionError(f"{path} does not exist; expected the folder of a finished run.") from None
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}; expected the folder of a finished run.") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is damaged ({error}); run the training again.") from error


if __name__ == "__main__":
    sys.exit(main())
