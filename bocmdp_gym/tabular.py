r"""`TabularBOCMDP`: a finite problem as arrays that are differentiable functions of x.

The mathematics. For every context xi and parameter x: rewards r and rbar (the leader's), transitions P, initial distribution
mu, and q(s, a), the probability that the episode ends after acting. P(.|s, a) is conditional on going on; acting pays r and
rbar first; after the end there is nothing, no value and no entropy. With g = gamma (1 - q) and g_L = gamma_L (1 - q),

    V = lambda logsumexp(Q / lambda),  Q = r + g P V,  pi = softmax(Q / lambda)           the follower (paper eq. 1, 2)
    Vbar = sum_a pi (rbar + g_L P Vbar),   F_xi = sum_s mu Vbar,   F = E_xi F_xi           the leader   (paper eq. 3, 7)

and dF/dx is exact, by implicit differentiation (see `bocmdp_gym.soft_bellman`).

Shapes: C contexts, S states, A actions, d = dimension of x; x may carry leading batch dimensions, and then everything does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.acting import acting_parts
from bocmdp_gym.action_mask import ActionMask, as_mask, check_mask
from bocmdp_gym.affine import Affine, AffineFunctions, AffineParts, Point
from bocmdp_gym.arguments import known_options
from bocmdp_gym.autodiff import gradients_enabled, jacobian_columns, look_at
from bocmdp_gym.errors import LeaderParameterError, ModelError
from bocmdp_gym.kernels.alias import check_pairs
from bocmdp_gym.leaks import call as _call
from bocmdp_gym.leaks import check_leaks, refuse_misuse, tensors_in
from bocmdp_gym.losses import Loss, check_loss
from bocmdp_gym.mdps import ConfiguredMDPs, ContextArrays, LazyParts, Solution
from bocmdp_gym.memory import LARGE, give_back_large_arrays, owned
from bocmdp_gym.model import BOCMDP
from bocmdp_gym.options import as_array, check_choice, check_count, check_flag, check_function, check_instance
from bocmdp_gym.parts import check_part, dense, is_function, owned_part
from bocmdp_gym.proper import check_proper
from bocmdp_gym.published_tables import CHECK_SAMPLES, gymnasium_tables, masks_of_states
from bocmdp_gym.recognition import recognised
from bocmdp_gym.soft_bellman import MAX_ITERATIONS, TOLERANCE
from bocmdp_gym.solvers.choice import METHODS
from bocmdp_gym.transitions import (
    TransitionOperator,
    as_probabilities,
    as_transitions,
)
from bocmdp_gym.validation import check_context_probabilities, check_discount

Array = npt.NDArray[np.float64]
#: An array, or a differentiable function of x that returns one.
Function = Callable[[Tensor], Any] | Any
_PARTS = ("reward", "leader_reward", "transition", "initial", "termination")
#: Those that are computed without a graph where they are affine: of the others, every number has to be looked at.
AFFINE = ("reward", "leader_reward")


class TabularBOCMDP(BOCMDP):
    """A finite bilevel problem: C contexts, S states, A actions.

    Args:
        reward: the follower's reward, ``(C, S, A)`` or any shape that broadcasts to it, such as ``(C, S, 1)``: an array, or a
            function of x (a torch tensor ``(d,)``, float64) that returns a torch tensor. So for all the arrays below.
        leader_reward: the leader's reward, ``(C, S, A)`` or broadcastable.
        transition: P, dense ``(C or 1, S, A, S)``, a `TransitionOperator`, a scipy.sparse matrix ``(S A, S)`` or a list of A of
            them ``(S, S)``; conditional on the episode going on. A function of x must keep its sparsity pattern.
        initial: the initial distribution, ``(C, S)``, or ``(S,)`` for all contexts.
        context_probabilities: P_xi, ``(C,)``; uniform if None.
        termination: probability that the episode ends after acting, ``(C or 1, S)`` or ``(C or 1, S, A)``; never if None.
        discount: the follower's gamma, in [0, 1]; 1 only where every policy's episodes end with certainty, or where those
            that need not end lose at every step (a regularised follower then ends: a shortest path problem).
        leader_discount: the leader's gamma_L; the follower's if None.
        leader_dim: dimension d of x.
        action_mask: which actions exist, ``(S, A)`` or ``(C, S, A)`` booleans; all if None. One that does not has probability 0
            and adds no entropy, and what the other arrays hold for it is not read (`bocmdp_gym.action_mask`).
        parametrization: what the functions take instead of x, such as ``softmax(x)`` or tax rates ``2 sigmoid(x)``: a
            differentiable function of x, computed once per x.
        leader_space: space of x; all of R^d if None.
        example: a valid x, to find the shapes with; the point of ``leader_space`` nearest to 0 if None.
        solver: method for the linear systems: "banded", "dense", "krylov", "sparse-lu", or "auto", the fastest for the model's
            structure (see `bocmdp_gym.solvers`).

    Raises:
        ModelError: shapes do not fit, rows of P or mu do not sum to 1, NaN in an array, a state without any action.
        DiscountError: a discount outside [0, 1], or 1 where some policy's episodes need not end.

    Attributes:
        moving: names of the parts that are functions of x: "reward", "leader_reward", "transition", "initial", "termination".
        mask: which actions exist; None where all do.
        takes_states: whether `rewards` and the other functions of visited points take state indices (always so here); False
            where they take an environment's observations, as those of a grid that stands for a continuous problem do.
    """

    takes_states = exact_returns = True

    def __init__(
        self,
        *,
        reward: Function,
        leader_reward: Function,
        transition: Function,
        initial: Function,
        leader_dim: int,
        discount: float,
        leader_discount: float | None = None,
        context_probabilities: npt.ArrayLike | None = None,
        termination: Function | None = None,
        action_mask: npt.ArrayLike | None = None,
        parametrization: Callable[[Tensor], Any] | None = None,
        leader_space: gym.spaces.Box | None = None,
        example: npt.ArrayLike | None = None,
        solver: str = "auto",
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self._given = {name: owned_part(name, value) if name in _PARTS else owned(value) for name, value in arguments.items()}
        self.leader_dim = check_count("leader_dim", leader_dim)
        if leader_space is not None:
            check_instance("leader_space", leader_space, gym.spaces.Box)
        unbounded = gym.spaces.Box(-np.inf, np.inf, (self.leader_dim,), np.float64) if leader_space is None else leader_space
        self.leader_space = unbounded
        if self.leader_space.shape != (self.leader_dim,):
            raise ModelError(f"leader_space has shape {self.leader_space.shape}; expected ({self.leader_dim},).")
        self.discount = check_discount(discount)
        self.leader_discount = self.discount if leader_discount is None else check_discount(leader_discount, "leader_")
        self._functions: dict[str, Callable[[Any], Any]] = {}
        self._parametrization = None if parametrization is None else check_function("parametrization", parametrization, "x")
        self._affine = AffineFunctions({}, parametrization, self._parameters)
        self._others: tuple[str, ...] = ()  # the functions that are not affine
        self._constants: dict[str, Any] = {}
        for name in _PARTS:
            part = self._given[name]
            if is_function(part):
                self._functions[name] = check_function(name, part, "x")
            else:
                self._constants[name] = 0.0 if part is None and name == "termination" else part
        self.moving: Collection[str] = tuple(self._functions)
        self._solver = check_choice("solver", solver, METHODS)
        self._template: TransitionOperator | None = None
        self.mask: ActionMask | None = None
        self._shapes: dict[str, torch.Size] = {}  # full-rank shapes that were checked
        self.constant_arrays: dict[int, ContextArrays] = {}  # per context, where only rewards depend on x
        self._discover_shapes(example, context_probabilities)
        self.context_probabilities = check_context_probabilities(
            np.full(self.n_contexts, 1.0 / self.n_contexts) if context_probabilities is None else context_probabilities,
            self.n_contexts,
        )
        self._context_weights = torch.from_numpy(self.context_probabilities)

    def __repr__(self) -> str:
        sizes = f"{self.n_contexts} contexts, {self.n_states} states, {self.n_actions} actions"
        return f"<{type(self).__name__}: {sizes}, x of dimension {self.leader_dim}>"

    # ------------------------------------------------------------------------------------------------ construction

    def _discover_shapes(self, example: npt.ArrayLike | None, context_probabilities: npt.ArrayLike | None) -> None:
        low, high = self.leader_space.low, self.leader_space.high
        x = self._check_one(np.clip(np.zeros(self.leader_dim), low, high) if example is None else example)
        self.example: Array = x.numpy().copy()
        z = self._parameters(x)
        raw = {name: _call(name, function, z) for name, function in self._functions.items()} | self._constants
        transition = as_transitions(raw["transition"])
        if transition.values.ndim != 4:
            raise ModelError(
                f"transition has {transition.values.ndim} axes, of sizes {tuple(transition.values.shape)}; expected 4: contexts, "
                "states, actions, successors."
            )
        self.n_states, self.n_actions = transition.n_states, transition.n_actions
        if not (self.n_states and self.n_actions and transition.n_contexts):
            raise ModelError(
                f"the model has {transition.n_contexts} contexts, {self.n_states} states and {self.n_actions} actions; expected "
                "at least one of each."
            )
        if transition.index is None:
            check_pairs(self.n_states, self.n_actions)
        if 8 * self.n_states * self.n_actions >= LARGE:
            give_back_large_arrays()
        mask = None if self._given["action_mask"] is None else as_mask(self._given["action_mask"])
        contexts = [transition.n_contexts, 1 if mask is None else len(mask)]
        for name in ("reward", "leader_reward", "initial", "termination"):
            shape = np.shape(raw[name])
            rank = 2 if name == "initial" or (name == "termination" and len(shape) == 2) else 3
            contexts.append(int(shape[0]) if len(shape) == rank else 1)
        self.n_contexts = max(contexts) if context_probabilities is None else len(np.atleast_1d(context_probabilities))
        self.mask = None if mask is None else check_mask(mask, self.n_contexts, self.n_states, self.n_actions)
        for name in list(self._constants):
            self._constants[name] = self._canonical(name, self._constants[name])
        self.configure(x).validate()
        if self._functions:
            check_leaks(self._named_values, self.example, self.leader_space)
        affine = {name: self._recognised(name, z) for name in AFFINE if name in self._functions}
        known = {name: part for name, part in affine.items() if part is not None}
        self._affine = AffineFunctions(known, self._parametrization, self._parameters)
        self._others = tuple(name for name in self._functions if name not in known)

    def _recognised(self, name: str, z: Any) -> Affine | None:
        """A part as a matrix, if it is affine in z."""
        function = self._functions[name]
        if self.mask is None:
            return recognised(function, z, self._shapes[name])

        def filled(z: Any) -> Tensor:
            part: Tensor = self._canonical(name, function(z))
            return part

        return recognised(filled, z, tuple(filled(z).shape))

    def _named_values(self, x: Tensor) -> dict[str, Any]:
        """All that is computed from x, by name."""
        z = self._parameters(x)
        named = {} if self._parametrization is None else {"parametrization": tensors_in(z)}
        for name, function in self._functions.items():
            value = self._canonical(name, _call(name, function, z))
            named[name] = value.values if isinstance(value, TransitionOperator) else value
        return named

    def _canonical(self, name: str, value: Any) -> Any:
        """Check the shape of one part; tensors come back with their full rank, sizes 1 left to broadcast."""
        c, s, a = self.n_contexts, self.n_states, self.n_actions
        if name == "transition":
            operator = as_transitions(value)
            if operator.n_contexts not in (1, c) or (operator.n_states, operator.n_actions) != (s, a):
                raise ModelError(
                    f"transition is for {operator.n_contexts} contexts, {operator.n_states} states and "
                    f"{operator.n_actions} actions; expected 1 or {c}, {s} and {a}."
                )
            operator = operator if self.mask is None else self.mask.fill_transitions(operator)
            if self._template is None:
                operator = self._template = operator if self._solver == "auto" else operator.with_solver(self._solver)
            elif operator is not self._template:
                if not operator.same_structure(self._template):
                    raise ModelError(
                        "transition(x) returned other successor states than at the first x; expected a fixed pattern. Store "
                        "every state that can be reached at some x, with probability 0 where it cannot."
                    )
                operator = self._template.with_values(operator.values)  # keeps orderings and factorisation workspaces
            return operator
        tensor = dense(name, value)
        if tensor.dtype != torch.float64:
            tensor = as_probabilities(tensor) if name == "initial" else tensor.to(torch.float64)
        if self._shapes.get(name) == tensor.shape:
            return tensor
        expected: tuple[int, ...] = (c, s, a)
        if name == "initial":
            expected = (c, s)
            tensor = tensor.unsqueeze(0) if tensor.ndim == 1 else tensor
        elif name == "termination":
            if tensor.ndim == 0:
                tensor = tensor.reshape(1, 1, 1)
            elif tensor.ndim == 2:
                tensor = tensor.unsqueeze(-1)
        fits = tensor.ndim == len(expected) and all(n in (1, m) for n, m in zip(tensor.shape, expected, strict=True))
        if not fits or (name == "initial" and tensor.shape[-1] != s):
            raise ModelError(
                f"{name} has shape {tuple(tensor.shape)}; expected {expected}, that is (contexts, states, actions) without "
                "actions for initial, or sizes 1 that broadcast to it."
            )
        if self.mask is not None:
            return tensor if name == "initial" else self.mask.fill(tensor)
        self._shapes[name] = tensor.shape
        return tensor

    @property
    def factored(self) -> bool:
        """Whether actions share rows of P (`FactoredTransitions`), which not every method can read."""
        return self._template is not None and self._template.index is not None

    def check_leader(self, x: Any) -> Tensor:
        """x as a float64 tensor ``(..., d)``.

        Raises:
            LeaderParameterError: wrong shape, or not finite.
        """
        if not isinstance(x, Tensor):
            array = as_array(x)
            if array is None:
                raise LeaderParameterError(f"leader parameter {x!r} is not an array of real numbers.")
            x = torch.from_numpy(array)
        if x.is_complex() or x.dtype == torch.bool:
            raise LeaderParameterError(f"leader parameter is a tensor of type {x.dtype}; expected real numbers.")
        if x.dtype != torch.float64:
            x = x.to(torch.float64)
        if x.shape[-1:] != (self.leader_dim,):
            raise LeaderParameterError(
                f"leader parameter has shape {tuple(x.shape)}; expected ({self.leader_dim},), or (..., {self.leader_dim}) "
                "with leading batch dimensions."
            )
        look_at(_check_finite, x)
        return x

    def _check_one(self, x: Any) -> Tensor:
        """`check_leader` for a single x ``(d,)``."""
        x = self.check_leader(x)
        if x.ndim != 1:
            raise LeaderParameterError(f"leader parameter has shape {tuple(x.shape)}; expected one x, ({self.leader_dim},).")
        return x

    def configure(self, x: Any) -> ConfiguredMDPs:
        """The contextual MDP that x configures: all arrays at this x, with their graph if x requires gradients."""
        return self.configure_checked(self.check_leader(x))

    def configure_checked(self, x: Tensor) -> ConfiguredMDPs:
        """`configure` for an x that `check_leader` has seen."""
        return self._configured(x, {**self._constants, **self.evaluate(x, tuple(self._functions))})

    def configure_with_graph(self, leader: Array) -> ConfiguredMDPs:
        """`configure` for a checked array ``(d,)`` or ``(B, d)`` that nobody moves, differentiable whatever mode torch is in.

        Parts that are affine (`bocmdp_gym.affine`) are computed by sparse products, and as tensors only where one is asked for.
        """
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            return self._configure_with_graph(leader)
        with gradients_enabled():
            return self._configure_with_graph(leader)

    def _configure_with_graph(self, leader: Array) -> ConfiguredMDPs:
        point = Point(leader)
        affine = None if self._others and leader.ndim > 1 else self._affine.at(point)
        if affine is None:
            return self.configure_checked(point.tensor)
        parts = LazyParts(self, point, self._constants)
        if self._others:
            parts.update(self.evaluate(point.tensor, self._others, affine.graph))
        return self._configured(point, parts, affine)

    def _configured(self, x: Tensor | Point, parts: dict[str, Any], affine: AffineParts | None = None) -> ConfiguredMDPs:
        """The MDPs that parts make, those looked at that are there."""
        if self.discount == 1.0:
            check_proper(parts["transition"], parts["termination"], "discount is 1", parts["reward"])
        elif self.leader_discount == 1.0:
            check_proper(parts["transition"], parts["termination"], "leader_discount is 1")
        there = [name for name in self._functions if affine is None or name not in affine.parts]
        return ConfiguredMDPs(self, x, parts, {name: check_part(name, parts[name]) for name in there}, affine)

    def evaluate(self, x: Tensor, names: Collection[str], z: Any = None) -> dict[str, Any]:
        """Parts that are functions of x, ``(d,)`` or a batch, by torch; z is parametrization(x), where that is known."""
        if x.ndim > 1:
            batch = self._configure_batch(x)
            return {name: batch[name] for name in names}
        name, raw = "parametrization", {}
        try:
            if z is None:
                z = x if self._parametrization is None else self._parametrization(x)
            for name in names:
                raw[name] = self._functions[name](z)
        except RuntimeError as error:
            refuse_misuse(name, error)
            raise
        parts = {}
        for name, value in raw.items():
            checked = isinstance(value, Tensor) and value.shape == self._shapes.get(name) and value.dtype == torch.float64
            parts[name] = value if checked else self._canonical(name, value)
        return parts

    def _parameters(self, x: Tensor) -> Any:
        return x if self._parametrization is None else _call("parametrization", self._parametrization, x)

    def _configure_batch(self, x: Tensor) -> dict[str, Any]:
        """Evaluate the functions under vmap over the leading dimensions of x."""
        lead = x.shape[:-1]
        stacked = torch.func.vmap(self._moving_values)(x.reshape(-1, self.leader_dim)) if self._functions else ()
        parts: dict[str, Any] = {n: t.unflatten(0, lead) for n, t in zip(self._functions, stacked, strict=True)}
        if "transition" in parts:
            parts["transition"] = self._operator(parts["transition"])
        return parts

    def _operator(self, values: Tensor) -> TransitionOperator:
        """The transition operator with these stored numbers."""
        assert self._template is not None  # construction has made it
        return self._template.with_values(values)

    def replace(self, **changes: Any) -> TabularBOCMDP:
        """The same model with other constructor arguments."""
        return TabularBOCMDP(**{**self._given, **changes})

    def part(self, name: str, z: Any) -> Any:
        """One part as the functions see it: "reward", "leader_reward", ... at z = x, or at z = parametrization(x)."""
        if name not in self._functions:
            return self._constants[name]
        value = self._canonical(name, _call(name, self._functions[name], z))
        check_part(name, value)
        return value

    def _moving_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts that depend on x, as tensors (the stored values of P)."""
        z = self._parameters(x)
        values = (self._canonical(name, _call(name, function, z)) for name, function in self._functions.items())
        return tuple(v.values if isinstance(v, TransitionOperator) else v for v in values)

    def jacobians(self, x: Any) -> dict[str, Tensor]:
        """Derivatives of the parts that depend on x, by name: the part's own shape (sizes 1 left to broadcast), then d.

        For methods that need all of them, such as adaptive model design; weighted sums are `ConfiguredMDPs.vjp`'s work.
        """
        x = self._check_one(x).detach()
        if not self._functions:
            return {}
        values, columns = jacobian_columns(self._moving_values, x)
        for name, value in zip(self._functions, values, strict=True):
            check_part(name, self._operator(value) if name == "transition" else value)
        return {name: column.movedim(0, -1) for name, column in zip(self._functions, columns, strict=True)}

    # ------------------------------------------------------------------------------------------------------ solving

    @known_options()
    def solve(
        self,
        x: Any,
        regularization: float,
        *,
        initial_value: Tensor | None = None,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
    ) -> Solution:
        """The follower's regularised optimum at x, by soft policy iteration.

        Args:
            x: ``(..., d)``.
            regularization: lambda > 0.
            initial_value: V to start from, ``(..., C, S)`` (warm start).
            tolerance: accepted bound on max |pi - pi*|; solves continue to rounding where they can.
            max_iterations: Newton steps allowed.

        Raises:
            LeaderParameterError, RegularizationError, ModelError, ConvergenceError.
        """
        return self.configure(x).solve(
            regularization, initial_value=initial_value, tolerance=tolerance, max_iterations=max_iterations
        )

    @known_options(onto=solve)
    def leader_return(self, x: Any, regularization: float, *, per_context: bool = False, **options: Any) -> Tensor:
        """F(x) = E_xi E sum_t gamma_L^t rbar under the follower's optimum: a scalar, or ``(...,)`` for batched x.

        Differentiable in x, by `backward` or torch.func. With ``per_context``, F_xi: ``(..., C)``. Options go to `solve`.
        """
        per_context = check_flag("per_context", per_context)
        mdps = self.configure(x)
        solution = mdps.solve(regularization, **options)
        returns = mdps.policy_return(solution.policy)
        return returns if per_context else self._mean(returns)

    def context_return(self, x: Any, regularization: float, context: int, *, leader_share: float = 0.0) -> Tensor:
        """F_xi(x) of one context, as in `leader_return`."""
        mdps = self.configure(x)
        mdps = mdps.with_leader_share(leader_share) if leader_share else mdps
        return mdps.policy_return(mdps.solve(regularization).policy)[..., context]

    @known_options(onto=solve)
    def loss(self, x: Any, f: Loss, *, regularization: float, **options: Any) -> Tensor:
        """E_xi f(x, pi*_xi, xi) for a differentiable ``f(x, policy (S, A), context) -> scalar``; options go to `solve`.

        Raises:
            ModelError: f does not return one finite number.
        """
        x = self.check_leader(x)
        check_function("the loss f", f, "x, policy, context")
        if x.ndim > 1:
            return torch.func.vmap(lambda z: self.loss(z, f, regularization=regularization, **options))(x)
        policy = self.solve(x, regularization, **options).policy
        values = torch.stack([check_loss(f(x, one, context)) for context, one in enumerate(policy)])
        look_at(_check_losses, values)
        return self._mean(values)

    def _mean(self, values: Tensor) -> Tensor:
        """E_xi of values ``(..., C)``."""
        return values @ self._context_weights.to(values.device)

    # ---------------------------------------------------------------------------------------- the BOCMDP interface

    def _visited(self, name: str, x: Tensor, states: Any, actions: Any, context: int) -> Tensor:
        table = self.part(name, self._parameters(x)).expand(self.n_contexts, self.n_states, self.n_actions)
        return table[context, torch.as_tensor(states).long(), torch.as_tensor(actions).long()]

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """r_{x, xi}(s, a) for states and actions ``(N,)``."""
        return self._visited("reward", x, observations, actions, context)

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """rbar_{x, xi}(s, a) for states and actions ``(N,)``."""
        return self._visited("leader_reward", x, observations, actions, context)

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        """log P_{x, xi}(s'|s, a) for ``(N,)`` transitions; None if P is constant."""
        if "transition" not in self._functions:
            return None
        operator = self.part("transition", self._parameters(x))
        context = 0 if operator.n_contexts == 1 else context
        s, a = torch.as_tensor(observations).long(), torch.as_tensor(actions).long()
        a = a if operator.index is None else torch.from_numpy(operator.index)[a]
        succ = torch.from_numpy(operator.successors())[0 if len(operator.successors()) == 1 else context]
        match = succ[s, a] == torch.as_tensor(next_observations).long()[:, None]
        return torch.where(match, operator.values[context, s, a], 0.0).sum(-1).log()

    def log_initials(self, x: Tensor, observations: Any, context: Any) -> Tensor | None:
        """log mu_{x, xi}(s) for ``(N,)`` states; None if mu is constant."""
        if "initial" not in self._functions:
            return None
        mu = self.part("initial", self._parameters(x))
        return mu[0 if len(mu) == 1 else context, torch.as_tensor(observations).long()].log()

    @classmethod
    @known_options(dict.fromkeys(("leader_dim", "parametrization"), "x is the logits of the leader's policy, S L of them."))
    def acting_leader(
        cls, *, reward: Any, leader_reward: Any, transition: Any, initial: Any, termination: Any = None, **options: Any
    ) -> TabularBOCMDP:
        """A game in which the leader acts too, seen by the follower before it acts; x: the leader's logits, ``(S L,)``.

        States of the model are pairs of the game's state and the leader's action, s L + l (`bocmdp_gym.acting`).

        Args:
            reward, leader_reward, termination: ``(S, L, A)``, or ``(C, S, L, A)`` for several contexts.
            transition: P, ``(S, L, A, S)`` or ``(C, S, L, A, S)``; or an operator or a scipy.sparse matrix ``(S L A, S)`` for S
                states and L A joint actions l A + a.
            initial: of the first state, ``(S,)`` or ``(C, S)``.
            options: as for the constructor: ``discount``, ``leader_discount``, ``context_probabilities``, ...

        Raises:
            ModelError: shapes that do not fit, functions of x, probabilities that are none.
        """
        game = {"reward": reward, "leader_reward": leader_reward, "transition": transition, "initial": initial}
        return cls(**acting_parts(**game, termination=termination), **options)

    @classmethod
    def from_gymnasium(
        cls,
        env: gym.Env[Any, Any],
        *,
        reward: Function | None = None,
        leader_reward: Function | None = None,
        leader_dim: int | None = None,
        discount: float = 0.99,
        action_mask: npt.ArrayLike | bool | None = None,
        check_samples: int = CHECK_SAMPLES,
        **options: Any,
    ) -> TabularBOCMDP:
        """A model from an environment that publishes its tables (FrozenLake, Taxi, CliffWalking: ``env.unwrapped.P``).

        Gymnasium's tables end an episode on arrival; here the same episodes end after acting (see `gymnasium_tables`).

        Args:
            env: the environment; wrappers around it must leave the problem alone (time limits and records do).
            reward: the follower's reward ``(C, S, A)`` or a function of x; the environment's own if None.
            leader_reward: the leader's; the environment's own reward if None.
            leader_dim: as for the constructor; if None, that of ``leader_space`` or ``example`` where given, else 1.
            action_mask: as for the constructor; True: the environment's own, ``env.unwrapped.action_mask(state)``, which leaves
                out what Taxi would do in vain. None: every action, as the environment takes them all.
            check_samples: seeded steps of a copy of the environment that its tables are held against; 0: none.
            discount, options: as for the constructor.

        Raises:
            UnsupportedError: the environment publishes no tables, or no masks that were asked for, or has a wrapper around it
                that changes the problem.
            ModelError: tables that are malformed, or not what the environment plays.
            ModelError: a function fails at the x of dimension 1 that was assumed without ``leader_dim``.
        """
        replaced = reward is not None and leader_reward is not None
        tables = gymnasium_tables(env, check_samples=check_samples, check_rewards=not replaced)
        arguments: dict[str, Any] = {
            "reward": tables.reward if reward is None else reward,
            "leader_reward": tables.reward if leader_reward is None else leader_reward,
            "transition": tables.transition,
            "initial": tables.initial,
            "termination": tables.termination,
            "discount": discount,
            "action_mask": masks_of_states(env, *tables.reward.shape[1:]) if action_mask is True else action_mask,
            **options,
        }
        if leader_dim is not None:
            return cls(leader_dim=leader_dim, **arguments)
        if options.get("leader_space") is not None:
            return cls(leader_dim=options["leader_space"].shape[0], **arguments)
        if options.get("example") is not None:
            return cls(leader_dim=np.size(options["example"]), **arguments)
        try:
            return cls(leader_dim=1, **arguments)
        except (ModelError, RuntimeError, IndexError) as error:
            if not any(callable(part) for part in arguments.values()):
                raise
            raise ModelError(
                f"x was taken to have dimension 1, and a function of it failed: {error} Give leader_dim=."
            ) from error


def _check_finite(x: Tensor) -> None:
    if not bool(torch.isfinite(x).all()):
        raise LeaderParameterError(
            "leader parameter has entries that are not finite; if a leader produced them, lower its learning rate "
            "or clip its gradient."
        )


def _check_losses(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ModelError(f"f(x, policy) is {values.tolist()} in the contexts; expected finite numbers. Check it at this x.")
