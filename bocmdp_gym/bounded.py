r"""Whether a regularised optimum exists at discount 1: can a follower earn without end by never ending?

The mathematics. An episode can continue for ever only inside an end component: states with actions that never end it and never
leave, each of which can reach each other by them (de Alfaro, "Formal Verification of Probabilistic Systems", 1997). There the
most that a follower earns per step, entropy included, is the soft gain rho of

    h(s) + rho = lambda logsumexp((r(s, .) + P h(s, .)) / lambda)       over the actions that stay,

and V is finite if and only if rho < 0 in every component: at rho >= 0 staying longer always pays. For any h,
min (T h - h) <= rho <= max (T h - h), which decides the sign without asking how exact h is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, eye_array, hstack
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve
from scipy.special import logsumexp, softmax, xlogy

from bocmdp_gym.errors import ConvergenceError

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_MAX_ITERATIONS = 100
#: Probabilities are kept above this, so that a component stays connected in double precision.
_SMALLEST = 1e-100


def check_bounded(r: Array, g: Array, succ: npt.NDArray[np.int32], prob: Array, rows: npt.NDArray[np.int64], lam: float) -> None:
    """Check that no policy of one context earns without end.

    Args:
        r, g: rewards, -inf for actions that do not exist, and continuation ``(S, A)``; pairs of g = 1 never end the episode.
        succ, prob: stored successors and their probabilities ``(S, M, K)``.
        rows: the stored row of each action ``(A,)``.
        lam: lambda.

    Raises:
        ConvergenceError: the follower's value is infinite, or too near to that to tell.
    """
    exists = r > -np.inf
    stays, r = (g >= 1.0) & exists, np.where(exists, r, 0.0)
    if (_soft_maximum(r, stays, lam) < 0.0).all():
        return
    for states, actions in end_components(stays, succ, prob, rows):
        low, high = _soft_gain(r[states], actions, succ[states], prob[states], rows, lam, states)
        if high < 0.0:
            continue
        cause = "the follower's values diverge" if low >= 0.0 else "it cannot be told whether the follower's values diverge"
        raise ConvergenceError(
            f"{cause}: at discount 1 and regularization {lam}, staying for ever among {len(states)} states (one is "
            f"{int(states[0])}) earns between {low:.3g} and {high:.3g} per step, entropy included; expected a loss. Lower the "
            "regularization or the discount, or make every step cost more."
        )


def end_components(
    stays: Mask, succ: npt.NDArray[np.int32], prob: Array, rows: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[np.int64], Mask]]:
    """The maximal end components: their states ``(n,)`` and the actions that stay ``(n, A)``."""
    n_states = len(stays)
    possible = prob > 0.0
    label = np.zeros(n_states, np.int64)
    inside = np.ones(n_states, dtype=np.bool_)
    while True:
        same = (label[succ] == label[:, None, None]) & inside[succ] | ~possible
        stays = stays & same.all(-1)[:, rows] & inside[:, None]
        smaller = stays.any(-1)
        s, a = np.nonzero(stays)
        edges = possible[s, rows[a]]
        pairs = (np.repeat(s, edges.sum(-1)), succ[s, rows[a]][edges])
        graph = csr_matrix((np.ones(len(pairs[0]), np.int8), pairs), shape=(n_states, n_states))
        _, finer = connected_components(graph, connection="strong")
        if (smaller == inside).all() and len(np.unique(finer)) == len(np.unique(label)):
            break
        inside, label = np.asarray(smaller), finer
    found = [np.flatnonzero(inside & (label == i)) for i in np.unique(label[inside])]
    return [(states, stays[states]) for states in found]


def _soft_maximum(q: Array, allowed: Mask, lam: float) -> Array:
    """lambda logsumexp(q / lambda) over allowed actions; -inf where there are none."""
    values: Array = lam * logsumexp(np.where(allowed, q / lam, -np.inf), axis=-1)
    return values


def _soft_gain(
    r: Array,
    allowed: Mask,
    succ: npt.NDArray[np.int32],
    prob: Array,
    rows: npt.NDArray[np.int64],
    lam: float,
    states: npt.NDArray[np.int64],
) -> tuple[float, float]:
    """Bounds on rho of one component, by Newton's method, until they agree on a sign."""
    n = len(states)
    place = np.full(int(succ.max()) + 1, 0)
    place[states[states <= succ.max()]] = np.flatnonzero(states <= succ.max())
    inner = place[succ]  # successors that leave belong to actions that are not allowed, or have probability 0
    q = np.zeros_like(r)
    low, high = -np.inf, np.inf
    for _ in range(_MAX_ITERATIONS):
        pi = np.maximum(softmax(np.where(allowed, q / lam, -np.inf), axis=-1), np.where(allowed, _SMALLEST, 0.0))
        pi /= pi.sum(-1, keepdims=True)
        gains = (pi * r).sum(-1) - lam * xlogy(pi, pi).sum(-1)
        per_row = np.zeros(succ.shape[:2])
        for a, row in enumerate(rows):
            per_row[:, row] += pi[:, a]
        weights = (per_row[..., None] * prob).reshape(-1)
        matrix = csr_matrix((weights, (np.repeat(np.arange(n), prob[0].size), inner.reshape(-1))), shape=(n, n))
        # h with h[0] = 0, and rho in its place
        system = (eye_array(n, format="csr") - matrix)[:, 1:]
        solution = spsolve(hstack([system, np.ones((n, 1))]).tocsc(), gains)
        h = np.concatenate(([0.0], np.atleast_1d(solution)[:-1]))
        q = r + (prob * h[inner]).sum(-1)[:, rows]
        change = _soft_maximum(q, allowed, lam) - h
        low, high = max(low, float(change.min())), min(high, float(change.max()))
        if high < 0.0 or low >= 0.0 or not np.isfinite(change).all():
            break
    return low, high
