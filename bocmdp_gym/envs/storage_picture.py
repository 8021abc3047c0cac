"""The picture of a storage problem: levels over bars of what was done, and x between its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.envs.storage import Storage
from bocmdp_gym.pictures import AGENT, INK, PALETTE, Canvas

#: Steps shown, the last ones.
STEPS = 40
_FRAME, _WHITE, _SHADE = (200, 200, 200), (255, 255, 255), (238, 238, 244)


def storage_picture(
    storage: Storage, x: npt.NDArray[np.float64], played: Sequence[tuple[float, int, int]], level: float, context: Any
) -> npt.NDArray[np.uint8]:
    """An episode so far, as an RGB array ``(360, 760, 3)``.

    Args:
        storage: the problem.
        x: the leader parameter.
        played: level, period and action of each step.
        level: the present one.
        context: of the episode.
    """
    canvas = Canvas(760, 360)
    left, right, top, middle, bottom = 60.0, 490.0, 50.0, 230.0, 330.0
    shown, width = played[-STEPS:], (right - left) / STEPS
    canvas.text((left, 26), f"{storage.level_name}, step {len(played)}, context {context}", anchor="lm")
    low_move, high_move = min(0.0, float(storage.moves.min())), max(0.0, float(storage.moves.max()))

    def height(value: float, low: float, high: float, base: float, above: float) -> float:
        return base - (base - above) * (value - low) / (high - low)

    canvas.rectangle((left, top, right, middle), _WHITE, _FRAME)
    canvas.rectangle((left, middle + 20, right, bottom), _WHITE, _FRAME)
    for value in (storage.low, storage.high):
        canvas.text((left - 8, height(value, storage.low, storage.high, middle, top)), f"{value:g}", anchor="rm")
    for value in (low_move, high_move):
        canvas.text((left - 8, height(value, low_move, high_move, bottom, middle + 20)), f"{value:+g}", anchor="rm")
    zero = height(0.0, low_move, high_move, bottom, middle + 20)
    for i, (_, period, action) in enumerate(shown):
        column = left + width * i
        if storage.n_periods > 1 and period == storage.n_periods - 1:
            canvas.rectangle((column, top + 1, column + width, middle - 1), _SHADE)
        tip = height(float(storage.moves[action]), low_move, high_move, bottom, middle + 20)
        colour = PALETTE[1] if tip < zero else PALETTE[0]
        canvas.rectangle((column + 1, min(zero, tip), column + width - 1, max(zero, tip)), colour)
    points = [
        (left + width * i, height(value, storage.low, storage.high, middle, top))
        for i, value in enumerate([*(value for value, _, _ in shown), level])
    ]
    for start, end in pairwise(points):
        canvas.line(start, end, AGENT, 2)
    canvas.disc(points[-1], 4, AGENT)
    space = storage.leader_space
    canvas.text((525, 26), "the leader's choice", anchor="lm")
    for i, (name, value, low, high) in enumerate(zip(storage.leader_names, x, space.low, space.high, strict=True)):
        y = top + 10 + 50.0 * i
        share = (value - low) / (high - low)
        canvas.text((525, y), name, anchor="lm")
        canvas.rectangle((525, y + 12, 690, y + 28), _WHITE, _FRAME)
        canvas.rectangle((525, y + 12, 525 + 165 * share, y + 28), PALETTE[2], INK)
        canvas.text((698, y + 20), f"{value:.2f}", anchor="lm")
    return canvas.array()
