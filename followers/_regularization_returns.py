r"""The lambda of a policy from what it earned, without a table: see `followers.regularization`.

The mathematics. Of a softmax of its own Q^pi = Q_0 + lambda H, with the entropies H(s, a) of what follows acting,

    lambda (log pi(a|s) + H_pi(s)) = A_0(s, a) + lambda A_H(s, a),

where H_pi(s) is the entropy of pi(.|s), and A_0, A_H are Q_0 and H less their means under pi(.|s). With z = log pi + H_pi, which
is known and of mean 0 in every state, and returns R_0, R_H in place of Q_0 and H, less anything that depends on states alone,

    lambda = E z R_0 / E z (z - R_H):

z meets the noise of both returns and not its own, so neither biases the ratio. Of a policy that is no such softmax it is the
coefficient of the regression of A_0 on z - A_H, with z as its instrument.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from bocmdp_gym import Trajectories
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.kernels.returns import returns_to_go
from followers.environments import action_space
from followers.oracle import TrajectoryOracle
from followers.policies import Array, Policy

#: What a return's weight has fallen to where a time limit may cut it: what an action does so much later is left out.
_TAIL = 0.1
#: Probabilities looked at at once.
_MANY = 2_000_000


def of_steps(oracle: TrajectoryOracle, policy: Policy, batch: Trajectories, told: Array | None = None) -> tuple[float, float]:
    """Lambda of a policy that exposes probabilities, and its standard error.

    Args:
        oracle, policy, batch: whose steps they are.
        told: the policy's probabilities at them, ``(N, ...)``, where they are known; None: it is asked for them.

    Raises:
        UnsupportedError: observations that are not arrays.
        OptionError: see `ratio`.
    """
    if not isinstance(batch.observations, np.ndarray):
        raise UnsupportedError(
            f"lambda is read from returns where observations are arrays, not {type(batch.observations).__name__}; flatten them, "
            "e.g. with gymnasium.wrappers.FlattenObservation, inside the leader's wrapper."
        )
    first = getattr(action_space(oracle.env), "start", 0)
    log_p, entropy = preferences(policy, batch, first) if told is None else _preferences(told, _chosen(batch, first))
    flat = batch.observations.reshape(batch.n_steps, -1).astype(np.float64)
    features = np.concatenate([np.ones((batch.n_steps, 1)), flat, flat**2], -1)
    return ratio(batch, log_p, entropy, oracle.core.discount, features)


def preferences(policy: Policy, batch: Trajectories, first_action: npt.ArrayLike = 0) -> tuple[Array, Array]:
    """log pi(a|s) of what was done, and the entropy of pi(.|s), ``(N,)`` each.

    Args:
        policy: that exposes probabilities, one axis per factor of an action.
        batch: its steps.
        first_action: the least action, of each factor.
    """
    n, chosen = batch.n_steps, _chosen(batch, first_action)
    log_p, entropy = np.empty(n), np.empty(n)
    size = np.asarray(policy.probabilities_batch(batch.observations[:1])).size
    for some in np.array_split(np.arange(n), -(-n * size // _MANY)):
        told = np.asarray(policy.probabilities_batch(batch.observations[some]), dtype=np.float64)
        log_p[some], entropy[some] = _preferences(told, chosen[some])
    return log_p, entropy


def _preferences(told: Array, chosen: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """The same, of probabilities ``(N, ...)`` and the places of actions in them ``(N, factors)``."""
    return np.log(told[(np.arange(len(told)), *chosen.T)]), entr(told).reshape(len(told), -1).sum(-1)


def _chosen(batch: Trajectories, first_action: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return (np.asarray(batch.actions) - first_action).reshape(batch.n_steps, -1).astype(np.int64)


def ratio(batch: Trajectories, log_p: Array, entropy: Array, discount: float, features: Array) -> tuple[float, float]:
    """Lambda and its standard error, by episodes.

    Args:
        batch: the steps.
        log_p, entropy: `preferences` of them.
        discount: the follower's gamma.
        features: of observations ``(N, K)``; a linear fit to them is subtracted from returns, half of the episodes by the other.

    Raises:
        OptionError: time limits cut what every step earns.
    """
    episode = np.repeat(np.arange(batch.n_episodes), batch.lengths)
    whole = batch.terminated[episode] | (discount ** (batch.ends[episode] - np.arange(batch.n_steps)) <= _TAIL)
    if not whole.any():
        raise OptionError(
            f"every one of the {batch.n_episodes} episodes was cut by a time limit before a return at discount {discount} was "
            f"whole; expected episodes that end by themselves, or last until {discount}^t is below {_TAIL}."
        )
    if not (entropy[whole] > 0.0).any():
        return 0.0, 0.0
    nothing = np.zeros(batch.n_episodes)
    earned = returns_to_go(batch.rewards, batch.ends, nothing, discount)
    later = returns_to_go(entropy, batch.ends, nothing, discount) - entropy
    z = log_p + entropy
    earned, later = (_less_baseline(returns, features, whole, episode % 2 == 0) for returns in (earned, later))
    gains, slopes = z[whole] * earned[whole], z[whole] * (z - later)[whole]
    gain, slope = gains.sum(), slopes.sum()
    if gain <= 0.0 or slope <= 0.0:
        return np.inf, np.inf
    found = float(gain / slope)
    scores = np.bincount(episode[whole], gains - found * slopes)
    return found, float(np.sqrt(np.square(scores).sum()) / slope)


def _less_baseline(returns: Array, features: Array, whole: npt.NDArray[np.bool_], half: npt.NDArray[np.bool_]) -> Array:
    """Returns less a linear fit to each half of them by the other's whole ones."""
    out = returns.copy()
    for fits, meets in ((half & whole, ~half), (~half & whole, half)):
        if fits.any():
            out[meets] -= features[meets] @ np.linalg.lstsq(features[fits], returns[fits], rcond=1e-8)[0]
    return out
