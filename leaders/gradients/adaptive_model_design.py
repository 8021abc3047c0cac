r"""Adaptive model design (Chen et al. 2022; paper, Algorithm 7, corrected): values and their derivatives, swept forward together.

The mathematics, per context, with pi_k = softmax(Q_k/lambda), V_k = lambda logsumexp(Q_k/lambda), V^u_k = sum_a pi_k Q^u_k,
A^u_k = Q^u_k - V^u_k, dV_k = sum_a pi_k dQ_k, dA_k = dQ_k - dV_k, Vtilde_k = sum_a pi_k Qtilde_k (u: the leader's):

    Q_{k+1}      = r + g P V_k                    dQ_{k+1}     = dr + g (P dV_k + dP V_k)
    Q^u_{k+1}    = rbar + g_L P V^u_k             Qtilde_{k+1} = drbar + A^u_k dA_k / lambda + g_L (P Vtilde_k + dP V^u_k)

(where the termination q depends on x, with -gamma dq P V_k and -gamma_L dq P V^u_k too). After K sweeps
dF_xi/dx = sum_s mu Vtilde_K + dmu V^u_K. All four continue from where the last x left them, so the estimate lags behind x; its
fixed point is the exact hypergradient. This is the one estimator that carries a d-vector per state and action; `ExactEstimator`
gets the fixed point without.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.losses import Loss
from bocmdp_gym.options import check_count
from bocmdp_gym.saved_state import array_entry, entry
from followers import TrajectoryOracle
from leaders.gradients import _adaptive_model_design_kernels as kernels
from leaders.gradients.base import Array, Estimator
from leaders.gradients.estimate import Estimate, split

#: Above this many numbers in one context's dQ, the method is refused: 8 GB.
_MOST_NUMBERS = 10**9
#: Sweeps are made in portions whose policies hold no more numbers than this.
_PATH_NUMBERS = 10**6


class _State(NamedTuple):
    """What one context carries from x to x."""

    q: Array  # (S, A)
    dq: Array  # (S, A, d)
    leader_q: Array  # (S, A)
    v_tilde: Array  # (S, d)


class _Path(NamedTuple):
    """The values of successive sweeps."""

    policy: Array  # (K + 1, S, A)
    value: Array  # (K + 1, S)
    leader_value: Array  # (K + 1, S)
    kick: Array  # (K, S, A), pi_{k+1} A^u_k / lambda


def _path(sweeps: int, shape: tuple[int, int]) -> _Path:
    values = (sweeps + 1, shape[0])
    return _Path(np.empty((sweeps + 1, *shape)), np.empty(values), np.empty(values), np.empty((sweeps, *shape)))


class AdaptiveModelDesignEstimator(Estimator):
    """dF_xi/dx after ``sweeps`` forward sweeps over every context, continuing from the last x; knows the model, samples nothing.

    A round of sweeps over all contexts serves every context once: asked for another context at the same x, the estimator
    answers from the round already made.

    Args:
        sweeps: K, sweeps over every context per new x.
        regularization: lambda; the follower's if None.

    Raises:
        OptionError: ``sweeps`` is not a positive whole number.
    """

    needs_model = True
    needs_equilibrium = False  # it computes it
    needs_successors = True

    def __init__(self, sweeps: int = 100, regularization: float | None = None):
        super().__init__(regularization)
        self.sweeps = check_count("sweeps", sweeps)
        self._states: dict[int, _State] = {}
        self._round: dict[int, Estimate] = {}  # estimates at the last x that were not asked for yet
        self._last: bytes | None = None
        self._sizes = (0, 0), 0  # (S, A), d

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        assert isinstance(oracle.model, TabularBOCMDP)
        model = oracle.model
        numbers = model.n_states * model.n_actions * model.leader_dim
        if numbers > _MOST_NUMBERS:
            raise UnsupportedError(
                f"AMD would carry {numbers:.2g} numbers per context (states x actions x dimension of x); use ExactGradient, "
                "which needs none of them."
            )
        self._sizes = (model.n_states, model.n_actions), model.leader_dim
        self._states = {}
        self._round = {}

    @with_gradients
    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        del rng
        key = x.numpy().tobytes()
        if key != self._last or context not in self._round:
            self._round, self._last = self._sweep(oracle, x), key
        return self._round.pop(context)

    def state(self) -> dict[str, Any]:
        return {
            "last": None if self._last is None else self._last.hex(),
            "carried": {context: state._asdict() for context, state in self._states.items()},
            "round": {
                context: {"gradient": e.gradient, "leader_return": e.leader_return, "metrics": e.metrics}
                for context, e in self._round.items()
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._last = None if state["last"] is None else bytes.fromhex(state["last"])
        (s, a), d = self._sizes
        shapes = {"q": (s, a), "dq": (s, a, d), "leader_q": (s, a), "v_tilde": (s, d)}
        self._states = {
            context: _State(**{name: array_entry(carried, name, shape) for name, shape in shapes.items()})
            for context, carried in entry(state, "carried", dict).items()
        }
        self._round = {
            context: Estimate(
                torch.from_numpy(array_entry(e, "gradient", (d,))),
                entry(e, "leader_return", float),
                metrics={name: entry(e["metrics"], name, (int, float)) for name in e["metrics"]},
            )
            for context, e in entry(state, "round", dict).items()
        }

    def _sweep(self, oracle: TrajectoryOracle, x: Tensor) -> dict[int, Estimate]:
        """K sweeps over every context."""
        mdps = oracle.configure(x)
        model = mdps.model
        derivatives = {name: part.numpy() for name, part in model.jacobians(x).items()}
        shape, d = (model.n_states, model.n_actions), model.leader_dim
        estimates = {}
        for context in range(model.n_contexts):
            arrays = mdps.arrays(context)
            if context not in self._states:
                state = _State(np.zeros(shape), np.zeros((*shape, d)), np.zeros(shape), np.zeros((shape[0], d)))
                self._states[context] = state
            state = self._states[context]

            def slope(name: str, constant: tuple[int, ...], context: int = context) -> Array:
                """One context's derivative; ``constant`` is the shape of its zeros where the part is constant."""
                if name not in derivatives:
                    return np.zeros(constant)
                part = derivatives[name]
                part = part[context if len(part) > 1 else 0]
                return np.require(np.broadcast_to(part, (model.n_states, *part.shape[1:])), requirements=["C", "W"])

            rows, share = kernels.merged_transitions(arrays.successors, arrays.probabilities, arrays.termination)
            discounts = (model.discount, model.leader_discount)
            reward, q = arrays.masked(arrays.reward), arrays.masked(state.q)
            for sweeps in split(self.sweeps, -(-self.sweeps * shape[0] * shape[1] // _PATH_NUMBERS)):
                path = _path(sweeps, shape)
                residual = kernels.sweep_values(
                    reward, arrays.leader_reward, rows, share, *discounts, self._lambda, q, state.leader_q, *path
                )
                kernels.sweep_derivatives(
                    arrays.successors,
                    arrays.probabilities,
                    arrays.termination,
                    *discounts,
                    rows,
                    share,
                    *path,
                    slope("reward", (shape[0], 1, d)),
                    slope("leader_reward", (shape[0], 1, d)),
                    slope("transition", (0, 0, 0, 0)),
                    slope("termination", (0, 0, 0)),
                    state.dq,
                    state.v_tilde,
                )
            if arrays.action_mask is not None:  # what is carried is finite
                state.q[arrays.action_mask] = q[arrays.action_mask]
            leader_value = path.leader_value[-1]
            gradient = arrays.initial @ state.v_tilde
            if "initial" in derivatives:
                gradient = gradient + leader_value @ slope("initial", ())
            metrics = {"follower_iterations": float(self.sweeps), "follower_residual": residual}
            leader_return = float(arrays.initial @ leader_value)
            estimates[context] = Estimate(torch.from_numpy(gradient), leader_return, metrics=metrics)
        return estimates
