from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import followers
from bocmdp_gym import FactoredTransitions, SuccessorTransitions, TabularBOCMDP, errors
from leaders.gradients import Estimate, Estimator, GeometricEstimator, MonteCarloEstimator, TDEstimator
from tests.problems import brute_force_solution, finite_difference, random_x, relative_error

S, L, A = 3, 2, 4


def _game(seed: int = 0, contexts: int | None = None, ends: bool = True, **changes: Any) -> dict[str, Any]:
    """A random game; every other successor has probability 0."""
    rng = np.random.default_rng(seed)
    lead = () if contexts is None else (contexts,)
    p = rng.random((*lead, S, L, A, S)) * (rng.random((*lead, S, L, A, S)) < 0.6)
    p[..., 0] += 0.1
    game: dict[str, Any] = {
        "reward": rng.standard_normal((*lead, S, L, A)),
        "leader_reward": rng.standard_normal((*lead, S, L, A)),
        "transition": p / p.sum(-1, keepdims=True),
        "initial": rng.dirichlet(np.ones(S), *lead),
        "discount": 0.8,
        "leader_discount": 0.7,
    }
    if ends:
        game["termination"] = 0.3 * rng.random((*lead, S, L, A))
    return {**game, **changes}


def _model(**game: Any) -> TabularBOCMDP:
    return TabularBOCMDP.acting_leader(**game)


@pytest.mark.parametrize("contexts", [None, 2])
def test_the_model_is_the_game_on_pairs(contexts: int | None) -> None:
    """P, mu and the rest entry by entry, against loops over the definition."""
    game = _game(contexts=contexts)
    model, x = _model(**game), random_x(S * L, scale=1.0)
    mdps = model.configure(x)
    logits = x.numpy().reshape(S, L)
    policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert (model.n_contexts, model.n_states, model.n_actions, model.leader_dim) == (contexts or 1, S * L, A, S * L)
    assert set(model.moving) == {"transition", "initial"}
    for context in range(contexts or 1):
        own = {name: game[name] if contexts is None else game[name][context] for name in game if "discount" not in name}
        arrays = mdps.arrays(context)
        for s, a_leader in np.ndindex(S, L):
            pair = s * L + a_leader
            assert arrays.initial[pair] == pytest.approx(own["initial"][s] * policy[s, a_leader], abs=1e-15)
            for name in ("reward", "leader_reward", "termination"):
                np.testing.assert_array_equal(getattr(arrays, name)[pair], own[name][s, a_leader])
            for a in range(A):
                row = np.bincount(arrays.successors[pair, a], arrays.probabilities[pair, a], S * L)
                np.testing.assert_allclose(row, (own["transition"][s, a_leader, a][:, None] * policy).reshape(-1), atol=1e-15)
    np.testing.assert_allclose(model.solve(x, 0.3).value, brute_force_solution(model, x, 0.3), atol=1e-10)


@pytest.mark.parametrize("contexts", [None, 3])
@pytest.mark.parametrize("ends", [True, False])
def test_the_exact_gradient_is_that_of_central_differences(ends: bool, contexts: int | None) -> None:
    model, x = _model(**_game(1, contexts, ends)), random_x(S * L, 2, scale=0.7)
    exact = torch.func.grad(lambda z: model.leader_return(z, 0.2))(x)
    assert relative_error(exact, finite_difference(lambda z: model.leader_return(z, 0.2), x)) < 1e-7
    assert torch.allclose(exact.reshape(S, L).sum(-1), torch.zeros(S, dtype=torch.float64), atol=1e-12)  # a shift moves nothing
    batch = model.leader_return(torch.stack([x, -x]), 0.2)
    assert float(batch[0]) == pytest.approx(float(model.leader_return(x, 0.2)), abs=1e-12)


def test_estimates_have_the_mean_of_the_exact_gradient() -> None:
    """The unbiased estimator within 4 standard errors, which are below 2% of the gradient; the others nearby."""
    model = _model(**_game(3, ends=False, discount=0.5, leader_discount=0.6))
    oracle, x = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.5)), random_x(S * L, 1)
    exact = torch.func.grad(lambda z: model.leader_return(z, 0.5))(x)

    def estimate(estimator: Estimator) -> Estimate:
        estimator.bind(oracle)
        return estimator.estimate(oracle, x, 0, np.random.default_rng(0))

    unbiased = estimate(GeometricEstimator(1_000_000, error_groups=40))
    assert unbiased.standard_error is not None
    assert float(unbiased.standard_error.max() / exact.abs().max()) < 0.02
    assert float(((unbiased.gradient - exact).abs() / unbiased.standard_error).max()) < 4
    assert relative_error(estimate(MonteCarloEstimator(400_000)).gradient, exact) < 0.05
    assert relative_error(estimate(TDEstimator(400_000, td_rate=0.01)).gradient, exact) < 0.05


def test_forms_of_transitions_are_the_same_game() -> None:
    game, x = _game(), random_x(S * L)
    kernel = game["transition"].reshape(S * L * A, S)
    forms = [
        game["transition"][None],
        torch.from_numpy(game["transition"]),
        sparse.csr_array(kernel),
        SuccessorTransitions.from_sparse(sparse.csr_array(kernel)),
    ]
    dense = _model(**game).leader_return(x, 0.3)
    for form in forms:
        assert float(_model(**{**game, "transition": form}).leader_return(x, 0.3)) == pytest.approx(float(dense), abs=1e-12)
    rounded = {**game, "transition": game["transition"].astype(np.float32), "initial": game["initial"].astype(np.float32)}
    assert float(_model(**rounded).leader_return(x, 0.3)) == pytest.approx(float(dense), abs=1e-5)


def test_contexts_and_actions_may_share_transitions() -> None:
    """Two contexts with other rewards, and joint actions 2 and 5 that move alike."""
    game, x = _game(contexts=2), random_x(S * L)
    moves = game["transition"][0].reshape(S, L * A, S)
    moves[:, 5] = moves[:, 2]
    shared = moves.reshape(S, L, A, S)
    expected = float(_model(**{**game, "transition": np.stack([shared, shared])}).leader_return(x, 0.3))
    factored = FactoredTransitions(torch.from_numpy(np.delete(moves, 5, 1)), [0, 1, 2, 3, 4, 2, 5, 6])
    for form in (shared, factored):
        model = _model(**{**game, "transition": form})
        assert model.configure(x).transition.n_contexts == 1
        assert float(model.leader_return(x, 0.3)) == pytest.approx(expected, abs=1e-12)


def test_large_games_store_lists() -> None:
    """A walk on a ring of 3,000 states: 2 successors become 4, and nothing of the size of S x S is made."""
    n = 3000
    steps = np.arange(n)[:, None] + np.array([-1, 1])
    successors = np.broadcast_to((steps % n)[:, None], (n, 4, 2))
    chances = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.2, 0.8]], dtype=torch.float64).expand(n, 4, 2)
    reward = np.random.default_rng(0).random((n, 2, 2))
    kernel = SuccessorTransitions(successors, chances)
    model = _model(reward=reward, leader_reward=-reward, transition=kernel, initial=np.full(n, 1 / n), discount=0.9)
    assert model.configure(model.example).transition.values.shape == (1, 2 * n, 2, 4)
    assert torch.isfinite(torch.func.grad(lambda z: model.leader_return(z, 0.5))(torch.zeros(2 * n, dtype=torch.float64))).all()


def test_a_sure_leader_has_large_logits() -> None:
    """Probabilities of 0 and 1 are reached, and nothing stops being finite there."""
    model, x = _model(**_game()), 1000.0 * random_x(S * L)
    value, gradient = torch.func.grad_and_value(lambda z: model.leader_return(z, 0.3))(x)[::-1]
    assert np.isfinite(float(value))
    assert torch.isfinite(gradient).all()
    assert model.leader_space.low.min() == -np.inf


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"reward": np.zeros((S, A))}, r"reward has shape \(3, 4\); expected \(S, L, A\)"),
        ({"reward": "high"}, "reward is 'high'"),
        ({"leader_reward": np.zeros((S, L, A + 1))}, r"leader_reward has shape \(3, 2, 5\); expected \(3, 2, 4\)"),
        ({"leader_reward": np.zeros((1, 1, S, L, A))}, "leader_reward has shape"),
        ({"leader_reward": lambda x: x}, "leader_reward is a function; expected an array: x is the leader's logits"),
        ({"transition": lambda x: x}, "transition is a function"),
        ({"transition": np.full((S, L, A, S + 1), 0.25)}, r"transition has shape \(3, 2, 4, 4\); expected \(3, 2, 4, 3\)"),
        ({"transition": np.full((S, L, A, S), 0.3)}, "transition row sums to 0.9"),
        ({"transition": sparse.eye_array(S).tocsr()}, "expected 3 states and 8 joint actions"),
        ({"transition": None}, r"transition has shape \(\); expected"),
        ({"initial": np.full(S + 1, 0.25)}, r"initial has shape \(4,\); expected \(3,\)"),
        ({"initial": np.full(S, 0.5)}, "initial distribution of context 0 sums to 1.5"),
        ({"termination": np.full((S, L, A), 1.5)}, "termination is 1.5"),
        ({"leader_dim": 3}, "no option 'leader_dim'; x is the logits"),
        ({"disscount": 0.9}, "no option 'disscount'"),
    ],
)
def test_what_is_no_game_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(errors.BOCMDPError, match=match):
        _model(**_game(**changes))
