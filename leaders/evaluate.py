"""Evaluate a finished run: ``python -m leaders.evaluate RUN``.

Followers are solved (or trained) from scratch at the x the run found and, for comparison, at the x it started from. Reported, per
context and together: the leader's return with a confidence interval from fresh episodes, what it gained, the follower's value
before and after (who gains, who loses, and how unequal contexts are: the Gini coefficient and Atkinson's index), objectives of
the contexts' returns (the run's own, the mean, the worst, and equality times productivity), and the leader's return if the
follower's lambda was misjudged.

Intervals are those of `leaders.policy_evaluation`; differences are paired by context. In Python, `leaders.evaluate_policy` does
the same for any environment and follower, without a run folder.

The run's report is written again, with what was found. ``--video`` and ``--before`` record the follower at the x found and at the
first one, for the report and beside it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import tyro

from bocmdp_gym.errors import BOCMDPError
from bocmdp_gym.files import write_atomically
from bocmdp_gym.options import check_count
from followers import Follower, TrajectoryOracle
from leaders.plots import save
from leaders.policy_evaluation import (
    OBJECTIVES,
    ContextReport,
    PolicyEvaluation,
    draw_contexts,
    evaluate_contexts,
    objective_value,
    pooled,
    spread,
)
from leaders.report import at_the_end, write_run_report
from leaders.report.run_record import points_of, read_run, read_summary
from leaders.run_arguments import generator
from leaders.run_folder import EVALUATION, EVALUATION_PICTURE, SUMMARY, VIDEO, VIDEO_BEFORE
from leaders.settings import RunSettings, settings_from_summary
from leaders.settings.command_line import read
from leaders.video import film, pictured

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Evaluation:
    """The whole report.

    Attributes:
        after, before: per context, at the x found and at the baseline.
        leader_return, leader_interval: together, at the x found: mean over contexts and its 95% half-width (module docstring).
        leader_gain, gain_interval: the same of the difference to the baseline's, context by context.
        exact_leader_return: exact F(x), None without a tabular model.
        gini_after, gini_before: Gini coefficient of follower values across contexts; None where a value is negative.
        atkinson_after, atkinson_before: Atkinson's index of them, for an aversion to inequality of 1.
        misjudged: the run's objective at the x found by factor on the follower's lambda; empty if the follower has none,
            or meets others who play by theirs.
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
    atkinson_after: float | None
    atkinson_before: float | None
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
    drawn, objective = draw_contexts(core, contexts, generator(seed + 3)), settings.make_objective()

    def at(point: npt.ArrayLike, follower: Follower, number: int) -> PolicyEvaluation:
        oracle = TrajectoryOracle(env, follower)
        return evaluate_contexts(oracle, np.asarray(point), drawn, env_steps, generator(number), (objective, *OBJECTIVES))

    after, before = at(x, settings.make_follower(), seed), at(baseline, settings.make_follower(), seed + 1)
    misjudged = {}
    alone = core.met_regularization is None  # nobody else plays by that lambda
    for factor in factors if alone and settings.make_follower().regularization is not None else ():
        other = settings.make_follower(regularization=settings.regularization * factor)
        misjudged[f"{factor:g}"] = objective_value(objective, at(x, other, seed + 2).contexts)
    env.close()
    gains = [a.leader_return - b.leader_return for a, b in zip(after.contexts, before.contexts, strict=True)]
    both = [*after.contexts, *before.contexts]
    return Evaluation(
        after=after.contexts,
        before=before.contexts,
        leader_return=after.leader_return.mean,
        leader_interval=after.leader_return.half_width,
        leader_gain=float(sum(p * gain for (_, p), gain in zip(drawn, gains, strict=True))),
        gain_interval=spread(gains) if after.sampled else pooled(both, [r.leader_interval for r in both]),
        exact_leader_return=after.exact_leader_return,
        gini_after=after.gini,
        gini_before=before.gini,
        atkinson_after=_atkinson(after),
        atkinson_before=_atkinson(before),
        misjudged=misjudged,
        objectives_after=after.objectives,
        objectives_before=before.objectives,
    )


def _atkinson(evaluation: PolicyEvaluation) -> float | None:
    unequal = evaluation.inequality()
    return None if unequal is None else unequal.atkinson


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
    indices = {
        "Gini": (evaluation.gini_before, evaluation.gini_after),
        "Atkinson's index": (evaluation.atkinson_before, evaluation.atkinson_after),
    }
    for name, (first, last) in indices.items():
        if first is not None and last is not None:
            lines.append(f"{name} of follower values: {first:.4f} before, {last:.4f} after")
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
    video: bool = False
    """Record the follower at the x found, one episode per context, as follower.gif; needs the render mode rgb_array."""
    before: bool = False
    """Record it at the first x, as follower_before.gif."""
    module: str | None = None
    """The module of yours that the run needs; one that the run's summary alone names is never imported."""


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for a run that cannot be evaluated or files that cannot be written."""
    chosen = read(EvaluateSettings, "leaders.evaluate", __doc__, arguments)
    try:
        summary = read_summary(chosen.run)
        settings = settings_from_summary(summary, chosen.module)
        x, x0 = points_of(summary, chosen.run / SUMMARY)
        films = [(x, VIDEO)] * chosen.video + [(x0, VIDEO_BEFORE)] * chosen.before
        if films:
            pictured(settings).close()  # refused before the long work
        evaluation = evaluate(settings, x, x0, env_steps=chosen.env_steps, contexts=chosen.contexts, seed=chosen.seed)
        print(report(evaluation))
        write_atomically(chosen.run / EVALUATION, json.dumps({"x": x.tolist(), **asdict(evaluation)}, indent=2) + "\n")
        save(picture(evaluation), chosen.run / EVALUATION_PICTURE)
        for point, name in films:
            film(settings, point, chosen.run / name, chosen.seed)
        with at_the_end(chosen.run, chosen.module):
            write_run_report(read_run(chosen.run, chosen.module))
    except (BOCMDPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
