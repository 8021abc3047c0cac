"""Beyond the paper: the best x that random starts and exact gradients find in a cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from followers import SoftPolicyIteration
from leaders.global_search import multistart
from leaders.leaders import ExactGradient
from leaders.reproduce.paper import Cell
from leaders.reproduce.runs import make_env


def search_task(cell: Cell, slip_probability: float, seed: int = 0) -> dict[str, Any]:
    """A search as a JSON-able mapping."""
    return {
        "algorithm": "multistart",
        **cell._asdict(),
        "slip_probability": slip_probability,
        "learning_rate": 0.2,
        "optimizer": "Adam",
        "starts": 64,
        "rounds": 4,
        "keep": 0.25,
        "scale": 3.0,
        "iterations": 300,
        "seed": seed,
    }


def search(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run a search; the result as a JSON-able mapping."""
    found = multistart(
        make_env(settings, settings["slip_probability"]),
        ExactGradient(settings["learning_rate"], optimizer=settings["optimizer"]),
        SoftPolicyIteration(settings["regularization"]),
        settings["iterations"],
        contexts="all",
        progress=False,
        **{name: settings[name] for name in ("starts", "rounds", "keep", "scale", "seed")},
    )
    return {
        "value": found.best.leader_return,
        "x": found.best.x.tolist(),
        "starts": [start.leader_return for start in found.starts],
        "seconds": found.seconds,
    }
