"""Small problems with known answers, and the tools to check against them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

import bocmdp_gym
from bocmdp_gym import LinearQuadraticBOCMDP, SuccessorTransitions, TabularBOCMDP

F64 = torch.float64


def random_model(
    seed: int = 0,
    *,
    contexts: int = 3,
    states: int = 9,
    actions: int = 3,
    dim: int = 5,
    discount: float = 0.9,
    leader_discount: float | None = 0.8,
    terminating: bool = True,
    successors: int | None = None,
    moving: tuple[str, ...] = ("reward", "leader_reward", "transition", "initial"),
    strength: float = 0.3,
) -> TabularBOCMDP:
    """A random model in which the parts named in ``moving`` depend on x, and the others are their values at x = 0.

    ``successors``: stored successors per pair, None for a dense kernel. ``strength`` scales the dependence of P, mu, q on x.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    c, s, a, d = contexts, states, actions, dim
    k = s if successors is None else successors
    r0, r1, l0, l1 = normal(c, s, a), normal(c, s, a, d), normal(c, s, a), normal(c, s, a, d)
    p0, p1, m0, m1 = normal(c, s, a, k), strength * normal(c, s, a, k, d), normal(c, s), strength * normal(c, s, d)
    q1 = strength * normal(c, s, a, d)
    succ = np.random.default_rng(seed).integers(0, s, (c, s, a, k))

    def transition(x: Tensor) -> Any:
        p = torch.softmax(p0 + p1 @ x, -1)
        return p if successors is None else SuccessorTransitions(succ, p)

    parts: dict[str, Any] = {
        "reward": lambda x: r0 + r1 @ torch.tanh(x),
        "leader_reward": lambda x: l0 + l1 @ torch.sin(x),
        "transition": transition,
        "initial": lambda x: torch.softmax(m0 + m1 @ x, -1),
    }
    if terminating:
        parts["termination"] = lambda x: torch.sigmoid(q1 @ x - 2.0)
    zero = torch.zeros(d, dtype=F64)
    for name in set(parts) - set(moving):
        parts[name] = parts[name](zero)
    probabilities = np.arange(1, c + 1) / np.arange(1, c + 1).sum()
    return TabularBOCMDP(
        **parts,
        leader_dim=d,
        discount=discount,
        leader_discount=leader_discount,
        context_probabilities=probabilities,
    )


def small_model(**changes: object) -> TabularBOCMDP:
    """One context, three states, two actions, and arguments changed at will: for what a constructor refuses."""
    p = torch.full((1, 3, 2, 3), 1 / 3, dtype=F64)
    arguments: dict[str, object] = {
        "reward": lambda x: x.sum() * torch.ones(1, 3, 2, dtype=F64),
        "leader_reward": torch.zeros(1, 3, 2, dtype=F64),
        "transition": p,
        "initial": torch.tensor([[1.0, 0.0, 0.0]], dtype=F64),
        "leader_dim": 2,
        "discount": 0.9,
    }
    return TabularBOCMDP(**{**arguments, **changes})


def finite_difference(f: Any, x: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function at x ``(d,)``."""
    columns = []
    for direction in torch.eye(len(x), dtype=x.dtype):
        columns.append((f(x + step * direction) - f(x - step * direction)) / (2 * step))
    return torch.stack([torch.as_tensor(c) for c in columns]).detach()


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    """Euclidean error relative to the truth."""
    return float((estimate - truth).norm() / truth.norm())


def random_x(dim: int, seed: int = 0, scale: float = 0.3) -> Tensor:
    """A reproducible normal x."""
    return scale * torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def four_rooms(**options: Any) -> gym.Env[Any, Any]:
    """The paper's environment with the published dynamics."""
    return gym.make("bocmdp/FourRooms-v0", **{"slip_probability": 0.44, **options})


def four_rooms_model(**options: Any) -> TabularBOCMDP:
    """Its model."""
    model: TabularBOCMDP = bocmdp_gym.configurable(four_rooms(**options)).model
    return model


def brute_force_solution(model: TabularBOCMDP, x: Tensor, regularization: float, sweeps: int = 20_000) -> Tensor:
    """V* by plain soft value iteration on dense arrays: no code shared with the solver under test."""
    mdps = model.configure(x)
    s = model.n_states
    dense = torch.zeros(model.n_contexts, s, model.n_actions, s, dtype=F64)
    values = mdps.transition.values.detach().expand(model.n_contexts, -1, -1, -1)
    succ = np.broadcast_to(mdps.transition.successors(), tuple(values.shape))
    for index in np.ndindex(*values.shape):
        dense[(*index[:3], int(succ[index]))] += values[index]
    v = torch.zeros(model.n_contexts, s, dtype=F64)
    for _ in range(sweeps):
        q = mdps.reward + model.discount * (1 - mdps.termination) * torch.einsum("csat,ct->csa", dense, v)
        new = regularization * torch.logsumexp(q / regularization, -1)
        if float((new - v).abs().max()) < 1e-13:
            return new.detach()
        v = new
    return v.detach()


def principal_agent(**options: Any) -> gym.Env[Any, Any]:
    """A principal-agent instance."""
    return gym.make("bocmdp/PrincipalAgent-v0", **options)


#: Four rooms of 2 x 2 cells, with a door between neighbours: 20 free cells.
SMALL_ROOMS = ("xxxxxxx", "x  x  x", "x     x", "x xxx x", "x     x", "x  x  x", "xxxxxxx")


def small_rooms(**options: Any) -> gym.Env[Any, Any]:
    """Four-Rooms on `SMALL_ROOMS`, discount 0.9; penalties are cheap for the leader and felt by the follower."""
    cells = {"start": [1, 1], "goals": [[1, 5], [5, 5]], "waypoint": [4, 1]}
    settings = {"penalty_budget": 1.0, "penalty_cost": 0.1, "discount": 0.9, "horizon": 100}
    return four_rooms(**{"layout": SMALL_ROOMS, **cells, **settings, **options})


def overflowing_model(discount: float = 0.9) -> TabularBOCMDP:
    """A model whose rewards are finite at every finite x, and whose values are not at x = 1; its reward is NaN at x = -1."""

    def reward(x: Tensor) -> Tensor:
        level = torch.where(x[0] > 0, 1.7e308 * x[0], torch.where(x[0] < 0, torch.nan, 1.0))
        return level.expand(1, 2, 2)

    return TabularBOCMDP(
        reward=reward,
        leader_reward=np.zeros((1, 2, 2)),
        transition=np.full((1, 2, 2, 2), 0.5),
        initial=np.full(2, 0.5),
        leader_dim=1,
        discount=discount,
    )


def random_mask(model: TabularBOCMDP, seed: int = 0, *, per_context: bool = True) -> np.ndarray:
    """Booleans ``(C, S, A)`` or ``(S, A)`` that allow about half of the actions, and at least one in each state."""
    rng = np.random.default_rng(seed)
    shape = (model.n_contexts, model.n_states, model.n_actions)[0 if per_context else 1 :]
    mask = rng.random(shape) < 0.5
    np.put_along_axis(mask, rng.integers(model.n_actions, size=(*shape[:-1], 1)), True, -1)
    return mask


def restricted_solution(model: TabularBOCMDP, mask: np.ndarray, x: Tensor, lam: float) -> tuple[np.ndarray, ...]:
    """V* ``(C, S)``, pi* ``(C, S, A)`` and F ``(C,)`` where ``mask`` allows: by lists of actions, without anything under test.

    ``model`` is the one without the mask.
    """
    mdps = model.configure(x)
    arrays = [mdps.arrays(context) for context in range(model.n_contexts)]
    values, policies, returns = [], [], []
    for own, allowed in zip(arrays, np.broadcast_to(mask, (model.n_contexts, model.n_states, model.n_actions)), strict=True):
        p = np.zeros((model.n_states, model.n_actions, model.n_states))
        for s, a, k in np.ndindex(*own.probabilities.shape):
            p[s, a, own.successors[s, a, k]] += own.probabilities[s, a, k]
        actions = [np.flatnonzero(row) for row in allowed]
        v, change = np.zeros(model.n_states), np.inf
        while change > 1e-14 * max(1.0, np.abs(v).max()):
            q = [own.reward[s, some] + own.continuation[s, some] * (p[s, some] @ v) for s, some in enumerate(actions)]
            new = np.array([lam * np.logaddexp.reduce(one / lam) for one in q])
            v, change = new, np.abs(new - v).max()
        pi = np.zeros((model.n_states, model.n_actions))
        for s, some in enumerate(actions):
            pi[s, some] = np.exp((q[s] - v[s]) / lam) / np.exp((q[s] - v[s]) / lam).sum()
        system = np.eye(model.n_states) - np.einsum("sa,sat->st", pi * own.leader_continuation, p)
        values.append(v)
        policies.append(pi)
        returns.append(own.initial @ np.linalg.solve(system, (pi * own.leader_reward).sum(-1)))
    return np.array(values), np.array(policies), np.array(returns)


def corridor(states: int = 5, **changes: Any) -> TabularBOCMDP:
    """A corridor whose ends have no way out: action 0 goes left, 1 stays, 2 goes right; x pays for staying, per state.

    The right end pays the follower 1 and half of the episodes end there; the leader is paid in the middle. Two contexts: in the
    second nobody stays in the middle.
    """
    p = np.zeros((states, 3, states))
    mask = np.ones((2, states, 3), dtype=np.bool_)
    mask[:, 0, 0] = mask[:, -1, 2] = mask[1, states // 2, 1] = False
    for s in range(states):
        for a in range(3):
            p[s, a, min(max(s + a - 1, 0), states - 1)] += 0.9
            p[s, a, s] += 0.1
    goal, middle = np.eye(states)[-1], np.eye(states)[states // 2]
    stay = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    arguments: dict[str, Any] = {
        "reward": lambda x: (torch.tensor(goal)[:, None] + torch.tanh(x)[:, None] * stay)[None],
        "leader_reward": np.broadcast_to(middle[:, None], (1, states, 3)),
        "transition": p[None],
        "initial": np.eye(states)[0],
        "termination": 0.5 * goal[None],
        "context_probabilities": np.array([0.5, 0.5]),
        "leader_dim": states,
        "discount": 0.8,
        "action_mask": mask,
    }
    return TabularBOCMDP(**{**arguments, **changes})


def linear_quadratic(moving: tuple[str, ...] | None = None, **options: Any) -> LinearQuadraticBOCMDP:
    """Three states, two actions, two contexts, x in R^2, costs of states and actions together; ``moving``: parts that x moves.

    None: all of them.
    """
    rng = np.random.default_rng(3)
    n, m, d = 3, 2, 2

    def definite(size: int, *lead: int) -> Any:
        factor = rng.standard_normal((*lead, size, size))
        return factor @ factor.swapaxes(-1, -2) / size + 0.3 * np.eye(size)

    leader_cost = rng.standard_normal((n + m, n + m))
    parts = {
        "state_matrix": 0.5 * rng.standard_normal((2, n, n)),
        "input_matrix": rng.standard_normal((n, m)),
        "noise_covariance": 0.2 * definite(n),
        "cost": definite(n + m, 2),
        "leader_cost": leader_cost,
        "leader_bonus": np.array([0.5, -1.0]),
        "initial_mean": rng.standard_normal(n),
        "initial_covariance": definite(n),
    }
    given: dict[str, Any] = {}
    for number, (name, part) in enumerate(parts.items()):
        base, slope = torch.tensor(part), 0.3 * torch.tensor(rng.standard_normal((d,)))

        def part_of(x: Tensor, base: Tensor = base, slope: Tensor = slope, number: int = number) -> Tensor:
            scale = torch.exp(slope @ x)
            return base * scale if number != 6 else base + x[0]

        given[name] = part_of if moving is None or name in moving else base
    settings: dict[str, Any] = {"leader_dim": d, "discount": 0.8, "leader_discount": 0.7, "context_probabilities": [0.25, 0.75]}
    return LinearQuadraticBOCMDP(**given, **(settings | options))
