"""Runs in a thread pool are the runs that one thread makes one after another, to the bit, whatever they share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, get_ident
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmarks.grids import grid_model
from bocmdp_gym import FactoredTransitions, TabularBOCMDP, TabularEnv
from bocmdp_gym.solvers import PolicySolver
from followers import CallableFollower, NaturalPolicyGradient, SoftPolicyIteration, SoftQLearning
from leaders import AMD, HPGD, ExactGradient, ZeroOrder, optimize
from leaders.loop import one_torch_thread
from tests.problems import four_rooms, random_model

LAMBDA = 0.05
RUNS, THREADS = 16, 8


@pytest.fixture(autouse=True)
def _impatient_threads() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _equal(run: Callable[[int], npt.NDArray[Any]]) -> None:
    """``run`` of every number, in threads and without."""
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(run, range(RUNS)))
    for number in range(RUNS):
        np.testing.assert_array_equal(together[number], run(number), err_msg=f"run {number}")


def _optimized(env: Any, leader: Any, follower: Any, seed: int, iterations: int = 4) -> npt.NDArray[Any]:
    result = optimize(env, leader, follower, iterations, seed=seed, progress=False, contexts=1)
    returns: npt.NDArray[Any] = np.append(result.x.numpy(), result.history["sampled_return"])
    return returns


def _factored(**options: Any) -> TabularBOCMDP:
    rng = np.random.default_rng(0)
    reward, index = torch.from_numpy(rng.standard_normal((1, 60, 5))), [0, 1, 2, 2, 0]
    return TabularBOCMDP(
        reward=lambda x: x * reward,
        leader_reward=rng.random((1, 60, 5)),
        transition=FactoredTransitions(torch.from_numpy(rng.dirichlet(np.ones(60), (1, 60, 3))), index),
        initial=np.full(60, 1 / 60),
        leader_dim=5,
        discount=0.9,
        **options,
    )


MODELS = {
    "banded": lambda: grid_model(225, solver="banded"),
    "dense": lambda: grid_model(225, solver="dense"),
    "krylov": lambda: grid_model(225, solver="krylov"),
    "sparse-lu": lambda: grid_model(225, solver="sparse-lu"),
    "factored": _factored,
    "transitions": lambda: random_model(states=30, successors=3, discount=0.9),
}


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "one environment"])
@pytest.mark.parametrize("name", MODELS)
def test_exact_gradients_of_one_model(name: str, shared: bool) -> None:
    model = MODELS[name]()
    env = TabularEnv(model, horizon=20)
    _equal(lambda seed: _optimized(model if shared else env, ExactGradient(1.0), SoftPolicyIteration(LAMBDA), seed))


@pytest.mark.parametrize(
    "leader",
    [
        lambda: HPGD(1.0, env_steps=100),
        lambda: HPGD(1.0, env_steps=50, estimator="pooled"),
        lambda: HPGD(1.0, env_steps=50, estimator="td"),
        lambda: ZeroOrder(1.0),
        lambda: AMD(1.0),
    ],
    ids=["hpgd", "pooled", "td", "zero-order", "amd"],
)
def test_leaders_in_one_environment(leader: Callable[[], Any]) -> None:
    env = four_rooms()
    _equal(lambda seed: _optimized(env, leader(), SoftPolicyIteration(LAMBDA), seed, 3))


@pytest.mark.parametrize(
    "follower", [lambda: NaturalPolicyGradient(LAMBDA, iterations=5), lambda: SoftQLearning(LAMBDA, iterations=500)]
)
def test_iterative_followers(follower: Callable[[], Any]) -> None:
    model = grid_model(225)
    _equal(lambda seed: _optimized(model, ExactGradient(1.0), follower(), seed, 3))


@pytest.mark.parametrize("name", MODELS)
def test_autograd_of_one_model(name: str) -> None:
    model = MODELS[name]()

    def gradient(seed: int) -> npt.NDArray[Any]:
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal(model.leader_dim)).requires_grad_()
        model.leader_return(x, LAMBDA).backward()
        assert x.grad is not None
        return x.grad.numpy()

    _equal(gradient)


@pytest.mark.parametrize("solver", ["banded", "dense", "krylov", "sparse-lu"])
def test_contexts_are_solved_in_threads(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()
    model = grid_model(225, contexts=12).replace(solver=solver)

    def noted(self: PolicySolver, *arguments: Any) -> Any:
        used.add(get_ident())
        return own(self, *arguments)

    kind = type(model.configure(np.zeros(225)).arrays(0).solver)
    own = kind.policy_iteration
    monkeypatch.setattr(kind, "policy_iteration", noted)

    def gradient(threads: int) -> npt.NDArray[Any]:
        monkeypatch.setattr("bocmdp_gym.soft_bellman.available_threads", lambda: threads)
        x = torch.from_numpy(np.random.default_rng(0).standard_normal(225)).requires_grad_()
        model.leader_return(x, LAMBDA).backward()
        assert x.grad is not None
        return x.grad.numpy()

    alone = gradient(1)
    assert used == {get_ident()}
    together = gradient(2)
    assert len(used) >= 2
    np.testing.assert_array_equal(together, alone)


def test_agents_that_draw_from_global_generators() -> None:
    def agent(observation: Any) -> int:
        return int(np.random.random() * 4)  # noqa: NPY002 - what an agent of somebody else may do

    def run(seed: int) -> npt.NDArray[Any]:
        return _optimized(four_rooms(), ZeroOrder(1.0, env_steps=20), CallableFollower(agent), seed, 2)

    _equal(run)


def test_compiled_threads_leave_torch_its_number() -> None:
    """In a process of its own: what others started stays started."""
    script = (
        "import torch; from bocmdp_gym.threads import available_threads; from benchmarks.grids import grid_model\n"
        "grid_model(225, contexts=12).leader_return(torch.zeros(225, dtype=torch.float64), 0.1)\n"
        "print(available_threads() >= 1, torch.get_num_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "1"]


def test_torch_keeps_its_number_of_threads() -> None:
    """Runs that begin and end in any order leave the number of threads as it was before the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    first_ends, second_runs = Event(), Event()

    def first() -> int:
        with one_torch_thread(), one_torch_thread():
            assert second_runs.wait(60)
        first_ends.set()
        return torch.get_num_threads()

    def second() -> int:
        with one_torch_thread():
            second_runs.set()
            assert first_ends.wait(60)
            assert torch.get_num_threads() == 1
        return torch.get_num_threads()

    try:
        with ThreadPoolExecutor(2) as pool:
            assert [run.result() for run in [pool.submit(first), pool.submit(second)]] == [3, 3]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
