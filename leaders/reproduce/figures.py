"""The paper's figures: learning curves (1, 3-10) and penalty maps (2, 11-18)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

import bocmdp_gym
from leaders.reproduce.paper import Cell
from leaders.reproduce.runs import ALGORITHMS
from leaders.reproduce.table import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"hpgd": "#2668be", "amd": "#d65f0e", "zero-order": "#2c8c60", "literal-amd": "#7a5eb4"}


def curves(cell: Cell, found: Sequence[Entry], best: float | None = None) -> Figure:
    """The exact leader's return over outer iterations: mean over seeds, and a band of one standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.subplots()
    for entry in found:
        iterations = np.array(entry.results[0]["iterations"])
        values = np.array([result["curve"] for result in entry.results])
        mean, colour = values.mean(0), COLOURS[entry.algorithm]
        error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros_like(mean)
        ax.plot(iterations, mean, color=colour, label=f"{ALGORITHMS[entry.algorithm]} ({_rates(entry)})")
        ax.fill_between(iterations, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    if best is not None:
        ax.axhline(best, color="#8a8f99", linewidth=1, linestyle="--", label="best known")
    ax.set(xlabel="outer iteration", ylabel="leader's return F(x)", title=title(cell))
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=9)
    return figure


def maps(cell: Cell, found: Sequence[Entry], slip_probability: float) -> Figure:
    """The penalties of each algorithm's best seed, with the most likely path to either goal."""
    from matplotlib.figure import Figure

    core = _environment(cell, slip_probability)
    figure = Figure(figsize=(5.0 * len(found), 5.4), layout="constrained")
    for ax, entry in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        best = max(entry.results, key=lambda result: result["value"])
        policies = core.model.solve(best["x"], cell.regularization).policy.numpy()
        core.draw_result(ax, best["x"], policies)
        spent = core.penalties(best["x"]).sum()
        ax.set_title(f"{ALGORITHMS[entry.algorithm]}: {best['value']:.3f} with {spent:.3f} of {core.penalty_budget:g} spent")
    figure.suptitle(f"{title(cell)}: best seed, penalties (darkest: the map's largest) and most likely paths", fontsize=11)
    return figure


def before_and_after(cell: Cell, x: Sequence[float], slip_probability: float) -> Figure:
    """The picture that explains the problem: most likely paths without penalties, and under x."""
    from matplotlib.figure import Figure

    core = _environment(cell, slip_probability)
    nothing = np.zeros(len(x))
    nothing[-1] = 50.0  # the last entry is the budget left unspent
    figure = Figure(figsize=(10.0, 5.4), layout="constrained")
    for ax, point, name in zip(figure.subplots(1, 2), (nothing, x), ("no penalties", "the leader's penalties"), strict=True):
        core.draw_result(ax, point, core.model.solve(point, cell.regularization).policy.numpy())
        ax.set_title(f"{name}: F = {float(core.model.leader_return(point, cell.regularization)):.2f}")
    return figure


def _environment(cell: Cell, slip_probability: float) -> Any:
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=slip_probability, penalty_cost=cell.penalty_cost)
    return bocmdp_gym.configurable(env)


def title(cell: Cell) -> str:
    """A cell's name in pictures."""
    return f"λ = {cell.regularization:g}, β = {cell.penalty_cost:g}"


def _rates(entry: Entry) -> str:
    text = f"rate {entry.rates['learning_rate']:g}"
    return text + (f", C {entry.rates['smoothing']:g}" if "smoothing" in entry.rates else "")
