r"""Estimators of the hypergradient dF_xi/dx.

The idea all of them share: there are scalar weights such that

    dF_xi/dx = sum W_r(s,a) dr(s,a)/dx + sum W_P(s,a,s') dP(s'|s,a)/dx + sum W_mu(s) dmu(s)/dx + sum W_rbar(s,a) drbar(s,a)/dx

so an estimator produces weights (`bocmdp_gym.Weights`), and one reverse pass through the model's functions turns them into
a gradient (`ConfiguredMDPs.vjp`). No estimator carries a d-vector per state and action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP, Weights
from bocmdp_gym.errors import OptionError, RegularizationError, UnsupportedError
from bocmdp_gym.tabular import ContextArrays, check_regularization
from followers import Policy, TrajectoryOracle
from leaders import kernels

Array = npt.NDArray[np.float64]

#: A loss f(x, policy (S, A), context) -> torch scalar, minimised instead of maximising the leader's return.
Loss = Callable[[Tensor, Tensor, Any], Tensor]
#: Parts of a model whose dependence on x enters through scores: d log P, d log mu, d log(1 - q).
SCORED = frozenset({"transition", "initial", "termination"})


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
        needs_regularization: whether lambda enters the estimate; if not, a follower without one will do.
        regularization: lambda; None: the follower's, settled by `bind`.
    """

    needs_model: bool = False
    accepts_loss: bool = False
    needs_regularization: bool = True

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
        if wanted is None and follower.regularization is None and self.needs_regularization:
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

    def state(self) -> dict[Any, Any]:
        """What a checkpoint keeps of it: nested dicts of arrays and JSON-able values."""
        return {}

    def load_state(self, state: dict[Any, Any]) -> None:  # noqa: B027 - optional hook
        """Go on from `state`; called after `bind`."""

    @property
    def _lambda(self) -> float:
        """Lambda, after `bind`."""
        if self.regularization is None:
            raise OptionError(f"{type(self).__name__}.estimate was called before bind(oracle).")
        return self.regularization

    @abstractmethod
    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        """One estimate of dF_xi/dx at x ``(d,)`` and ``context``."""


class PolicyEstimator(Estimator):
    """Base class of estimators that ask for one response and then look at nothing but that policy."""

    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        policy = oracle.respond(x, context, rng)
        estimate = self.estimate_policy(oracle, policy, x, context, rng)
        estimate.metrics.update(policy.metrics)
        return estimate

    @abstractmethod
    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        """One estimate from a policy at (x, context), optimal or not."""


def check_groups(error_groups: int, name: str, size: int) -> int:
    """How many groups a sample of ``size`` is split into for a standard error: 0 (none), or 2 to ``size``.

    Raises:
        OptionError: anything else.
    """
    if error_groups == 0 or 2 <= error_groups <= size:
        return int(error_groups)
    raise OptionError(f"error_groups is {error_groups}; expected 0 (no standard error), or 2 to {name} ({size}).")


def split(total: int, groups: int) -> list[int]:
    """Sizes of ``groups`` (at least one) groups as equal as can be."""
    groups = max(groups, 1)
    return [total // groups + (i < total % groups) for i in range(groups)]


def pooled(gradients: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Mean of independent groups' gradients ``(d,)``, weighted by their sizes, and its standard error (None for one group)."""
    if len(gradients) == 1:
        return gradients[0], None
    stacked, weights = torch.stack(list(gradients)), torch.tensor(sizes, dtype=torch.float64).unsqueeze(-1)
    mean = (weights * stacked).sum(0) / weights.sum()
    n = len(gradients)
    spread = (weights / weights.mean() * (stacked - mean)).square().sum(0)
    return mean, (spread / (n * (n - 1))).sqrt()


def policy_table(oracle: TrajectoryOracle, policy: Policy, estimator: str) -> Array:
    """A policy's action probabilities ``(S, A)`` in a tabular problem.

    Raises:
        UnsupportedError: the policy tells no probabilities.
    """
    tabulated = oracle.tabulate(policy)
    if tabulated is None:
        raise UnsupportedError(
            f"{estimator} needs action probabilities, and {type(policy).__name__} has none; use "
            'HPGD(estimator="monte_carlo"), or ZeroOrder.'
        )
    return tabulated.table


def add_scores(
    weights: Weights, moving: Any, arrays: ContextArrays, w_transition: Array, w_initial: Array, w_going: Array
) -> None:
    """Put weights on log P ``(S, M, K)`` and log mu ``(S,)`` into ``weights``, as weights on the stored values.

    Where q depends on x, going on has probability (1 - q) P: a weight W on log P, summed per action in ``w_going`` ``(S, A)``,
    is also one of -W / (1 - q) on q.
    """
    if "transition" in moving:
        weights.transition = kernels.score_weights(arrays.stored_successors, arrays.stored_probabilities, w_transition)
    if "termination" in moving:
        weights.termination = -w_going / np.where(arrays.termination < 1.0, 1.0 - arrays.termination, 1.0)
    if "initial" in moving:
        weights.initial = w_initial / np.where(arrays.initial > 0.0, arrays.initial, 1.0)
