"""Estimators by name: what `HPGD` and ``--estimator`` of the command line offer. `register_estimator` adds yours."""

from __future__ import annotations

import inspect
import re

from bocmdp_gym.errors import OptionError
from leaders.gradients.automatic import AutoEstimator
from leaders.gradients.base import Estimator
from leaders.gradients.critic import CriticEstimator
from leaders.gradients.geometric import GeometricEstimator
from leaders.gradients.monte_carlo import MonteCarloEstimator
from leaders.gradients.multilevel import MultilevelEstimator
from leaders.gradients.pooled import PooledEstimator
from leaders.gradients.td import TDEstimator

#: All of them, by name.
ESTIMATORS: dict[str, type[Estimator]] = {
    "auto": AutoEstimator,
    "monte_carlo": MonteCarloEstimator,
    "pooled": PooledEstimator,
    "td": TDEstimator,
    "geometric": GeometricEstimator,
    "critic": CriticEstimator,
    "multilevel": MultilevelEstimator,
}


def add_estimator(name: str, kind: type[Estimator]) -> None:
    """Put an estimator into `ESTIMATORS`.

    Raises:
        OptionError: a name that is taken, or has another form; or something that is no class of estimators.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise OptionError(f"the estimator's name is {name!r}; expected lower-case words with underscores, as in 'my_own'.")
    if not (inspect.isclass(kind) and issubclass(kind, Estimator)) or inspect.isabstract(kind):
        raise OptionError(f"{name} is {kind!r}; expected a class derived from leaders.gradients.Estimator that has `estimate`.")
    if "regularization" not in inspect.signature(kind).parameters:
        raise OptionError(f"{kind.__name__} takes no regularization; expected an argument of that name, for lambda, or None.")
    if ESTIMATORS.get(name, kind) is not kind:
        raise OptionError(f"another estimator is called {name!r} already; choose another name.")
    ESTIMATORS[name] = kind
