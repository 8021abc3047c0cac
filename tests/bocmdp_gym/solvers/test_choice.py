"""Which solver is chosen for which structure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from benchmarks.grids import grid_model
from bocmdp_gym import errors
from bocmdp_gym.solvers import (
    BandedSolver,
    DenseSolver,
    FactoredSolver,
    KrylovSolver,
    SparseLUSolver,
    policy_solver,
)
from bocmdp_gym.solvers.orders import adjacency, bandwidth_order
from tests.bocmdp_gym.solvers.problems import LAMBDA, garnet, grid
from tests.problems import random_x


def test_choice_of_method() -> None:
    assert isinstance(policy_solver(garnet(40)[0]), BandedSolver)
    assert isinstance(policy_solver(garnet(150)[0]), DenseSolver)
    assert isinstance(policy_solver(garnet(2000)[0]), KrylovSolver)
    assert isinstance(policy_solver(grid(15)[0]), BandedSolver)
    assert isinstance(policy_solver(grid(60)[0]), KrylovSolver)
    chain = np.clip(np.arange(5000)[:, None, None] + np.array([[[-1], [1]]]), 0, 4999).astype(np.int32).reshape(5000, 2, 1)
    assert isinstance(policy_solver(chain), BandedSolver)
    assert isinstance(policy_solver(np.tile(np.arange(700, dtype=np.int32), (700, 2, 1))), DenseSolver)
    factored = policy_solver(garnet(2000)[0], np.array([0, 1, 2, 2]))
    assert isinstance(factored, FactoredSolver)
    assert isinstance(factored.inner, KrylovSolver)


def test_banded_elimination_takes_the_order_of_less_work() -> None:
    """The states' own, where it is one; a shuffled grid has none."""
    succ, *_ = grid(25)
    rng = np.random.default_rng(0)
    new = rng.permutation(len(succ))
    shuffled = np.empty_like(succ)
    shuffled[new] = new[succ]
    own, reduced = (BandedSolver(succ, position) for position in (np.arange(len(succ)), bandwidth_order(succ)))
    assert own.work != reduced.work
    solver, ordered = policy_solver(succ), policy_solver(shuffled)
    assert isinstance(solver, BandedSolver)
    assert isinstance(ordered, BandedSolver)
    assert solver.work == min(own.work, reduced.work)
    assert sorted(ordered.position) == list(range(len(succ)))
    assert ordered.work < 0.1 * BandedSolver(shuffled, np.arange(len(succ))).work


def test_neighbours_are_told_once() -> None:
    succ = np.array([[1, 1], [0, 2], [2, 1], [0, 3]], np.int32)[:, None]
    pointers, neighbours = adjacency(succ)
    rows = [sorted(neighbours[a:b].tolist()) for a, b in itertools.pairwise(pointers)]
    assert rows == [[1, 3], [0, 2], [1, 2], [0, 3]]


def test_choice_can_be_overridden() -> None:
    model = grid_model(900, solver="sparse-lu")
    assert isinstance(model.configure(np.zeros(900)).arrays(0).solver, SparseLUSolver)
    other = model.replace(solver="krylov")
    x = random_x(900)
    assert isinstance(other.configure(x).arrays(0).solver, KrylovSolver)
    torch.testing.assert_close(*(m.leader_return(x, LAMBDA) for m in (model, other)), rtol=1e-9, atol=0)
    with pytest.raises(errors.OptionError, match="Did you mean 'krylov'"):
        grid_model(100, solver="krilov")
