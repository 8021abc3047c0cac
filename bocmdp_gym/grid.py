"""Gridworlds: reading a layout, moving with slips, drawing. Shared by every grid environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import index as as_index
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from bocmdp_gym.errors import LayoutError
from bocmdp_gym.options import check_number

#: Actions up, right, down, left as (row, column) steps.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
WALL = "x"
CELL_PIXELS = 36
#: Longest side of a picture, in pixels; cells of larger grids are drawn smaller.
PICTURE_PIXELS = 1440


class Grid:
    """The free cells of a rectangular layout, numbered in reading order.

    Args:
        layout: rows of equal length, as a list or as one string with line breaks; ``x`` is a wall, anything else is free.

    Raises:
        LayoutError: rows of different lengths, or no free cell.
    """

    def __init__(self, layout: str | Sequence[str]):
        rows: Any = layout.strip("\n").split("\n") if isinstance(layout, str) else layout
        if not isinstance(rows, Sequence) or not all(isinstance(row, str) for row in rows):
            raise LayoutError(f"layout is {layout!r}; expected a list of strings, or one string with line breaks.")
        rows = list(rows)
        widths = {len(row) for row in rows}
        if len(widths) != 1 or widths == {0}:
            raise LayoutError(f"layout rows have lengths {sorted(widths)}; expected rows of one length, walls written {WALL!r}.")
        self.rows = rows
        self.height, self.width = len(rows), widths.pop()
        free = np.array([[char != WALL for char in row] for row in rows])
        if not free.any():
            raise LayoutError(f"the layout has no free cell: every character is {WALL!r}.")
        self.coordinates = np.argwhere(free)
        #: the state of every cell ``(height, width)``, -1 for walls
        self.index = np.full(free.shape, -1)
        self.index[free] = np.arange(len(self.coordinates))

    @cached_property
    def cells(self) -> list[tuple[int, int]]:
        """(row, column) of every state."""
        return [(i, j) for i, j in self.coordinates.tolist()]

    def scaled(self, factor: int) -> Grid:
        """The grid with ``factor`` x ``factor`` cells in the place of each."""
        return Grid(["".join(char * factor for char in row) for row in self.rows for _ in range(factor)])

    def __len__(self) -> int:
        return len(self.coordinates)

    def state(self, cell: Any, name: str) -> int:
        """The state of a free cell ``[row, column]``.

        Raises:
            LayoutError: a wall, off the grid, or not a pair of integers; ``name`` says whose cell it is.
        """
        try:
            row, column = (as_index(v) for v in cell)
        except (TypeError, ValueError):
            raise LayoutError(f"{name} is {cell!r}; expected [row, column], counted from 0.") from None
        if not (0 <= row < self.height and 0 <= column < self.width):
            raise LayoutError(f"{name} {[row, column]} is off the {self.height} x {self.width} grid.")
        if self.index[row, column] < 0:
            raise LayoutError(f"{name} {[row, column]} lies inside a wall; choose a free cell.")
        return int(self.index[row, column])

    def outlines(self, actions: bool = False) -> list[npt.NDArray[np.float64]]:
        """The corners ``(n, 2)`` of each cell, y upwards; with ``actions``, of its quarters, in the order of MOVES."""
        square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, -1.0], [0.0, -1.0]])  # clockwise from the top left
        middle = square.mean(0)
        parts = [np.stack([square[i], square[(i + 1) % 4], middle]) for i in range(4)] if actions else [square]
        return [part + np.array([column, -row]) for row, column in self.cells for part in parts]

    def bar(self) -> npt.NDArray[np.float64]:
        """The corners ``(4, 2)`` of a bar beneath the grid, for what lies in none of its cells."""
        return np.array([[0.0, -0.5], [self.width, -0.5], [self.width, -1.5], [0.0, -1.5]]) - np.array([0.0, self.height])

    def slippery_moves(self, slip_probability: float) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """Successors and probabilities, each ``(S, 4, 4)``: the chosen direction, or each other with a third of the slip.

        Moving into a wall or off the grid stays.

        Raises:
            OptionError: a slip probability outside [0, 1].
        """
        slip_probability = check_number("slip_probability", slip_probability, 0.0, 1.0)
        surrounded = np.pad(self.index, 1, constant_values=-1)
        neighbours = (self.coordinates[:, None] + np.array(MOVES) + 1).transpose(2, 0, 1)
        targets = surrounded[tuple(neighbours)].astype(np.int32)
        targets = np.where(targets < 0, np.arange(len(self), dtype=np.int32)[:, None], targets)
        probabilities = np.full((4, 4), slip_probability / 3.0)
        np.fill_diagonal(probabilities, 1.0 - slip_probability)
        shape = (len(self), 4, 4)
        return (
            np.ascontiguousarray(np.broadcast_to(targets[:, None, :], shape)),
            np.ascontiguousarray(np.broadcast_to(probabilities, shape)),
        )

    def text(self, marks: dict[int, str]) -> str:
        """The layout as text, with a character at each marked state."""
        canvas = [[WALL if char == WALL else " " for char in row] for row in self.rows]
        for state, mark in marks.items():
            row, column = self.cells[state]
            canvas[row][column] = mark
        return "\n".join("".join(row) for row in canvas)

    def picture(
        self,
        heat: npt.NDArray[np.float64] | None,
        marks: dict[int, str],
        agent: int | None = None,
        arrows: npt.NDArray[np.float64] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """An RGB picture ``(H, W, 3)``: heat in [0, 1] from white to red, a letter at marked states, the agent as a disc.

        ``arrows`` ``(S, 4)``: how likely each action is, drawn as lines from the middle of the cells, as long as likely.
        """
        size = max(1, min(CELL_PIXELS, PICTURE_PIXELS // max(self.height, self.width)))
        image = Image.new("RGB", (self.width * size, self.height * size), (58, 62, 72))
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default(size=max(6.0, size * 0.6))
        for state, (row, column) in enumerate(self.cells):
            box = (column * size + 1, row * size + 1, (column + 1) * size - 1, (row + 1) * size - 1)
            level = 0.0 if heat is None else float(np.clip(heat[state], 0.0, 1.0))
            draw.rectangle(box, fill=(255, int(255 - 200 * level), int(255 - 215 * level)))
            centre = ((column + 0.5) * size, (row + 0.5) * size)
            for (down, right), share in zip(MOVES, () if arrows is None else arrows[state], strict=arrows is not None):
                tip = (centre[0] + 0.46 * size * share * right, centre[1] + 0.46 * size * share * down)
                draw.line((*centre, *tip), fill=(90, 96, 110), width=3)
            if state == agent:
                radius = size * 0.32
                draw.ellipse((*(c - radius for c in centre), *(c + radius for c in centre)), fill=(38, 104, 190))
            if state in marks:
                colour = (255, 255, 255) if state == agent else (20, 110, 60)
                draw.text(centre, marks[state], fill=colour, font=font, anchor="mm")
        return np.asarray(image, dtype=np.uint8)
