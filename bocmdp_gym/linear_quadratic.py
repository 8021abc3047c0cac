r"""`LinearQuadraticBOCMDP`: linear dynamics, quadratic costs and Gaussian noise, solved exactly.

The mathematics. In context xi, with z = (s, a), s in R^n, a in R^m,

    s' = A s + B a + N(0, Sigma),     r = -z'C z,     rbar = -z'Cbar z + b,     s_0 ~ N(m, S_0),

where all of A, B, Sigma, C, Cbar, b, m and S_0 may be functions of x. The follower's regularised optimum is Gaussian,

    a ~ N(-K s, Lambda),    Lambda = lambda/2 S^-1,      V(s) = -s'P s + v,
    v = (lambda/2 (k log(pi lambda) - log det S) - gamma tr(P Sigma)) / (1 - gamma)        with k = m actions,

with P, K and S of `bocmdp_gym.riccati`; H is the differential entropy. The leader's value of any policy N(-K s, Lambda), with
L = A - B K, T = [I; -K] and C_aa the block of actions, is one more Lyapunov equation:

    Pbar = T'Cbar T + gamma_L L'Pbar L,      Vbar(s) = -s'Pbar s + vbar,
    vbar = (b - tr(Cbar_aa Lambda) - gamma_L tr(Pbar (B Lambda B' + Sigma))) / (1 - gamma_L),
    F_xi = -m'Pbar m - tr(Pbar S_0) + vbar.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.errors import DiscountError, LeaderParameterError, ModelError
from bocmdp_gym.leaks import call, check_leaks
from bocmdp_gym.memory import owned
from bocmdp_gym.model import BOCMDP
from bocmdp_gym.options import (
    as_array,
    check_count,
    check_flag,
    check_function,
    check_instance,
    check_number,
    check_regularization,
)
from bocmdp_gym.riccati import policy_cost, solve_lyapunov, solve_riccati
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.validation import check_context, check_context_probabilities, check_discount

Array = npt.NDArray[np.float64]
#: An array, or a differentiable function of x that returns a tensor.
Part = npt.ArrayLike | Tensor | Callable[[Tensor], Tensor]
#: Eigenvalues above minus this, relative to the largest, count as 0.
_ROUNDING = 1e-10
#: Uniform numbers are kept this far from 0 and 1, at which a normal one would be infinite.
_SMALLEST = 2.0**-53


class LinearQuadraticParts(NamedTuple):
    """The matrices of one x and context, as in the module docstring."""

    state_matrix: Tensor  # A (n, n)
    input_matrix: Tensor  # B (n, m)
    noise_covariance: Tensor  # Sigma (n, n)
    cost: Tensor  # C (n + m, n + m)
    leader_cost: Tensor  # Cbar (n + m, n + m)
    leader_bonus: Tensor  # b ()
    initial_mean: Tensor  # m (n,)
    initial_covariance: Tensor  # S_0 (n, n)


#: How many dimensions each part has, without the contexts'.
_RANKS = dict(zip(LinearQuadraticParts._fields, (2, 2, 2, 2, 2, 0, 1, 2), strict=True))


class LinearQuadraticSolution(NamedTuple):
    """The follower's optimum: a ~ N(-gain s, covariance), V(s) = -s'value s + constant; dimensions of contexts come first."""

    value: Tensor  # P (n, n)
    constant: Tensor  # v ()
    gain: Tensor  # K (m, n)
    covariance: Tensor  # Lambda (m, m)


class LinearQuadraticBOCMDP(BOCMDP):
    """A follower that steers a linear system at quadratic costs, and a leader whose reward is quadratic too.

    Each part is an array, or a differentiable function of x ``(d,)`` that returns a tensor, with the shape below, or one of them
    for each context, ``(C, ...)``. Of quadratic forms only the symmetric half counts.

    Args:
        state_matrix: A ``(n, n)``.
        input_matrix: B ``(n, m)``.
        noise_covariance: Sigma ``(n, n)``, positive definite.
        cost: C ``(n + m, n + m)``, positive semidefinite, and definite on actions; ``scipy.linalg.block_diag(Q, R)``, or
            ``torch.block_diag``, for the reward -s'Qs - a'Ra.
        leader_cost: Cbar ``(n + m, n + m)``, of any sign.
        leader_bonus: b, a number: what the leader is paid at every step, whatever happens.
        initial_mean: m ``(n,)``; 0 if None.
        initial_covariance: S_0 ``(n, n)``, positive semidefinite; definite where x moves the start.
        leader_dim: dimension d of x.
        discount, leader_discount: gamma and gamma_L (gamma if None), below 1.
        context_probabilities: P_xi ``(C,)``; uniform if None.
        leader_space: space of x; all of R^d if None.
        example: a valid x, at which shapes are found; the point of ``leader_space`` nearest to 0 if None.

    Raises:
        ModelError: shapes that do not fit, a matrix that is not definite as said above, a function that leaves torch.
        DiscountError: a discount outside [0, 1).

    Attributes:
        n_contexts, n_states, n_actions: C, n and m.
        context_probabilities: ``(C,)``.
        moving: names of the parts that are functions of x.
        example: as given.
    """

    exact_returns = True

    def __init__(
        self,
        *,
        state_matrix: Part,
        input_matrix: Part,
        noise_covariance: Part,
        cost: Part,
        leader_cost: Part,
        initial_covariance: Part,
        leader_dim: int,
        discount: float,
        leader_bonus: Part = 0.0,
        initial_mean: Part | None = None,
        leader_discount: float | None = None,
        context_probabilities: npt.ArrayLike | None = None,
        leader_space: gym.spaces.Box | None = None,
        example: npt.ArrayLike | None = None,
    ):
        given = locals()
        self.leader_dim = d = check_count("leader_dim", leader_dim)
        if leader_space is not None:
            check_instance("leader_space", leader_space, gym.spaces.Box)
        self.leader_space = gym.spaces.Box(-np.inf, np.inf, (d,), np.float64) if leader_space is None else leader_space
        if self.leader_space.shape != (d,):
            raise ModelError(f"leader_space has shape {self.leader_space.shape}; expected ({d},).")
        self.discount = check_discount(discount)
        self.leader_discount = self.discount if leader_discount is None else check_discount(leader_discount, "leader_")
        if max(self.discount, self.leader_discount) >= 1.0:
            raise DiscountError(
                f"discount is {self.discount} and leader_discount {self.leader_discount}; expected numbers below 1: a "
                "linear-quadratic problem never ends, and its noise costs something at every step."
            )
        self._functions: dict[str, Callable[[Tensor], Any]] = {}
        self._constants: dict[str, Tensor] = {}
        for name in LinearQuadraticParts._fields:
            part = given[name]
            if callable(part) and not isinstance(part, Tensor):
                self._functions[name] = check_function(name, part, "x")
            elif part is not None or name != "initial_mean":
                self._constants[name] = _numbers(name, owned(part))
        self.moving = tuple(self._functions)
        low, high = self.leader_space.low, self.leader_space.high
        start = as_array(np.clip(np.zeros(d), low, high) if example is None else example)
        if start is None or start.shape != (d,):
            raise ModelError(f"example is {example!r}; expected a valid x, ({d},) numbers.")
        self.example: Array = start
        self._discover_shapes(context_probabilities)
        self.context_space = gym.spaces.Discrete(self.n_contexts)
        self.noise_dim = self.n_states
        for context in range(self.n_contexts):
            self._check(self._parts(torch.from_numpy(start), context), context)
        if self._functions:
            check_leaks(self._named_values, start, self.leader_space)

    def __repr__(self) -> str:
        sizes = f"{self.n_contexts} contexts, {self.n_states} states, {self.n_actions} actions"
        return f"<{type(self).__name__}: {sizes}, x of dimension {self.leader_dim}>"

    # ------------------------------------------------------------------------------------------------ construction

    def _discover_shapes(self, context_probabilities: npt.ArrayLike | None) -> None:
        """Find C, n and m, and check that every part has them.

        Raises:
            ModelError: it has not.
        """
        values = self._named_values(torch.from_numpy(self.example))
        shape = values["input_matrix"].shape[-2:]
        if len(shape) < 2 or not all(shape):
            raise ModelError(f"input_matrix has shape {tuple(shape)}; expected (states, actions), at least one of each.")
        self.n_states, self.n_actions = n, m = shape
        counts = {name: len(value) for name, value in values.items() if value.ndim == _RANKS[name] + 1}
        self.n_contexts = max(counts.values(), default=1)
        chosen = np.full(self.n_contexts, 1.0 / self.n_contexts) if context_probabilities is None else context_probabilities
        self.context_probabilities = check_context_probabilities(chosen)
        self.n_contexts = len(self.context_probabilities)
        self._constants.setdefault("initial_mean", torch.zeros(n, dtype=torch.float64))
        square, joint = (n, n), (n + m, n + m)
        expected = LinearQuadraticParts(square, (n, m), square, joint, joint, (), (n,), square)._asdict()  # type: ignore[arg-type]
        for name, value in values.items():
            own = tuple(value.shape)
            if own not in (expected[name], (self.n_contexts, *expected[name]), (1, *expected[name])):
                raise ModelError(
                    f"{name} has shape {own}; expected {expected[name]} for {n} states and {m} actions (what input_matrix has), "
                    f"or ({self.n_contexts}, ...) where contexts differ."
                )

    def _named_values(self, x: Tensor) -> dict[str, Tensor]:
        """Every part at x, by name."""
        return self._constants | {name: _numbers(name, call(name, part, x)) for name, part in self._functions.items()}

    def _parts(self, x: Tensor, context: int) -> LinearQuadraticParts:
        """The parts of one context at x ``(d,)``."""
        found = {}
        for name, value in self._named_values(x).items():
            own = value[context if len(value) > 1 else 0] if value.ndim > _RANKS[name] else value
            found[name] = 0.5 * (own + own.T) if name.endswith(("cost", "covariance")) else own
        return LinearQuadraticParts(**found)

    def _check(self, parts: LinearQuadraticParts, context: int) -> None:
        """Refuse parts that are no linear-quadratic problem.

        Raises:
            ModelError: naming the part and the context.
        """
        for name, value in parts._asdict().items():
            if not bool(torch.isfinite(value).all()):
                raise ModelError(f"{name} is not finite in context {context}: {value.tolist()}.")
        n = self.n_states
        moves_starts = not {"initial_mean", "initial_covariance"}.isdisjoint(self.moving)
        for name, matrix, strictly in (
            ("noise_covariance", parts.noise_covariance, True),
            ("cost", parts.cost, False),
            ("the block of actions of cost (R)", parts.cost[n:, n:], True),
            ("initial_covariance", parts.initial_covariance, moves_starts),
        ):
            eigenvalues = np.linalg.eigvalsh(matrix.detach().numpy())
            least, largest = float(eigenvalues[0]), float(np.abs(eigenvalues).max())
            if least < -_ROUNDING * largest or (strictly and least <= _ROUNDING * largest):
                raise ModelError(
                    f"{name} has the eigenvalue {least:.6g} in context {context}; expected a matrix that is positive "
                    f"{'definite' if strictly else 'semidefinite'}. Its quadratic form must "
                    f"{'exceed 0 everywhere but at 0' if strictly else 'nowhere be negative'}."
                )

    # ------------------------------------------------------------------------------------------------------ solving

    def check_leader(self, x: Any) -> Tensor:
        """x as a float64 tensor ``(..., d)``, checked as any tabular model's.

        Raises:
            LeaderParameterError: wrong shape, or not finite.
        """
        checked: Tensor = TabularBOCMDP.check_leader(cast(Any, self), x)
        return checked

    def parts(self, x: Any, context: int = 0) -> LinearQuadraticParts:
        """The matrices at x ``(d,)`` in a context, differentiable in x.

        Raises:
            ModelError: they are no linear-quadratic problem there.
            ContextError: no such context.
        """
        context, point = check_context(context, self.context_space), self.check_leader(x)
        if point.ndim != 1:
            raise LeaderParameterError(f"leader parameter has shape {tuple(point.shape)}; expected one x, ({self.leader_dim},).")
        found = self._parts(point, context)
        self._check(found, context)
        return found

    def best_response(
        self, x: Any, regularization: float, context: int = 0, *, leader_share: float = 0.0
    ) -> LinearQuadraticSolution:
        """The follower's optimum in one context, differentiable once in x.

        Args:
            x: ``(d,)``.
            regularization: lambda > 0.
            context: xi.
            leader_share: what the follower is paid per unit of the leader's reward, besides its own.

        Raises:
            LeaderParameterError, RegularizationError, ContextError, ModelError: input that cannot be used.
            ConvergenceError: no action keeps the follower's costs finite.
        """
        return self._best_response(self.parts(x, context), regularization, context, leader_share)

    def _best_response(
        self, parts: LinearQuadraticParts, regularization: float, context: int, leader_share: float = 0.0
    ) -> LinearQuadraticSolution:
        lam, g, m = check_regularization(regularization), self.discount, self.n_actions
        share = check_number("leader_share", leader_share)
        cost = parts.cost + share * parts.leader_cost
        value, gain, curvature = solve_riccati(parts.state_matrix, parts.input_matrix, cost, g, f" in context {context}")
        entropic = 0.5 * lam * (m * log(pi * lam) - torch.logdet(curvature))
        constant = (entropic + share * parts.leader_bonus - g * _trace(value, parts.noise_covariance)) / (1.0 - g)
        return LinearQuadraticSolution(value, constant, gain, 0.5 * lam * torch.linalg.inv(curvature))

    def solve(self, x: Any, regularization: float) -> LinearQuadraticSolution:
        """The follower's optimum in every context, ``(C, ...)`` each; see `best_response`."""
        answers = [self.best_response(x, regularization, context) for context in range(self.n_contexts)]
        return LinearQuadraticSolution(*(torch.stack(part) for part in zip(*answers, strict=True)))

    def policy_return(self, x: Any, gain: Tensor | npt.ArrayLike, covariance: Tensor | npt.ArrayLike, context: int = 0) -> Tensor:
        """F_xi of any policy N(-gain s, covariance), a scalar that is differentiable in all three.

        Raises:
            ModelError: a gain or a covariance of another shape.
            ConvergenceError: the leader's costs are infinite under it.
        """
        gain, covariance, m = _numbers("gain", gain), _numbers("covariance", covariance), self.n_actions
        for name, matrix, shape in (("gain", gain, (m, self.n_states)), ("covariance", covariance, (m, m))):
            if matrix.shape != shape or not bool(torch.isfinite(matrix).all()):
                raise ModelError(f"{name} is {matrix.tolist()}; expected finite numbers of shape {shape}.")
        return self._policy_return(self.parts(x, context), gain, covariance, context)

    def _policy_return(self, parts: LinearQuadraticParts, gain: Tensor, covariance: Tensor, context: int) -> Tensor:
        g, n, b = self.leader_discount, self.n_states, parts.input_matrix
        what = f"what the leader's costs add up to in context {context}"
        value = solve_lyapunov(parts.state_matrix - b @ gain, policy_cost(parts.leader_cost, gain), g, what)
        per_step = parts.leader_bonus - _trace(parts.leader_cost[n:, n:], covariance)
        constant = (per_step - g * _trace(value, b @ covariance @ b.T + parts.noise_covariance)) / (1.0 - g)
        return constant - parts.initial_mean @ value @ parts.initial_mean - _trace(value, parts.initial_covariance)

    def context_return(self, x: Any, regularization: float, context: int, *, leader_share: float = 0.0) -> Tensor:
        """F_xi(x) under the follower's optimum; see `leader_return`."""
        point = self.check_leader(x)
        if point.ndim > 1:
            rows = [self.context_return(one, regularization, context, leader_share=leader_share) for one in point]
            return torch.stack(rows)
        parts = self.parts(point, context)
        answer = self._best_response(parts, regularization, context, leader_share)
        return self._policy_return(parts, answer.gain, answer.covariance, context)

    def leader_return(self, x: Any, regularization: float, *, per_context: bool = False) -> Tensor:
        """F(x) = E_xi F_xi, exact: a scalar, or ``(...,)`` for batched x; with ``per_context`` F_xi, ``(..., C)``.

        Differentiable once in x, by `backward`.

        Raises:
            As `best_response`; ConvergenceError also where the leader's costs are infinite.
        """
        per_context = check_flag("per_context", per_context)
        returns = torch.stack([self.context_return(x, regularization, c) for c in range(self.n_contexts)], -1)
        return returns if per_context else returns @ torch.from_numpy(self.context_probabilities)

    # ---------------------------------------------------------------------------------------- the BOCMDP interface

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """-z'C z."""
        return -_quadratic(self._parts(x, context).cost, _vectors(observations), _vectors(actions))

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """-z'Cbar z + b."""
        parts = self._parts(x, context)
        return parts.leader_bonus - _quadratic(parts.leader_cost, _vectors(observations), _vectors(actions))

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        """The log density of N(A s + B a, Sigma) at s'; None where x moves none of the three."""
        if {"state_matrix", "input_matrix", "noise_covariance"}.isdisjoint(self.moving):
            return None
        parts = self._parts(x, context)
        return _log_density(_vectors(next_observations) - _mean(parts, observations, actions), parts.noise_covariance)

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        """A s + B a, and normal noise."""
        parts = self._parts(x, context)
        normal = torch.special.ndtri(noise.clamp(_SMALLEST, 1.0 - _SMALLEST))
        return _mean(parts, observations, actions) + normal @ torch.linalg.cholesky(parts.noise_covariance).T

    def value_features(self, vectors: Tensor) -> Tensor:
        """1, s and the products s_i s_j: values of policies that are linear in s, with noise of any kind, are linear in these."""
        i, j = torch.triu_indices(self.n_states, self.n_states)
        return torch.cat([torch.ones_like(vectors[..., :1]), vectors, vectors[..., i] * vectors[..., j]], -1)

    def log_initials(self, x: Tensor, observations: Any, context: Any) -> Tensor | None:
        """The log density of N(m, S_0); None where x moves neither."""
        if {"initial_mean", "initial_covariance"}.isdisjoint(self.moving):
            return None
        parts = self._parts(x, context)
        return _log_density(_vectors(observations) - parts.initial_mean, parts.initial_covariance)


def _numbers(name: str, value: Any) -> Tensor:
    """A part as a float64 tensor.

    Raises:
        ModelError: no real numbers.
    """
    if isinstance(value, Tensor) and not value.is_complex() and value.dtype != torch.bool:
        return value.to(torch.float64)
    array = None if isinstance(value, Tensor) else as_array(value)
    if array is None:
        raise ModelError(f"{name} is {value!r}; expected real numbers, or a function of x that returns a tensor of them.")
    return torch.from_numpy(array)


def _vectors(values: Any) -> Tensor:
    return torch.as_tensor(values).to(torch.float64)


def _mean(parts: LinearQuadraticParts, observations: Any, actions: Any) -> Tensor:
    """A s + B a ``(N, n)``."""
    return _vectors(observations) @ parts.state_matrix.T + _vectors(actions) @ parts.input_matrix.T


def _quadratic(matrix: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    """z'M z ``(N,)``."""
    joint = torch.cat([states, actions], -1)
    return ((joint @ matrix) * joint).sum(-1)


def _trace(first: Tensor, second: Tensor) -> Tensor:
    """tr(M N) of symmetric matrices."""
    return (first * second).sum()


def _log_density(deviations: Tensor, covariance: Tensor) -> Tensor:
    """The log density of N(0, covariance) ``(N,)``."""
    factor = torch.linalg.cholesky(covariance)
    standardised = torch.linalg.solve_triangular(factor, deviations.T, upper=False)
    return -0.5 * standardised.square().sum(0) - 0.5 * len(covariance) * log(2.0 * pi) - factor.diagonal().log().sum()
