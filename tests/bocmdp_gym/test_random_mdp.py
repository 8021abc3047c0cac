from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.envs.random_mdp import distinct_successors
from tests.problems import brute_force_solution, finite_difference, random_x, relative_error


def _core(**options: object) -> bocmdp_gym.envs.RandomMDP:
    return bocmdp_gym.configurable(gym.make("bocmdp/RandomMDP-v0", **options))


def test_sizes_and_seeds() -> None:
    core = _core(seed=3, n_states=7, n_actions=2, n_contexts=3, discount=0.9, leader_discount=0.8, horizon=11, leader_dim=4)
    model = core.model
    assert (model.n_contexts, model.n_states, model.n_actions, model.leader_dim) == (3, 7, 2, 4)
    assert (core.discount, core.leader_discount, core.horizon) == (0.9, 0.8, 11)
    x = random_x(4)
    sizes = {"n_states": 7, "n_actions": 2, "n_contexts": 3, "leader_dim": 4}
    same, other = (_core(seed=seed, discount=0.9, leader_discount=0.8, **sizes) for seed in (3, 4))
    assert torch.equal(model.leader_return(x, 0.1), same.model.leader_return(x, 0.1))
    assert not torch.equal(model.leader_return(x, 0.1), other.model.leader_return(x, 0.1))


@pytest.mark.parametrize("branching", [None, 3])
def test_x_moves_every_part_and_the_gradient_is_right(branching: int | None) -> None:
    model = _core(branching=branching, n_states=12, leader_discount=0.9).model
    assert set(model.moving) == {"reward", "leader_reward", "transition", "initial"}
    x = random_x(model.leader_dim, seed=2, scale=1.0).requires_grad_()
    value = model.solve(x.detach(), 0.2, tolerance=1e-14).value
    torch.testing.assert_close(value, brute_force_solution(model, x.detach(), 0.2), atol=1e-9, rtol=0)
    model.leader_return(x, 0.2, tolerance=1e-14).backward()
    assert x.grad is not None
    numeric = finite_difference(lambda z: model.leader_return(z, 0.2, tolerance=1e-14), x.detach())
    assert relative_error(x.grad, numeric) <= 1e-6


def test_rewards_are_linear_and_zero_at_zero() -> None:
    model = _core().model
    x, y = random_x(10, 0), random_x(10, 1)
    rewards = [model.configure(z).reward for z in (torch.zeros(10), x, y, 2 * x - y)]
    assert not rewards[0].any()
    torch.testing.assert_close(rewards[3], 2 * rewards[1] - rewards[2])


def test_branching_gives_distinct_uniform_successors() -> None:
    chosen = distinct_successors(5, 4000, 3, np.random.default_rng(0))
    assert (np.sort(chosen, -1)[..., 1:] > np.sort(chosen, -1)[..., :-1]).all()
    counts = np.bincount(chosen.reshape(-1), minlength=5)  # each state with probability 3/5, 20,000 draws of 3
    np.testing.assert_allclose(counts / 20_000, 0.6, atol=4 * np.sqrt(0.24 / 20_000))
    arrays = _core(branching=3).model.configure(np.ones(10)).arrays(0)
    assert arrays.successors.shape == (20, 4, 3)
    np.testing.assert_allclose(arrays.probabilities.sum(-1), 1.0)


@pytest.mark.parametrize("branching", [None, 4])
def test_leader_reaches_the_known_optimum_of_the_quadratic_loss(branching: int | None) -> None:
    """|x|^2 / 2 makes the loss strongly convex near 0: 400 steps of rate 0.1 leave (1 - 0.1)^400 < 1e-18 of x."""
    core = _core(branching=branching)
    benchmark = core.benchmark()
    assert benchmark.value == 20 / 8
    result = leaders.optimize(
        gym.make("bocmdp/RandomMDP-v0", branching=branching),
        leaders.ExactGradient(learning_rate=0.1),
        followers.SoftPolicyIteration(regularization=1.0),
        400,
        loss=core.quadratic_loss,
        evaluate_every=400,
    )
    assert result.leader_return is not None
    assert -result.leader_return == pytest.approx(benchmark.value, abs=1e-9)
    np.testing.assert_allclose(result.x.numpy(), benchmark.x, atol=1e-4)
    loss = core.model.loss(result.x, core.quadratic_loss, regularization=1.0)
    assert float(loss) == pytest.approx(benchmark.value, abs=1e-9)


def test_large_sparse_models_are_cheap_to_build_and_draw() -> None:
    core = _core(n_states=3000, branching=4, n_contexts=1, leader_dim=3, render_mode="rgb_array")
    core.reset(seed=0)
    core.step(1)
    assert core.render().shape == (560, 560, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": -1}, errors.OptionError, "seed is -1; expected an integer of at least 0"),
        ({"n_states": 0}, errors.OptionError, "n_states"),
        ({"n_actions": 2.5}, errors.OptionError, "n_actions"),
        ({"n_contexts": True}, errors.OptionError, "n_contexts"),
        ({"branching": 21}, errors.OptionError, r"branching is 21; expected an integer in 1\.\.20"),
        ({"leader_dim": "ten"}, errors.OptionError, "leader_dim"),
        ({"discount": 1.0}, errors.DiscountError, "never end"),
        ({"leader_discount": -0.5}, errors.DiscountError, "-0.5"),
        ({"horizon": None}, errors.DiscountError, "horizon is None"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gym.make("bocmdp/RandomMDP-v0", **options)
