"""How an objective couples the contexts of a run: weights for their gradients, and what is known of their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import ConvergenceError, DamagedError, OptionError, UnsupportedError
from bocmdp_gym.saved_state import array_entry
from leaders.contexts import every_context
from leaders.gradients.estimate import Estimate, WeightedContexts, weighted
from leaders.objectives import Objective

Array = npt.NDArray[np.float64]
#: Visits that a running mean is over where contexts are drawn.
_MEMORY = 10
#: More contexts than this have no columns of their own in a history.
_MOST_COLUMNS = 20


class Coupling:
    """An objective of a run's contexts, and the running means of their values (`leaders.objectives`).

    Args:
        objective: Phi.
        core: the environment's configurable layer.
        every: whether an iteration is about all contexts, rather than about drawn ones.

    Raises:
        OptionError: infinitely many contexts, or a number of them that the objective refuses.
        ModelError: a function that returns no differentiable scalar.
    """

    def __init__(self, objective: Objective, core: Any, every: bool):
        self.objective, contexts = objective, every_context(core)
        if contexts is None:
            raise OptionError(
                f"the objective {objective!r} couples finitely many contexts, and {type(core).__name__} has "
                f"{core.context_space}; leave it out (the mean over contexts), or give the problem a Discrete context_space."
            )
        self.contexts = [context for context, _ in contexts]
        self.probabilities = np.array([probability for _, probability in contexts])
        objective.check(len(contexts))
        self._place = {context: i for i, context in enumerate(self.contexts)}
        self._possible = np.asarray(core.context_probabilities) > 0.0
        self._every = every
        self._memory = objective.memory or (1 if every else _MEMORY)
        self._means = np.zeros(len(contexts))
        self._visits = np.zeros(len(contexts), np.int64)

    def possible(self, values: Array) -> Array:
        """The values of the contexts of positive probability ``(C,)`` among those of all."""
        chosen: Array = values[self._possible]
        return chosen

    def columns(self, values: Array) -> dict[str, float]:
        """Columns of a history for the contexts' exact values, given those of all contexts; none where they are very many."""
        if len(self.contexts) > _MOST_COLUMNS:
            return {}
        return {f"leader_return_{c}": float(v) for c, v in zip(self.contexts, self.possible(values), strict=True)}

    def value(self, values: Sequence[float] | Array) -> float:
        """Phi of the contexts' values ``(C,)``.

        Raises:
            ConvergenceError: it is not finite.
        """
        given = np.array(values, dtype=np.float64)
        found = self.objective.value(given, self.probabilities)
        if not np.isfinite(found):
            raise ConvergenceError(f"the objective {self.objective!r} is {found} at the contexts' values {given.tolist()}.")
        return found

    def weigh(self, drawn: WeightedContexts, returns: Sequence[float]) -> tuple[list[float], float]:
        """The weights of the gradients in an iteration's contexts, and the return of them all.

        Args:
            drawn: the contexts, with the weights they have for the mean.
            returns: F_xi there, as the estimates saw it.

        Raises:
            UnsupportedError: an estimate saw no return.
            ConvergenceError: weights that are not finite.
        """
        for (context, _), seen in zip(drawn, returns, strict=True):
            self._visit(context, seen)
        mean = sum(weight * seen for (_, weight), seen in zip(drawn, returns, strict=True))
        if not self._visits.all():
            return [weight for _, weight in drawn], mean
        derivative = self.objective.weights(self._means, self.probabilities)
        if not np.isfinite(derivative).all():
            raise ConvergenceError(
                f"the objective {self.objective!r} has the derivatives {derivative.tolist()} at the contexts' values "
                f"{self._means.tolist()}."
            )
        ratios = derivative / self.probabilities
        weights = [weight * float(ratios[self._place[context]]) for context, weight in drawn]
        return weights, self.value(returns) if self._every else mean

    def combine(self, drawn: WeightedContexts, estimates: Sequence[Estimate]) -> Estimate:
        """The estimate of an iteration from those in its contexts."""
        weights, value = self.weigh(drawn, [estimate.leader_return for estimate in estimates])
        combined = weighted(estimates, weights)
        combined.leader_return = value
        return combined

    def _visit(self, context: Any, seen: float) -> None:
        """Take a value into the running mean of its context."""
        if np.isnan(seen):
            raise UnsupportedError(
                f"the objective {self.objective!r} weighs contexts by their returns, and the estimator saw none in context "
                f"{context}; use an estimator that reports one, such as HPGD(estimator='monte_carlo')."
            )
        place = self._place[context]
        self._visits[place] += 1
        count = min(int(self._visits[place]), self._memory)
        self._means[place] = seen if count == 1 else self._means[place] + (seen - self._means[place]) / count

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the running means."""
        return {"means": self._means, "visits": self._visits}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            DamagedError: it is not that of a run like this.
        """
        shape = self._means.shape
        self._means, self._visits = array_entry(state, "means", shape), array_entry(state, "visits", shape, "i")
        if (self._visits < 0).any():
            raise DamagedError(f"visits of contexts are {self._visits.tolist()}; expected none below 0.")


def coupling(objective: Objective | None, core: Any, every: bool, loss: Any) -> Coupling | None:
    """How an objective couples contexts; None for the mean, which does not.

    Raises:
        OptionError, ModelError: as `Coupling`; or a loss is given besides.
    """
    if objective is None:
        return None
    if loss is not None:
        raise OptionError(
            f"both a loss f(x, policy, context) and the objective {objective!r} are given; losses are averaged over contexts. "
            "Leave one of them out."
        )
    return Coupling(objective, core, every)
