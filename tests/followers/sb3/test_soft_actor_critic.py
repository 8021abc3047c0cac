from __future__ import annotations

import numpy as np
import pytest

from followers import SACFollower, TrajectoryOracle
from tests.followers.problems import Point


@pytest.mark.slow
def test_actions_are_as_random_as_lambda_says() -> None:
    """Rewards -(a - x)^2 whatever the state: the regularised optimum is normal around x, with variance lambda / 2."""
    follower = SACFollower(0.08, 4000, learning_rate=3e-3, learning_starts=200, batch_size=128)
    policy = TrajectoryOracle(Point(), follower).respond([0.5], 0, np.random.default_rng(0))
    positions = np.random.default_rng(1).uniform(-1, 1, (4000, 1)).astype(np.float32)
    actions = policy.act_batch(positions, np.random.default_rng(2))  # type: ignore[attr-defined]
    assert abs(actions.mean() - 0.5) < 0.1
    assert 0.7 < actions.std() / np.sqrt(0.04) < 1.3
