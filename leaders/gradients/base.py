r"""Estimators of the hypergradient dF_xi/dx.

The idea all of them share: there are scalar weights such that

    dF_xi/dx = sum W_r(s,a) dr(s,a)/dx + sum W_P(s,a,s') dP(s'|s,a)/dx + sum W_mu(s) dmu(s)/dx + sum W_rbar(s,a) drbar(s,a)/dx

so an estimator produces weights (`bocmdp_gym.Weights`), and one reverse pass through the model's functions turns them into
a gradient (`ConfiguredMDPs.vjp`). No estimator carries a d-vector per state and action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import OptionError, RegularizationError, UnsupportedError
from bocmdp_gym.tabular import check_regularization
from followers import TrajectoryOracle

#: A loss f(x, policy (S, A), context) -> torch scalar, minimised instead of maximising the leader's return.
Loss = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass
class Estimate:
    """One estimate of dF_xi/dx.

    Attributes:
        gradient: ascent direction ``(d,)``: of the leader's return, or of minus the loss.
        leader_return: the leader's return F_xi the estimate saw (minus the loss, with a loss); NaN if it saw none.
        env_steps: environment steps it used.
        standard_error: of each coordinate ``(d,)``, where the estimator can tell.
        metrics: anything else worth a column of the history.
    """

    gradient: Tensor
    leader_return: float
    env_steps: int = 0
    standard_error: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Estimator(ABC):
    """Base class of estimators. Subclasses state what they need and produce `Estimate`s.

    Attributes:
        needs_model: whether a tabular model is read (weights from arrays rather than from trajectories alone).
        accepts_loss: whether a general loss f(x, policy, context) can be used.
        regularization: lambda; None: the follower's, settled by `bind`.
    """

    needs_model: bool = False
    accepts_loss: bool = False

    def __init__(self, regularization: float | None = None):
        self.requested_regularization = None if regularization is None else check_regularization(regularization)
        self.regularization = self.requested_regularization
        self.loss: Loss | None = None

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        """Check, before anything runs, that this estimator can work with ``oracle``; forget earlier runs.

        Raises:
            RegularizationError: neither the follower nor this estimator has a lambda.
            UnsupportedError: the estimator needs something the oracle does not have; the message names the alternative.
            OptionError: a lambda that contradicts the follower's.
        """
        name, follower = type(self).__name__, oracle.follower
        wanted = self.requested_regularization
        if wanted is None and follower.regularization is None:
            raise RegularizationError(
                f"{type(follower).__name__} has no regularization (lambda), and the hypergradient needs one; pass it to the "
                "leader, e.g. HPGD(regularization=1e-3)."
            )
        if wanted is not None and follower.regularization is not None and wanted != follower.regularization:
            raise OptionError(
                f"the leader was given regularization {wanted} and the follower {follower.regularization}; expected the "
                "same lambda, or none for the leader (it then takes the follower's)."
            )
        self.regularization = follower.regularization if wanted is None else wanted
        if self.needs_model and not isinstance(oracle.model, TabularBOCMDP):
            raise UnsupportedError(
                f"{name} needs a tabular model, and {type(oracle.core).__name__} has none; use an environment whose .model is "
                "a TabularBOCMDP."
            )
        if loss is not None and not self.accepts_loss:
            raise UnsupportedError(
                f"{name} estimates gradients of the leader's return only, not of a general loss f(x, policy, context); use "
                "ExactGradient for losses."
            )
        self.loss = loss

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: nested dicts of arrays and JSON-able values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional hook
        """Go on from `state`; called after `bind`."""

    @abstractmethod
    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        """One estimate of dF_xi/dx at x ``(d,)`` and ``context``."""
