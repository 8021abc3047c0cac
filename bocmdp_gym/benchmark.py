"""`Benchmark`: the best value a leader can reach in an environment, and where that is known from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed


@dataclass(frozen=True)
class Benchmark(Constructed):
    """A known optimum, or the best value known.

    Attributes:
        value: the leader's return F(x), or the loss, at the optimum.
        objective: what was optimised, in words.
        source: the formula, computation or publication it comes from.
        regularization: the follower's lambda it holds at; 0.0: the limit lambda -> 0; None: any lambda.
        is_optimum: True for a proven optimum, False for the best value known.
        bound: a proven bound on what any x can reach, where one is known.
        x: a leader parameter that attains it ``(d,)``, where one is known.
        limit: what the value tends to as a discretisation is refined, where that has a formula.
    """

    value: float
    objective: str
    source: str
    regularization: float | None
    is_optimum: bool
    bound: float | None = None
    x: npt.NDArray[np.float64] | None = None
    limit: float | None = None
