r"""The adjoint critic on a table, where features are one-hot: everything is an average by state.

A (half of the episodes) gives rows of P and shares of actions for the states it visits, so values, their derivatives and both
systems are those of its empirical problem; where P or q depends on x the model's own rows take their place, and where the
policy exposes probabilities, they take that of shares. A state that A never visits has the mean value of those visited, which a
constant added to the rewards moves as it moves theirs. The mathematics is in `leaders.gradients._adjoint`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import entr

from bocmdp_gym import Trajectories, Weights
from bocmdp_gym.kernels.returns import returns_to_go
from bocmdp_gym.mdps import ContextArrays
from leaders.gradients._adjoint import LinearSystem, weigh
from leaders.gradients.base import Array

Counts = npt.NDArray[np.int64]
#: What follows an action counts as seen this often more, with the average of its state: for actions seldom or never seen.
_PRIOR = 5.0


class Table(NamedTuple):
    """The problem at one (x, context), as the leader knows it."""

    arrays: ContextArrays
    policy: Array | None  # (S, A), where the policy exposes probabilities
    knows_transitions: bool  # P and q are read, not counted
    regularization: float
    discount: float
    leader_discount: float

    @property
    def shape(self) -> tuple[int, int]:
        n_states, n_actions = self.arrays.reward.shape
        return n_states, n_actions


class TableFit(NamedTuple):
    """What half of the episodes says."""

    system: LinearSystem  # I - gamma P_pi, with one more unknown, the mean
    leader_system: LinearSystem  # I - gamma_L P_pi
    visited: npt.NDArray[np.bool_]  # (S,)
    shares: Array  # (S, A): probabilities of actions, or their shares
    following: sparse.csr_matrix  # (S, S): P_pi, (1 - q) included, in the states visited
    leader: Array  # (S,)
    follower: Array  # (S,)
    advantage: Array  # (S, A): Abar
    batch: Trajectories  # A
    weight: Array  # (S,): one over the visits


def fit_table(table: Table, batch: Trajectories) -> TableFit:
    """Values, their systems and advantages of A."""
    arrays, (n_states, n_actions) = table.arrays, table.shape
    states, actions, following, continued = transitions(batch)
    pairs = states * n_actions + actions
    counts = np.bincount(pairs, minlength=n_states * n_actions).reshape(n_states, n_actions).astype(np.float64)
    visits = counts.sum(-1)
    visited, some = visits > 0.0, np.maximum(visits, 1.0)
    shares = np.where(visited[:, None], counts / some[:, None] if table.policy is None else table.policy, 0.0)
    if table.knows_transitions:
        matrix = policy_transitions(arrays, shares)
    else:
        rows = (continued / some[states], (states, following))
        matrix = sparse.csr_matrix(rows, shape=(n_states, n_states))
    system = _system(matrix, visits, table.discount)
    same = table.leader_discount == table.discount
    leader_system = system if same else _system(matrix, visits, table.leader_discount)
    entropy = table.regularization * entr(shares).sum(-1)
    leader = _solve(leader_system, (shares * arrays.leader_reward).sum(-1))
    follower = _solve(system, (shares * arrays.reward).sum(-1) + entropy)
    if table.knows_transitions:
        future = (1.0 - arrays.termination) * arrays.expectation(leader)
    else:
        sums = _sums(pairs, continued * leader[following], n_states * n_actions).reshape(n_states, n_actions)
        average = sums.sum(-1, keepdims=True) / some[:, None]
        future = (sums + _PRIOR * average) / (counts + _PRIOR)
    q = arrays.leader_reward + table.leader_discount * future
    advantage = np.where(visited[:, None], q - (shares * q).sum(-1, keepdims=True), 0.0)
    return TableFit(system, leader_system, visited, shares, matrix, leader, follower, advantage, batch, visited / some)


class TableWeights(NamedTuple):
    """Weights on g and on drbar, ``(S, A)`` each, and z ``(S,)``; sums over episodes."""

    reward: Array
    leader_reward: Array
    z: Array


def table_weights(table: Table, fit: TableFit, batch: Trajectories, trace: float) -> TableWeights:
    """The weights of B, or of some of its episodes."""
    (n_states, n_actions), gamma = table.shape, table.discount
    states, actions, _, _ = transitions(batch)
    scaled = fit.advantage / table.regularization
    kicks = scaled[states, actions]
    weighed = weigh(kicks, batch.ends, trace, gamma, table.leader_discount)
    cuts = np.where(batch.terminated, 0.0, weighed.final_power)
    after = _solve_transposed(fit.leader_system, _sums(batch.final_states, cuts, n_states)) * fit.visited
    steps = weighed.power * kicks + weighed.carried
    if table.policy is None:
        pairs = states * n_actions + actions
        w_reward = _sums(pairs, steps, n_states * n_actions).reshape(n_states, n_actions)
        w_leader = _sums(pairs, weighed.power, n_states * n_actions).reshape(n_states, n_actions)
    else:
        visits, carried = (_sums(states, own, n_states) for own in (weighed.power, weighed.carried))
        w_reward = table.policy * (visits[:, None] * scaled + carried[:, None])
        w_leader = table.policy * visits[:, None]
    again = after[:, None] * fit.shares
    w_reward, w_leader = w_reward + again * scaled, w_leader + again
    if table.knows_transitions:
        known = table.arrays.adjoint(gamma * (1.0 - table.arrays.termination) * w_reward) - w_reward.sum(-1)
    else:
        seen, done, _, _ = transitions(fit.batch)
        known = _differences(batch, steps, gamma, n_states)
        known += _differences(fit.batch, (after * fit.weight)[seen] * scaled[seen, done], gamma, n_states)
    z = _solve_transposed(fit.system, known) * fit.visited
    return TableWeights(w_reward + z[:, None] * fit.shares, w_leader, z)


def table_influence(table: Table, fit: TableFit, z: Array, batch: Trajectories) -> Array:
    """What the noise of some of A's episodes adds through the fit of derivatives: weights on g ``(S, A)``; 0 over all of A."""
    n_states, _ = table.shape
    states, _, _, _ = transitions(batch)
    own = (z * fit.weight)[states]
    known = _differences(batch, own, table.discount, n_states)
    spread = _sums(states, own, n_states) + _solve_transposed(fit.system, known) * fit.visited
    return spread[:, None] * fit.shares


def value_influence(table: Table, fit: TableFit, batch: Trajectories) -> Array:
    """What the noise of some of A's episodes adds to the leader's values ``(S,)``; 0 over all of A."""
    states, _, following, continued = transitions(batch)
    paid = (fit.shares * table.arrays.leader_reward).sum(-1)
    errors = paid[states] + table.leader_discount * continued * fit.leader[following] - fit.leader[states]
    return _solve(fit.leader_system, _sums(states, fit.weight[states] * errors, len(fit.leader)))


def _differences(batch: Trajectories, weights: Array, discount: float, n_states: int) -> Array:
    """sum_i w_i (gamma c 1{s'_i = s} - 1{s_i = s}), ``(S,)``."""
    states, _, following, continued = transitions(batch)
    return discount * _sums(following, continued * weights, n_states) - _sums(states, weights, n_states)


def model_weights(table: Table, fit: TableFit, w_reward: Array, w_leader: Array, w_initial: Array, moving: Any) -> Weights:
    """Weights on g and drbar as weights of all that depends on x: P and mu by their expectations, without scores.

    Args:
        table, fit: the problem, and A.
        w_reward, w_leader: weights on g and drbar ``(S, A)``, as means over episodes.
        w_initial: weights on mu ``(S,)``.
        moving: the names of what depends on x.
    """
    arrays, gamma, leader_gamma = table.arrays, table.discount, table.leader_discount
    weights = Weights(reward=w_reward, leader_reward=w_leader)
    goes_on = 1.0 - arrays.termination
    if "transition" in moving:
        weights.transition = arrays.outer(gamma * goes_on * w_reward, fit.follower)
        weights.transition += arrays.outer(leader_gamma * goes_on * w_leader, fit.leader)
    if "termination" in moving:
        weights.termination = -gamma * w_reward * arrays.expectation(fit.follower)
        weights.termination -= leader_gamma * w_leader * arrays.expectation(fit.leader)
    if "initial" in moving:
        weights.initial = w_initial
    return weights


def held_out_errors(table: Table, fit: TableFit, batch: Trajectories) -> tuple[float, float]:
    """Squared errors of the leader's and the follower's values on B, relative to the variance of returns there."""
    states, _, _, _ = transitions(batch)
    bonus = table.regularization * entr(fit.shares).sum(-1)
    errors = []
    for rewards, value, gamma in (
        (batch.leader_rewards, fit.leader, table.leader_discount),
        (batch.rewards + bonus[states], fit.follower, table.discount),
    ):
        tails = np.where(batch.terminated, 0.0, value[batch.final_states])
        errors.append(relative_error(value[states], returns_to_go(rewards, batch.ends, tails, gamma)))
    return errors[0], errors[1]


def relative_error(predicted: Array, targets: Array) -> float:
    """Mean squared error relative to the variance of the targets."""
    return float(np.square(predicted - targets).mean() / max(float(targets.var()), 1e-12))


def transitions(batch: Trajectories) -> tuple[Counts, Counts, Counts, Array]:
    """States, actions and next states ``(N,)``, and 0.0 where the episode ended, 1.0 elsewhere."""
    following = batch.next_states
    assert batch.states is not None
    assert following is not None
    continued = batch.continued.astype(np.float64)
    return batch.states.astype(np.int64), batch.actions.astype(np.int64), following.astype(np.int64), continued


def policy_transitions(arrays: ContextArrays, policy: Array) -> sparse.csr_matrix:
    """P_pi with (1 - q), ``(S, S)``."""
    n_states = len(policy)
    ones = np.ones(n_states)
    values = arrays.outer(policy * (1.0 - arrays.termination), ones) * arrays.stored_probabilities
    rows = np.broadcast_to(np.arange(n_states)[:, None, None], values.shape)
    return sparse.csr_matrix((values.ravel(), (rows.ravel(), arrays.stored_successors.ravel())), shape=(n_states, n_states))


def _sums(index: npt.NDArray[Any] | None, weights: Array, n: int) -> Array:
    """Sums of weights by index, ``(n,)``."""
    assert index is not None
    return np.bincount(index, weights, n).astype(np.float64, copy=False)


def _system(matrix: sparse.csr_matrix, visits: Array, discount: float) -> LinearSystem:
    """V - gamma P V = k in the states visited, and V = the mean, the last unknown, in the others."""
    mean = visits / visits.sum()
    unvisited = sparse.csr_matrix((-(visits == 0.0).astype(np.float64))[:, None])
    inner = sparse.identity(len(visits), format="csr") - discount * matrix
    return LinearSystem(sparse.bmat([[inner, unvisited], [sparse.csr_matrix(-mean[None]), np.ones((1, 1))]], format="csc"))


def _solve(system: LinearSystem, right: Array) -> Array:
    return system.solve(np.append(right, 0.0))[:-1]


def _solve_transposed(system: LinearSystem, right: Array) -> Array:
    return system.solve_transposed(np.append(right, 0.0))[:-1]
