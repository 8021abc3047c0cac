r"""The lambda of a follower that has none: under which its policy looks most like a softmax of its own Q.

The mathematics. The answer to a problem with entropy is pi = softmax(Q^pi / lambda), where Q^pi, the policy's own, has the
entropy of what follows in it: Q^pi = Q_0 + lambda H, with Q_0 of the rewards alone and H(s, a) the discounted entropies after
acting. With beta = 1 / lambda the policy is then softmax(beta Q_0 + H), and the log-likelihood of what it does,

    L(beta) = sum_{s,a} n(s, a) log softmax(beta Q_0(s, .) + H(s, .))(a)

is concave in beta: it has one maximum, where sum n (Q_0 - E_beta Q_0) = 0. n are the discounted visits d(s) pi(a|s), or counts of
sampled actions. The standard error of beta is sqrt(sum_c g_c^2) / I with the scores g_c of clusters c, the states or the sampled
episodes, and the information I = sum n Var_beta(Q_0); that of lambda is lambda^2 times it.

A policy that always takes its best action has lambda 0, one that prefers worse actions to better ones has none (infinity).

Without a table Q is not known, but what sampled episodes earned is: `followers._regularization_returns` says how it tells lambda.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import softmax, xlogy

from bocmdp_gym import TabularBOCMDP, Trajectories
from bocmdp_gym.arguments import known_options
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import check_count, check_generator, check_instance
from followers import _regularization_returns as sampled
from followers.empirical import empirical_policy
from followers.evaluation import evaluate, visitation
from followers.oracle import TrajectoryOracle
from followers.policies import Array, Policy

#: Above this, in units of one over the largest difference of Q_0, beta counts as infinite.
_LARGEST = 1e8


class RegularizationEstimate(NamedTuple):
    """What `estimate_regularization` found.

    Attributes:
        regularization: lambda; 0 where the policy takes its best actions alone, infinity where it does not prefer them.
        standard_error: of it.
        misfit: how far the policy is from the softmax under that lambda: the mean Kullback-Leibler divergence over visits; NaN
            without a tabular model.
    """

    regularization: float
    standard_error: float
    misfit: float


@known_options()
def estimate_regularization(
    oracle: TrajectoryOracle, policy: Policy, *, env_steps: int = 0, rng: np.random.Generator | None = None
) -> RegularizationEstimate:
    """The lambda under which a policy looks most like a softmax of its own Q (module docstring).

    Args:
        oracle: where it was made; its tabular model has the values, and without one, sampled returns tell.
        policy: from `TrajectoryOracle.respond`.
        env_steps: judge by this many sampled steps; 0: by the policy's probabilities, on a tabular model.
        rng: source of randomness, where steps are sampled.

    Raises:
        UnsupportedError: no probabilities, where they are needed: everywhere but for sampled steps of a tabular model.
        OptionError: a negative number of steps, or none where they are needed, steps without ``rng``, or episodes that are all
            cut before a return is whole.
    """
    check_instance("oracle", oracle, TrajectoryOracle)
    check_instance("policy", policy, Policy)
    env_steps = check_count("env_steps", env_steps, 0)
    if not isinstance(oracle.model, TabularBOCMDP) or (env_steps and not oracle.exposes_states):
        return _without_table(oracle, policy, env_steps, rng)
    arrays, tabulated = oracle.configure_for(policy).arrays(policy.context), oracle.tabulate(policy)
    if not env_steps:
        if tabulated is None:
            raise UnsupportedError(
                f"{type(policy).__name__} exposes no action probabilities in all states; give env_steps and rng, to judge it by "
                "what it does."
            )
        table = tabulated.table
        return _fit(arrays, table, visitation(arrays, table)[:, None] * table)
    batch = _sample(oracle, policy, env_steps, rng)
    n_states, n_actions = arrays.reward.shape
    seen = empirical_policy(batch, n_states, n_actions).table
    uniform = arrays.available / arrays.available.sum(-1, keepdims=True)
    table = np.where(np.isnan(seen), uniform, seen) if tabulated is None else tabulated.table
    assert batch.states is not None  # counted above
    episodes = np.repeat(np.arange(batch.n_episodes), batch.lengths)
    pairs = batch.states.astype(np.int64) * n_actions + np.asarray(batch.actions, dtype=np.int64)
    counts = np.bincount(pairs, minlength=table.size).reshape(table.shape).astype(np.float64)
    return _fit(arrays, table, counts, (pairs, episodes))


def _sample(oracle: TrajectoryOracle, policy: Policy, env_steps: int, rng: np.random.Generator | None) -> Trajectories:
    if rng is None:
        raise OptionError(f"env_steps is {env_steps} and rng is None; expected a numpy Generator to sample them with.")
    return oracle.sample(policy, env_steps, check_generator(rng))


def _without_table(
    oracle: TrajectoryOracle, policy: Policy, env_steps: int, rng: np.random.Generator | None
) -> RegularizationEstimate:
    """From sampled returns."""
    if not policy.exposes_probabilities:
        raise UnsupportedError(
            f"{type(policy).__name__} exposes no action probabilities, from which lambda is read without a tabular model; give "
            "the leader a regularization, or use FirstOrder, which needs none."
        )
    if not env_steps:
        raise OptionError(
            f"env_steps is 0, and {type(oracle.core).__name__} has no tabular model to read the policy's Q from; expected "
            "a number of steps to sample, and rng."
        )
    return RegularizationEstimate(*sampled.of_steps(oracle, policy, _sample(oracle, policy, env_steps, rng)), np.nan)


def likely_regularization(oracle: TrajectoryOracle, policy: Policy) -> dict[str, float]:
    """`estimate_regularization` as metrics, where a follower has no lambda and its policy's probabilities can be read."""
    if oracle.follower.regularization is not None or not isinstance(oracle.model, TabularBOCMDP):
        return {}
    if oracle.layers.changing is not None or oracle.tabulate(policy) is None:
        return {}
    found = estimate_regularization(oracle, policy)
    return {"follower_lambda": found.regularization, "follower_lambda_error": found.standard_error}


def sampled_regularization(oracle: TrajectoryOracle, policy: Policy, batch: Trajectories, told: Array | None) -> dict[str, float]:
    """The same from trajectories and the policy's probabilities at their steps; nothing where these do not tell it."""
    if told is None or oracle.follower.regularization is not None or not policy.exposes_probabilities:
        return {}
    try:
        value, error = sampled.of_steps(oracle, policy, batch, told)
    except (OptionError, UnsupportedError):  # all episodes are cut early, or observations are no arrays
        return {}
    return {"follower_lambda": value, "follower_lambda_error": error}


def _fit(
    arrays: ContextArrays,
    table: Array,
    n: Array,
    steps: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None,
) -> RegularizationEstimate:
    """The maximum of the likelihood.

    Args:
        arrays: the context's MDP.
        table: the policy ``(S, A)`` that Q belongs to.
        n: visits or counts ``(S, A)``.
        steps: of sampled steps the pair, s A + a, and the episode, ``(N,)`` each; episodes are the clusters then, else states.
    """
    q = evaluate(arrays, table, arrays.reward, arrays.continuation).q
    later = arrays.masked(evaluate(arrays, table, np.zeros_like(q), arrays.continuation, 1.0).q)
    q = q - q.mean(-1, keepdims=True)

    def gaps(beta: float) -> Array:
        """Q_0(s, a) - E_beta Q_0(s, .), ``(S, A)``."""
        expected: Array = (softmax(beta * q + later, axis=-1) * q).sum(-1, keepdims=True)
        return q - expected

    def score(beta: float) -> float:
        return float((n * gaps(beta)).sum())

    spread = float(np.abs(q[n.sum(-1) > 0.0]).max())
    if not spread > 0.0 or score(0.0) <= 0.0:
        return RegularizationEstimate(np.inf, np.inf, _misfit(n, later))
    largest = _LARGEST / spread
    if score(largest) >= 0.0:
        return RegularizationEstimate(0.0, 0.0, _misfit(n, largest * q + later))
    from scipy.optimize import brentq  # which takes its time to import

    beta = float(brentq(score, 0.0, largest, xtol=1e-12 / spread, rtol=1e-12))
    found = gaps(beta)
    information = float((n.sum(-1) * (softmax(beta * q + later, axis=-1) * found**2).sum(-1)).sum())
    scores = (n * found).sum(-1) if steps is None else np.bincount(steps[1], found.reshape(-1)[steps[0]])
    error = float(np.sqrt(np.square(scores).sum())) / information
    return RegularizationEstimate(1.0 / beta, error / beta**2, _misfit(n, beta * q + later))


def _misfit(n: Array, logits: Array) -> float:
    """Mean of KL(shares of n in a state, softmax of the logits) over n."""
    rows = n.sum(-1, keepdims=True)
    shares = np.divide(n, rows, out=np.zeros_like(n), where=rows > 0.0)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    told = np.where(shares > 0.0, log_p, 0.0)  # which is -inf at actions that do not exist
    return float((rows * (xlogy(shares, shares) - shares * told)).sum() / n.sum())
