from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks import cartpole
from bocmdp_gym.checks import check_configurable_env

SHORT = cartpole.Budget(iterations=2, follower_steps=1024, env_steps=300, fresh_steps=1024, evaluation_steps=300)


def test_the_leader_is_paid_for_the_spot_and_pays_for_its_bonus() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    carts = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(cartpole.bonus(x, carts, None, 0), [0.5, 0.0], atol=1e-7)
    np.testing.assert_allclose(cartpole.leader_reward(x, carts, None, 0), [0.75, 0.0], atol=1e-7)
    check_configurable_env(cartpole.make_env())


def test_copies_are_paid_what_leader_reward_adds() -> None:
    x = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    together, apart = cartpole.PaidTogether([cartpole.make_env] * 3), DummyVecEnv([cartpole.make_env] * 3)
    for envs in (together, apart):
        envs.env_method("set_leader", x)
        envs.seed(0)
    np.testing.assert_array_equal(together.reset(), apart.reset())
    ended = 0
    for _ in range(40):
        steps = [envs.step(np.array([0, 1, 1])) for envs in (together, apart)]
        for one, other in zip(steps[0][:3], steps[1][:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        ended += int(steps[0][2].sum())
    assert ended > 0  # so that what is paid after a reset was compared too


def test_a_short_run_reports_what_the_plot_needs() -> None:
    runs = cartpole.run_all([0], SHORT, 1)
    assert len(runs[0]["curve"]) == SHORT.iterations
    assert runs[0]["no bonus"]["bonus_paid"] == pytest.approx(0.0, abs=1e-5)
    for judged in (runs[0]["no bonus"], runs[0]["bonus found"]):
        expected = judged["closeness"] - cartpole.PRICE * judged["bonus_paid"]
        assert judged["leader_return"] == pytest.approx(expected, abs=1e-5)
        assert sum(judged["positions"]) == pytest.approx(1.0)
    assert cartpole.summary(runs)["standard error"] is None
