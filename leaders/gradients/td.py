r"""The hypergradient with a critic learnt step by step and carried over the run ("Boltzmann covariance", BC-HG 2025).

The mathematics. dpi = pi (dQ - dV)/lambda and E_a Abar = 0, so E_a[Abar dA] = E_a[Abar dQ] = Cov_pi(Qbar, dQ): a return of dr
along the path visited will do for dQ, no state need be visited twice, and the leader's Qbar is all that has to be learnt. It is
kept for the whole run, one table per context, and every estimate first learns from its steps, in random order,

    Qbar(s,a) += alpha (rbar + gamma_L c Qbar(s',a') - Qbar(s,a)),

c = 0 where the episode terminated, else 1; at a time limit sum_b pi(b|s') Qbar(s',b) stands for Qbar(s',a'). Then, in each
episode,

    Abar = Qbar - sum_b pi Qbar      e_t = gamma e_{t-1} + gamma_L^t Abar(s_t,a_t)/lambda
    W_r(s_t,a_t) += e_t / E          W_rbar(s_t,a_t) += gamma_L^t / E

where E is the mean number of episodes of the context's estimates so far. (An estimate's own number would give long episodes too
much weight: few of them fill the budget. A sum over episodes until it is spent has E times the mean of one, by Wald's identity.)

Where P or q depends on x, the same steps teach the follower's value, V(s) += alpha (r + lambda H + gamma c V(s') - V(s)). With
Vbar = sum_b pi Qbar, the scores' weights, expected over s' (from the model whose derivative is taken anyway), are

    W_P(s,a,s') = g W_r (V(s') - V(s)) + g_L W_rbar (Vbar(s') - Vbar(s))
    W_q = -gamma W_r P V - gamma_L W_rbar P Vbar          W_mu = Vbar - sum_s mu Vbar

The baselines V(s), Vbar(s) and mu Vbar change no mean. A state in which nobody has acted yet is taken to be worth what the state
before it is.

The mean is exact where Qbar and V are, but for the time limit, which leaves out what would be visited after it. A Qbar that lags
behind x, or is noisy, is a bias and a noise that the steps of one estimate do not remove.

Tables start at zero; where no episode ends, at the value of a reward that always is the first batch's mean, so that a constant
added to a reward changes no estimate from the first on.

Beyond tables Qbar and V are networks, which every estimate trains by a few rounds of regression on their own TD(0) targets, and
the same weights meet the model's functions at the steps visited (`leaders.gradients._td_networks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import entr
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP, Trajectories, Weights
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.losses import Loss
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import check_count, check_number
from bocmdp_gym.saved_state import check_like
from followers import Policy, SoftPolicyIteration, TrajectoryOracle
from leaders.gradients._features import check_widths
from leaders.gradients._td_batch import TDBatch
from leaders.gradients._td_kernels import learn, trace_weights
from leaders.gradients._td_networks import NetworkTD, Training
from leaders.gradients.base import Array, Estimator, PolicyEstimator, interchangeable, policy_table
from leaders.gradients.batch import BatchEstimator, compiled_model
from leaders.gradients.estimate import Estimate
from leaders.gradients.needs import SCORED

_NO_BONUS = np.zeros(0)
_DYNAMICS = frozenset({"transition", "termination"})


class Tables(NamedTuple):
    """What is learnt in one context."""

    q: Array  # (S, A), Qbar
    value: Array  # (S,), V of the follower; 0 where it is not needed
    seen: npt.NDArray[np.bool_]  # (S,), whether anybody acted there
    counts: Array  # (2,), of estimates and of episodes


class TDEstimator(PolicyEstimator):
    """dF_xi/dx from few steps: the leader's Q is learnt by TD and carried over the run, in a table or a network.

    What it learnt at earlier x biases the estimate, the less the more steps it learns from per update and the smaller the updates
    are. On Four-Rooms learning rates of 0.1 with 100 steps and of 1 with 1,000, gradients clipped to 1, did well.

    Tables are used where the model is tabular and trajectories carry states; networks in any other environment with a model.

    Args:
        env_steps: steps per estimate; the last episode is finished and its steps are counted too.
        td_rate: alpha, the step size of the tables, in (0, 1].
        hidden: widths of the networks' hidden layers, here and in the rest beyond tables; None: two layers of 64.
        epochs: rounds of regression per estimate; networks continue from the context's last estimate.
        learning_rate: of Adam.
        batch_size: points per Adam step.
        action_samples: actions drawn per observation for E_b Qbar(s, b), where the policy exposes no probabilities.
        regularization: lambda; the follower's if None.

    ``metrics``: ``td_error``, the root of the mean squared TD error of Qbar over the steps, in units of the leader's reward.

    Raises:
        OptionError: a value out of range.
    """

    needs_rewards = True

    def __init__(
        self,
        env_steps: int = 100,
        td_rate: float = 0.5,
        hidden: Sequence[int] | None = None,
        epochs: int = 10,
        learning_rate: float = 3e-3,
        batch_size: int = 256,
        action_samples: int = 4,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        self.env_steps = check_count("env_steps", env_steps)
        self.td_rate = check_number("td_rate", td_rate, maximum=1.0, above=0.0)
        widths = check_widths(hidden)
        self.training = Training(
            hidden=(64, 64) if widths is None else widths,
            epochs=check_count("epochs", epochs),
            learning_rate=check_number("learning_rate", learning_rate, above=0.0),
            batch_size=check_count("batch_size", batch_size),
            action_samples=check_count("action_samples", action_samples),
        )
        self._tables: dict[int, Tables] = {}
        self._endless: dict[int, bool] = {}  # of contexts that no x changes
        self._sizes = (0, 0)  # of the tables
        self._networks: NetworkTD | None = None  # None: tables

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        """As `Estimator.bind`; all that was learnt is forgotten.

        Raises:
            UnsupportedError: tables and a follower without probabilities; or networks, and terminations that depend on x.
        """
        tabular = isinstance(oracle.model, TabularBOCMDP) and oracle.exposes_states
        self.needs_probabilities = tabular
        self.needs_fixed = frozenset() if tabular else frozenset({"termination"})  # its scores are defined for tables alone
        self.needs_probabilities_for = frozenset({"transition"})  # the follower's values include the policy's entropy
        super().bind(oracle, loss)
        self._tables, self._endless = {}, {}
        self._sizes = (oracle.model.n_states, oracle.model.n_actions) if isinstance(oracle.model, TabularBOCMDP) else (0, 0)
        self._networks = None if tabular else NetworkTD(oracle, self._lambda, self.training)

    @classmethod
    def batched(
        cls, oracle: TrajectoryOracle, estimators: Sequence[Estimator], device: str | None = None
    ) -> BatchEstimator | None:
        """As `Estimator.batched`: compiled where `compiled_model` serves the problem and followers are `SoftPolicyIteration`."""
        first, follower, horizon = estimators[0], oracle.follower, oracle.horizon
        if device is not None or not interchangeable(TDEstimator, estimators):
            return super().batched(oracle, estimators, device)
        assert isinstance(first, TDEstimator)
        if type(follower) is not SoftPolicyIteration or not oracle.compiled or horizon is None:
            return None
        model = compiled_model(oracle, len(estimators))
        if model is None:
            return None
        return TDBatch(model, follower, len(estimators), horizon, first.env_steps, first.td_rate)

    @with_gradients
    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        batch = oracle.sample(policy, self.env_steps, rng)
        if self._networks is not None:
            return self._networks.estimate(oracle, batch, policy, x, rng)
        mdps, table = oracle.configure(policy.leader), policy_table(oracle, policy, "the TD estimator")
        tables, error = self._learn(batch, mdps, table, rng)
        weights = td_weights(batch, mdps, table, tables, self._lambda)
        assert weights.leader_reward is not None
        leader_return = float(np.vdot(weights.leader_reward, mdps.arrays(context).leader_reward))
        return Estimate(mdps.vjp(weights, context), leader_return, batch.n_steps, metrics={"td_error": error})

    def state(self) -> dict[Any, Any]:
        if self._networks is not None:
            return self._networks.state()
        return {context: tables._asdict() for context, tables in self._tables.items()}

    def load_state(self, state: dict[Any, Any]) -> None:
        if self._networks is not None:
            self._networks.load_state(state)
        else:
            for context, saved in state.items():
                check_like(f"tables of context {context}", saved, new_tables(*self._sizes)._asdict())
            self._tables = {context: Tables(**{k: np.array(v) for k, v in saved.items()}) for context, saved in state.items()}

    def _learn(self, batch: Trajectories, mdps: ConfiguredMDPs, policy: Array, rng: np.random.Generator) -> tuple[Tables, float]:
        """The context's tables after these steps, and the root mean squared TD error."""
        model, context = mdps.model, batch.context
        bonus = _NO_BONUS if _DYNAMICS.isdisjoint(model.moving) else self._lambda * entr(policy).sum(-1)
        if context not in self._tables:
            self._tables[context] = new_tables(model.n_states, model.n_actions)
        tables = self._tables[context]
        error = learn(
            batch.states,
            batch.actions.astype(np.int32, copy=False),
            batch.rewards,
            batch.leader_rewards,
            batch.ends,
            batch.terminated,
            batch.final_states,
            policy,
            bonus,
            model.discount,
            model.leader_discount,
            self.td_rate,
            self._is_endless(mdps, context),
            rng.bit_generator.random_raw(4),
            *tables,
        )
        return tables, float(error)

    def _is_endless(self, mdps: ConfiguredMDPs, context: int) -> bool:
        """Whether no episode terminates, whatever is done, and a reward that never changes has a value."""
        model = mdps.model
        if "termination" in model.moving or context not in self._endless:
            endless = max(model.discount, model.leader_discount) < 1.0 and not mdps.arrays(context).termination.any()
            self._endless[context] = bool(endless)
        return self._endless[context]


def new_tables(n_states: int, n_actions: int) -> Tables:
    """Tables of somebody who has seen nothing."""
    return Tables(np.zeros((n_states, n_actions)), np.zeros(n_states), np.zeros(n_states, dtype=np.bool_), np.zeros(2))


def td_weights(batch: Trajectories, mdps: ConfiguredMDPs, policy: Array, tables: Tables, regularization: float) -> Weights:
    """Weights of everything that depends on x, from one batch of tabular trajectories and what was learnt (module docstring).

    Args:
        batch, mdps: the trajectories, and the model at their x.
        policy: the policy ``(S, A)`` that made them.
        tables: Qbar and V, and which states they know.
        regularization: lambda.
    """
    model, arrays = mdps.model, mdps.arrays(batch.context)
    weights = Weights(reward=np.empty_like(policy), leader_reward=np.empty_like(policy))
    trace_weights(
        batch.states,
        batch.actions.astype(np.int32, copy=False),
        batch.ends,
        policy,
        tables.q,
        tables.counts,
        model.discount,
        model.leader_discount,
        regularization,
        weights.reward,
        weights.leader_reward,
    )
    if not SCORED.isdisjoint(model.moving):
        _add_dynamics(weights, model.moving, arrays, (model.discount, model.leader_discount), policy, tables)
    return weights


def _add_dynamics(
    weights: Weights, moving: Any, arrays: ContextArrays, discounts: tuple[float, float], policy: Array, tables: Tables
) -> None:
    """Put weights on P, q and mu into ``weights``: expectations over s', values relative to a baseline (module docstring)."""
    assert weights.reward is not None
    assert weights.leader_reward is not None
    known = tables.seen.astype(np.float64)
    leader_value = (policy * tables.q).sum(-1) * known
    if "initial" in moving:
        mass = float(arrays.initial @ known)
        baseline = float(arrays.initial @ leader_value) / mass if mass > 0.0 else 0.0
        weights.initial = leader_value - baseline * known
    values = (tables.value * known, leader_value)
    continuations = (arrays.continuation, arrays.leader_continuation)
    transition, termination = np.zeros(()), np.zeros(())
    for w, v, g, gamma in zip((weights.reward, weights.leader_reward), values, continuations, discounts, strict=True):
        if "transition" in moving:
            transition = transition + arrays.outer(g * w, v) - arrays.outer(g * w * v[:, None], known)
        if "termination" in moving:
            after = arrays.expectation(v) + v[:, None] * (1.0 - arrays.expectation(known))
            termination = termination - gamma * w * after
    weights.transition = transition if "transition" in moving else None
    weights.termination = termination if "termination" in moving else None
