r"""The pooled hypergradient: exact on the model that all trajectories so far have shown.

The mathematics. Where P, q and mu do not depend on x, a step seen at any earlier x still shows how the problem moves. Counts over
all iterations, n(s,a,s') of steps that continued, n_q(s,a) of steps that ended the episode, n_mu(s) of starts, give the shares

    P^(s'|s,a) = n(s,a,s') / n(s,a,.)     q^(s,a) = n_q / (n_q + n)(s,a)     mu^(s) = n_mu(s) / n_mu(.)

and the weights of rewards are those of the exact hypergradient (`leaders.gradients.exact`) on (P^, q^, mu^), with the follower's
own policy pi at this x and the known functions r_x, rbar_x. The error falls like 1/sqrt(steps so far), not steps per update, and
no time limit enters it: a step before the cut is a step like any other, and what was not seen is only what follows the last one.

Pairs never seen. Acting there is taken to be worth the state's average to the leader, Qbar(s,a) = Vbar(s): no advantage, so no
weight. That is pi restricted to the actions seen in s and renormalised. In a state where no action was seen nothing is earned.
Where contexts share transitions but not ends, a pair that this context never visited is taken to continue.

Work per estimate: one pass over the new steps and one tabular evaluation; memory: the counts, as large as the stored P.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP, Weights
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import OptionError
from bocmdp_gym.losses import Loss
from bocmdp_gym.options import check_count, check_flag
from followers import Policy, TrajectoryOracle
from leaders.gradients._transition_counts import TransitionCounts
from leaders.gradients.base import Array, PolicyEstimator
from leaders.gradients.estimate import Estimate
from leaders.gradients.exact import LeaderValues, policy_weights
from leaders.gradients.needs import SCORED


class PooledEstimator(PolicyEstimator):
    """dF_xi/dx from ``env_steps`` new steps of the follower's policy and what all earlier ones taught about transitions.

    Only where P, q and mu do not depend on x. The follower's policy is used as the oracle exposes it; where it exposes no
    probabilities, the shares of actions in the new steps stand for it (those in all steps, in states not visited by the new).
    That is far less precise: the policy changes with x, so nothing of it is pooled, and at small lambda rare actions matter.

    Args:
        env_steps: new steps per estimate; the last episode is finished and its steps are counted too.
        share_contexts: count transitions of all contexts together; for models that have one kernel for all contexts.
        regularization: lambda; the follower's if None.
    """

    needs_model = True
    needs_states = True
    needs_fixed = SCORED
    needs_discounting = True  # episodes of the empirical model need not end before every way out has been seen

    def __init__(self, env_steps: int = 10_000, share_contexts: bool = False, regularization: float | None = None):
        super().__init__(regularization)
        self.env_steps = check_count("env_steps", env_steps)
        self.share_contexts = check_flag("share_contexts", share_contexts)
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

    @with_gradients
    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        if self._counts is None:
            raise OptionError("PooledEstimator.estimate was called before bind(oracle).")
        batch = oracle.sample(policy, self.env_steps, rng)
        self._counts.add(batch)
        mdps, tabulated = oracle.configure(policy.leader), oracle.tabulate(policy)
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
