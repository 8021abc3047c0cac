r"""Unbiased single-sample estimators: GradEst (paper, Alg. 2), the decomposable estimator (Alg. 5) and Alg. 1, corrected.

The mathematics. Geo(1 - q) counts from 0, P(T = k) = (1 - q) q^k, so a sum cut after T is the sum discounted by q. GradEst
draws T_Q ~ Geo(1 - gamma), T_Q' ~ Geo(1 - sqrt(gamma)) and a trajectory of pi from (s, a),

    dQ(s, a) = sum_{t <= T_Q} dr(s_t, a_t)
        + gamma/(1 - gamma) dlogP(s_{T_Q+1}|s_{T_Q}, a_{T_Q})
          * sum_{t = T_Q+1}^{T_Q+T_Q'+1} gamma^((t-T_Q-1)/2) (r + lambda H)(s_t, a_t),

dV(s) the same from s with a_0 ~ pi, and dA = dQ - dV. For the leader's return, T ~ Geo(1 - gamma_L) and
T' ~ Geo(1 - sqrt(gamma_L)), and with

    G  = sum_{t' = T}^{T+T'} gamma_L^((t'-T)/2) rbar(s_t', a_t')
    dF = sum_{t <= T} drbar(s_t, a_t) + (1/(1 - gamma_L)) (dA(s_T, a_T) / lambda + dlogP(s_T|s_{T-1}, a_{T-1})) G

with dlog mu(s_0) for dlogP where T = 0; for a general loss, s ~ nu, a ~ pi and

    df = d1 f + (1/(lambda nu(s))) d2 f/dpi(a; s) dA(s, a).

Where P or mu depends on x and no episode ends, r + lambda H and rbar are centred, which is a baseline under every score. Steps
after the end of an episode contribute nothing, and an episode continues with probability 1 - q: where q depends on x,
dlogP is d log((1 - q) P). Unbiased for the policy's own problem, without a time limit; the variance is huge at gamma = 0.99.
Many draws make one estimate: their weights are averaged, and one reverse pass gives the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import entr
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP, Weights
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import OptionError
from bocmdp_gym.kernels.alias import AliasTables, initial_tables, low_bits, policy_tables
from bocmdp_gym.losses import Loss, evaluate_loss
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import check_array, check_count
from followers import Policy, TrajectoryOracle
from leaders.gradients import _geometric_kernels as kernels
from leaders.gradients.base import Array, PolicyEstimator, add_scores, policy_table
from leaders.gradients.estimate import Estimate, check_groups, combine_groups, split
from leaders.gradients.needs import SCORED, check_loss_leaks


def indexed_tables(arrays: ContextArrays, policy: Array) -> AliasTables:
    """Tables of the joint draw (action, index of the successor) in every state, ``(S, A K, 2)``."""
    n_states, n_actions, width = arrays.probabilities.shape
    index = np.broadcast_to(np.arange(width, dtype=np.int32), arrays.probabilities.shape)
    tables = np.empty((n_states, n_actions * width, 2), np.uint64)
    policy_tables(policy, index, arrays.probabilities, low_bits(width), tables)
    return tables


def geometric_weights(
    mdps: ConfiguredMDPs,
    context: int,
    policy: Array,
    regularization: float,
    samples: int,
    rng: np.random.Generator,
) -> tuple[Weights, int]:
    """Mean weights of ``samples`` draws of the decomposable estimator for a policy ``(S, A)``, and their steps."""
    arrays, model = mdps.arrays(context), mdps.model
    reward, leader_reward = _centred(mdps, arrays, policy, regularization)
    w_reward, w_leader, w_transition, w_initial, steps = kernels.geometric_weights(
        samples,
        indexed_tables(arrays, policy),
        arrays.starts,
        policy,
        arrays.successors,
        arrays.probabilities,
        reward,
        leader_reward,
        arrays.termination,
        model.discount,
        model.leader_discount,
        regularization,
        not SCORED.isdisjoint(model.moving),
        rng.bit_generator.random_raw(4),
    )
    weights = Weights(reward=w_reward, leader_reward=w_leader)
    add_scores(weights, model.moving, arrays, w_transition, w_initial, w_transition.sum(-1))
    return weights, steps


def _centred(mdps: ConfiguredMDPs, arrays: ContextArrays, policy: Array, regularization: float) -> tuple[Array, Array]:
    """Rewards of follower and leader as the scores weigh them: less their mean, a baseline, where no episode ends.

    There a constant more in every step is a constant more in every return, whatever x. Where episodes end it is not. Without
    scores the rewards stay as they are.
    """
    moving = mdps.model.moving
    if SCORED.isdisjoint(moving) or "termination" in moving or arrays.termination.any():
        return arrays.reward, arrays.leader_reward
    augmented = (policy * arrays.reward).sum(-1) + regularization * entr(policy).sum(-1)
    return arrays.reward - augmented.mean(), arrays.leader_reward - (policy * arrays.leader_reward).sum(-1).mean()


def geometric_loss_weights(
    mdps: ConfiguredMDPs,
    context: int,
    policy: Array,
    sensitivity: Array,
    regularization: float,
    samples: int,
    rng: np.random.Generator,
    sampling_distribution: Array | None = None,
) -> tuple[Weights, int]:
    """Mean weights of ``samples`` draws of Alg. 1's indirect term, and their steps.

    Args:
        mdps, context, policy, regularization, samples, rng: as for `geometric_weights`.
        sensitivity: df/dpi, ``(S, A)``.
        sampling_distribution: nu, ``(S,)``; uniform if None.
    """
    arrays, model = mdps.arrays(context), mdps.model
    nu = np.full(model.n_states, 1.0 / model.n_states) if sampling_distribution is None else sampling_distribution
    w_reward, w_transition, steps = kernels.geometric_loss_weights(
        samples,
        indexed_tables(arrays, policy),
        initial_tables(nu),
        policy,
        arrays.successors,
        arrays.probabilities,
        _centred(mdps, arrays, policy, regularization)[0],
        arrays.termination,
        sensitivity / (regularization * nu[:, None]),
        model.discount,
        regularization,
        not {"transition", "termination"}.isdisjoint(model.moving),
        rng.bit_generator.random_raw(4),
    )
    weights = Weights(reward=w_reward)
    add_scores(weights, set(model.moving) - {"initial"}, arrays, w_transition, arrays.initial, w_transition.sum(-1))
    return weights, steps


class GeometricEstimator(PolicyEstimator):
    """The mean of ``samples`` independent unbiased draws, with one reverse pass.

    The draws are made from the model's arrays: they are counted as ``model_draws``, and no environment steps are used.

    Args:
        samples: draws per estimate.
        sampling_distribution: nu of Algorithm 1, ``(S,)``, positive everywhere (general losses only); uniform if None.
        error_groups: split the draws into this many groups and report a standard error from their spread, at one reverse
            pass each; 0: none.
        regularization: lambda; the follower's if None.

    Raises:
        OptionError: a value out of range.
    """

    needs_model = True
    needs_successors = True
    needs_discounting = True
    needs_probabilities = True
    accepts_loss = True

    def __init__(
        self,
        samples: int = 20_000,
        sampling_distribution: npt.ArrayLike | None = None,
        error_groups: int = 0,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        self.samples = check_count("samples", samples)
        self.error_groups = check_groups(error_groups, "samples", self.samples)
        given = None if sampling_distribution is None else check_array("sampling_distribution", sampling_distribution, (None,))
        self.sampling_distribution = given

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        if loss is not None:
            check_loss_leaks(loss, oracle)
        assert isinstance(oracle.model, TabularBOCMDP)
        model, nu = oracle.model, self.sampling_distribution
        if nu is None:
            return
        if loss is None:
            raise OptionError("sampling_distribution (nu) belongs to general losses; the leader's return starts from mu.")
        if nu.shape != (model.n_states,) or not (nu > 0.0).all() or abs(nu.sum() - 1.0) > 1e-8:
            raise OptionError(
                f"sampling_distribution has shape {nu.shape}, least entry {nu.min(initial=np.inf):.3g} and sum {nu.sum():.6g}; "
                f"expected ({model.n_states},), positive everywhere, with sum 1."
            )

    @with_gradients
    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        mdps, table = oracle.configure(policy.leader), policy_table(oracle, policy, "the geometric estimator")
        if self.loss is not None:
            return self._estimate_loss(mdps, context, table, self.loss, rng)
        return self._estimate_return(mdps, context, table, rng)

    def _estimate_return(self, mdps: ConfiguredMDPs, context: int, policy: Array, rng: np.random.Generator) -> Estimate:
        """Alg. 5."""
        leader_reward, returns = mdps.arrays(context).leader_reward, []

        def draw(size: int) -> tuple[Weights, int]:
            weights, steps = geometric_weights(mdps, context, policy, self._lambda, size, rng)
            assert weights.leader_reward is not None
            returns.append(size / self.samples * float((weights.leader_reward * leader_reward).sum()))
            return weights, steps

        gradient, error, steps = self._in_groups(mdps, context, draw)
        return Estimate(gradient, sum(returns), standard_error=error, model_draws=steps)

    def _estimate_loss(self, mdps: ConfiguredMDPs, context: int, policy: Array, loss: Loss, rng: np.random.Generator) -> Estimate:
        """Alg. 1; minus the loss is the return."""
        x = mdps.x.detach().clone().requires_grad_()
        table = torch.from_numpy(policy).requires_grad_()
        value = evaluate_loss(loss, x, table, context)
        direct, sensitivity = torch.autograd.grad(value, (x, table), allow_unused=True)
        gradient = torch.zeros_like(x) if direct is None else direct
        error, steps = None, 0
        if sensitivity is not None:
            by_policy = sensitivity.numpy()

            def draw(size: int) -> tuple[Weights, int]:
                return geometric_loss_weights(
                    mdps, context, policy, by_policy, self._lambda, size, rng, self.sampling_distribution
                )

            indirect, error, steps = self._in_groups(mdps, context, draw)
            gradient = gradient + indirect
        return Estimate(-gradient, -float(value.detach()), standard_error=error, model_draws=steps)

    def _in_groups(
        self, mdps: ConfiguredMDPs, context: int, draw: Callable[[int], tuple[Weights, int]]
    ) -> tuple[Tensor, Tensor | None, int]:
        """Gradient, standard error and steps of all draws, from ``draw(size)``, which makes the weights of one group."""
        sizes, gradients, steps = split(self.samples, self.error_groups), [], 0
        for size in sizes:
            weights, taken = draw(size)
            gradients.append(mdps.vjp(weights, context))
            steps += taken
        return *combine_groups(gradients, sizes), steps
