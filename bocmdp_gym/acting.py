r"""A leader who acts: games in which the leader makes a move at every step, and the follower sees it before its own.

The mathematics. A game has states s, leader's actions l and follower's actions a, rewards r(s, l, a) and rbar(s, l, a),
transitions P(s'|s, l, a), initial distribution mu(s) and ends q(s, l, a). The leader commits to a policy

    pi_x(l|s) = softmax(x(s, .))_l,         x in R^(S L): its logits,

and each step draws l, shows it to the follower, who acts, and the state moves. To the follower this is an ordinary MDP on pairs
(s, l), numbered s L + l:

    P((s', l')|(s, l), a) = P(s'|s, l, a) pi_x(l'|s'),        mu(s, l) = mu(s) pi_x(l|s),

with r, rbar and q as they are. So it is a BO-CMDP in which x moves P and mu alone, and what holds of those holds of it: the
leader's return has exact hypergradients, and every follower and leader meets it as any other problem.

A leader who takes what it likes best in a state for certain has infinite logits there; finite ones come as close as float64
tells, and the gradient vanishes on the way. Nothing bounds x, then: a bound on logits would bound how sure a leader can be.

Storage. P over pairs is kept as lists of successors: K of a game's row become K L, in which the L of one state share its P(s').
A dense game is listed without the zeros of its rows, and no array of (S L) x (S L) numbers is made unless every state follows
every other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from bocmdp_gym.errors import ModelError
from bocmdp_gym.options import as_array
from bocmdp_gym.transitions import SuccessorTransitions, TransitionOperator, as_probabilities, as_transitions

Array = npt.NDArray[np.float64]


def acting_parts(*, reward: Any, leader_reward: Any, transition: Any, initial: Any, termination: Any = None) -> dict[str, Any]:
    """The game as a BO-CMDP on pairs of a state and a leader's action: arguments of `bocmdp_gym.TabularBOCMDP`.

    Args:
        reward: the follower's, ``(S, L, A)`` or ``(C, S, L, A)``: its last three sizes are those of the game.
        leader_reward: the leader's, of that shape or broadcastable to it.
        transition: P, dense ``(S, L, A, S)`` or ``(C, S, L, A, S)``; or a `TransitionOperator`, or scipy.sparse matrix
            ``(S L A, S)``, of S states and L A joint actions l A + a.
        initial: the distribution of the first state, ``(S,)`` or ``(C, S)``.
        termination: probability that the episode ends after acting, ``(S, L, A)`` or broadcastable to it; never if None.

    Raises:
        ModelError: shapes that do not fit, functions of x, rows of P that do not sum to 1.
    """
    paid = _numbers("reward", reward)
    if paid.ndim not in (3, 4) or not paid.size:
        raise ModelError(
            f"reward has shape {paid.shape}; expected (S, L, A), or (C, S, L, A): states, leader's actions, follower's actions."
        )
    sizes: tuple[int, ...] = paid.shape[-3:]
    n_states, n_leader, n_actions = sizes
    kernel = _kernel(transition, sizes)
    starts = as_probabilities(_constant("initial", initial))
    if starts.ndim not in (1, 2) or starts.shape[-1] != n_states:
        raise ModelError(f"initial has shape {tuple(starts.shape)}; expected ({n_states},), or (C, {n_states}).")
    successors, chances = _lists(kernel, (n_states * n_leader, n_actions))
    pairs = successors[..., None] * n_leader + np.arange(n_leader)
    listed = SuccessorTransitions(
        pairs.reshape(*pairs.shape[:-2], -1), _joined(chances, chances.new_full((n_leader,), 1.0 / n_leader))
    )
    following = torch.from_numpy(successors)

    def policy(x: Tensor) -> Tensor:
        return torch.softmax(x.reshape(n_states, n_leader), -1)

    return {
        "reward": _over_pairs("reward", paid, sizes),
        "leader_reward": _over_pairs("leader_reward", _numbers("leader_reward", leader_reward), sizes),
        "transition": lambda pi: listed.with_values(_joined(chances, pi[following])),
        "initial": lambda pi: (starts.unsqueeze(-1) * pi).flatten(-2),
        "termination": None if termination is None else _over_pairs("termination", _numbers("termination", termination), sizes),
        "parametrization": policy,
        "leader_dim": n_states * n_leader,
    }


def _joined(chances: Tensor, policy: Tensor) -> Tensor:
    """P(s'|s, l, a) pi(l'|s') of every listed s' and every l', ``(..., K L)``; ``policy``: pi at the listed states."""
    return (chances.unsqueeze(-1) * policy).flatten(-2)


def _constant(name: str, value: Any) -> Any:
    """What is no function of x.

    Raises:
        ModelError: it is one.
    """
    if callable(value) and not isinstance(value, Tensor):
        raise ModelError(
            f"{name} is a function; expected an array: x is the leader's logits here, and moves its actions alone. For a leader "
            "who also sets prices, write the pairs (s, l) out and use TabularBOCMDP itself."
        )
    return value


def _numbers(name: str, value: Any) -> Array:
    array = as_array(_constant(name, value))
    if array is None:
        raise ModelError(f"{name} is {value!r}; expected an array of real numbers.")
    return array


def _over_pairs(name: str, array: Array, sizes: tuple[int, ...]) -> Array:
    """``(..., S, L, A)``, or what broadcasts to it, as ``(C or 1, S L, A)``."""
    try:
        full = np.broadcast_to(array, (*array.shape[:-3], *sizes))
    except ValueError:
        full = np.empty(0)
    if full.ndim not in (3, 4):
        raise ModelError(
            f"{name} has shape {array.shape}; expected {sizes}, the sizes of reward, after contexts if there are several."
        )
    return full.reshape(-1, sizes[0] * sizes[1], sizes[2])


def _kernel(transition: Any, sizes: tuple[int, ...]) -> TransitionOperator:
    """The game's own transitions, of S states and L A joint actions."""
    n_states, n_leader, n_actions = sizes
    listed = sparse.issparse(transition) or (isinstance(transition, (list, tuple)) and any(map(sparse.issparse, transition)))
    if listed or isinstance(transition, TransitionOperator):
        kernel = as_transitions(transition)
        if (kernel.n_states, kernel.n_actions) != (n_states, n_leader * n_actions):
            raise ModelError(
                f"transition is for {kernel.n_states} states and {kernel.n_actions} actions; expected {n_states} states and "
                f"{n_leader * n_actions} joint actions, l * {n_actions} + a."
            )
    else:
        dense = as_probabilities(_constant("transition", transition))
        if dense.ndim not in (4, 5) or tuple(dense.shape[-4:]) != (*sizes, n_states):
            raise ModelError(
                f"transition has shape {tuple(dense.shape)}; expected {(*sizes, n_states)}, that is (S, L, A, S), or contexts "
                "first; for sparse games a scipy.sparse matrix (S L A, S) or SuccessorTransitions of S states and L A actions."
            )
        kernel = as_transitions(dense.reshape(-1, n_states, n_leader * n_actions, n_states))
    kernel.validate()
    return kernel


def _lists(kernel: TransitionOperator, shape: tuple[int, int]) -> tuple[npt.NDArray[np.int64], Tensor]:
    """Successors and probabilities of the pairs, ``(C or 1, S L, A, K)`` each, K the most that a row has above 0."""
    values = kernel.values.detach().cpu().numpy()
    successors = np.broadcast_to(kernel.successors(), values.shape)
    if kernel.index is not None:
        values, successors = values[:, :, kernel.index], successors[:, :, kernel.index]
    width = max(int((values != 0.0).sum(-1).max()), 1)
    order = np.argsort(values == 0.0, axis=-1, kind="stable")[..., :width]
    kept = (np.take_along_axis(one, order, -1).reshape(len(values), *shape, width) for one in (successors, values))
    listed, chances = kept
    return listed.astype(np.int64), torch.from_numpy(chances)
