r"""Objectives that couple contexts: F = Phi(F_1, ..., F_C) in the place of the mean E_xi F_xi.

The mathematics. F_xi is the leader's return in context xi of probability p_xi, and

    dF/dx = sum_xi (dPhi/dF_xi) dF_xi/dx,

so whatever estimates dF_xi/dx serves every objective: contexts get the weights dPhi/dF_xi in the place of p_xi. Where a run draws
contexts, one drawn with probability p_xi has the weight (dPhi/dF_xi) / p_xi, whose expectation is the same sum.

    `Mean`                          sum_xi p_xi F_xi
    `Min`                           min_xi F_xi
    `CVaR`                          max_t [t - E_xi max(0, t - F_xi) / level]: the mean of the worst share ``level`` of contexts
                                    (Rockafellar and Uryasev 2000)
    `SoftMin`                       -T log E_xi exp(-F_xi / T): tends to the least as T -> 0, to the mean as T -> infinity
    `EqualityTimesProductivity`     (1 - Gini C / (C - 1)) E_xi F_xi (Zheng et al. 2022), which is
                                    E_xi F_xi - C / (2 (C - 1)) E_xi,xi' abs(F_xi - F_xi')
    `Function`                      any differentiable function of the values ``(C,)``

Only contexts of positive probability count, in the order of ``context_space``.

Ties. Min, CVaR and EqualityTimesProductivity have kinks where contexts are equal, and there any convex combination of the
gradients of their sides is as good as another. Contexts tied for the least share Min's weight in proportion to their
probabilities; those tied at the edge of CVaR's share divide what is left of it in the same way; abs has the derivative 0 at 0.

Values. With ``contexts="all"`` the weights come from the values that the estimates of the iteration saw: exact for an exact
estimator, otherwise as noisy as they are (and a weight and a gradient then have their noise in common). Where contexts are
drawn, each F_xi is tracked by a running mean over its visits, of which the last ``memory`` count; until every context has been
seen once, contexts weigh as for `Mean`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import ModelError, OptionError
from bocmdp_gym.inequality import small_sample_factor
from bocmdp_gym.options import check_count, check_function, check_number

Array = npt.NDArray[np.float64]

__all__ = ["CVaR", "EqualityTimesProductivity", "Function", "Mean", "Min", "Objective", "SoftMin"]


class Objective(WithArguments, ABC):
    """Base class: a function of the contexts' values and probabilities, with its derivatives.

    Args:
        memory: visits that a context's running mean is over; None: 10 where contexts are drawn, and with ``contexts="all"`` 1:
            this iteration's values alone.

    Raises:
        OptionError: a value out of range.
    """

    def __init__(self, memory: int | None = None):
        self.memory = None if memory is None else check_count("memory", memory)

    @abstractmethod
    def value(self, values: Array, probabilities: Array) -> float:
        """Phi of the contexts' values ``(C,)``."""

    @abstractmethod
    def weights(self, values: Array, probabilities: Array) -> Array:
        """dPhi/dF_xi ``(C,)``; at a kink, one of its subgradients (module docstring)."""

    def check(self, n_contexts: int) -> None:
        """Refuse a number of contexts, before anything runs.

        Raises:
            OptionError, ModelError: this objective cannot be one of that many contexts.
        """


class Mean(Objective):
    """The mean over contexts, E_xi F_xi: what leaders maximise if nothing else is said."""

    def __init__(self) -> None:
        super().__init__()

    def value(self, values: Array, probabilities: Array) -> float:
        return float(probabilities @ values)

    def weights(self, values: Array, probabilities: Array) -> Array:
        del values
        return probabilities.copy()


class Min(Objective):
    """The return in the worst context. Contexts that tie share the weight in proportion to their probabilities.

    Args:
        memory: visits that a context's running mean is over (`Objective`).
    """

    def value(self, values: Array, probabilities: Array) -> float:
        del probabilities
        return float(values.min())

    def weights(self, values: Array, probabilities: Array) -> Array:
        worst = np.where(values == values.min(), probabilities, 0.0)
        return worst / worst.sum()


class CVaR(Objective):
    """The conditional value at risk: the mean over the worst contexts, of total probability ``level``.

    Args:
        level: that share, in (0, 1]; 1 is the mean.
        memory: visits that a context's running mean is over (`Objective`).

    Raises:
        OptionError: a level that is not in (0, 1], or another value out of range.
    """

    def __init__(self, level: float, memory: int | None = None):
        super().__init__(memory)
        self.level = check_number("level", level, maximum=1.0, above=0.0)

    def value(self, values: Array, probabilities: Array) -> float:
        return float(self.weights(values, probabilities) @ values)

    def weights(self, values: Array, probabilities: Array) -> Array:
        weights, left = np.zeros_like(values), min(self.level, float(probabilities.sum()))
        for value in np.unique(values):
            tied = values == value
            mass = float(probabilities[tied].sum())
            taken = min(mass, left)
            weights[tied] = probabilities[tied] * (taken / mass) / self.level
            left -= taken
            if left <= 0.0:
                break
        return weights


class SoftMin(Objective):
    """A smooth minimum, -T log E_xi exp(-F_xi / T): between the least (T -> 0) and the mean (T -> infinity).

    Args:
        temperature: T > 0, in units of the leader's return.
        memory: visits that a context's running mean is over (`Objective`).

    Raises:
        OptionError: a value out of range.
    """

    def __init__(self, temperature: float, memory: int | None = None):
        super().__init__(memory)
        self.temperature = check_number("temperature", temperature, above=0.0)

    def value(self, values: Array, probabilities: Array) -> float:
        least = float(values.min())
        return least - self.temperature * float(np.log(probabilities @ np.exp((least - values) / self.temperature)))

    def weights(self, values: Array, probabilities: Array) -> Array:
        shares = probabilities * np.exp((values.min() - values) / self.temperature)
        return shares / shares.sum()


class EqualityTimesProductivity(Objective):
    """Equality times productivity: (1 - Gini C / (C - 1)) E_xi F_xi, with the Gini coefficient of F_xi across contexts.

    Contexts are groups as large as their probabilities. Where these are equal, equality is 1 when all contexts have the same and
    0 when one has everything, and no weight is negative; otherwise a rich context that is rarer than 1 / C may have a negative
    one. The product is the formula of the module docstring, which needs no sign: where some returns are negative it is still a
    mean minus a price on differences. With one context it is the mean.

    Args:
        memory: visits that a context's running mean is over (`Objective`).
    """

    def value(self, values: Array, probabilities: Array) -> float:
        differences = probabilities @ np.abs(values[:, None] - values) @ probabilities
        return float(probabilities @ values - 0.5 * small_sample_factor(len(values)) * differences)

    def weights(self, values: Array, probabilities: Array) -> Array:
        order = np.sign(values[:, None] - values) @ probabilities
        weights: Array = probabilities * (1.0 - small_sample_factor(len(values)) * order)
        return weights


class Function(Objective):
    """A function of one's own. `leaders.optimize` makes one of any function that it is given as its objective.

    Args:
        function: of the values ``(C,)``, a float64 tensor, to a torch scalar that torch can differentiate.
        memory: visits that a context's running mean is over (`Objective`).

    Raises:
        OptionError: no function.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], memory: int | None = None):
        super().__init__(memory)
        self.function = check_function("function", function, "values")

    def check(self, n_contexts: int) -> None:
        """Refuse a function that returns no scalar of torch, or one without a graph (tried at values of 1).

        Raises:
            ModelError: naming what it returned.
        """
        self._evaluate(np.ones(n_contexts))

    def value(self, values: Array, probabilities: Array) -> float:
        del probabilities
        return float(self._evaluate(values)[1].detach())

    def weights(self, values: Array, probabilities: Array) -> Array:
        del probabilities
        point, value = self._evaluate(values)
        (gradient,) = torch.autograd.grad(value, point)
        weights: Array = gradient.numpy()
        return weights

    @with_gradients
    def _evaluate(self, values: Array) -> tuple[Tensor, Tensor]:
        point = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        value: Any = self.function(point)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            got = f"a tensor of shape {tuple(value.shape)} and type {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise ModelError(f"the objective of the values ({len(values)},) returned {got}; expected a torch scalar.")
        if not value.requires_grad:
            raise ModelError(
                "the objective does not depend on the contexts' values, as far as torch can see; expected torch operations on "
                "them, without .detach(), .numpy(), .item() or torch.no_grad()."
            )
        return point, value.reshape(())


#: Objectives by their names on the command line.
OBJECTIVES: dict[str, type[Objective]] = {
    "mean": Mean,
    "min": Min,
    "cvar": CVaR,
    "soft-min": SoftMin,
    "equality-times-productivity": EqualityTimesProductivity,
}


def as_objective(value: Any) -> Objective | None:
    """An objective, from one or from a function of the contexts' values; None for the mean, which couples nothing.

    Raises:
        OptionError: something else.
    """
    if value is None or isinstance(value, Mean):
        return None
    if isinstance(value, Objective):
        return value
    example = "such as leaders.objectives.CVaR(0.2), or a function of the contexts' values (C,)"
    if isinstance(value, type):
        raise OptionError(f"objective is the class {value.__name__}; expected an instance, {example}.")
    if not callable(value):
        raise OptionError(f"objective is {value!r}; expected a leaders.objectives.Objective, {example}.")
    return Function(value)
