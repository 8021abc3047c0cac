"""Errors of estimated gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("which_estimator")
def _which_estimator(r: dict[str, Any]) -> Iterable[str]:
    problems = r["problems"]

    def cell(problem: dict[str, Any], name: str) -> str:
        if name not in problem["estimators"]:
            return "–"
        one, contexts = problem["estimators"][name], problem["contexts"]
        steps = (one["env_steps"] + one["model_draws"]) / contexts
        used = "model only" if steps == 0 else f"{steps:,.0f} steps"
        error = one["relative_error"]
        said = f"{error:,.0f}" if error >= 10 else f"{error:.2g}"
        seconds = one["seconds"] / contexts
        time = f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
        return f"{said} ({one['cosine']:.2f}; {used}, {time})"

    names = list(dict.fromkeys(name for problem in problems.values() for name in problem["estimators"]))
    rows = [(f"`{name}`", *(cell(problem, name) for problem in problems.values())) for name in names]
    yield from table(("estimator", *(problem["what"] for problem in problems.values())), rows)
    yield ""
    yield (
        "Root mean square error of one estimate at x = 0, relative to the gradient (in brackets: mean cosine of their angle, "
        f"steps and time per context; about {r['steps']:,} steps were asked for); –: cannot work there."
    )
    measured = [
        f"{problem['reference_error']:.1%} ({problem['what']})" for problem in problems.values() if problem["reference_error"] > 0
    ]
    if measured:
        yield f"References from central differences have standard errors of {'; '.join(measured)}."


@stored("monte_carlo_bias")
def _monte_carlo_bias(r: dict[str, Any]) -> Iterable[str]:
    def entry(one: dict[str, float]) -> str:
        return f"{one['error_of_mean']:.3g} ± {one['standard_error_of_mean']:.1g}"

    for where, kinds in r.items():
        yield f"**{where}**"
        yield ""
        columns = list(kinds.values())
        rows = [(f"{row[0]['env_steps']:,}", *map(entry, row)) for row in zip(*columns, strict=True)]
        yield from table(("steps", *(f"error of the mean, {kind}" for kind in kinds)), rows)
        yield ""


@stored("multilevel")
def _multilevel(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            o["levels"],
            f"{o['iterations']:.1f}",
            f"{o['plain_iterations']:.0f}",
            f"{o['relative_variance']:.3g}",
            f"{o['plain_relative_variance']:.3g}",
            f"{o['plain_relative_bias']:.2%}",
            f"{o['deviation_in_standard_errors']:.1f}",
        )
        for o in r["rows"]
    ]
    header = ("K", "iterations", "plain", "relative variance", "plain", "bias of both", "deviation of the means, in s.e.")
    yield from table(header, rows)
    yield ""
    yield f"Iterations grow by {r['iterations_per_level']:.2f} per level."


@stored("adjoint_tables")
def _adjoint_tables(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            f"{o['lambda']:g}, {o['beta']:g}",
            o["x"],
            f"{o['env_steps']:,}",
            o["estimator"],
            f"{o['relative_error']:.2f}",
            f"{o['cosine']:.2f}",
            f"{o['bias']:.2f}",
            f"{1e3 * o['cpu_seconds']:.1f}",
        )
        for o in r["rows"]
        if o["env_steps"] in (1_000, 100_000)
    ]
    yield from table(("λ, β", "where", "steps", "estimator", "relative error", "cosine", "error of the mean", "ms"), rows)


@stored("ppo_directions")
def _ppo_directions(r: dict[str, Any]) -> Iterable[str]:
    def row(values: Iterable[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    rows = []
    for o in r["points"]:
        differences = ", ".join(
            f"{value:.2f} ± {error:.2f}" for value, error in zip(o["differences"], o["standard_errors"], strict=True)
        )
        estimates = [one["told"] for one in o["estimates"]]
        mean = [sum(parts) / len(parts) for parts in zip(*estimates, strict=True)]
        lambdas = sorted(one["lambda"] for one in o["estimates"])
        told, bonus = (f"{min(o['cosines'][kind]):.3f}" for kind in ("told", "bonus"))
        rows.append((row(o["x"]), differences, row(mean), f"{lambdas[0]:.3f} to {lambdas[-1]:.3f}", told, bonus))
    header = ("x", "differences", "critic, mean", "λ told by returns", "least cosine", "at PPO's entropy bonus")
    yield from table(header, rows)
