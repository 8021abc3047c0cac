"""Building control: the published numbers, the dynamics by hand, and the best known x."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
from bocmdp_gym import errors
from bocmdp_gym.envs import BuildingControl
from bocmdp_gym.envs.building_control import dynamics
from tests.problems import F64


def test_published_return_at_half_rates() -> None:
    assert float(BuildingControl().model.leader_return(np.zeros(8), 0.1)) == pytest.approx(-261.963, abs=5e-4)


def test_dynamics_by_hand() -> None:
    x = torch.linspace(-1.0, 2.0, 8, dtype=F64)
    il, aa = torch.sigmoid(x[:4]).numpy(), torch.sigmoid(x[4:]).numpy()
    base = np.array([[1, 0.05, 0, 0.05], [0.03, 1, 0.04, 0], [0, 0.04, 1, 0.06], [0.05, 0, 0.03, 1]])
    expected = np.zeros((4, 4))
    for i, k in enumerate((0.04, 0.03, 0.06, 0.05)):
        after, before = (i + 1) % 4, (i - 1) % 4
        expected[i, i] = base[i, i] + k * (1 - il[i]) - base[i, after] * aa[i] - base[i, before] * aa[before]
        expected[i, after], expected[after, i] = base[i, after] * aa[i], base[after, i] * aa[i]
    np.testing.assert_allclose(dynamics(x), expected, rtol=1e-14)


def test_rewards_by_hand() -> None:
    env, state, action = BuildingControl(), np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.5, -1.5])
    env.reset(seed=0, options={"leader": np.zeros(8), "state": state})
    following, reward, *_, info = env.step(action)
    assert reward == pytest.approx(-(8 * 1.0 + 4.0 + 5 * 0.25 + 6 * 9.0) - 0.01 * 2.5, rel=1e-12)
    assert info["leader_reward"] == pytest.approx(-np.var(state) - 0.5 * 2.5 - 0.1 * 8 * 0.25, rel=1e-12)
    power = np.array([[0.1, 0.0], [0.6, 0.0], [0.0, 0.55], [0.0, 0.3]])
    np.testing.assert_allclose(following, dynamics(torch.zeros(8, dtype=F64)).numpy() @ state + power @ action, atol=0.12)


def test_best_known_x_attains_its_value_and_no_step_into_the_box_is_better() -> None:
    env = BuildingControl()
    best = env.benchmark()
    assert best is not None
    assert best.x is not None
    z = torch.tensor(best.x, requires_grad=True)
    value = env.model.leader_return(z, 0.1)
    assert value.item() == pytest.approx(best.value, abs=1e-6)
    (gradient,) = torch.autograd.grad(value, z)
    outward = torch.sign(z.detach()) * gradient
    inside = z.detach().abs() < 10.0
    assert (gradient[inside].abs() < 1e-4).all()
    assert (outward[~inside] > 0.0).all()


def test_benchmark_is_of_the_defaults_alone() -> None:
    assert BuildingControl(noise_std=0.1).benchmark() is None
    assert BuildingControl().benchmark(0.5) is None
    assert BuildingControl(clip=None, horizon=50).benchmark() is not None  # the model knows neither


def test_arguments() -> None:
    env = gym.make("bocmdp/BuildingControl-v0", clip=None)
    assert np.isinf(bocmdp_gym.configurable(env).observation_space.high).all()
    for options in ({"noise_std": 0.0}, {"initial_std": -1.0}, {"clip": -1.0}):
        with pytest.raises(errors.OptionError):
            BuildingControl(**options)  # type: ignore[arg-type]
    np.testing.assert_allclose(BuildingControl().rates(np.zeros(8)), 0.5)
