r"""How HPGD leaves the local optimum in which exact ascent ends: noise, or bias?

The Monte-Carlo estimate is the exact gradient plus a bias (finite samples, cut episodes) plus noise. Along a run,
at points before, while and after it leaves, many independent estimates with the run's own budget tell the two apart:

    bias = mean of the estimates - dF/dx,        noise = root mean square distance of an estimate from that mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bocmdp_gym import configurable
from followers import SoftPolicyIteration, TrajectoryOracle
from leaders.leaders import ExactGradient
from leaders.reproduce.runs import EVALUATE_EVERY, make_env, make_leader, play
from leaders.result import Progress


def escape_iteration(iterations: Sequence[int], returns: Sequence[float], threshold: float) -> int | None:
    """The first of ``iterations`` whose return is above ``threshold``; None if the last one's is not."""
    above = np.asarray(returns) > threshold
    return iterations[int(above.argmax())] if above[-1] else None


def anatomy(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Play a task again and measure the estimator's bias and noise around the iteration where the run escapes.

    The task has, beside what `leaders.reproduce.runs.task` gives, ``threshold``, the leader's return that counts as escaped;
    ``offsets``, iterations relative to the escape; and ``estimates``, how many are averaged per point and context.
    """
    points: dict[int, tuple[float, torch.Tensor]] = {}

    def keep(progress: Progress) -> None:
        points[progress.iteration] = progress.record["leader_return"], progress.x.clone()

    play(settings, callback=keep)
    escape = escape_iteration(list(points), [value for value, _ in points.values()], settings["threshold"])
    if escape is None:
        return {"escape": None, "points": []}
    rows = []
    for offset in settings["offsets"]:
        at = min(max(0, escape + offset) // EVALUATE_EVERY * EVALUATE_EVERY, max(points))
        value, x = points[at]
        rows.append({"iteration": at, "leader_return": value, **bias_and_noise(settings, x)})
    return {"escape": escape, "points": rows}


def bias_and_noise(settings: Mapping[str, Any], x: torch.Tensor) -> dict[str, float]:
    """Bias and noise of a task's estimator at x, contexts averaged, relative to the norm of the exact gradient."""
    env = make_env(settings, settings["slip_probability"])
    follower = SoftPolicyIteration(settings["regularization"])
    leader, exact = make_leader(settings), ExactGradient()
    oracle, rng = TrajectoryOracle(env, follower), np.random.default_rng(settings["seed"])
    gradient, bias, bias_variance, noise = torch.zeros_like(x), torch.zeros_like(x), 0.0, 0.0
    for context, probability in enumerate(configurable(env).context_probabilities):
        g = exact.estimate(oracle, x, context, rng)
        draws = torch.stack([leader.estimate(oracle, x, context, rng) for _ in range(settings["estimates"])])
        spread = float(draws.var(0).sum())
        gradient += probability * g
        bias += probability * (draws.mean(0) - g)
        bias_variance += probability**2 * spread / len(draws)
        noise += probability * spread
    size = float(gradient.norm())
    return {
        "gradient_norm": size,
        "bias": float(bias.norm()) / size,
        "bias_of_chance": float(bias_variance**0.5) / size,
        "noise": float(noise**0.5) / size,
        "cosine_of_mean": float(torch.cosine_similarity(gradient + bias, gradient, dim=0)),
    }
