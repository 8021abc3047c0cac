"""Pictures of an income tax: marginal rates over income, and Lorenz curves of what people earn and consume."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.income_tax import IncomeTaxation, Taxation
from bocmdp_gym.inequality import lorenz
from bocmdp_gym.pictures import AGENT, INK, PALETTE, Canvas, Colour

_FRAME: Colour = (200, 200, 200)
_WHITE: Colour = (255, 255, 255)
Array = npt.NDArray[np.float64]


def _steps(people: IncomeTaxation, rates: Array) -> tuple[Array, Array]:
    """The corners of the marginal rates over income, on the range of incomes shown."""
    low, high = _range(people)
    edges = np.clip(np.append(people.brackets, np.inf), low, high)
    return np.repeat(edges, 2)[1:-1], np.repeat(rates, 2)


def _range(people: IncomeTaxation) -> tuple[float, float]:
    """Incomes shown: of all choices of use, and of all brackets."""
    inner = people.brackets[people.brackets > 0.0]
    low, high = 0.5 * people.skills.min(), 2.0 * people.skills.max()
    return float(min(low, 0.8 * inner.min(initial=np.inf))), float(max(high, 1.5 * inner.max(initial=0.0)))


def draw_picture(people: IncomeTaxation, taxation: Taxation, context: int | None, income: float | None) -> npt.NDArray[np.uint8]:
    """Rates and Lorenz curves, in pixels; the person's mean income, or the one it chose, is a disc on the rates."""
    canvas = Canvas(820, 360)
    low, high = _range(people)
    left, right, top, bottom = 60.0, 450.0, 50.0, 310.0

    def place(money: float, rate: float) -> tuple[float, float]:
        return left + (right - left) * np.log(money / low) / np.log(high / low), bottom - (bottom - top) * rate

    canvas.text((left, 24), f"marginal rates; {taxation.rebate:,.0f} handed back to everybody", anchor="lm")
    canvas.rectangle((left, top, right, bottom), _WHITE, _FRAME)
    for rate in (0.0, 0.5, 1.0):
        canvas.text((left - 8, place(low, rate)[1]), f"{rate:.0%}", anchor="rm")
    for power in range(int(np.ceil(np.log10(low))), int(np.floor(np.log10(high))) + 1):
        canvas.text((place(10.0**power, 0.0)[0], bottom + 14), f"{10.0**power:,.0f}")
    canvas.text(((left + right) / 2, bottom + 34), "income")
    for mean in taxation.incomes:
        canvas.line(place(mean, 0.0), place(mean, 0.03), INK, 2)
    money, rates = _steps(people, taxation.rates)
    _path(canvas, [place(m, r) for m, r in zip(money, rates, strict=True)], PALETTE[0])
    if context is not None:
        shown = float(taxation.incomes[context] if income is None else income)
        paid = float(taxation.rates[np.searchsorted(people.brackets, shown, side="right") - 1])
        canvas.disc(place(min(max(shown, low), high), paid), 5, AGENT)

    left2, right2 = 520.0, 780.0

    def share(f: float, held: float) -> tuple[float, float]:
        return left2 + (right2 - left2) * f, bottom - (bottom - top) * held

    canvas.text((left2, 24), "share of all, held by the poorest", anchor="lm")
    canvas.rectangle((left2, top, right2, bottom), _WHITE, _FRAME)
    canvas.line(share(0.0, 0.0), share(1.0, 1.0), _FRAME)
    held = (
        (taxation.incomes, f"income, Gini {taxation.gini_incomes:.2f}", PALETTE[3]),
        (taxation.consumption, f"consumption, Gini {taxation.gini:.2f}", PALETTE[1]),
    )
    for i, (values, name, colour) in enumerate(held):
        _path(canvas, [share(f, h) for f, h in zip(*lorenz(values, people.shares), strict=True)], colour)
        canvas.text((left2 + 10, top + 16 + 18 * i), name, colour=colour, anchor="lm")
    canvas.text((left2, bottom + 14), "0%")
    canvas.text((right2, bottom + 14), "100%")
    canvas.text(((left2 + right2) / 2, bottom + 34), "people, poorest first")
    return canvas.array()


def _path(canvas: Canvas, points: list[tuple[float, float]], colour: Colour) -> None:
    for start, end in pairwise(points):
        canvas.line(start, end, colour, 2)


def draw_rates(axes: Any, people: IncomeTaxation, schedules: Mapping[str, Array]) -> None:
    """Marginal rates over income into matplotlib axes: the last schedule solid, those before it dashed."""
    for i, (name, x) in enumerate(schedules.items(), 1):
        last = i == len(schedules)
        axes.plot(*_steps(people, x), "k-" if last else "--", lw=2.0 if last else 1.2, label=name)
    axes.set(xscale="log", xlabel="income", ylabel="marginal rate", ylim=(0.0, 1.0))


def draw_result(people: IncomeTaxation, before: Taxation, after: Taxation, baselines: Mapping[str, Array]) -> Any:
    """A matplotlib figure: rates beside the baselines', income and consumption of each skill, and Lorenz curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 4.2), layout="constrained")
    rates, money, shares = figure.subplots(1, 3)
    draw_rates(rates, people, {**baselines, "found": after.rates})
    rates.plot(after.incomes, np.zeros(len(after.incomes)), "|", color="k", clip_on=False, label="mean incomes of the skills")
    rates.set_title("rates")
    rates.legend(frameon=False, fontsize=8)
    money.loglog(people.skills, before.incomes, "o:", label="income without taxes")
    money.loglog(people.skills, after.incomes, "s--", label="income")
    money.loglog(people.skills, after.consumption, "o-", label="consumption")
    money.set(xlabel="skill", title=f"{after.rebate:,.0f} handed back to everybody")
    money.legend(frameon=False, fontsize=8)
    shares.plot([0, 1], [0, 1], color="0.8", lw=1)
    shares.plot(*lorenz(before.consumption, people.shares), ":", label=f"without taxes, Gini {before.gini:.3f}")
    shares.plot(*lorenz(after.incomes, people.shares), "--", label=f"income, Gini {after.gini_incomes:.3f}")
    shares.plot(*lorenz(after.consumption, people.shares), label=f"consumption, Gini {after.gini:.3f}")
    shares.set(xlabel="people, poorest first", ylabel="share of all", title="Lorenz curves")
    shares.legend(frameon=False, fontsize=8)
    return figure
