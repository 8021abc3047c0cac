"""At discount 1 an optimum exists where staying for ever loses: deterministic models against spectral radii, others by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bocmdp_gym import TabularBOCMDP, errors
from bocmdp_gym.bounded import end_components

METHODS = ("banded", "dense", "krylov", "sparse-lu")
Array = npt.NDArray[np.float64]


def deterministic(succ: npt.NDArray[np.int64], r: Array, q: Array, solver: str = "auto") -> TabularBOCMDP:
    """Moves that are certain; q(s, a) ends the episode."""
    S, A = succ.shape
    P = np.zeros((1, S, A, S))
    P[0, np.arange(S)[:, None], np.arange(A), succ] = 1.0
    return TabularBOCMDP(
        reward=r[None],
        leader_reward=np.ones((1, S, A)),
        transition=P,
        initial=np.full(S, 1.0 / S),
        termination=q[None],
        discount=1.0,
        leader_discount=0.9,
        leader_dim=1,
        solver=solver,
    )


def test_leaving_at_a_high_price_is_better_than_staying_for_ever() -> None:
    model = deterministic(np.zeros((1, 2), int), np.array([[-0.5, -10.0]]), np.array([[0.0, 1.0]]))
    # z = exp(V / lambda) = exp(-100) / (1 - exp(-5))
    expected = -10.0 - 0.1 * np.log1p(-np.exp(-5.0))
    assert float(model.solve([0.0], 0.1).value) == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(-9.9993, abs=1e-4)


@pytest.mark.parametrize("lam", [0.1, 0.01, 0.001, 1e-6])
def test_a_ring_whose_cheap_arcs_face_each_other_is_left(lam: float) -> None:
    """Greedy from V = 0 walks to and fro between them for ever."""
    S = 12
    succ = np.array([[(s + 1) % S, (s - 1) % S] for s in range(S)])
    r, q = np.full((S, 2), -0.5), np.zeros((S, 2))
    r[3, 0] = r[4, 1] = -0.01
    q[0, 0] = 1.0
    B, b = np.zeros((S, S)), np.zeros(S)
    value = deterministic(succ, r, q).solve([0.0], lam).value[0].numpy()
    if lam >= 0.01:
        for s in range(S):
            for a in range(2):
                if q[s, a]:
                    b[s] += np.exp(r[s, a] / lam)
                else:
                    B[s, succ[s, a]] += np.exp(r[s, a] / lam)
        np.testing.assert_allclose(value, lam * np.log(np.linalg.solve(np.eye(S) - B, b)), rtol=1e-9)
    else:  # the shortest path, but for an entropy that vanishes with lambda
        assert value.min() == pytest.approx(-3.01, abs=10 * lam)


def _random(seed: int) -> tuple[npt.NDArray[np.int64], Array, Array, float]:
    rng = np.random.default_rng(seed)
    S, A = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    succ = rng.integers(S, size=(S, A))
    r = -rng.choice([0.01, 0.1, 0.5, 1.0, 10.0], size=(S, A)) * rng.uniform(0.5, 1.5, size=(S, A))
    return succ, r, (rng.random((S, A)) < 0.3) * 1.0, 10.0 ** rng.uniform(-1, 1)


def test_values_are_finite_exactly_where_the_spectral_radius_is_below_one() -> None:
    """exp(V / lambda) solves a linear system with the matrix of exp(r / lambda) over moves that go on."""
    found = {"finite": 0, "infinite": 0}
    for seed in range(700):
        succ, r, q, lam = _random(seed)
        try:
            model = deterministic(succ, r, q, METHODS[seed % 4])
        except errors.DiscountError:
            continue  # no end can be reached from some state
        S, A = succ.shape
        B, b = np.zeros((S, S)), np.zeros(S)
        for s in range(S):
            for a in range(A):
                if q[s, a]:
                    b[s] += np.exp(r[s, a] / lam)
                else:
                    B[s, succ[s, a]] += np.exp(r[s, a] / lam)
        radius = max(abs(np.linalg.eigvals(B)))
        assert abs(radius - 1.0) > 1e-9
        if radius < 1.0:
            value = model.solve([0.0], lam).value[0].numpy()
            np.testing.assert_allclose(value, lam * np.log(np.linalg.solve(np.eye(S) - B, b)), rtol=1e-6, atol=1e-6)
            found["finite"] += 1
        else:
            with pytest.raises(errors.ConvergenceError, match="values diverge"):
                model.solve([0.0], lam)
            found["infinite"] += 1
    assert min(found.values()) >= 60


def test_gains_of_stochastic_components_are_told_from_losses() -> None:
    """Two states that chance swaps, a cost c per step, two actions: lambda log 2 - c decides."""
    P = np.full((1, 2, 3, 2), 0.5)
    q = np.zeros((1, 2, 3))
    q[0, :, 2] = 1.0
    for cost, finite in ((0.1 * np.log(2.0) + 1e-6, True), (0.1 * np.log(2.0) - 1e-6, False)):
        r = np.full((1, 2, 3), -cost)
        r[0, :, 2] = -3.0
        model = TabularBOCMDP(
            reward=r,
            leader_reward=r,
            transition=P,
            initial=[1.0, 0.0],
            termination=q,
            discount=1.0,
            leader_discount=0.5,
            leader_dim=1,
        )
        if finite:
            assert np.isfinite(model.solve([0.0], 0.1).value.numpy()).all()
        else:
            with pytest.raises(errors.ConvergenceError, match="diverge"):
                model.solve([0.0], 0.1)


def test_end_components_are_maximal_and_closed() -> None:
    """0 <-> 1 with an action that may fall to 2, which is alone; 3 only leads elsewhere."""
    succ = np.array([[[1, 1], [1, 2]], [[0, 0], [0, 0]], [[2, 2], [2, 2]], [[0, 0], [2, 2]]], np.int32)
    prob = np.array([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0]] * 2, [[1.0, 0.0]] * 2, [[1.0, 0.0]] * 2])
    stays = np.ones((4, 2), bool)
    stays[1, 1] = False
    found = {tuple(states.tolist()): actions.tolist() for states, actions in end_components(stays, succ, prob, np.arange(2))}
    assert found == {(0, 1): [[True, False], [True, False]], (2,): [[True, True]]}
