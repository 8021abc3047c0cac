from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from leaders.updates import SCHEDULES, Update, project_to_simplex
from tests.problems import F64, random_model


def _run(update: Update, gradient: torch.Tensor, steps: int = 1, **start: object) -> torch.Tensor:
    x = update.start(torch.zeros_like(gradient), **start)  # type: ignore[arg-type]
    for _ in range(steps):
        update.step(x, gradient)
    return x.detach()


def test_clipping_scales_to_the_norm() -> None:
    gradient = torch.tensor([3.0, 4.0], dtype=F64)
    update = Update(0.5, max_gradient_norm=1.0)
    x = update.start(torch.zeros(2, dtype=F64))
    assert update.step(x, gradient) == 5.0
    torch.testing.assert_close(x.detach(), torch.tensor([0.3, 0.4], dtype=F64))
    torch.testing.assert_close(_run(Update(0.5, max_gradient_norm=10.0), gradient), 0.5 * gradient)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_scale_the_rate(optimizer: str, name: str) -> None:
    gradient = torch.ones(1, dtype=F64)
    x = _run(Update(0.1, optimizer, schedule=name), gradient, steps=10, iterations=10)
    expected = 0.1 * sum(SCHEDULES[name](t, 10) for t in range(10))
    assert float(x) == pytest.approx(expected, rel=1e-6)  # Adam's steps along a constant gradient have length lr


def test_a_bounded_space_is_kept_to() -> None:
    space = gym.spaces.Box(np.array([-np.inf, 0.0]), np.array([0.2, np.inf]), dtype=np.float64)
    x = _run(Update(1.0), torch.tensor([1.0, -1.0], dtype=F64), steps=3, space=space)
    torch.testing.assert_close(x, torch.tensor([0.2, 0.0], dtype=F64))


def test_projection_onto_the_simplex_is_the_nearest_point() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = torch.tensor(rng.normal(size=5))
        total = float(rng.uniform(0.5, 3.0))
        p = project_to_simplex(x, total)
        assert float(p.sum()) == pytest.approx(total)
        assert (p >= 0).all()
        for _ in range(20):  # optimality: <x - p, q - p> <= 0 for all q of the simplex
            q = torch.tensor(rng.dirichlet(np.ones(5))) * total
            assert float((x - p) @ (q - p)) <= 1e-12
    x = _run(Update(0.3, projection=project_to_simplex), torch.tensor([1.0, 0.0, 0.0], dtype=F64), steps=20)
    torch.testing.assert_close(x, torch.tensor([1.0, 0.0, 0.0], dtype=F64))
    with pytest.raises(errors.LeaderParameterError):
        project_to_simplex(torch.zeros(2), 0.0)


def test_all_contexts_at_once_is_the_full_gradient() -> None:
    model = random_model(1)
    follower = followers.SoftPolicyIteration(0.5)
    one_step = leaders.optimize(
        model, leaders.ExactGradient(learning_rate=0.1, max_gradient_norm=None), follower, 1, x0=np.zeros(5), contexts="all"
    )
    gradient = torch.func.grad(lambda x: model.leader_return(x, 0.5))(torch.zeros(5, dtype=F64))
    torch.testing.assert_close(one_step.x, 0.1 * gradient)
    leaders.optimize(model, leaders.ExactGradient(learning_rate=0.1), follower, 3, contexts=2)
    for contexts in (0, "every", 1.5):
        with pytest.raises(errors.OptionError, match="contexts"):
            leaders.optimize(model, leaders.ExactGradient(), follower, 3, contexts=contexts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"learning_rate": 1.0, "max_gradient_norm": 0.0}, "max_gradient_norm"),
        ({"learning_rate": 1.0, "schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"learning_rate": 1.0, "optimizer": "adm"}, "Did you mean 'Adam'"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"learning_rate": 1.0, "max_gradient_norm": float("nan")}, "max_gradient_norm"),
        ({"learning_rate": 1.0, "schedule": 3}, "schedule is 3; expected a function"),
        ({"learning_rate": 1.0, "projection": "simplex"}, "projection is 'simplex'; expected a function"),
        ({"learning_rate": 1.0, "optimizer": 3}, "optimizer is 3"),
        ({"learning_rate": 1.0, "projektion": None}, "Did you mean 'projection'"),
        ({"learning_rate": 1.0, "optimizer": "Adam", "momentum": 0.9}, "neither Update nor Adam has an option 'momentum'"),
        ({"learning_rate": 1.0, "momentum": -1.0}, "SGD cannot optimise"),
        ({"learning_rate": 1.0, "lr": 1.0}, "lr is learning_rate"),
    ],
)
def test_bad_updates_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        Update(**options)  # type: ignore[arg-type]


def test_an_update_prints_as_what_makes_it() -> None:
    for text in (
        "Update(learning_rate=0.5)",
        "Update(learning_rate=0.5, optimizer='Adam', schedule='cosine', eps=1e-06)",
        "Update(learning_rate=1.0, max_gradient_norm=2)",
    ):
        assert repr(eval(text)) == text
