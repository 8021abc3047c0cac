r"""The pooled hypergradient: exact on the model that all trajectories so far have shown.

The mathematics. Where P, q and mu do not depend on x, a step seen at any earlier x still tells how the problem moves. Counts over
all iterations, n(s,a,s') of steps that went on, n_q(s,a) of steps that ended the episode, n_mu(s) of starts, give the shares

    P^(s'|s,a) = n(s,a,s') / n(s,a,.)     q^(s,a) = n_q / (n_q + n)(s,a)     mu^(s) = n_mu(s) / n_mu(.)

and the four weighted sums are those of the exact hypergradient (`leaders.gradients.exact`) on (P^, q^, mu^), with the follower's
own policy pi at this x and the known functions r_x, rbar_x. The error falls like 1/sqrt(steps so far), not steps per update, and
no time limit enters it: a step before the cut is a step like any other, and what was not seen is only what follows the last one.

Pairs never seen. Acting there is taken to be worth the state's average to the leader, Qbar(s,a) = Vbar(s): no advantage, so no
weight. That is pi restricted to the actions seen in s and renormalised. In a state where no action was seen nothing is earned.
Where contexts share transitions but not ends, a pair that this context never visited is taken to go on.

Work per estimate: one pass over the new steps and one tabular evaluation; memory: the counts, as large as the stored P.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP, Trajectories, Weights
from bocmdp_gym.errors import DiscountError, OptionError, UnsupportedError
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import check_count
from followers import Policy, TrajectoryOracle
from followers.empirical import empirical_policy
from leaders import kernels
from leaders.gradients.base import SCORED, Array, Estimate, Loss, PolicyEstimator
from leaders.gradients.exact import LeaderValues, policy_weights

Counts = npt.NDArray[np.int64]
_NO_MOVES = np.empty(0, dtype=np.int64)


class TransitionCounts:
    """What trajectories have shown of the dynamics of a tabular problem.

    Args:
        model: its shapes, and its lists of successors, which are the layout of the counts; no probability of it is read.
        share_contexts: count the steps of all contexts together, for those of P, q and mu that the model has once for all.

    Attributes:
        transitions: steps that went on, per stored successor, ``(C or 1, S, M, K)``.
        visits, endings: all steps, and those that ended the episode, ``(C or 1, S, A)``.
        starts: first states, ``(C or 1, S)``.
    """

    def __init__(self, model: TabularBOCMDP, share_contexts: bool):
        self._model = model
        operator = model.part("transition", None)
        self._successors, self._moves = operator.successors(), operator.index
        s, a = model.n_states, model.n_actions

        def zeros(stored_contexts: int, *shape: int) -> Counts:
            shared = share_contexts and stored_contexts == 1
            return np.zeros((1 if shared else model.n_contexts, *shape), dtype=np.int64)

        self.transitions = zeros(operator.n_contexts, *self._successors.shape[1:])
        self.visits = zeros(len(model.part("termination", None)), s, a)
        self.endings = np.zeros_like(self.visits)
        self.starts = zeros(len(model.part("initial", None)), s)

    def add(self, batch: Trajectories) -> None:
        """Count a batch.

        Raises:
            UnsupportedError: the trajectories carry no state indices, or move in ways the model does not know.
        """
        if batch.states is None or batch.final_states is None:
            raise UnsupportedError("the trajectories carry no state indices; this estimator needs a tabular environment.")
        context = batch.context
        wrong = kernels.count_transitions(
            batch.states,
            batch.actions.astype(np.int32, copy=False),
            _NO_MOVES if self._moves is None else self._moves,
            batch.ends,
            batch.terminated,
            batch.final_states,
            _of(self._successors, context),
            _of(self.transitions, context),
            _of(self.visits, context),
            _of(self.endings, context),
            _of(self.starts, context),
        )
        if wrong >= 0:
            raise UnsupportedError(
                f"from state {batch.states[wrong]} after action {batch.actions[wrong]} in context {context} the environment went "
                "to a state that is no successor in its model; expected the model's dynamics, which a wrapper seems to change. "
                'Use HPGD(estimator="monte_carlo"), which believes trajectories alone.'
            )

    def observed(self, batch: Trajectories) -> Array:
        """Action probabilities ``(S, A)`` of a policy known from its own trajectories alone, already counted.

        Shares of its actions; in states it did not visit, shares of all actions counted there (zeros where there are none).
        """
        visits = _of(self.visits, batch.context)
        shares = empirical_policy(batch, *visits.shape).table
        return np.where(np.isnan(shares), visits / np.maximum(visits.sum(-1, keepdims=True), 1), shares)

    def empirical(self, arrays: ContextArrays, context: int) -> tuple[ContextArrays, npt.NDArray[np.bool_]]:
        """One context's MDP with P^, q^, mu^ for P, q, mu, and which pairs ``(S, A)`` were seen."""
        transitions, visits = _of(self.transitions, context), _of(self.visits, context)
        starts = _of(self.starts, context)
        rows = transitions.sum(-1, keepdims=True)
        termination = _of(self.endings, context) / np.maximum(visits, 1)
        going_on = rows[..., 0] > 0
        model = arrays._replace(
            stored_probabilities=transitions / np.maximum(rows, 1),
            initial=starts / starts.sum(),
            termination=termination,
            continuation=self._model.discount * (1.0 - termination),
            leader_continuation=self._model.leader_discount * (1.0 - termination),
        )
        return model, (visits > 0) | (going_on if self._moves is None else going_on[:, self._moves])

    def state(self) -> dict[str, Counts]:
        """What a checkpoint keeps: the counts."""
        return {name: value.copy() for name, value in vars(self).items() if not name.startswith("_")}

    def load_state(self, state: dict[str, Counts]) -> None:
        """Go on from `state`.

        Raises:
            OptionError: counts of another problem, or shared otherwise between contexts.
        """
        for name, value in state.items():
            own = getattr(self, name)
            if own.shape != value.shape:
                raise OptionError(
                    f"the saved counts of {name} have shape {value.shape}, and this run's {own.shape}; expected the same "
                    "environment and the same share_contexts."
                )
            own[...] = value


class PooledEstimator(PolicyEstimator):
    """dF_xi/dx from ``env_steps`` new steps of the follower's policy and what all earlier ones taught about transitions.

    Only where P, q and mu do not depend on x. The follower's policy is used as the oracle tells it; where it tells no
    probabilities, the shares of actions in the new steps stand for it (those in all steps, in states not visited by the new).
    That is far less precise: the policy changes with x, so nothing of it is pooled, and at small lambda rare actions matter.

    Args:
        env_steps: new steps per estimate; the last episode is finished and its steps are counted too.
        share_contexts: count transitions of all contexts together; for models that have one kernel for all contexts.
        regularization: lambda; the follower's if None.
    """

    needs_model = True

    def __init__(self, env_steps: int = 10_000, share_contexts: bool = False, regularization: float | None = None):
        super().__init__(regularization)
        self.env_steps = check_count("env_steps", env_steps)
        self.share_contexts = share_contexts
        self._counts: TransitionCounts | None = None

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        """As `Estimator.bind`; all counts are forgotten.

        Raises:
            UnsupportedError: P, q or mu depends on x.
            DiscountError: a discount of 1.
            OptionError: ``share_contexts`` where every context has its own transitions.
        """
        super().bind(oracle, loss)
        model = oracle.model
        assert isinstance(model, TabularBOCMDP)
        moving = sorted(SCORED & set(model.moving))
        if moving:
            raise UnsupportedError(
                f"the pooled estimator assumes dynamics that do not depend on x, and here {' and '.join(moving)} is a function "
                'of x: what was seen at one x does not hold at another. Use HPGD(estimator="monte_carlo").'
            )
        if max(model.discount, model.leader_discount) == 1.0:
            raise DiscountError(
                "the pooled estimator evaluates policies on an empirical model, whose episodes need not end before every way out "
                'has been seen; expected discounts below 1. Use HPGD(estimator="monte_carlo").'
            )
        if self.share_contexts and model.n_contexts > 1 and model.part("transition", None).n_contexts > 1:
            raise OptionError(
                f"share_contexts is True, and the model's {model.n_contexts} contexts have transitions of their own; leave it "
                "out, or give the model one kernel for all of them, (1, S, A, S)."
            )
        self._counts = TransitionCounts(model, self.share_contexts)

    def state(self) -> dict[Any, Any]:
        return {} if self._counts is None else self._counts.state()

    def load_state(self, state: dict[Any, Any]) -> None:
        assert self._counts is not None
        self._counts.load_state(state)

    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        if self._counts is None:
            raise OptionError("PooledEstimator.estimate was called before bind(oracle).")
        batch = oracle.sample(policy, self.env_steps, rng)
        self._counts.add(batch)
        mdps, tabulated = oracle.configure(x), oracle.tabulate(policy)
        table = self._counts.observed(batch) if tabulated is None else tabulated.table
        weights, leader, seen = pooled_weights(mdps, context, self._counts, table, self._lambda)
        metrics = {"seen_pairs": float(seen.sum())}
        return Estimate(mdps.vjp(weights, context), leader.leader_return, batch.n_steps, metrics=metrics)


def pooled_weights(
    mdps: ConfiguredMDPs, context: int, counts: TransitionCounts, policy: Array, regularization: float
) -> tuple[Weights, LeaderValues, npt.NDArray[np.bool_]]:
    """Weights of dF_xi/dx on the empirical model, the leader's values there, and which pairs ``(S, A)`` it knows.

    Args:
        mdps: the model at x, of which r and rbar are read.
        context: xi.
        counts: what is known of the rest; at least one episode of this context (of any, where starts are shared).
        policy: the follower's, ``(S, A)``.
        regularization: lambda.
    """
    arrays, seen = counts.empirical(mdps.arrays(context), context)
    known = np.where(seen, policy, 0.0)
    mass = known.sum(-1, keepdims=True)
    known /= np.where(mass > 0.0, mass, 1.0)
    return *policy_weights(mdps, arrays, known, regularization), seen


def _of(counts: npt.NDArray[Any], context: int) -> npt.NDArray[Any]:
    """One context's part of something that may be shared."""
    own: npt.NDArray[Any] = counts[0 if len(counts) == 1 else context]
    return own
