"""Which solver is chosen for which structure."""

from __future__ import annotations

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


def test_choice_can_be_overridden() -> None:
    model = grid_model(900, solver="sparse-lu")
    assert isinstance(model.configure(np.zeros(900)).arrays(0).solver, SparseLUSolver)
    other = model.replace(solver="krylov")
    x = random_x(900)
    assert isinstance(other.configure(x).arrays(0).solver, KrylovSolver)
    torch.testing.assert_close(*(m.leader_return(x, LAMBDA) for m in (model, other)), rtol=1e-9, atol=0)
    with pytest.raises(errors.OptionError, match="Did you mean 'krylov'"):
        grid_model(100, solver="krilov")
