"""What the paper reports for Four-Rooms (Table 1, Figures 1-18), and the settings behind it."""

from __future__ import annotations

from typing import NamedTuple

from bocmdp_gym.envs import four_rooms


class Cell(NamedTuple):
    """A cell of Table 1: the follower's lambda and the leader's beta, its cost of penalties."""

    regularization: float
    penalty_cost: float


class Published(NamedTuple):
    """A published mean over ten seeds, and its standard error."""

    mean: float
    standard_error: float


class Figures(NamedTuple):
    """Numbers of a cell's figures in the paper: learning curves, and penalty maps."""

    curves: int
    maps: int


CELLS: tuple[Cell, ...] = tuple(Cell(lam, beta) for lam in (0.001, 0.003, 0.005) for beta in (1.0, 3.0, 5.0))


def _per_cell(*values: tuple[float, float]) -> dict[Cell, Published]:
    return {cell: Published(*value) for cell, value in zip(CELLS, values, strict=True)}


#: Table 1, by algorithm.
TABLE_1: dict[str, dict[Cell, Published]] = {
    "hpgd": _per_cell(
        (0.91, 0.088), (0.51, 0.006), (0.46, 0.006),
        (0.95, 0.002), (0.73, 0.001), (0.29, 0.003),
        (1.17, 0.011), (1.01, 0.002), (0.87, 0.003),
    ),
    "amd": _per_cell(
        (0.58, 0.000), (0.51, 0.000), (0.46, 0.003),
        (1.00, 0.000), (0.39, 0.000), (0.32, 0.000),
        (1.28, 0.003), (1.13, 0.004), (0.97, 0.009),
    ),
    "zero-order": _per_cell(
        (0.59, 0.059), (0.50, 0.005), (0.46, 0.007),
        (0.91, 0.048), (0.40, 0.028), (0.32, 0.002),
        (1.15, 0.026), (1.02, 0.027), (0.79, 0.027),
    ),
}  # fmt: skip

#: The best leader's return known at slip probability 0.44.
BEST_KNOWN: dict[Cell, float] = {cell: four_rooms.BEST_KNOWN[cell] for cell in CELLS}

FIGURES: dict[Cell, Figures] = dict(
    zip(CELLS, (Figures(1, 2), *(Figures(3 + i, 11 + i) for i in range(8))), strict=True)
)  # fmt: skip

#: Step sizes among which the paper takes the best, per algorithm and cell.
LEARNING_RATES = (1.0, 0.5, 0.1, 0.05, 0.01)
#: The same for C of the zero-order leader's u_t = C/(t + 1).
SMOOTHINGS = (0.1, 0.5, 1.0, 2.0, 5.0)
#: The slip probability with which the published code plans and evaluates; its simulator, and the text, have 1/3.
PLANNED_SLIP = 0.44
SIMULATED_SLIP = 0.33
TEXT_SLIP = 1 / 3
ITERATIONS = 10_000
SEEDS = tuple(range(10))
#: Seeds of the search for the best step sizes, none of which is reported.
GRID_SEEDS = (1000, 1001)
