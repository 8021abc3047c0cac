"""What every estimator must do: those in `ESTIMATORS` and those that `leaders.gradients` exports are tested by themselves."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders.gradients
from bocmdp_gym import ConfigurableEnv, TabularBOCMDP, errors
from leaders.gradients import Estimate, Estimator, PolicyEstimator
from leaders.gradients.registry import ESTIMATORS
from tests.problems import random_model, random_x

EXPORTED = [getattr(leaders.gradients, name) for name in leaders.gradients.__all__]
CLASSES = {kind: None for kind in [*ESTIMATORS.values(), *EXPORTED] if inspect.isclass(kind) and issubclass(kind, Estimator)}
ALL = [kind for kind in CLASSES if not inspect.isabstract(kind)]
#: Options that make an estimate short and its standard error known; an estimator takes those its constructor has.
SHORT: dict[str, Any] = {
    **{"env_steps": 1000, "samples": 1000, "levels": 3, "runs": 8, "sweeps": 300, "epochs": 2, "error_groups": 10},
    **{"directions": 20, "smoothing": 0.1, "decay": False, "two_sided": True, "weight": 0.2},
}
MODEL = random_model(1, contexts=2, states=4, dim=3, discount=0.5, leader_discount=0.6, moving=("reward", "leader_reward"))
#: For estimators that need equal discounts.
EQUAL = random_model(1, contexts=2, states=4, dim=3, discount=0.5, leader_discount=0.5, moving=("reward", "leader_reward"))
X = random_x(3)


def _parameters(kind: type[Estimator]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(kind.__init__).parameters.items() if name != "self"}


def _make(kind: type[Estimator]) -> Estimator:
    known = _parameters(kind)
    return kind(**{name: value for name, value in SHORT.items() if name in known})


def _model(kind: type[Estimator]) -> TabularBOCMDP:
    return EQUAL if kind.needs_equal_discounts else MODEL


def _oracle(kind: type[Estimator]) -> followers.TrajectoryOracle:
    env = _model(kind)
    if kind.needs_iterative:
        return followers.TrajectoryOracle(env, followers.SoftValueIteration(1.0, iterations=100, warm_start=False))
    return followers.TrajectoryOracle(env, followers.SoftPolicyIteration(1.0))


def _estimates(kind: type[Estimator], n: int, seed: int = 0) -> list[Estimate]:
    oracle, estimator, rng = _oracle(kind), _make(kind), np.random.default_rng(seed)
    estimator.bind(oracle)
    estimates = [estimator.estimate(oracle, X, 1, rng) for _ in range(n)]
    assert oracle.env_steps == sum(estimate.env_steps for estimate in estimates)
    return estimates


@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_is_about_the_exact_one(kind: type[Estimator]) -> None:
    """Within its noise, and what small samples, few iterations and smoothing may bias it by."""
    gradients = torch.stack([estimate.gradient for estimate in _estimates(kind, 40)])
    exact = torch.func.grad(lambda x: _model(kind).leader_return(x, 1.0, per_context=True)[1])(X)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert float(((gradients.mean(0) - exact).abs() - 4.0 * error).max() / exact.norm()) < 0.2
    assert gradients.dtype == torch.float64
    assert gradients.shape[1:] == X.shape


@pytest.mark.parametrize("kind", ALL)
def test_standard_errors_are_those_of_repeats(kind: type[Estimator]) -> None:
    estimates = _estimates(kind, 60)
    errors_found = [e.standard_error for e in estimates if e.standard_error is not None]
    spread = torch.stack([e.gradient for e in estimates]).std(0)
    if errors_found:
        reported = torch.stack(errors_found).square().mean(0).sqrt()
        assert len(errors_found) == len(estimates)
        assert float((reported / spread).log().abs().max()) < 0.5
    else:
        offered = {"error_groups", "runs", "directions"} & set(_parameters(kind))
        assert not offered, f"{kind.__name__} takes {offered} and reports no standard error"


@pytest.mark.parametrize("kind", ALL)
def test_equal_seeds_give_equal_bits_and_state_continues_them(kind: type[Estimator]) -> None:
    whole = _estimates(kind, 3)
    oracle, first, rng = _oracle(kind), _make(kind), np.random.default_rng(0)
    first.bind(oracle)
    for _ in range(2):
        first.estimate(oracle, X, 1, rng)
    second, follower_state = _make(kind), oracle.follower.state()
    oracle = _oracle(kind)
    second.bind(oracle)
    second.load_state(first.state())
    oracle.follower.load_state(follower_state)
    assert torch.equal(second.estimate(oracle, X, 1, rng).gradient, whole[2].gradient)


class _Bare(ConfigurableEnv):
    """An environment that has neither model nor states."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self._setup_configuration(gym.spaces.Box(-np.inf, np.inf, (1,), np.float64), gym.spaces.Discrete(1), 0.9)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, True, False, {"leader_reward": 0.0, "context": self.context}


class _Random(followers.Follower):
    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        return followers.TabularPolicy(np.full((1, 2), 0.5), task.leader, task.context)


@pytest.mark.parametrize("kind", ALL)
def test_what_is_declared_is_checked_before_anything_runs(kind: type[Estimator]) -> None:
    oracle, estimator = followers.TrajectoryOracle(_Bare(), _Random()), _make(kind)
    if kind.needs_regularization:
        with pytest.raises(errors.RegularizationError, match="regularization=1e-3"):
            estimator.bind(oracle)
    estimator.requested_regularization = 1.0
    if kind.needs_model or kind.needs_exact_returns or kind.needs_rewards or kind.needs_iterative:
        with pytest.raises(errors.UnsupportedError, match=r"[Uu]se |ZeroOrder"):
            estimator.bind(oracle)
    else:
        estimator.bind(oracle)
    if not kind.accepts_loss and not hasattr(estimator, "inner"):
        with pytest.raises(errors.UnsupportedError, match="ExactGradient for losses"):
            _make(kind).bind(_oracle(kind), lambda x, policy, context: x.sum())


@pytest.mark.parametrize("kind", ALL)
def test_those_that_weigh_reactions_refuse_followers_that_show_none(kind: type[Estimator]) -> None:
    oracle = _oracle(kind)
    oracle.follower.greedy = True
    if kind.needs_regularization:
        with pytest.raises(errors.UnsupportedError, match=r"never reacts to x\. Use FirstOrder"):
            _make(kind).bind(oracle)
    else:
        _make(kind).bind(oracle)


@pytest.mark.parametrize("kind", ALL)
def test_every_argument_is_typed_and_explained(kind: type[Estimator]) -> None:
    lines = inspect.getdoc(kind).splitlines()  # type: ignore[union-attr]
    for name, parameter in _parameters(kind).items():
        assert parameter.annotation is not inspect.Parameter.empty, name
        assert parameter.default is not inspect.Parameter.empty, name
        assert any(line.startswith(f"    {name}: ") for line in lines), f"{kind.__name__} does not explain {name}"


def test_needs_are_read_in_one_place() -> None:
    """Each refusal that only a special problem shows."""

    class Demanding(PolicyEstimator):
        needs_starts = True

        def estimate_policy(self, *args: Any) -> Any:
            raise AssertionError

    copies = gym.make_vec("bocmdp/FourRooms-v0", 2, vectorization_mode="sync")
    with pytest.raises(errors.UnsupportedError, match="give it a single environment"):
        Demanding().bind(followers.TrajectoryOracle(copies, followers.SoftPolicyIteration(1.0), compiled=False))
    Demanding().bind(followers.TrajectoryOracle(MODEL, followers.SoftPolicyIteration(1.0)))
    with pytest.raises(errors.UnsupportedError, match="device='cpu' is for ExactGradient"):
        Demanding.batched(followers.TrajectoryOracle(MODEL, followers.SoftPolicyIteration(1.0)), [Demanding()] * 4, "cpu")
