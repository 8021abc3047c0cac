from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import cartpole
from bocmdp_gym.checks import check_configurable_env

SHORT = cartpole.Budget(iterations=2, follower_steps=1024, env_steps=300, fresh_steps=1024, evaluation_steps=300)


def test_the_leader_is_paid_for_the_spot_and_pays_for_its_bonus() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    carts = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(cartpole.bonus(x, carts, None, 0), [0.5, 0.0], atol=1e-7)
    np.testing.assert_allclose(cartpole.leader_reward(x, carts, None, 0), [0.75, 0.0], atol=1e-7)
    check_configurable_env(cartpole.make_env())


def test_a_short_run_reports_what_the_plot_needs() -> None:
    runs = [cartpole.run(0, SHORT)]
    assert len(runs[0]["curve"]) == SHORT.iterations
    assert runs[0]["no bonus"]["bonus_paid"] == pytest.approx(0.0, abs=1e-5)
    for judged in (runs[0]["no bonus"], runs[0]["bonus found"]):
        expected = judged["closeness"] - cartpole.PRICE * judged["bonus_paid"]
        assert judged["leader_return"] == pytest.approx(expected, abs=1e-5)
        assert sum(judged["positions"]) == pytest.approx(1.0)
    assert cartpole.summary(runs)["standard error"] is None
