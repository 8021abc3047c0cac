"""One run of an algorithm in a cell of the table, as a task with a result that can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import bocmdp_gym  # noqa: F401 - registers the environments
from followers import SoftPolicyIteration
from leaders.checkpoints import Checkpoints
from leaders.gradients import MonteCarloEstimator
from leaders.leaders import AMD, HPGD, ExactGradient, Leader, ZeroOrder
from leaders.loop import optimize
from leaders.reproduce.mismatch import MismatchedSimulator
from leaders.reproduce.paper import Cell
from leaders.result import Result

#: How often the exact return is computed; the table's number is the mean of these over the last tenth of a run.
EVALUATE_EVERY = 10
#: Points of a stored learning curve.
_CURVE_POINTS = 200

ALGORITHMS = {
    "hpgd": "HPGD",
    "amd": "AMD",
    "zero-order": "zero-order",
    "literal-amd": "AMD, literal",
}


def task(
    algorithm: str,
    cell: Cell,
    seed: int,
    iterations: int,
    slip_probability: float,
    rates: Mapping[str, float],
    simulator_slip_probability: float | None = None,
    bootstrap_truncated: bool = False,
) -> dict[str, Any]:
    """A run as a JSON-able mapping.

    Args:
        algorithm: one of `ALGORITHMS`.
        cell, seed, iterations: of the run.
        slip_probability: of the model, with which the follower plans and the leader is evaluated.
        rates: "learning_rate", and "smoothing" for zero-order.
        simulator_slip_probability: of the simulator behind HPGD's trajectories, where it shall differ from the model, as it
            did in the published code; None: the same.
        bootstrap_truncated: HPGD continues the episodes its time limit cut.
    """
    return {
        "algorithm": algorithm,
        **cell._asdict(),
        "slip_probability": slip_probability,
        "simulator_slip_probability": simulator_slip_probability,
        "bootstrap_truncated": bootstrap_truncated,
        **rates,
        "iterations": iterations,
        "seed": seed,
    }


#: How a task's settings are abbreviated in its key.
_KEY_NAMES = {
    "regularization": "lambda",
    "penalty_cost": "beta",
    "slip_probability": "slip",
    "simulator_slip_probability": "simulator",
    "bootstrap_truncated": "bootstrap",
    "learning_rate": "rate",
    "smoothing": "C",
    "iterations": "n",
    "threshold": "above",
}


def key(settings: Mapping[str, Any]) -> str:
    """A task's name, and that of its folder: every setting that is set."""
    parts = [settings["algorithm"]]
    for name, value in settings.items():
        if name != "algorithm" and value not in (None, False) and not isinstance(value, (list, tuple)):
            parts.append(f"{_KEY_NAMES.get(name, name)}{value if isinstance(value, str) else format(value, '.4g')}")
    return "-".join(parts)


def make_env(settings: Mapping[str, Any], slip_probability: float) -> gym.Env[Any, Any]:
    """The environment of a task, or its simulator."""
    return gym.make(
        "bocmdp/FourRooms-v0", slip_probability=slip_probability, penalty_cost=settings["penalty_cost"]
    )  # fmt: skip


def make_leader(settings: Mapping[str, Any]) -> Leader:
    """The leader of a task; AMD climbs the gradient its sweeps converge to, the literal one does the sweeps."""
    rate, algorithm = settings["learning_rate"], settings["algorithm"]
    if algorithm == "zero-order":
        return ZeroOrder(rate, settings["smoothing"])
    if algorithm != "hpgd":
        return ExactGradient(rate) if algorithm == "amd" else AMD(rate)
    bootstrap, slip = settings["bootstrap_truncated"], settings["simulator_slip_probability"]
    leader = HPGD(rate, bootstrap_truncated=bootstrap)
    if slip is None:
        return leader
    estimator = MonteCarloEstimator(bootstrap_truncated=bootstrap)
    return Leader(MismatchedSimulator(estimator, make_env(settings, slip)), leader.update)


def play(settings: Mapping[str, Any], **options: Any) -> Result:
    """Run a task; ``options`` go to `leaders.optimize`."""
    return optimize(
        make_env(settings, settings["slip_probability"]),
        make_leader(settings),
        SoftPolicyIteration(settings["regularization"]),
        settings["iterations"],
        seed=settings["seed"],
        evaluate_every=EVALUATE_EVERY,
        progress=False,
        **options,
    )


def run(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run a task; the result as a JSON-able mapping. Only the literal AMD's runs are long enough for checkpoints.

    ``value`` is the mean exact return of the last tenth of the run (the paper's last 1,000 iterations of 10,000), ``curve`` the
    exact return at the iterations of ``iterations``.
    """
    checkpoints = (
        Checkpoints(folder / "checkpoints", fingerprint=dict(settings)) if settings["algorithm"] == "literal-amd" else None
    )
    result = play(settings, checkpoints=checkpoints, resume=checkpoints is not None)
    iterations, returns = result.history["iteration"], result.history["leader_return"]
    known = np.isfinite(returns)
    iterations, returns = iterations[known], returns[known]
    shown = np.unique(np.linspace(0, len(returns) - 1, _CURVE_POINTS).astype(int))
    return {
        "value": float(returns[iterations >= 0.9 * settings["iterations"]].mean()),
        "last": result.leader_return,
        "iterations": iterations[shown].astype(int).tolist(),
        "curve": returns[shown].tolist(),
        "x": result.x.tolist(),
        "env_steps": result.env_steps,
        "seconds": result.seconds,
    }
