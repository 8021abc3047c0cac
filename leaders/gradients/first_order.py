r"""The first-order hypergradient: what the follower does differently when it is paid a little of what the leader earns.

The mathematics. Let pi_s be the follower's answer to the reward r + s rbar, and U_s(x) what it then gets. With gamma_L = gamma
the leader's return is its derivative, F = dU_s/ds at s = 0, and U_s depends on x through the problem alone (envelope theorem:
pi_s is optimal, whatever entropy or other regularisation it is optimal for). So, with w > 0,

    dF/dx = lim (dU_w/dx - dU_-w/dx) / (2 w)         two-sided, error O(w^2)
    dF/dx = lim (dU_w/dx - dU_0/dx) / w              one-sided, error O(w)

    dU_s/dx = sum d_s pi_s (dr + s drbar) + sum g d_s pi_s dP V_s + sum dmu V_s - gamma sum d_s pi_s (P V_s) dq

with the discounted visitation d_s and the values V_s of pi_s under r + s rbar (plus lambda times the entropy, where the follower
maximises that), and g = gamma (1 - q). There is no lambda in it, no probability, no value of the leader's: any algorithm may be
the follower. At lambda = 0 (linear programming) it is the exact gradient of the surrogate (U_w - U_0) / w, optimistic in the
limit: among equally good answers the leader's favourite. These are the value-function or penalty methods of bilevel
optimisation (Kwon, Kwon, Wright and Nowak, "A fully first-order method for stochastic bilevel optimization", ICML 2023).

From samples, d_s pi_s are discounted visit counts of two rollouts, V_s returns to go:

    dU_s/dx ~ mean over episodes of  sum_t gamma^t (dr + s drbar)(s_t, a_t)
              + sum_t gamma^(t+1) dlogP(s_{t+1}|s_t, a_t) (G_{t+1} - b(s_t)) + dlog mu(s_0) (G_0 - b)

with baselines b from episodes of the other half. The noise of the difference is divided by 2 w; common random numbers, episode by
episode and in the follower's training, and warm starts take most of it away. Visits after a time limit are not seen, a bias of
order gamma^horizon.

The weight w. w times the spread of what the leader can get by one action or another must stay well below lambda: the error of the
exact two-sided estimate is about the square of their ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from scipy.special import entr
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP, Trajectories, Weights
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.kernels.returns import returns_to_go
from bocmdp_gym.losses import Loss
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import check_count, check_flag, check_number
from bocmdp_gym.wrappers.leader_share import with_leader_share
from followers import Follower, Policy, TrajectoryOracle
from followers.environments import check_unchanged
from followers.evaluation import evaluate, visitation
from followers.regularization import likely_regularization
from leaders.gradients._first_order_samples import Paid, SampledGradient
from leaders.gradients._points import Points
from leaders.gradients.base import Array, Estimator, policy_table
from leaders.gradients.estimate import Estimate, check_groups, combine_groups
from leaders.gradients.exact import policy_return

#: The automatic weight: this share of lambda per spread of the leader's values; exact ones, and from samples.
EXACT_SHARE, SAMPLED_SHARE = 0.001, 0.1
#: Where there is no lambda: this share of the follower's spread per spread of the leader's values.
UNKNOWN_SHARE = 0.1


class Side(NamedTuple):
    """One of the two problems that are compared.

    Attributes:
        oracle: its follower is paid the share.
        share: s, what it is paid per unit of the leader's reward.
        coefficient: of dU_s/dx in the estimate.
    """

    oracle: TrajectoryOracle
    share: float
    coefficient: float


class FirstOrderEstimator(Estimator):
    """dF_xi/dx from how the follower answers r + w rbar and r - w rbar: any follower, without a lambda or probabilities.

    Each side has a follower of its own, a copy of the one given, with its own warm starts; both draw the same random numbers.
    Binding the estimator to an oracle makes these copies, and resets the oracle's follower.

    Args:
        weight: w, in units of the follower's reward per unit of the leader's; "auto" or None: measured once per run, where it
            starts (see below).
        two_sided: compare +w with -w; False: w with 0, which is biased in proportion to w and not its square.
        exact: weigh with the visits and values of the two policies on the model's arrays (needs a tabular model and action
            probabilities) instead of ``env_steps`` sampled steps.
        env_steps: steps per estimate, half of them on either side, whose last episode is finished.
        common_random_numbers: both sides' followers and episodes draw the same random numbers.
        error_groups: split the pairs of episodes into this many groups and report a standard error from their spread; 0: none.
        regularization: lambda, for evaluation only; the follower's if None.

    The automatic weight is c T / sigma: sigma is the spread of the leader's values and T lambda, if the follower has one. From
    samples c is 0.1 and sigma the standard deviation of the leader's discounted returns from the steps visited; with ``exact``
    c is 0.001 and sigma that of Qbar(s, a) over actions, in the states visited. Where the follower has no lambda, T is the same
    spread of its own values, and c 0.1. Smaller weights are less biased, and their noise grows like 1/w.

    ``metrics``: ``weight``, and ``paid_gain``, ``(F_w - F_-w) / (2 w)``, which optimal answers make positive.

    Raises:
        OptionError: a value out of range.
    """

    needs_regularization = False
    needs_rewards = True
    needs_equal_discounts = True

    def __init__(
        self,
        weight: float | Literal["auto"] | None = 1e-3,
        two_sided: bool = True,
        exact: bool = False,
        env_steps: int = 10_000,
        common_random_numbers: bool = True,
        error_groups: int = 0,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        if isinstance(weight, str) and weight != "auto":
            raise OptionError(f'weight is {weight!r}; expected a number above 0, or "auto".')
        automatic = weight is None or isinstance(weight, str)
        self.weight = None if automatic else check_number("weight", weight, above=0.0)
        self.two_sided, self.exact = check_flag("two_sided", two_sided), check_flag("exact", exact)
        self.env_steps = check_count("env_steps", env_steps)
        self.common_random_numbers = check_flag("common_random_numbers", common_random_numbers)
        self.error_groups = check_groups(error_groups, "env_steps", self.env_steps)
        self._oracle: TrajectoryOracle | None = None
        self._used: float | None = None  # the weight of this run, once it is known
        self._copies: list[Follower] = []
        self._sides: list[Side] = []
        self._is_checked = False  # whether the model's functions were seen to stay in torch

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        """As `Estimator.bind`; the sides' followers start from scratch.

        Raises:
            DiscountError: the leader discounts otherwise than the follower.
            UnsupportedError: ``exact`` without a tabular model; the follower's policy has an entropy that is needed and not
                exposed; x moves the ends of episodes of a problem that is not tabular; the follower cannot be copied.
        """
        super().bind(oracle, loss)
        model, follower = oracle.model, oracle.follower
        if self.exact:
            if not isinstance(model, TabularBOCMDP):
                raise UnsupportedError(
                    f"FirstOrder(exact=True) reads the arrays of a tabular model, and {type(oracle.core).__name__} has none; "
                    "leave exact out."
                )
            check_unchanged("FirstOrder(exact=True)", oracle.layers, oracle.core)
        moving = set(model.moving) if isinstance(model, TabularBOCMDP) else set()
        if isinstance(model, TabularBOCMDP) and "termination" in moving and not (self.exact or _by_state(oracle)):
            raise UnsupportedError(
                "x moves the probability that an episode ends, and trajectories as seen here carry no states to weigh that by; "
                "use FirstOrder(exact=True), or ZeroOrder."
            )
        entropic = follower.regularization is not None and not moving.isdisjoint({"transition", "initial", "termination"})
        if entropic and follower.exposes_probabilities is False:
            raise UnsupportedError(
                f"where more than rewards depends on x, the follower's values are weighed, entropy included, and "
                f"{type(follower).__name__} has a lambda but exposes no action probabilities; use ZeroOrder."
            )
        self._oracle, self._is_checked = oracle, False
        self._used, self._sides = None, []
        self._copies = [follower.copy(name) for name in ("plus", "minus")[: 1 + self.two_sided]]
        if self.weight is not None:
            self._set_weight(self.weight)

    def _set_weight(self, weight: float) -> None:
        """Settle w, and with it the two problems."""
        oracle = self._oracle
        assert oracle is not None
        self._used = weight
        self._sides = []
        for follower, share in zip(self._copies, (weight, -weight), strict=False):
            paid = TrajectoryOracle(with_leader_share(oracle.env, share), follower, compiled=oracle.compiled)
            self._sides.append(Side(paid, share, 1.0 / share if not self.two_sided else 0.5 / share))
        if not self.two_sided:
            self._sides.append(Side(oracle, 0.0, -1.0 / weight))

    def state(self) -> dict[str, Any]:
        """The weight, and the followers of both sides (a follower that is the run's own is saved there)."""
        followers = {str(i): one.oracle.follower.state() for i, one in enumerate(self._sides) if one.share}
        return {"weight": self._used, "followers": followers}

    def load_state(self, state: dict[str, Any]) -> None:
        if state["weight"] is None:
            return
        if self._used is None:
            self._set_weight(state["weight"])
        for i, saved in state["followers"].items():
            self._sides[int(i)].oracle.follower.load_state(saved)

    @with_gradients
    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        if self._oracle is None:
            raise OptionError("FirstOrderEstimator.estimate was called before bind(oracle).")
        before = oracle.env_steps
        if self._used is None:
            self._set_weight(self._automatic(oracle, x, context, rng))
        assert self._used is not None
        seed = rng.integers(2**32, size=4).tolist() if self.common_random_numbers else None
        found = self._exact(x, context, seed, rng) if self.exact else self._sampled(oracle, x, context, seed, rng)
        found.metrics["weight"] = self._used
        found.env_steps = oracle.env_steps - before
        return found

    # -------------------------------------------------------------------------------------------------------- exact

    def _exact(self, x: Tensor, context: Any, seed: list[int] | None, rng: np.random.Generator) -> Estimate:
        parts, returns, policies = [], [], []
        for side in self._sides:
            policy = side.oracle.respond(x, context, _generator(seed, rng))
            table = policy_table(side.oracle, policy, "FirstOrder(exact=True)")
            arrays = side.oracle.configure(x).arrays(context)
            parts.append((side, arrays, table))
            returns.append(policy_return(arrays, table))
            policies.append(policy)
        assert self._oracle is not None
        mdps = self._oracle.configure(x)
        weights = first_order_weights(
            mdps,
            [(arrays, table, side.share, side.coefficient) for side, arrays, table in parts],
            self._oracle.follower.regularization or 0.0,
        )
        return Estimate(mdps.vjp(weights, context), self._mean(returns), metrics=self._metrics(returns, policies))

    # ------------------------------------------------------------------------------------------------------ sampled

    def _sampled(
        self, oracle: TrajectoryOracle, x: Tensor, context: Any, seed: list[int] | None, rng: np.random.Generator
    ) -> Estimate:
        assert oracle.model is not None
        lambda_ = oracle.follower.regularization or 0.0
        paired = self.common_random_numbers
        paid, policies = [], []
        for side in self._sides:
            own = _generator(seed, rng)
            policy = side.oracle.respond(x, context, own)
            batch = side.oracle.sample(policy, -(-self.env_steps // 2), own, paired=paired)
            if side.oracle is not oracle:
                oracle.count_steps(batch.n_steps)
            bonus = lambda_ * _entropies(side.oracle, policy, batch) if lambda_ and _weighs_values(oracle, x, batch) else None
            paid.append(Paid(batch, side.share, side.coefficient, bonus))
            policies.append(policy)
        if paired and not _move_together(oracle):  # an episode without its counterpart would be noise that nothing takes away
            pairs = np.arange(min(one.batch.n_episodes for one in paid))
            paid = [one if one.batch.n_episodes == len(pairs) else one.episodes(pairs) for one in paid]
        gradient_of = SampledGradient(oracle, x, paid, by_state=_by_state(oracle), check=not self._is_checked)
        self._is_checked = True
        groups = max(min(self.error_groups, *(one.batch.n_episodes for one in paid)), 1)
        chosen = [np.array_split(np.arange(one.batch.n_episodes), groups) for one in paid]
        gradients = [gradient_of([parts[g] for parts in chosen]) for g in range(groups)]
        gradient, error = combine_groups(gradients, [len(part) for part in chosen[0]])
        returns = [float(one.batch.discounted_returns(oracle.model.discount, leader=True).mean()) for one in paid]
        return Estimate(gradient, self._mean(returns), 0, error, self._metrics(returns, policies))

    # ------------------------------------------------------------------------------------------------------- shared

    def _mean(self, returns: Sequence[float]) -> float:
        """F_xi: that of the unpaid side, or the middle of the two."""
        return returns[1] if not self.two_sided else 0.5 * (returns[0] + returns[1])

    def _metrics(self, returns: Sequence[float], policies: Sequence[Policy]) -> dict[str, float]:
        gain = sum(side.coefficient * one for side, one in zip(self._sides, returns, strict=True))
        metrics = {**policies[0].metrics, "paid_gain": gain, **likely_regularization(self._sides[0].oracle, policies[0])}
        assert self._oracle is not None
        oracles = {id(one): one for one in (self._oracle, *(side.oracle for side in self._sides))}
        trained = sum(one.training_steps for one in oracles.values())
        return metrics | ({"follower_training_steps": float(trained)} if "follower_training_steps" in metrics else {})

    def _automatic(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> float:
        """The weight, from an answer without a share (class docstring)."""
        policy, lambda_ = oracle.respond(x, context, rng), oracle.follower.regularization
        if self.exact:
            arrays, table = oracle.configure(x).arrays(context), policy_table(oracle, policy, "FirstOrder(exact=True)")
            leader, follower = _action_spreads(arrays, table)
            share = EXACT_SHARE
        else:
            batch = oracle.sample(policy, max(self.env_steps // 2, 1), rng)
            assert oracle.model is not None
            leader, follower = _return_spreads(batch, oracle.model.discount)
            share = SAMPLED_SHARE
        scale = UNKNOWN_SHARE * follower if lambda_ is None else share * lambda_
        if not (scale > 0.0 and leader > 0.0):
            raise OptionError(
                f'weight="auto" compares the spread of values, and that of the leader is {leader:.3g}, of the follower '
                f"{follower:.3g}, at x = {x.tolist()}; give weight=, a number."
            )
        return scale / leader


def first_order_weights(
    mdps: ConfiguredMDPs, sides: Sequence[tuple[ContextArrays, Array, float, float]], regularization: float
) -> Weights:
    """Exact weights of sum_s c_s dU_s/dx (module docstring).

    Args:
        mdps: the model at x, without shares; it says what depends on x.
        sides: of each s: the arrays of one context with the follower's reward r + s rbar, its policy ``(S, A)``, s and c_s.
        regularization: the lambda of the entropy in the follower's return; 0 if it has none.
    """
    moving = set(mdps.model.moving)
    arrays = sides[0][0]
    weights = Weights(reward=np.zeros_like(arrays.reward), leader_reward=np.zeros_like(arrays.reward))
    if "transition" in moving:
        weights.transition = np.zeros_like(arrays.stored_probabilities)
    if "initial" in moving:
        weights.initial = np.zeros_like(arrays.initial)
    if "termination" in moving:
        weights.termination = np.zeros_like(arrays.reward)
    for arrays, policy, share, coefficient in sides:
        system = arrays.solver.factor(policy * arrays.continuation, arrays.stored_probabilities)
        visits = coefficient * system.solve_transposed(arrays.initial)[:, None] * policy
        assert weights.reward is not None
        assert weights.leader_reward is not None
        weights.reward += visits
        weights.leader_reward += share * visits
        if moving <= {"reward", "leader_reward"}:
            continue
        value = system.solve((policy * arrays.reward + regularization * entr(policy)).sum(-1))
        if weights.transition is not None:
            weights.transition += arrays.outer(arrays.continuation * visits, value)
        if weights.initial is not None:
            weights.initial += coefficient * value
        if weights.termination is not None:
            weights.termination -= mdps.model.discount * visits * arrays.expectation(value)
    return weights


def _generator(seed: list[int] | None, rng: np.random.Generator) -> np.random.Generator:
    return rng if seed is None else np.random.default_rng(seed)


def _weighs_values(oracle: TrajectoryOracle, x: Tensor, batch: Trajectories) -> bool:
    """Whether the follower's values are weighed: where more than rewards depends on x."""
    model = oracle.model
    if isinstance(model, TabularBOCMDP):
        return not set(model.moving) <= {"reward", "leader_reward"}
    model = oracle.seen_model
    assert model is not None
    return Points(model, x, batch.episodes(np.zeros(1, dtype=np.int64))).needs_values


def _move_together(oracle: TrajectoryOracle) -> bool:
    """Whether episodes are played in copies that move together, so that they cannot be seeded one by one."""
    return isinstance(oracle.env, VectorEnv) and not oracle.compiled


def _by_state(oracle: TrajectoryOracle) -> bool:
    """Whether trajectories can be weighed on the arrays of a tabular model."""
    model = oracle.model
    return isinstance(model, TabularBOCMDP) and model.takes_states and oracle.exposes_states


def _entropies(oracle: TrajectoryOracle, policy: Policy, batch: Trajectories) -> Array:
    """H(pi(.|s_t)) of every step ``(N,)``.

    Raises:
        UnsupportedError: the policy exposes no probabilities.
    """
    tabulated = oracle.tabulate(policy) if batch.states is not None else None
    if tabulated is not None and batch.states is not None:
        rows: Array = entr(tabulated.table).sum(-1)[batch.states]
        return rows
    own = policy.entropies(batch.observations)
    if own is not None:
        return own
    if not policy.exposes_probabilities:
        raise UnsupportedError(
            f"where more than rewards depends on x, the follower's entropy is needed, and {type(policy).__name__} exposes no "
            "action probabilities; use ZeroOrder."
        )
    return np.array([entr(policy.probabilities(observation)).sum() for observation in batch.observations])


def _action_spreads(arrays: ContextArrays, policy: Array) -> tuple[float, float]:
    """How far Qbar(s, a) and Q(s, a) are from their mean over actions, root mean square in the states visited."""
    visits = visitation(arrays, policy)
    leader, follower = (
        float(np.sqrt((visits @ evaluate(arrays, policy, reward, arrays.continuation).q.var(-1)) / visits.sum()))
        for reward in (arrays.leader_reward, arrays.reward)
    )
    return leader, follower


def _return_spreads(batch: Trajectories, discount: float) -> tuple[float, float]:
    """Standard deviations of the leader's and the follower's discounted returns from the steps visited."""
    tails = np.zeros(batch.n_episodes)
    leader, follower = (
        float(returns_to_go(rewards, batch.ends, tails, discount).std()) for rewards in (batch.leader_rewards, batch.rewards)
    )
    return leader, follower
