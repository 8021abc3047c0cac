"""Global search from random starts: many short runs, of which the best continue.

F is not concave, and every run ends in the local optimum whose basin it started in. `multistart` draws starts from a wide normal
distribution, runs them all for a while, keeps the best share, and repeats (successive halving; Jamieson and Talwalkar 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bocmdp_gym import PopulationBOCMDP, TabularBOCMDP, configurable
from bocmdp_gym.arguments import Constructed, known_options
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.options import check_count, check_number
from followers import Follower
from leaders.leaders import Leader
from leaders.loop import optimize
from leaders.result import Result
from leaders.run_arguments import check_options, generator


@dataclass(frozen=True)
class Start(Constructed):
    """One of the starts: where it began, where it stood when it was dropped (or won), and the leader's return there."""

    x0: Tensor
    x: Tensor
    leader_return: float
    iterations: int


@dataclass(frozen=True)
class MultistartResult(Constructed):
    """What a search found.

    Attributes:
        best: the result of the winning start's last round.
        starts: all of them, best first.
        seconds: wall-clock time.
    """

    best: Result
    starts: list[Start]
    seconds: float


_OWN = {
    "x0": "it makes starts of its own, around the environment's (scale=).",
    "evaluate_every": "it looks at the end of each run.",
    **dict.fromkeys(("checkpoints", "resume"), "its runs are short; there are no checkpoints."),
}


@known_options(elsewhere=_OWN, onto=optimize)
def multistart(
    env: gym.Env[Any, Any] | TabularBOCMDP | PopulationBOCMDP,
    leader: Leader,
    follower: Follower,
    iterations: int = 400,
    *,
    starts: int = 32,
    rounds: int = 3,
    keep: float = 0.25,
    scale: float = 3.0,
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> MultistartResult:
    """Search for the best x from random starts.

    Args:
        env, leader, follower, options: as for `optimize`; an `ExactGradient` with Adam and all contexts per iteration is a
            good choice where the model is known.
        iterations: per start and round.
        starts: how many.
        rounds: how often the best are kept and run on; the optimiser starts from scratch in each round.
        keep: the share kept, in (0, 1].
        scale: starts are x_0 + scale * N(0, 1), projected onto a bounded ``leader_space``.
        seed: of starts and runs.
        progress: show a progress bar; None: yes.

    Raises:
        OptionError: a value out of range. UnsupportedError: the environment has no tabular model to compare starts with.
    """
    starts, rounds = check_count("starts", starts), check_count("rounds", rounds)
    iterations = check_count("iterations", iterations)
    keep, scale = check_number("keep", keep, maximum=1.0, above=0.0), check_number("scale", scale, 0.0)
    began = perf_counter()
    check_options(progress=progress)
    rng = generator(seed)
    core: Any = env if isinstance(env, (TabularBOCMDP, PopulationBOCMDP)) else configurable(env)
    space = core.leader_space
    points = []
    for _ in range(starts):
        centre = np.zeros(space.shape) if isinstance(env, (TabularBOCMDP, PopulationBOCMDP)) else core.initial_leader(rng)
        points.append(np.clip(centre + scale * rng.standard_normal(space.shape), space.low, space.high))
    seeds = [int(s) for s in rng.integers(2**63, size=starts)]
    x, done = [torch.tensor(p) for p in points], [0] * starts
    returns = [-np.inf] * starts
    results: list[Result | None] = [None] * starts
    alive = list(range(starts))
    sizes = [max(1, round(starts * keep**r)) for r in range(rounds)]
    with tqdm(total=sum(sizes), unit="run", disable=progress is False) as bar:
        for size in sizes:
            alive = sorted(alive, key=lambda i: -returns[i])[:size]
            for i in alive:
                result = optimize(
                    env, leader, follower, iterations, seed=seeds[i] + done[i], x0=x[i],
                    evaluate_every=iterations, progress=False, **options,
                )  # fmt: skip
                if result.leader_return is None:
                    raise UnsupportedError(
                        "multistart compares starts by the exact leader's return, and this environment has no tabular model; run "
                        "optimize from several x0 and compare with leaders.evaluate."
                    )
                x[i], returns[i], results[i] = result.x, result.leader_return, result
                done[i] += iterations
                bar.update()
            bar.set_postfix_str(f"best leader return {max(returns):.4f}")
    order = sorted(range(starts), key=lambda i: -returns[i])
    winner: Any = results[order[0]]
    ranked = [Start(torch.tensor(points[i]), x[i], returns[i], done[i]) for i in order]
    return MultistartResult(winner, ranked, perf_counter() - began)
