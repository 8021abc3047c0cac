"""Inventory: rewards by quadrature, and its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from bocmdp_gym import errors
from bocmdp_gym.envs import Inventory


@pytest.mark.parametrize("context", [0, 1, 2])
def test_rewards_are_those_of_random_demand(context: int) -> None:
    """What is left is E (y - D)^+, integrated numerically."""
    env, (price, support, effort) = Inventory(), (1.4, 0.2, 0.9)
    env.set_context(context)
    env.reset(seed=0, options={"leader": [price, support, effort], "state": 0.6})
    _, reward, _, _, info = env.step(3)
    shelf = 0.6 + 1.5
    demand = [1.2, 0.9, 0.6][context] * (1 + 0.6 * (1 - np.exp(-effort)))
    law = norm(demand, 0.4 * demand)
    left, _ = quad(lambda d: (shelf - d) * law.pdf(d), demand - 4 * demand, shelf)
    retail = [2.5, 3.0, 3.5][context]
    assert reward == pytest.approx(retail * (shelf - left) - price * 1.5 - (0.2 - support) * left - 0.3 * left**2, rel=1e-7)
    assert info["leader_reward"] == pytest.approx((price - 0.5) * 1.5 - support * left - 0.25 * effort, rel=1e-7)


def test_what_does_not_fit_is_not_delivered() -> None:
    env = Inventory()
    env.reset(seed=0, options={"leader": [1.5, 0.0, 0.0], "state": 3.8})
    _, _, _, _, info = env.step(4)
    assert info["leader_reward"] == pytest.approx((1.5 - 0.5) * 0.2)


def test_status_quo_is_within_the_bounds() -> None:
    np.testing.assert_allclose(Inventory().leader, [1.0, 0.0, 0.0])
    np.testing.assert_allclose(Inventory(production_cost=2.0).leader, [3.5, 0.0, 0.0])
    np.testing.assert_allclose(Inventory().leader_space.high, [3.5, 1.0, 3.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"demands": [1.0, 1.0]}, "prices has shape"),
        ({"demands": [1.0, 0.0, 1.0]}, "demands are"),
        ({"prices": [1.0, -1.0, 1.0]}, "prices are"),
        ({"production_cost": 3.5}, "less than the highest price"),
        ({"production_cost": -1.0}, "production_cost is"),
        ({"demand_spread": 0.0}, "demand_spread is"),
        ({"holding_cost": -0.1}, "holding_cost is"),
        ({"crowding_cost": -0.1}, "crowding_cost is"),
        ({"highest_support": 0.0}, "highest_support is"),
        ({"effort_effect": -0.1}, "effort_effect is"),
        ({"effort_cost": "free"}, "effort_cost is"),
        ({"order_size": 0.0}, "order_size is"),
        ({"n_orders": 1}, "n_orders is 1"),
        ({"capacity": 0.0}, "capacity is"),
        ({"noise_std": 0.0}, "noise_std is"),
        ({"context_probabilities": [0.5, 0.5]}, "context_probabilities has shape"),
        ({"grid_size": 1}, "grid_size is 1"),
        ({"horizon": 0}, "horizon is 0"),
        ({"render_mode": "ansi"}, "unknown render_mode"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        Inventory(**{"grid_size": 5, **options})
