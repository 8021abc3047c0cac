r"""Constraints on outcomes: participation levels, spending limits, and whatever else is a discounted sum over trajectories.

The mathematics. An outcome is G_xi(x) = E sum_t gamma_L^t c(s_t, a_t) under the follower's optimum, for an array c (C, S, A)
that may depend on x, or E sum_t gamma^t r(s_t, a_t): the follower's own, at the follower's discount. The constraint is
G_xi(x) >= level for every context, or E_xi G_xi(x) >= level. With slack g = G - level, the augmented Lagrangian (Hestenes 1969,
Powell 1969, Rockafellar 1973) maximises

    F(x) - sum (1 / 2 rho) (max(0, mu - rho g)^2 - mu^2),       gradient  dF + sum y dG,  y = max(0, mu - rho g),

and sets mu <- y from time to time. dF comes from the leader's estimator, G and dG from the model (`exact_weights`): so noise in
dF is not multiplied by y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.options import as_array, check_choice, check_count, check_flag, check_number
from bocmdp_gym.saved_state import array_entry, count_entry, entry
from leaders.gradients.exact import exact_weights, policy_return

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Constraint(WithArguments):
    """An outcome that must stay at or above a level.

    Attributes:
        name: names its columns in the history, ``slack_NAME`` and ``multiplier_NAME``.
        outcome: "follower" for the follower's own rewards at the follower's discount (participation; entropy is not counted), or
            an array c ``(C, S, A)``, or a function of x that returns one, at the leader's discount. For a spending limit use
            minus the spending and minus the limit.
        at_least: the level.
        per_context: whether it must hold in every context, or on average over contexts.

    Raises:
        OptionError: a level that is not finite, an unknown outcome, or one that is no array of finite numbers.
    """

    name: str
    outcome: str | Array | Tensor | Callable[[Tensor], Tensor]
    at_least: float
    per_context: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise OptionError(f"the constraint's name is {self.name!r}; expected a text, which names its columns.")
        level = f"at_least of constraint {self.name!r}"
        object.__setattr__(self, "at_least", check_number(level, self.at_least))
        per_context = check_flag(f"per_context of constraint {self.name!r}", self.per_context)
        object.__setattr__(self, "per_context", per_context)
        if isinstance(self.outcome, str):
            check_choice(f"outcome of constraint {self.name!r}", self.outcome, ["follower"])
        elif not callable(self.outcome):
            array = as_array(self.outcome)
            if array is None or not np.isfinite(array).all():
                raise OptionError(
                    f"the outcome of constraint {self.name!r} is {self.outcome!r}; expected 'follower', finite numbers "
                    "(C, S, A), or a function of x."
                )
            object.__setattr__(self, "outcome", array)


def check_names(constraints: Sequence[Any]) -> None:
    """Refuse two constraints of one name.

    Raises:
        OptionError: naming them all.
    """
    names = [one.name for one in constraints]
    if len(set(names)) < len(names):
        raise OptionError(f"constraints have names {names}; expected different ones.")


class AugmentedLagrangian:
    """Slacks, multipliers and the constraints' share of the gradient.

    Args:
        model: the tabular model.
        constraints: at least one.
        regularization: lambda.
        penalty: rho > 0; larger presses harder against violations, and too large overshoots.
        multiplier_every: iterations between updates of mu.

    Raises:
        UnsupportedError: there is no tabular model.
        OptionError: a value out of range, an unknown outcome, or two constraints of one name.
        ModelError: an outcome of the wrong shape.
    """

    def __init__(
        self,
        model: Any,
        constraints: Sequence[Constraint],
        regularization: float,
        penalty: float = 50.0,
        multiplier_every: int = 20,
    ):
        if not isinstance(model, TabularBOCMDP):
            raise UnsupportedError(
                "a Constraint is measured on a tabular model, and the environment has none; use leaders.SampledConstraint, which "
                "is measured in trajectories."
            )
        check_names(constraints)
        self.constraints, self.penalty = tuple(constraints), check_number("constraint_penalty", penalty, above=0.0)
        self.multiplier_every = check_count("multiplier_every", multiplier_every)
        self._model, self._regularization, self._solver = model, regularization, WarmSolver()
        self._outcomes = [self._outcome(c) for c in self.constraints]
        self._mu = np.zeros((len(self.constraints), model.n_contexts))
        self._y = self._mu.copy()
        self._steps = 0

    def _outcome(self, constraint: Constraint) -> TabularBOCMDP:
        """The model with the outcome in the place of the leader's return."""
        if not isinstance(constraint.outcome, str):
            return self._model.replace(leader_reward=constraint.outcome)
        if constraint.outcome != "follower":
            raise OptionError(f"unknown outcome {constraint.outcome!r}; expected 'follower', an array or a function of x.")
        own = partial(self._model.part, "reward")
        return self._model.replace(leader_reward=own, leader_discount=self._model.discount)

    def measure(self, x: Tensor) -> dict[str, float]:
        """Measure the slacks at x and set the multipliers. Returns their columns of the history."""
        record = {}
        self._mdps = [outcome.configure(x.detach().clone().requires_grad_()) for outcome in self._outcomes]
        n_contexts = self._model.n_contexts
        self._solutions = [self._solver.solve(self._mdps[0], c, self._regularization) for c in range(n_contexts)]
        for j, (constraint, mdps) in enumerate(zip(self.constraints, self._mdps, strict=True)):
            values = np.array([policy_return(mdps.arrays(c), self._solutions[c].policy) for c in range(n_contexts)])
            slack = values - constraint.at_least
            if not constraint.per_context:
                slack = np.full(n_contexts, self._model.context_probabilities @ slack)
            self._y[j] = np.maximum(0.0, self._mu[j] - self.penalty * slack)
            record[f"slack_{constraint.name}"] = float(slack.min())
            record[f"multiplier_{constraint.name}"] = float(self._y[j].max())
        self._steps += 1
        if self._steps % self.multiplier_every == 0:
            self._mu = self._y.copy()
        return record

    def gradient(self, context: int) -> Tensor:
        """sum_j y_j dG_j/dx in one context ``(d,)``, at the x that was measured last."""
        total = torch.zeros(self._model.leader_dim, dtype=torch.float64)
        for y, mdps in zip(self._y[:, context], self._mdps, strict=True):
            if y > 0.0:
                weights, _ = exact_weights(mdps, context, self._solutions[context], self._regularization)
                total += y * mdps.vjp(weights, context)
        return total

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"mu": self._mu, "steps": self._steps, "solver": self._solver.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._mu, self._steps = array_entry(state, "mu", self._mu.shape), count_entry(state, "steps")
        self._solver.load_state(entry(state, "solver", dict), self._model.n_states)
