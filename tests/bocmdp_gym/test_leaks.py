from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import leaders
from bocmdp_gym import SuccessorTransitions, TabularBOCMDP, Weights, errors
from bocmdp_gym.leaks import check_leaks
from bocmdp_gym.wrappers import LeaderReward
from followers import SoftPolicyIteration, TrajectoryOracle
from leaders.gradients import CriticEstimator
from tests.problems import F64, finite_difference, random_model, random_x, small_model

B = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
ONES = torch.ones(1, 3, 2, dtype=F64)


def _logits(x: Any) -> Any:
    return (B @ x).reshape(1, 3, 2)


LEAKS: dict[str, Callable[[Tensor], Any]] = {
    "numpy": lambda x: torch.tensor(B.numpy() @ x.detach().numpy()).reshape(1, 3, 2),
    "an array": lambda x: (B.numpy() @ x.detach().numpy()).reshape(1, 3, 2),
    "float": lambda x: float(x[0]) * ONES,
    "item": lambda x: x[1].item() * ONES,
    "tolist": lambda x: torch.tensor([v * 1.0 for v in x.tolist()], dtype=F64).expand(1, 3, 2),
    "detach": lambda x: _logits(x.detach()),
    "data": lambda x: _logits(x.data),
    "numpy without detach": lambda x: torch.tensor(B.numpy() @ x.numpy()).reshape(1, 3, 2),
    "no_grad": torch.no_grad()(_logits),
    "far from the first x": lambda x: max(0.0, float(x.abs().sum()) - 0.5) * ONES,
    "flat at the first x": lambda x: float(x[0]) ** 2 * ONES,
    "one of two": lambda x: x[0] * float(x[1]) * ONES,
    "a factor": lambda x: _logits(x) * float(1.0 + x.detach().square().sum()),
    "one entry": lambda x: _logits(x) + torch.tensor([[[0.0, 0.0], [0.0, 0.0], [float(x[0]), 0.0]]], dtype=F64),
    "one entry beside a pit": lambda x: torch.stack([_logits(x)[0, 0] - 1e8, ONES[0, 1] * float(x[0]), _logits(x)[0, 2]])[None],
    "a stopped gradient": lambda x: _logits(x) - 0.5 * _logits(x).detach(),
}
SOUND: dict[str, Callable[[Tensor], Any]] = {
    "linear": _logits,
    "constant": lambda x: ONES,
    "a constant array": lambda x: np.ones((1, 3, 2)),
    "a kink at the first x": lambda x: torch.relu(_logits(x)),
    "kinks": lambda x: _logits(x).abs() + torch.maximum(_logits(x), 0.1 * ONES),
    "clamped": lambda x: torch.clamp(_logits(x), 0.0, 1.0),
    "a jump": lambda x: _logits(x) + (x[0] > 0.0).to(F64),
    "steps": lambda x: torch.round(1e4 * _logits(x)),
    "sign": lambda x: torch.sign(x[0]) * ONES,
    "steep": lambda x: torch.sigmoid(1e6 * _logits(x)),
    "a root": lambda x: _logits(x).abs().sqrt(),
    "float32": lambda x: _logits(x).to(torch.float32) + 1.0,
    "float32 inside": lambda x: (B.to(torch.float32) @ x.to(torch.float32)).reshape(1, 3, 2),
    "a large constant": lambda x: 1e9 + _logits(x),
    "fails elsewhere": lambda x: ONES * (1.0 - 2.0 * x.sum()).log() if x.abs().sum() < 0.01 else 1 / 0,
    "NaN elsewhere": lambda x: torch.log(0.01 - x.sum()) * ONES,
    "fast": lambda x: torch.sin(30.0 * _logits(x)),
    "tiny": lambda x: 1e-12 * _logits(x),
    "huge": lambda x: 1e12 * _logits(x),
    "its own backward": lambda x: _Cube.apply(_logits(x)),
    "its own backward in part": lambda x: _logits(x) + _Cube.apply(_logits(x)),
}


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3.0 * x**2 * grads[0]


def _part(name: str, function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """What ``name`` is, where it depends on x through ``function``, within its bounds."""

    def leaking(x: Tensor) -> Any:
        value = torch.as_tensor(function(x))
        if name == "initial":
            return torch.softmax(value[..., 0] * torch.arange(3.0), -1)
        if name == "termination":
            return torch.sigmoid(value)
        if name == "transition":
            return torch.softmax(torch.stack([value, 0.0 * value, -value], -1), -1)
        return value

    return leaking


@pytest.mark.parametrize("name", ["reward", "leader_reward", "transition", "initial", "termination"])
@pytest.mark.parametrize("leak", [name for name in LEAKS if "pit" not in name])
def test_parts_that_leave_torch_are_refused(leak: str, name: str) -> None:
    with pytest.raises(errors.ModelError, match=rf"^{name} (depends on x, and its value has no graph|leaves torch)"):
        small_model(**{name: _part(name, LEAKS[leak])})


@pytest.mark.parametrize("leak", LEAKS)
def test_parametrizations_that_leave_torch_are_refused(leak: str) -> None:
    with pytest.raises(errors.ModelError, match=r"^parametrization (depends on x, and its value has no graph|leaves torch)"):
        small_model(reward=lambda z: z, parametrization=LEAKS[leak])
    with pytest.raises(errors.ModelError, match=r"^parametrization"):  # a part of what it returns
        small_model(reward=lambda z: z["b"] * ONES, parametrization=lambda x: {"a": LEAKS[leak](x), "b": x[0]})


@pytest.mark.parametrize("case", SOUND)
def test_sound_functions_raise_no_alarm(case: str) -> None:
    function = SOUND[case]
    for x in (np.zeros(2), np.array([1e-3, -1e-3])):
        check_leaks(lambda z: {"f": function(z)}, x)
    bounded = gym.spaces.Box(0.0, 1.0, (2,), np.float64)
    check_leaks(lambda z: {"f": function(z)}, np.zeros(2), bounded)
    small_model(reward=function)


def test_no_alarm_on_random_functions_at_random_points() -> None:
    for seed in range(30):
        random_model(seed, moving=("reward", "leader_reward", "transition", "initial", "termination"), successors=3)


def test_large_functions_that_leave_torch_away_from_the_first_x_are_refused() -> None:
    """More than 100,000 numbers, of which action 1's leak where |x_0| > 0.3."""

    def large(x: Tensor, leak: bool) -> Tensor:
        beyond = torch.relu((x[0].detach() if leak else x[0]).abs() - 0.3)
        return torch.stack([x[0].expand(200, 300), x[0] + beyond * torch.linspace(1.0, 2.0, 300).expand(200, 300)], -1)

    with pytest.raises(errors.ModelError, match=r"^f leaves torch in part: at entry \[\d+, \d+, 1\]"):
        check_leaks(lambda x: {"f": large(x, True)}, np.zeros(2))
    check_leaks(lambda x: {"f": large(x, False)}, np.zeros(2))


def test_functions_are_evaluated_inside_their_space() -> None:
    seen: list[np.ndarray[Any, Any]] = []

    def reward(x: Tensor) -> Tensor:
        seen.append(x.detach().numpy().copy())
        return x.sum() * ONES

    small_model(reward=reward, leader_space=gym.spaces.Box(np.array([0.0, -1e-3]), np.array([1.0, 1e-3]), dtype=np.float64))
    assert len(seen) > 3
    assert (np.stack(seen) >= [0.0, -1e-3]).all()
    assert (np.stack(seen) <= [1.0, 1e-3]).all()


def test_operators_and_sparse_matrices_that_leave_torch_are_refused() -> None:
    succ = np.tile(np.arange(3), (3, 2, 1))

    def listed(x: Tensor) -> SuccessorTransitions:
        return SuccessorTransitions(succ, _part("transition", LEAKS["numpy"])(x)[0])

    with pytest.raises(errors.ModelError, match="transition depends on x, and its value has no graph"):
        small_model(transition=listed)


def test_the_example_of_the_issue() -> None:
    """The gradient of what torch sees is half of the truth, or of the wrong sign; now it is refused."""

    def reward(x: Tensor) -> Tensor:
        return x[0] * torch.tensor([[[1.0, 0.0]] * 3], dtype=F64) - 2.0 * float(x[0]) * torch.tensor([[[1.0, 0.0]] * 3])

    def right(x: Tensor) -> Tensor:
        return -x[0] * torch.tensor([[[1.0, 0.0]] * 3], dtype=F64)

    leader = torch.tensor([[[1.0, 0.0]] * 3], dtype=F64)
    with pytest.raises(errors.ModelError, match="reward leaves torch in part: at entry"):
        small_model(reward=reward, leader_reward=leader)
    model, x = small_model(reward=right, leader_reward=leader), torch.tensor([0.3, 0.0], dtype=F64)
    gradient = torch.func.grad(lambda z: model.leader_return(z, 0.5))(x)
    torch.testing.assert_close(gradient, finite_difference(lambda z: model.leader_return(z, 0.5), x), atol=1e-7, rtol=1e-6)
    assert gradient[0] < 0.0


# ------------------------------------------------------------------------------------------------------ other models


def _wrapped(bonus: Any, leader_reward: Any) -> LeaderReward:
    return LeaderReward(gym.make("CartPole-v1"), bonus, 2, leader_reward, 0.99)


def _sound_bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
    return x[0] * observations[:, 2] + x[1] * actions


@pytest.mark.parametrize(
    "leak",
    [
        lambda x, o, a, c: float(x[0]) * o[:, 2],
        lambda x, o, a, c: x.detach()[0] * o[:, 2],
        lambda x, o, a, c: torch.tensor(x.detach().numpy()[0] * o[:, 2].numpy()),
        lambda x, o, a, c: x[0] * float(x[1]) * o[:, 2],
    ],
)
def test_leader_rewards_of_a_wrapper_that_leave_torch_are_refused(leak: Any) -> None:
    with pytest.raises(errors.ModelError, match=r"^leader_reward (depends on x, and its value has no graph|leaves torch)"):
        _wrapped(_sound_bonus, leak)
    with pytest.raises(errors.ModelError, match=r"^bonus (depends on x, and its value has no graph|leaves torch)"):
        _wrapped(leak, _sound_bonus)
    _wrapped(_sound_bonus, _sound_bonus)
    _wrapped(_sound_bonus, lambda x, o, a, c: -o[:, 2].abs())


class _Leaky(TabularBOCMDP):
    """A model read as a `BOCMDP` alone, one of whose functions leaves torch."""

    takes_states = True
    leaks = ""

    def rewards(self, x: Tensor, *rest: Any) -> Tensor:
        return super().rewards(x.detach() if self.leaks == "rewards" else x, *rest)

    def leader_rewards(self, x: Tensor, *rest: Any) -> Tensor:
        return super().leader_rewards(x.detach() if self.leaks == "leader_rewards" else x, *rest)

    def log_transitions(self, x: Tensor, *rest: Any) -> Tensor | None:
        return super().log_transitions(x.detach() if self.leaks == "log_transitions" else x, *rest)

    def log_initials(self, x: Tensor, *rest: Any) -> Tensor | None:
        return super().log_initials(x.detach() if self.leaks == "log_initials" else x, *rest)


@pytest.mark.parametrize("name", ["rewards", "leader_rewards", "log_transitions", "log_initials"])
def test_functions_of_points_that_leave_torch_are_refused(name: str) -> None:
    model = _Leaky(**random_model(terminating=True)._given)
    estimator = CriticEstimator(env_steps=400, hidden=(8,))
    x, rng = random_x(5), np.random.default_rng(0)

    def estimate() -> Tensor:
        oracle = TrajectoryOracle(model, SoftPolicyIteration(0.5))
        estimator.bind(oracle)
        return estimator.estimate(oracle, x, 0, rng).gradient

    assert estimate().abs().max() > 0.0
    model.leaks = name
    with pytest.raises(errors.ModelError, match=rf"model\.{name} depends on x, and its value has no graph"):
        estimate()


def test_losses_that_leave_torch_are_refused() -> None:
    weights = torch.arange(6.0, dtype=F64).reshape(3, 2)

    def by_policy(x: Tensor, policy: Tensor, context: Any) -> Tensor:
        return (x[0] ** 2 + float((policy * weights).sum())) * torch.ones((), dtype=F64)

    def by_x(x: Tensor, policy: Tensor, context: Any) -> Tensor:
        return float(x[0]) * (policy * weights).sum()

    def all_of_it(x: Tensor, policy: Tensor, context: Any) -> Any:
        return float(x[0] * (policy * weights).sum())

    follower = SoftPolicyIteration(0.5)
    for loss in (by_policy, by_x, all_of_it):
        for leader in (leaders.ExactGradient(), leaders.HPGD(estimator="geometric", samples=10)):
            with pytest.raises(errors.ModelError, match="the loss f"):
                leaders.optimize(small_model(), leader, follower, 1, loss=loss, progress=False)
        leaders.optimize(small_model(), leaders.ZeroOrder(), follower, 1, loss=loss, progress=False)  # needs no graph


# ------------------------------------------------------------------------------------------------ gradients switched off


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_leaders_find_their_gradients_where_the_caller_switched_them_off(off: Any) -> None:
    model = random_model(discount=0.9, leader_discount=0.9)
    fixed = random_model(moving=("reward", "leader_reward"), discount=0.9, leader_discount=0.9)

    def run() -> list[Tensor]:
        follower = SoftPolicyIteration(0.5)
        found = [
            leaders.optimize(model, leader, follower, 2, seed=1, progress=False).x
            for leader in (
                leaders.ExactGradient(),
                leaders.HPGD(env_steps=200),
                leaders.HPGD(estimator="geometric", samples=50),
                leaders.HPGD(estimator="critic", env_steps=400),
                leaders.AMD(sweeps=5),
            )
        ]
        found.append(leaders.optimize(fixed, leaders.HPGD(estimator="pooled", env_steps=200), follower, 2, progress=False).x)
        found += [r.x for r in leaders.optimize_many(fixed, leaders.ExactGradient(), follower, 2, seeds=range(4), progress=False)]
        found += [
            r.x
            for r in leaders.optimize_many(model, leaders.ExactGradient(), follower, 2, seeds=[0], device="cpu", progress=False)
        ]
        loss = leaders.optimize(
            model, leaders.ExactGradient(), follower, 2, loss=lambda x, pi, c: pi.square().sum(), progress=False
        )
        limits = [leaders.Constraint("c", np.ones((3, 9, 3)), 100.0)]
        limited = leaders.optimize(model, leaders.ExactGradient(), follower, 2, constraints=limits, progress=False)
        return [*found, loss.x, limited.x]

    expected = run()
    with off():
        found = run()
    for a, b in zip(found, expected, strict=True):
        assert not torch.equal(a, torch.zeros_like(a))
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("leader", [leaders.ExactGradient(), leaders.HPGD(env_steps=200)], ids=["exact", "hpgd"])
def test_single_estimates_are_right_where_the_caller_switched_gradients_off(leader: Any, off: Any) -> None:
    model = random_model()
    oracle = TrajectoryOracle(model, SoftPolicyIteration(0.5))
    leader.estimator.bind(oracle)
    x = random_x(5)
    expected = leader.estimate(oracle, x, 0, np.random.default_rng(0))
    with off():
        other = TrajectoryOracle(model, SoftPolicyIteration(0.5))
        leader.estimator.bind(other)
        torch.testing.assert_close(leader.estimate(other, x, 0, np.random.default_rng(0)), expected, rtol=0, atol=0)
        again = leader.estimator.estimate(other, x, 0, np.random.default_rng(0)).gradient
        torch.testing.assert_close(again, expected, rtol=1e-7, atol=0)
        assert other.configure(x).reward.requires_grad


def test_a_reverse_pass_without_a_graph_is_refused() -> None:
    model = random_model()
    weights = Weights(reward=np.ones((9, 3)))
    with torch.no_grad():
        silent = model.configure(random_x(5).requires_grad_())
    for mdps in (silent, model.configure(random_x(5))):
        with pytest.raises(errors.LeaderParameterError, match="carries no gradient"):
            mdps.vjp(weights, 0)


def test_models_made_in_inference_mode_work() -> None:
    def constant() -> dict[str, Tensor]:
        return {"leader_reward": ONES.clone(), "transition": torch.full((1, 3, 2, 3), 1.0, dtype=F64) / 3.0}

    x = torch.tensor([0.3, -0.2], dtype=F64)
    reference = small_model(**constant())
    expected = torch.func.grad(lambda z: reference.leader_return(z, 0.5))(x)
    with torch.inference_mode():
        model = small_model(**constant())
    torch.testing.assert_close(torch.func.grad(lambda z: model.leader_return(z, 0.5))(x), expected)
    with torch.inference_mode():
        inner = torch.ones(6, 2, dtype=F64)
    with pytest.raises(errors.ModelError, match=r"reward uses a tensor made under torch\.inference_mode"):
        small_model(reward=lambda z: (inner @ torch.tanh(z)).reshape(1, 3, 2))
