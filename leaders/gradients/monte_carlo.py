r"""The Monte-Carlo hypergradient from on-policy steps: what the paper's Table 1 calls HPGD.

The mathematics. N steps of the follower's policy in E episodes; Qhat, Vhat are visit-averaged discounted leader returns,
n(s,a), n(s) visit counts. With c(s,a) = (1/(lambda E)) sum_{visits t} gamma_L^t (Qhat - Vhat)(s,a) and c(s) = sum_a c(s,a), one
forward pass per episode,

    e_t = gamma e_{t-1} + c(s_t,a_t)/n(s_t,a_t) - c(s_t)/n(s_t),     W_r(s_t,a_t) += e_t,     W_rbar(s_t,a_t) += gamma_L^t / E.

Two biases. Qhat - Vhat and the visit averages come from the same trajectories: that vanishes as N grows. A time limit cuts
returns, visitation and traces: that does not, unless ``bootstrap_truncated``, with which a cut episode goes on as the
average visit to its last state does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from bocmdp_gym import TabularBOCMDP, Trajectories, Weights, kernels
from bocmdp_gym.errors import OptionError, UnsupportedError
from followers import TrajectoryOracle
from leaders.gradients.base import Estimate, Estimator, Loss


def monte_carlo_weights(
    batch: Trajectories,
    n_states: int,
    n_actions: int,
    discount: float,
    leader_discount: float,
    regularization: float,
    bootstrap_truncated: bool = False,
) -> Weights:
    """Weights of r and rbar from one batch of tabular trajectories (module docstring)."""
    if batch.states is None or batch.final_states is None:
        raise UnsupportedError("the trajectories carry no state indices; this estimator needs a tabular environment.")
    w_r, w_rbar, _ = kernels.monte_carlo_weights(
        batch.states,
        batch.actions.astype(np.int32, copy=False),
        batch.leader_rewards,
        batch.ends,
        batch.terminated,
        batch.final_states,
        n_states,
        n_actions,
        discount,
        leader_discount,
        regularization,
        bootstrap_truncated,
    )
    return Weights(reward=w_r, leader_reward=w_rbar)


class MonteCarloEstimator(Estimator):
    """dF_xi/dx from ``env_steps`` steps of the follower's policy.

    Args:
        env_steps: steps per estimate; the last episode is finished and its steps are counted too.
        bootstrap_truncated: see the module docstring; off in the paper's runs.
        regularization: lambda; the follower's if None.
    """

    needs_model = True

    def __init__(self, env_steps: int = 10_000, bootstrap_truncated: bool = False, regularization: float | None = None):
        super().__init__(regularization)
        if env_steps < 1:
            raise OptionError(f"env_steps is {env_steps}; expected at least 1.")
        self.env_steps, self.bootstrap_truncated = int(env_steps), bootstrap_truncated

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        assert isinstance(oracle.model, TabularBOCMDP)
        for name in ("transition", "initial", "termination"):
            if name in oracle.model.moving:
                raise UnsupportedError(
                    f"the model's {name} depends on x, which the Monte-Carlo estimator does not weigh; use ExactGradient."
                )

    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        assert self.regularization is not None
        mdps = oracle.configure(x)
        policy = oracle.respond(x, context, rng)
        batch = oracle.sample(policy, self.env_steps, rng)
        weights = monte_carlo_weights(
            batch,
            mdps.model.n_states,
            mdps.model.n_actions,
            mdps.model.discount,
            mdps.model.leader_discount,
            self.regularization,
            self.bootstrap_truncated,
        )
        assert weights.leader_reward is not None
        leader_return = float(np.vdot(weights.leader_reward, mdps.arrays(context).leader_reward))
        return Estimate(mdps.vjp(weights, context), leader_return, batch.n_steps, metrics=dict(getattr(policy, "metrics", {})))
