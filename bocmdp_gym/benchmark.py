"""`Benchmark`: the best value a leader can reach in an environment, and where that is known from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed, parameters_of


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


def at_defaults(kind: type, settings: Mapping[str, Any]) -> bool:
    """Whether these arguments of a constructor are those it has by default."""
    defaults = {parameter.name: parameter.default for parameter in parameters_of(kind)}
    return all(np.array_equal(value, defaults[name]) for name, value in settings.items())


def best_known(
    kind: type,
    settings: Mapping[str, Any],
    known: Mapping[float, tuple[float, ...]],
    regularization: float | None,
    source: str,
    objective: str = "leader return of the model, maximised",
) -> Benchmark | None:
    """The best leader return that a search has found; None at other settings than the defaults, or another lambda.

    Args:
        kind: the environment's class.
        settings: arguments of its constructor that matter.
        known: by lambda, the usual one first: the value, and then x.
        regularization: lambda; None: the usual one.
        source, objective: as for `Benchmark`.
    """
    regularization = next(iter(known), None) if regularization is None else regularization
    if regularization is None or regularization not in known or not at_defaults(kind, settings):
        return None
    value, *x = known[regularization]
    return Benchmark(value, objective, source, regularization, is_optimum=False, x=np.array(x))
