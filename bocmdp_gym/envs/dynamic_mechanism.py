r"""Dynamic mechanism design: affine maximisers that sell items over time (paper, appendix A; Curry et al., 2024).

The mathematics. Items come one per period t = 0..T-1; n bidders want one item each, whenever; bidder i's type v_i is its value.
The mechanism asks for types and runs a policy of the allocation MDP: a state is (t, who is served), an action gives the item
to nobody or to an unserved bidder. With weights w_i > 0 and boosts b(s, a) (the leader's x) the policy is the best, up to
entropy, for the affine welfare

    r(s, a) = sum_i w_i v_i 1{a serves i} + b(s, a) ,       U(pi) = E sum gamma^t r ,      U(-i): the same MDP without bidder i.

Write J = U + lambda E sum gamma^t H(pi(.|s_t)) for what pi maximises. Bidder i pays what it costs the others,

    p_i = (J(-i) - (J - w_i V_i)) / w_i ,        V_i = E sum gamma^t v_i 1{a serves i} .

Its utility V_i - p_i is J at its true type over w_i, less J(-i) / w_i, on which its report has no influence: truth-telling is
optimal, exactly and at any lambda (`outcome`, `misreport_gain`, `revenue`). Taking part is worth it, exactly as lambda -> 0: the
policy without i can be played with i there, except for the fined actions below, which add at most
lambda log(1 + n exp(-10 / lambda)) per period to J(-i) (1e-14 at lambda = 0.3, but 0.001 at lambda = 1.5).

As a BO-CMDP: contexts are type profiles with everyone present, and profiles of the others without bidder i. Revenue is a
signed leader's value over these MDPs: rbar = -sum_i (r - w_i v_i 1{a serves i}) / w_i with everyone present, rbar = r / w_i
without i, each times n + 1 because contexts of each kind are drawn with probability 1 / (n + 1). This leader's return leaves
the entropy out of the payments, which a reward of states and actions cannot hold, so it differs from `revenue` by up to
lambda sum_t gamma^t log(n + 1) sum_i 1 / w_i. Weights are kept within bounds for that reason, and leaders who can take a
loss (`revenue_loss`) should at all but small lambda: the return rewards a mechanism for its randomness.

Two bidders, types uniform on [0, 1]: the optimal revenue is 5/12 + gamma/12 (one item: 5/12), reached with unit weights and
boost 1/2 per unsold item; without boosts (dynamic VCG) it is (1 - gamma)/3 (one item: 1/3). On a grid of types no mechanism earns
more than sum_t gamma^t E max(0, t-th highest virtual value) (`DynamicMechanism.benchmark`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.errors import DiscountError, OptionError
from bocmdp_gym.options import check_array, check_choice, check_count, check_distribution, check_number, check_regularization
from bocmdp_gym.pictures import INK, PALETTE, Canvas, PicturedEnv, blend
from bocmdp_gym.soft_bellman import policy_entropy
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.tabular_env import TabularVectorEnv
from bocmdp_gym.transitions import SuccessorTransitions
from bocmdp_gym.validation import check_discount

Array = npt.NDArray[np.float64]
Objective = Literal["revenue", "welfare"]
Boosts = Literal["state_action", "slot"]
OBJECTIVES, BOOSTS = get_args(Objective), get_args(Boosts)
MAX_CONTEXTS = 20_000
_FINE = 10.0  # for giving an item to a bidder who is served or absent: it is lost, and no optimal policy does it as lambda -> 0


class DynamicMechanism(PicturedEnv):
    r"""A designer tunes the weights and boosts of a dynamic affine maximiser; the follower is the allocation it then makes.

    ## Description
    One item arrives per period; bidders with private types want one each. The follower is the mechanism's own policy: it
    maximises affine welfare in the allocation MDP. Payments make truth-telling optimal; the leader wants revenue or welfare.
    The module docstring has the mathematics.

    ## Leader parameter
    x in R^(n + m), unbounded. x[:n] sets the weights, w_i = weight_bound^tanh(x_i). The others are boosts: b(s, a), states first
    (``boosts="state_action"``, m = S (n + 1)), or one per unsold item (``"slot"``, m = n_slots). x = 0 is dynamic VCG.
    `initial_leader` starts from unit weights and small boosts of unsold items.

    ## Context
    ``Discrete(K^n + n K^(n-1))``: type profiles with everyone present, then profiles of the others without bidder 0, without
    bidder 1, ... (`profile`). It is not observed.

    ## Action space
    ``Discrete(n + 1)``: 0 keeps the item back, i + 1 gives it to bidder i. Giving to a bidder who is served or absent loses the
    item at a fine of 10.

    ## Observation space
    ``Discrete(S)``: the period and who is served, in the order of ``states``.

    ## Rewards
    Follower: affine welfare r(s, a). Leader: what sums up to expected revenue, or to expected welfare (values served).

    ## Episode start and end
    Starts in period 0 with nobody served; terminates after the last item. ``horizon`` may truncate it earlier.

    ## Arguments
    n_bidders: number of bidders, who want one item each.
    n_slots: number of periods, with one item each.
    n_types: K types per bidder, in the middles of K equal parts of [0, 1].
    types: other types instead, increasing and not negative.
    type_probabilities: probabilities of the types, which are independent; uniform if None.
    objective: what the leader maximises, "revenue" or "welfare".
    boosts: boosts for every state and action ("state_action"), or one for each unsold item ("slot").
    weight_bound: weights lie between its inverse and itself, > 1.
    discount: gamma of the mechanism and its bidders.
    leader_discount: the leader's gamma_L; None: gamma, as it must be for revenue (payments are discounted with gamma).
    horizon: steps until truncation, or None for no limit.
    render_mode: "rgb_array" or "human".

    Raises:
        OptionError, DiscountError: an argument out of range, or more than 20,000 contexts.

    ## Version history
    v0: first version.

    References: Curry et al., "Automated design of affine maximizer mechanisms in dynamic settings", AAAI 2024; Thoma et al.,
    "Bilevel Optimization with Lower-Level Contextual MDPs", 2024, appendix A; Myerson, "Optimal auction design", 1981.
    """

    def __init__(
        self,
        n_bidders: int = 2,
        n_slots: int = 2,
        n_types: int = 5,
        types: Sequence[float] | None = None,
        type_probabilities: Sequence[float] | None = None,
        objective: Objective = "revenue",
        boosts: Boosts = "state_action",
        weight_bound: float = 2.0,
        discount: float = 0.9,
        leader_discount: float | None = None,
        horizon: int | None = None,
        render_mode: str | None = None,
    ):
        n = self.n_bidders = check_count("n_bidders", n_bidders)
        self.n_slots = check_count("n_slots", n_slots)
        k = check_count("n_types", n_types)
        self.uniform_grid = types is None and type_probabilities is None
        self.types = (np.arange(k) + 0.5) / k if types is None else check_array("types", types, (None,))
        if not ((self.types >= 0).all() and (np.diff(self.types) > 0).all()):
            raise OptionError(f"types are {self.types.tolist()}; expected increasing numbers of at least 0.")
        k = len(self.types)
        self.type_probabilities = check_distribution("type_probabilities", type_probabilities, k)
        self.objective = check_choice("objective", objective, OBJECTIVES)
        self.boosts = check_choice("boosts", boosts, BOOSTS)
        self.weight_bound = check_number("weight_bound", weight_bound, above=1.0)
        if k**n + n * k ** (n - 1) > MAX_CONTEXTS:
            raise OptionError(
                f"{n} bidders with {k} types make {k**n + n * k ** (n - 1)} contexts; expected at most {MAX_CONTEXTS}: take "
                "fewer types or bidders."
            )
        self.states = [
            (t, served)
            for t in range(self.n_slots)
            for served in product((False, True), repeat=n)
            if sum(served) <= t
        ]  # fmt: skip
        self._state_index = {state: s for s, state in enumerate(self.states)}
        self.profiles = np.array(list(product(range(k), repeat=n)), dtype=np.int64)  # (K^n, n)
        self._others = np.array(list(product(range(k), repeat=n - 1)), dtype=np.int64).reshape(k ** (n - 1), n - 1)
        self._build_contexts()
        discount = check_discount(discount)
        leader_discount = None if leader_discount is None else check_discount(leader_discount, "leader_")
        if self.objective == "revenue" and leader_discount not in (None, discount):
            raise DiscountError(
                f"leader_discount is {leader_discount} and discount {discount}; payments are discounted with the latter, so "
                "revenue needs both the same. Leave leader_discount out."
            )
        super().__init__(self._make_model(discount, leader_discount), horizon, render_mode)

    def _build_contexts(self) -> None:
        """Types of every context ``(C, n)`` (0 where absent), who is absent (-1: nobody), and P_xi."""
        n, p = self.n_bidders, self.type_probabilities
        values, absent, weights = [self.types[self.profiles]], [np.full(len(self.profiles), -1)], [p[self.profiles].prod(1)]
        for i in range(n):
            values.append(np.insert(self.types[self._others], i, 0.0, axis=1))
            absent.append(np.full(len(self._others), i))
            weights.append(p[self._others].prod(1))
        self._values, self._absent = np.concatenate(values), np.concatenate(absent)
        self._probabilities = np.concatenate(weights) / (n + 1)
        self._profile_probabilities = torch.from_numpy(weights[0])

    def profile(self, context: int) -> tuple[list[float], int | None]:
        """The bidders' types in a context, and the absent bidder (whose type is given as 0); None if all are present."""
        absent = int(self._absent[context])
        return self._values[context].tolist(), None if absent < 0 else absent

    def _serves(self, state: int, action: int, absent: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether an action gives the item to a bidder who can take it, in every context: ``(C,)``."""
        return np.full(len(absent), action > 0 and not self.states[state][1][action - 1]) & (absent != action - 1)

    def _make_model(self, discount: float, leader_discount: float | None) -> TabularBOCMDP:
        n, n_states, n_contexts = self.n_bidders, len(self.states), len(self._values)
        served = np.stack([np.stack([self._serves(s, a, self._absent) for a in range(n + 1)], 1) for s in range(n_states)], 1)
        successors = np.zeros((n_contexts, n_states, n + 1, 1), dtype=np.int64)
        for s, (t, who) in enumerate(self.states):
            for a in range(n + 1):
                stay = self._state_index.get((t + 1, who), s)
                after = tuple(w or i == a - 1 for i, w in enumerate(who))
                successors[:, s, a, 0] = np.where(served[:, s, a], self._state_index.get((t + 1, after), s), stay)
        value = np.zeros((n_contexts, n_states, n + 1, n))  # what each bidder gains
        for i in range(n):
            value[:, :, i + 1, i] = served[:, :, i + 1] * self._values[:, i, None]
        self._gain = torch.from_numpy(value)
        self._takes = (torch.arange(n + 1)[:, None] == torch.arange(1, n + 1)) & torch.from_numpy(served).unsqueeze(-1)
        legal = torch.from_numpy(served)
        legal[..., 0] = True
        present = torch.from_numpy((self._absent[:, None] < 0) * np.ones(n))
        without = torch.from_numpy((self._absent[:, None] == np.arange(n)).astype(np.float64))
        welfare = (n + 1) * present[:, 0, None, None] * self._gain.sum(-1)

        def affine(parameters: tuple[Tensor, Tensor], contexts: Any = slice(None)) -> Tensor:
            weights, boosts = parameters
            boost = torch.where(legal[contexts], boosts, boosts[:, :1] - _FINE)
            return self._gain[contexts] @ weights + boost

        self._affine, self._successors = affine, torch.from_numpy(successors[..., 0])

        def revenue(parameters: tuple[Tensor, Tensor]) -> Tensor:
            weights, _ = parameters
            reward = affine(parameters)
            own = present @ (1.0 / weights)  # (C,): sum_i 1 / w_i with everyone present, else 0
            other = without @ (1.0 / weights)
            return (n + 1) * ((other - own)[:, None, None] * reward + present[:, :1, None] * self._gain.sum(-1))

        return TabularBOCMDP(
            reward=affine,
            leader_reward=revenue if self.objective == "revenue" else welfare,
            transition=SuccessorTransitions(successors, torch.ones(successors.shape, dtype=torch.float64)),
            initial=torch.nn.functional.one_hot(torch.tensor(0), n_states).to(torch.float64),
            termination=torch.tensor([[float(t == self.n_slots - 1) for t, _ in self.states]], dtype=torch.float64),
            context_probabilities=self._probabilities,
            discount=discount,
            leader_discount=leader_discount,
            leader_dim=n + (n_states * (n + 1) if self.boosts == "state_action" else self.n_slots),
            parametrization=self._split,
        )

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(n,)`` and boosts ``(S, n + 1)`` of x."""
        n = self.n_bidders
        weights = self.weight_bound ** torch.tanh(x[:n])
        if self.boosts == "state_action":
            return weights, x[n:].reshape(len(self.states), n + 1)
        unsold = x[n:][[t for t, _ in self.states]]
        return weights, torch.nn.functional.pad(unsold.unsqueeze(-1), (0, n))

    def initial_leader(self, rng: np.random.Generator) -> Array:
        """x_0: unit weights, unsold items boosted by a quarter of the highest type, and noise N(0, 0.01^2).

        Not dynamic VCG: its revenue does not change to first order with the boost of a single item.
        """
        reserves = np.full(self.n_slots, 0.25 * self.types[-1])
        return self.leader_of(np.ones(self.n_bidders), reserves) + 0.01 * rng.standard_normal(self.model.leader_dim)

    def leader_of(self, weights: npt.ArrayLike, boosts: npt.ArrayLike) -> Array:
        """x with these weights ``(n,)`` and boosts: one per unsold item ``(n_slots,)``, or ``(S, n + 1)``.

        Raises:
            OptionError: wrong shapes, or weights that are not strictly within their bounds.
        """
        w, b = check_array("weights", weights, (self.n_bidders,)), np.array(boosts, dtype=np.float64)
        if not ((w > 1 / self.weight_bound) & (w < self.weight_bound)).all():
            raise OptionError(
                f"weights are {w.tolist()}; expected numbers between {1 / self.weight_bound:g} and {self.weight_bound:g}."
            )
        if self.boosts == "slot":
            b = check_array("boosts", b, (self.n_slots,))
        elif b.shape == (self.n_slots,):
            b = np.array([[b[t], *[0.0] * self.n_bidders] for t, _ in self.states])
        if self.boosts == "state_action":
            b = check_array("boosts", b, (len(self.states), self.n_bidders + 1))
        return np.concatenate([np.arctanh(np.log(w) / np.log(self.weight_bound)), b.reshape(-1)])

    # what the mechanism does, by profile of types (K^n rows in the order of ``profiles``)

    def outcome(self, x: Any, regularization: float) -> tuple[Tensor, Tensor]:
        """Discounted expected items and payments of every bidder, ``(K^n, n)`` each, when all report their types.

        Differentiable in x.
        """
        mdps = self.model.configure(x)
        solution = mdps.solve(regularization)
        n_profiles = len(self.profiles)
        items = torch.stack([mdps.discounted_sum(solution.policy, self._takes[..., i]) for i in range(self.n_bidders)], -1)
        gained = items[:n_profiles] * torch.from_numpy(self.types[self.profiles])
        weights, _ = self._split(mdps.x)
        return items[:n_profiles], self._payments(solution.value[:, 0], gained, weights)

    def _payments(self, optimal: Tensor, gained: Tensor, weights: Tensor) -> Tensor:
        """p_i from J of every context ``(C,)`` and V_i with everyone present ``(K^n, n)``."""
        n, k, n_profiles = self.n_bidders, len(self.types), len(self.profiles)
        powers = k ** np.arange(n - 2, -1, -1) if n > 1 else np.empty(0, dtype=np.int64)
        rows = [n_profiles + i * k ** (n - 1) + np.delete(self.profiles, i, 1) @ powers for i in range(n)]
        without = torch.stack([optimal[torch.from_numpy(row)] for row in rows], -1)
        return gained - (optimal[:n_profiles, None] - without) / weights

    def revenue(self, x: Any, regularization: float) -> Tensor:
        """Expected payments of all bidders, a scalar, differentiable in x."""
        return self._profile_probabilities @ self.outcome(x, regularization)[1].sum(-1)

    def revenue_loss(self, regularization: float) -> Callable[[Tensor, Tensor, int], Tensor]:
        """Minus the revenue of `outcome` as a loss f(x, policy (S, A), context), for ``leaders.optimize(loss=...)``.

        Args:
            regularization: lambda, the follower's.
        """
        regularization, n = check_regularization(regularization), self.n_bidders
        continuing = torch.tensor([[self.discount * (t < self.n_slots - 1)] for t, _ in self.states], dtype=torch.float64)

        def loss(x: Tensor, policy: Tensor, context: int) -> Tensor:
            weights, boosts = self._split(x)
            reward = self._affine((weights, boosts), [context])[0]
            moves = torch.nn.functional.one_hot(self._successors[context], len(self.states)).to(torch.float64)
            system = torch.eye(len(self.states), dtype=torch.float64) - ((policy * continuing).unsqueeze(-1) * moves).sum(1)
            visits = torch.linalg.solve(system.T, torch.eye(len(self.states), dtype=torch.float64)[0])
            optimal = visits @ ((policy * reward).sum(-1) + regularization * policy_entropy(policy))
            absent = int(self._absent[context])
            if absent >= 0:
                return -(n + 1) * optimal / weights[absent]
            gained = visits @ (policy * self._gain[context].sum(-1)).sum(-1)
            return -(n + 1) * (gained - optimal * (1.0 / weights).sum())

        return loss

    def misreport_gain(self, x: Any, regularization: float) -> float:
        """The most a bidder of any type can gain by reporting another type, whatever the others report."""
        items, payments = (part.detach().numpy() for part in self.outcome(x, regularization))
        shape = (len(self.types),) * self.n_bidders
        gain = 0.0
        for i in range(self.n_bidders):
            q = np.moveaxis(items[:, i].reshape(shape), i, 0)  # (report, others)
            p = np.moveaxis(payments[:, i].reshape(shape), i, 0)
            true = self.types.reshape(-1, *(1,) * self.n_bidders)
            utility = true * q - p  # (true type, report, others)
            honest = np.stack([utility[k, k] for k in range(len(self.types))])
            gain = max(gain, float((utility.max(1) - honest).max()))
        return gain

    # known optima

    def hard_max(self, x: npt.ArrayLike, absent: int | None = None) -> tuple[Array, Array, npt.NDArray[np.int64]]:
        """The mechanism at lambda = 0 for every profile, ties in favour of selling: backward induction.

        Args:
            x: ``(d,)``.
            absent: a bidder who is not there.

        Returns:
            Affine welfare ``(K^n,)``, discounted values V_i ``(K^n, n)``, and who gets each item ``(K^n, n_slots)`` (0: nobody).
        """
        weights, boosts = (part.detach().numpy() for part in self._split(self.model.check_leader(x)))
        values = self.types[self.profiles]
        rows, n = np.arange(len(values)), self.n_bidders
        found: dict[int, tuple[Array, Array, npt.NDArray[np.int64]]] = {}
        for s in reversed(range(len(self.states))):
            t, who = self.states[s]
            options = []
            for a in [0] + [i + 1 for i in range(n) if not who[i] and i != absent]:
                welfare, gained = np.full(len(values), boosts[s, a]), np.zeros_like(values)
                allocation = np.zeros((len(values), self.n_slots), dtype=np.int64)
                if a > 0:
                    welfare += weights[a - 1] * values[:, a - 1]
                    gained[:, a - 1] = values[:, a - 1]
                if t < self.n_slots - 1:
                    later = found[self._state_index[t + 1, tuple(w or i == a - 1 for i, w in enumerate(who))]]
                    welfare = welfare + self.discount * later[0]
                    gained = gained + self.discount * later[1]
                    allocation = later[2].copy()
                allocation[:, t] = a
                options.append((welfare, gained, allocation))
            preference = np.array([0.0] + [1e-9] * (len(options) - 1))
            best = (np.stack([option[0] for option in options], 1) + preference).argmax(1)
            welfare, gained, allocation = (np.stack(parts)[best, rows] for parts in zip(*options, strict=True))
            found[s] = welfare, gained, allocation
        return found[0]

    def hard_revenue(self, x: npt.ArrayLike) -> float:
        """Expected revenue at lambda = 0, ties in favour of selling."""
        n, k = self.n_bidders, len(self.types)
        welfare, gained, _ = self.hard_max(x)
        parts = [welfare]
        for i in range(n):
            alone = self.hard_max(x, absent=i)[0].reshape((k,) * n)
            parts.append(np.take(alone, 0, axis=i).reshape(-1))  # it does not depend on the absent bidder's type
        weights = self._split(self.model.check_leader(x))[0].detach()
        payments = self._payments(torch.from_numpy(np.concatenate(parts)), torch.from_numpy(gained), weights)
        return float(self._profile_probabilities @ payments.sum(1))

    def hard_welfare(self, x: npt.ArrayLike) -> float:
        """Expected discounted values served at lambda = 0, ties in favour of selling."""
        return float(self._profile_probabilities.numpy() @ self.hard_max(x)[1].sum(1))

    def revenue_bound(self) -> float:
        """sum_t gamma^t E max(0, t-th highest virtual value): no mechanism with truthful bidders earns more on these types."""
        p, top = self.type_probabilities, np.append(self.types[1:], self.types[-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            virtual = np.where(p > 0, self.types - (top - self.types) * (1.0 - np.cumsum(p)).clip(0.0) / p, -np.inf)
        ranked = np.sort(virtual[self.profiles].clip(0.0), axis=1)[:, ::-1][:, : self.n_slots]
        weights = self.discount ** np.arange(ranked.shape[1])
        return float(self._profile_probabilities.numpy() @ ranked @ weights)

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The optimum as lambda -> 0 on this grid of types; None at any other lambda, or if the leader discounts differently.

        Welfare: dynamic VCG is efficient. Revenue: the best mechanism with unit weights and one boost for all unsold items, by
        trying every type as that boost, and the bound on all mechanisms.
        """
        if regularization not in (None, 0.0):
            return None
        unit = np.ones(self.n_bidders)
        if self.objective == "welfare":
            x = self.leader_of(unit, np.zeros(self.n_slots))
            value = self.hard_welfare(x)
            if self.leader_discount != self.discount:
                return None
            limit = 2 / 3 + self.discount / 3 if self._is_textbook and self.n_slots == 2 else None
            return Benchmark(value, "leader return (welfare), maximised", "dynamic VCG is efficient", 0.0, True, x=x, limit=limit)
        candidates = [self.leader_of(unit, np.full(self.n_slots, v)) for v in np.append(0.0, self.types)]
        revenues = [self.hard_revenue(x) for x in candidates]
        best = int(np.argmax(revenues))
        limit = 5 / 12 + (self.discount / 12 if self.n_slots == 2 else 0.0) if self._is_textbook else None
        return Benchmark(
            value=revenues[best],
            objective="leader return (revenue), maximised",
            source="brute force over one boost for all unsold items, unit weights; bound: virtual values (Myerson, 1981)",
            regularization=0.0,
            is_optimum=bool(np.isclose(revenues[best], self.revenue_bound(), rtol=1e-9)),
            bound=self.revenue_bound(),
            x=candidates[best],
            limit=limit,
        )

    @property
    def _is_textbook(self) -> bool:
        """Whether the continuous case has its formula in the module docstring."""
        return self.uniform_grid and self.n_bidders == 2 and self.n_slots <= 2

    # pictures

    def picture(self) -> npt.NDArray[np.uint8]:
        """Who gets each item, by types, under x at lambda = 0; the context's types as a dot. Two bidders: maps; else bars."""
        context = self._episode_context or 0
        values, absent = self.profile(context)
        t = self.states[self._state][0]
        if self.n_bidders != 2:
            return self._bars(values, absent)
        size, margin = 210, 50
        canvas = Canvas(margin + self.n_slots * (size + margin), size + 120)
        owners = self.hard_max(self._episode_leader, absent)[2]
        k = len(self.types)
        cell = size / k
        for slot in range(self.n_slots):
            left = margin + slot * (size + margin)
            for (first, second), owner in zip(self.profiles, owners[:, slot], strict=True):
                x, y = left + first * cell, 50 + size - (second + 1) * cell
                colour = (232, 233, 236) if owner == 0 else blend((255, 255, 255), PALETTE[owner - 1], 0.75)
                canvas.rectangle((x, y, x + cell, y + cell), colour, (255, 255, 255), 0.5)
            box = (left, 50, left + size, 50 + size)
            canvas.rectangle(box, None, INK, 3 if slot == t else 1)
            place = [0.0 if i == absent else np.searchsorted(self.types, v) + 0.5 for i, v in enumerate(values)]
            canvas.disc((left + place[0] * cell, 50 + size - place[1] * cell), 6, (255, 255, 255), INK, 2)
            canvas.text((left + size / 2, 38), f"item {slot}" + (" (now)" if slot == t else ""))
            canvas.text((left + size / 2, 50 + size + 14), "type of bidder 0")
            canvas.text((left - 4, 50 + size / 2), "bidder 1", anchor="rm", size=11)
        who = "everyone present" if absent is None else f"without bidder {absent}"
        canvas.text((10, 8), f"{who}; dot: types in this context", anchor="la")
        for i, name in enumerate(("bidder 0", "bidder 1")):
            canvas.text((margin + 110 * i, 50 + size + 42), name, colour=PALETTE[i], anchor="lm")
        canvas.text((margin + 220, 50 + size + 42), "grey: unsold", colour=(120, 122, 128), anchor="lm")
        return canvas.array()

    result_name = "allocation"

    def result_figure(self, x: npt.ArrayLike, policies: Array) -> Any:
        """A matplotlib figure: who gets each item under policies ``(C, S, A)``, by types, and what x is worth as lambda -> 0.

        Two bidders: maps of both types, colours mixed by probability. Else: the chance of each item, by a bidder's own type.
        """
        from matplotlib.figure import Figure

        k, n = len(self.types), self.n_bidders
        sold = self.sales(policies).reshape(*(k,) * n, self.n_slots, n)
        figure = Figure(figsize=(3.5 * self.n_slots + 4.2, 4.2), layout="constrained")
        axes = figure.subplots(1, self.n_slots + 1)
        colours = np.array(PALETTE)[np.arange(n) % len(PALETTE)] / 255.0
        for slot, ax in enumerate(axes[:-1]):
            chance = sold[..., slot, :]
            if n == 2:
                shown = (1.0 - chance.sum(-1))[..., None] * 0.9 + chance @ colours
                ax.imshow(shown.swapaxes(0, 1), origin="lower")
                ticks = np.unique(np.linspace(0, k - 1, min(k, 5)).round().astype(int))
                labels = [f"{v:.2g}" for v in self.types[ticks]]
                ax.set_xticks(ticks, labels)
                ax.set_yticks(ticks, labels)
                ax.set(xlabel="type of bidder 0", ylabel="type of bidder 1", title=f"item {slot}")
            else:
                for i in range(n):
                    p = self.type_probabilities
                    others = np.moveaxis(chance[..., i], i, 0).reshape(k, -1) @ _product([p] * (n - 1))
                    ax.plot(self.types, others, marker="o", color=colours[i])
                ax.set(xlabel="own type", ylabel="probability of getting it", ylim=(-0.03, 1.03), title=f"item {slot}")
        for i in range(n):
            axes[0].plot([], [], "s", color=colours[i], label=f"bidder {i}")
        if n == 2:
            axes[0].plot([], [], "s", color="0.9", label="unsold")
        figure.legend(loc="outside lower left", ncols=n + 1, frameon=False)
        self._plot_values(axes[-1], x)
        weights = self._split(self.model.check_leader(x).detach())[0].tolist()
        figure.suptitle("Who gets the items; weights of the bidders: " + ", ".join(f"{w:.2f}" for w in weights))
        return figure

    def _plot_values(self, ax: Any, x: npt.ArrayLike) -> None:
        """Revenue or welfare at lambda = 0: of dynamic VCG, of x, and the most there is."""
        benchmark, zero = self.benchmark(), np.zeros(self.model.leader_dim)
        worth = self.hard_revenue if self.objective == "revenue" else self.hard_welfare
        bars = {"dynamic VCG": worth(zero), "found": worth(x)}
        if benchmark is not None:
            bars["best known"] = benchmark.value
        shown = ax.bar(list(bars), list(bars.values()), color=["#8a8f99", "#2668be", "#1e8c46"][: len(bars)])
        ax.bar_label(shown, fmt="%.3f")
        if benchmark is not None and benchmark.limit is not None:
            ax.axhline(benchmark.limit, color="black", linestyle=":", linewidth=1, label="continuous types, formula")
            ax.legend(frameon=False, loc="upper left")
        ax.margins(y=0.25)
        ax.set(title=f"{self.objective} as lambda falls to 0")

    def sales(self, policies: Array) -> Array:
        """The probability that each item goes to each bidder, ``(K^n, n_slots, n)``, by profile of types.

        Args:
            policies: action probabilities ``(C, S, A)``.
        """
        n_profiles, takes = len(self.profiles), self._takes.numpy()
        reached, sold = np.zeros((n_profiles, len(self.states))), np.zeros((n_profiles, self.n_slots, self.n_bidders))
        reached[:, 0] = 1.0
        for s, (t, _) in enumerate(self.states):
            for a in range(self.n_bidders + 1):
                share = reached[:, s] * policies[:n_profiles, s, a]
                sold[:, t] += share[:, None] * takes[:n_profiles, s, a]
                if t < self.n_slots - 1:
                    np.add.at(reached, (np.arange(n_profiles), self._successors[:n_profiles, s, a].numpy()), share)
        return sold

    def _bars(self, values: list[float], absent: int | None) -> npt.NDArray[np.uint8]:
        weights = self._split(torch.tensor(self._episode_leader))[0].numpy()
        _, served = self.states[self._state]
        canvas = Canvas(max(80 + 90 * self.n_bidders, 330), 300)
        top = max(float(self.types.max()) * float(weights.max()), 1e-12)
        for i, value in enumerate(values):
            left, colour = 40 + 90 * i, PALETTE[i % len(PALETTE)]
            height = 180 * value * weights[i] / top
            canvas.rectangle((left, 240 - height, left + 50, 240), blend(colour, (255, 255, 255), 0.7 if served[i] else 0.0))
            state = "absent" if i == absent else "served" if served[i] else f"{value:.2f}"
            canvas.text((left + 25, 256), f"bidder {i}: {state}", size=11, colour=colour)
        canvas.line((30, 240), (canvas.width - 30, 240), INK)
        canvas.text((10, 8), f"item {self.states[self._state][0]}: weighted types; pale: served", anchor="la")
        return canvas.array()


def _product(distributions: Sequence[Array]) -> Array:
    """The joint distribution of independent draws, flattened."""
    joint = np.ones(1)
    for p in distributions:
        joint = np.outer(joint, p).reshape(-1)
    return joint


def dynamic_mechanism_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> TabularVectorEnv:
    """Many copies of `DynamicMechanism` in one compiled environment; keywords as for `DynamicMechanism`."""
    return TabularVectorEnv(DynamicMechanism(**kwargs), num_envs, autoreset_mode)
