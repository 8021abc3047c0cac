from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from bocmdp_gym import Weights, errors
from bocmdp_gym.soft_bellman import torch_linear_algebra
from tests.problems import F64, overflowing_model, random_model, random_x

EVERYTHING = ("reward", "leader_reward", "transition", "initial", "termination")


def _weights(model: Any, rng: np.random.Generator, *lead: int, width: int = 3) -> Weights:
    pairs = (*lead, model.n_states, model.n_actions)
    normal = rng.standard_normal
    return Weights(normal(pairs), normal(pairs), normal((*pairs, width)), normal(pairs[:-1]), normal(pairs))


@pytest.mark.parametrize("moving", [EVERYTHING, ("reward", "transition")])
def test_reverse_pass_is_the_sum_of_the_weighted_derivatives(moving: tuple[str, ...]) -> None:
    model = random_model(2, successors=3, moving=moving)
    x = random_x(model.leader_dim)
    jacobians, weights = model.jacobians(x), _weights(model, np.random.default_rng(0))
    expected = sum(
        torch.tensordot(torch.from_numpy(weight), jacobians[name][1], weight.ndim)
        for name, weight in vars(weights).items()
        if name in moving
    )
    torch.testing.assert_close(model.configure(x.requires_grad_()).vjp(weights, 1), expected)


def test_reverse_passes_of_a_batch_are_those_of_its_entries() -> None:
    model = random_model(2, successors=3, moving=EVERYTHING)
    xs = torch.stack([random_x(model.leader_dim, seed) for seed in range(4)])
    weights, contexts = _weights(model, np.random.default_rng(0), 4), np.array([2, 0, 1, 1])
    together = model.configure(xs.clone().requires_grad_()).vjp(weights, contexts)
    for i, context in enumerate(contexts):
        one = Weights(**{field.name: getattr(weights, field.name)[i] for field in fields(weights)})
        torch.testing.assert_close(together[i], model.configure(xs[i].clone().requires_grad_()).vjp(one, context))


def test_weights_of_what_is_constant_or_missing_count_for_nothing() -> None:
    model = random_model(3, successors=3, moving=("leader_reward",))
    mdps = model.configure(random_x(model.leader_dim).requires_grad_())
    weights = _weights(model, np.random.default_rng(0))
    torch.testing.assert_close(mdps.vjp(weights, 0), mdps.vjp(Weights(leader_reward=weights.leader_reward), 0))
    assert bool((mdps.vjp(Weights(reward=weights.reward), 0) == 0.0).all())


@pytest.mark.parametrize("moving", [EVERYTHING, ("reward",)])
def test_arrays_are_the_tensors_of_their_context(moving: tuple[str, ...]) -> None:
    model = random_model(5, successors=3, moving=moving)
    for seed in range(2):  # the second x reads what the first has left behind
        mdps = model.configure(random_x(model.leader_dim, seed))
        for context in range(model.n_contexts):
            arrays = mdps.arrays(context)
            assert mdps.arrays(context) is arrays
            for name in ("reward", "leader_reward", "initial", "termination", "continuation", "leader_continuation"):
                np.testing.assert_array_equal(getattr(arrays, name), getattr(mdps, name)[context].numpy())
            v = np.random.default_rng(context).standard_normal(model.n_states)
            expected = mdps.transition.expectation(torch.from_numpy(v).expand(model.n_contexts, -1))[context]
            np.testing.assert_allclose(arrays.expectation(v), expected.numpy(), atol=1e-14)
            w = arrays.reward
            np.testing.assert_allclose(arrays.adjoint(w) @ v, (w * arrays.expectation(v)).sum())
            np.testing.assert_allclose((arrays.outer(w, v) * arrays.probabilities).sum(), arrays.adjoint(w) @ v)


def test_returns_of_a_policy() -> None:
    model = random_model(6, leader_discount=None, moving=EVERYTHING)
    mdps = model.configure(random_x(model.leader_dim))
    optimum = mdps.solve(0.3)
    torch.testing.assert_close(mdps.follower_return(optimum.policy, 0.3), (mdps.initial * optimum.value).sum(-1))
    for policy in (optimum.policy, torch.full_like(optimum.policy, 1.0 / model.n_actions)):
        torch.testing.assert_close(mdps.discounted_sum(policy, mdps.leader_reward), mdps.policy_return(policy))
        torch.testing.assert_close(mdps.discounted_sum(policy, mdps.reward), mdps.follower_return(policy, 0.0))
        with torch_linear_algebra():
            torch.testing.assert_close(mdps.to("cpu").policy_return(policy), mdps.policy_return(policy))


def test_rows_of_a_batch() -> None:
    model = random_model(7, moving=("reward",))
    xs, contexts = torch.stack([random_x(model.leader_dim, seed) for seed in range(3)]), np.array([1, 2, 0])
    mdps = model.configure(xs)
    for name in ("reward", "leader_reward", "termination"):
        expected = getattr(mdps, name).expand(3, -1, -1, -1)[range(3), contexts]
        np.testing.assert_array_equal(mdps.batch_rows(name, contexts, np.empty(expected.shape)), expected)


def test_faults_are_named_where_they_arise() -> None:
    with pytest.raises(errors.ModelError, match="reward is nan at state 0, action 0, context 0"):
        overflowing_model().configure(torch.tensor([-1.0], dtype=F64))
