r"""Estimators of the hypergradient dF_xi/dx.

The idea all of them share: there are scalar weights such that

    dF_xi/dx = sum W_r(s,a) dr(s,a)/dx + sum W_rbar(s,a) drbar(s,a)/dx
             + sum W_P(s,a,s') dP(s'|s,a)/dx + sum W_mu(s) dmu(s)/dx + sum W_q(s,a) dq(s,a)/dx

so an estimator produces weights (`bocmdp_gym.Weights`), and one reverse pass through the model's functions turns them into
a gradient (`ConfiguredMDPs.vjp`). No estimator carries a d-vector per state and action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym import Weights
from bocmdp_gym.arguments import WithArguments, same_arguments
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.losses import Loss
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import check_regularization
from followers import Policy, TrajectoryOracle
from leaders.gradients._returns import score_weights
from leaders.gradients.batch import BatchEstimator
from leaders.gradients.estimate import Estimate, WeightedContexts
from leaders.gradients.needs import Needs, check_needs, settle_regularization, warn_greedy

Array = npt.NDArray[np.float64]


class Estimator(Needs, WithArguments, ABC):
    """Base class of estimators. Subclasses declare what they need (`Needs`) and produce `Estimate`s.

    Args:
        regularization: lambda; the follower's if None.

    Attributes:
        regularization: lambda; None: the follower's, settled by `bind`.
        requested_regularization: what the estimator was given.
        loss: the loss that `bind` was given.
    """

    def __init__(self, regularization: float | None = None):
        self.requested_regularization = None if regularization is None else check_regularization(regularization)
        self.regularization = self.requested_regularization
        self.loss: Loss | None = None
        self._is_checked = False  # whether the first trajectories were looked at

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        """Check, before anything runs, that this estimator can work with ``oracle``; forget earlier runs.

        Raises:
            RegularizationError: neither the follower nor this estimator has a lambda.
            UnsupportedError, DiscountError: the estimator needs something that is missing; the message names the alternative.
            OptionError: a lambda that contradicts the follower's, or another option that does not fit.
        """
        self.regularization = settle_regularization(self, oracle, loss, self.requested_regularization)
        self.__dict__.pop("_lambda", None)
        check_needs(self, oracle, loss)
        self.loss, self._is_checked = loss, False

    @property
    def working(self) -> Estimator:
        """The estimator that does the work: this one, unless it chooses another when it is bound."""
        return self

    def take_regularization(self, regularization: float) -> None:
        """Estimate for another lambda from now on: the follower's has changed (`leaders.annealing`)."""
        self.regularization = regularization
        self.__dict__.pop("_lambda", None)

    @classmethod
    def batched(
        cls, oracle: TrajectoryOracle, estimators: Sequence[Estimator], device: str | None = None
    ) -> BatchEstimator | None:
        """How the estimators of many runs, one per run, can work at once; None: they cannot, and runs follow one another.

        Args:
            oracle: of the first run, to which ``estimators[0]`` is bound; the others are alike.
            estimators: of each run, the first of this class.
            device: a device to work on, which must be served; None: the cores of this machine.

        Raises:
            UnsupportedError: a device was asked for, and these estimators cannot use it.
        """
        if device is not None:
            raise UnsupportedError(
                f"device={device!r} is for ExactGradient, and for HPGD's Monte-Carlo estimates, equal in all runs, in tabular "
                f"problems; not for {cls.__name__} here. Leave device out; a list of seeds then uses all cores."
            )
        return None

    def state(self) -> dict[Any, Any]:
        """What a checkpoint keeps of it: nested dicts of arrays and JSON-able values."""
        return {}

    def load_state(self, state: dict[Any, Any]) -> None:
        """Continue from `state`; called after `bind`."""

    @cached_property
    def _lambda(self) -> float:
        """Lambda, after `bind`."""
        if self.regularization is None:
            raise OptionError(f"{type(self).__name__}.estimate was called before bind(oracle).")
        return self.regularization

    @abstractmethod
    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        """One estimate of dF_xi/dx at x ``(d,)`` and ``context``."""

    def estimate_coupled(
        self,
        oracle: TrajectoryOracle,
        x: Tensor,
        contexts: WeightedContexts,
        objective: Callable[[Sequence[float]], float],
        rng: np.random.Generator,
    ) -> Estimate | None:
        """One estimate of dPhi/dx, for an objective Phi of all contexts' returns; None: by `estimate`, context by context.

        Args:
            oracle, x, rng: as for `estimate`.
            contexts: all of them.
            objective: Phi of their returns ``(C,)``.
        """
        del oracle, x, contexts, objective, rng
        return None


class PolicyEstimator(Estimator):
    """Base class of estimators that ask for one response and then look at nothing but that policy."""

    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        policy = oracle.respond(x, context, rng)
        if policy.greedy and self.needs_regularization:
            warn_greedy(oracle.follower, type(self).__name__)
        estimate = self.estimate_policy(oracle, policy, x, context, rng)
        estimate.metrics.update(policy.metrics)
        return estimate

    @abstractmethod
    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        """One estimate from a policy at (x, context), optimal or not."""


def interchangeable(kind: type[Estimator], estimators: Sequence[Estimator]) -> bool:
    """Whether all are of this very class (a subclass may estimate otherwise) and were constructed alike."""
    return all(type(one) is kind and same_arguments(one, estimators[0]) for one in estimators)


def policy_table(oracle: TrajectoryOracle, policy: Policy, estimator: str) -> Array:
    """A policy's action probabilities ``(S, A)`` in a tabular problem.

    Raises:
        UnsupportedError: the policy exposes no probabilities.
    """
    tabulated = oracle.tabulate(policy)
    if tabulated is None:
        raise UnsupportedError(
            f"{estimator} needs action probabilities, and {type(policy).__name__} has none; use "
            'HPGD(estimator="monte_carlo"), or ZeroOrder.'
        )
    return tabulated.table


def add_scores(
    weights: Weights, moving: Any, arrays: ContextArrays, w_transition: Array, w_initial: Array, w_continued: Array
) -> None:
    """Put weights on log P ``(S, M, K)`` and log mu ``(S,)`` into ``weights``, as weights on the stored values.

    Where q depends on x, the episode continues with probability (1 - q) P: a weight W on log P, summed per action in
    ``w_continued`` ``(S, A)``, is also one of -W / (1 - q) on q.
    """
    if "transition" in moving:
        weights.transition = score_weights(arrays.stored_successors, arrays.stored_probabilities, w_transition)
    if "termination" in moving:
        weights.termination = -w_continued / np.where(arrays.termination < 1.0, 1.0 - arrays.termination, 1.0)
    if "initial" in moving:
        weights.initial = w_initial / np.where(arrays.initial > 0.0, arrays.initial, 1.0)
