from __future__ import annotations

import pytest
import torch

import leaders
from bocmdp_gym.errors import CheckError
from leaders import check_gradient
from leaders.gradients import ExactEstimator
from tests.problems import random_model

REWARDS = random_model(1, moving=("reward", "leader_reward"), discount=0.6, leader_discount=0.6)


@pytest.mark.parametrize(
    ("leader", "options"),
    [
        (leaders.ExactGradient(), {"repeats": 2}),
        (leaders.AMD(sweeps=200), {"repeats": 2}),
        (leaders.HPGD(estimator="geometric", samples=20_000), {"repeats": 30}),
        (leaders.HPGD(env_steps=20_000), {"env": REWARDS, "repeats": 20, "bias": 0.05}),
    ],
)
def test_the_librarys_estimators_pass(leader: leaders.Leader, options: dict[str, object]) -> None:
    check_gradient(leader, **options)  # type: ignore[arg-type]


def test_wrong_estimators_are_found() -> None:
    class Doubled(ExactEstimator):
        def estimate(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            estimate = super().estimate(*args, **kwargs)
            estimate.gradient = 1.001 * estimate.gradient
            return estimate

    class Noisy(ExactEstimator):
        def estimate(self, oracle, x, context, rng):  # type: ignore[no-untyped-def]
            estimate = super().estimate(oracle, x, context, rng)
            noise = rng.standard_normal(len(x)) * float(estimate.gradient.norm())
            estimate.gradient = estimate.gradient * self.factor + torch.from_numpy(noise)
            return estimate

        factor = 1.0

    with pytest.raises(CheckError, match="deterministic"):
        check_gradient(Doubled(), repeats=2)
    with pytest.raises(CheckError, match="too much to decide"):
        check_gradient(Noisy(), repeats=3, standard_errors=1e9)
    check_gradient(Noisy(), repeats=4000)
    Noisy.factor = 1.3
    with pytest.raises(CheckError, match="standard errors"):
        check_gradient(Noisy(), repeats=4000)
