"""Home batteries: rewards by hand, the clock, and the arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from bocmdp_gym import errors
from bocmdp_gym.envs import Battery


@pytest.mark.parametrize(("context", "period", "action"), [(0, 0, 4), (1, 2, 0), (2, 3, 1), (1, 1, 3)])
def test_rewards_by_hand(context: int, period: int, action: int) -> None:
    off_peak, on_peak, subsidy, charge = 0.7, 2.5, 0.4, 0.3
    env = Battery()
    env.reset(seed=0, options={"leader": [off_peak, on_peak, subsidy], "context": context, "state": (charge, period)})
    _, reward, _, _, info = env.step(action)
    price = on_peak if period == 3 else off_peak
    liked = [[0.3, 0.5, 0.4, 0.9], [0.3, 0.5, 0.4, 0.9], [0.6, 0.3, 0.3, 1.2]][context][period]
    used = liked * (1 - 0.15 * (price - 1))
    worth, _ = quad(lambda q: 1 + (1 - q / liked) / 0.15, liked, used)  # the area under the demand curve
    charged, discharged = [(0.0, 0.3), (0.0, 0.25), (0.0, 0.0), (0.25, 0.0), (0.5, 0.0)][action]
    taken = used - (context == 1) * [0.0, 0.4, 0.8, 0.0][period] + charged - discharged
    bill = price * taken if taken > 0 else 0.3 * taken
    worth -= 0.01 * (charged + discharged)
    assert reward == pytest.approx(worth - bill, rel=1e-9)
    cost = [0.3, 0.8, 0.6, 2.0][period]
    assert info["leader_reward"] == pytest.approx(worth - cost * taken - taken**2 - 0.02 * subsidy, rel=1e-9)


def test_subsidy_keeps_more_of_what_is_charged() -> None:
    """Means of 400 draws each, within 4 standard errors; 0.05 / sqrt(400) is one."""
    for subsidy, kept in ((0.0, 0.6), (2.0, 0.6 + 0.35 * (1 - np.exp(-2.0)))):
        env, charges = Battery(grid_size=5), []
        env.set_leader([1.0, 1.0, subsidy])
        env.reset(seed=0)
        for _ in range(400):
            env.reset(options={"state": 0.3})
            charges.append(env.step(4)[0][0])
        assert np.mean(charges) == pytest.approx(0.3 + 0.5 * kept, abs=4 * 0.05 / 20)


def test_observation_shows_charge_and_clock() -> None:
    env = Battery()
    seen, _ = env.reset(seed=0, options={"state": (0.4, 3)})
    np.testing.assert_allclose(seen, [0.4, 0.0, -1.0], atol=1e-12)
    np.testing.assert_allclose(env.step(2)[0][1:], [1.0, 0.0], atol=1e-12)


def test_one_period_a_day_shows_the_charge_alone() -> None:
    with pytest.raises(errors.OptionError, match="peak is"):  # a single period leaves none off peak
        Battery(use=[[1.0]], sun=[[0.0]], peak=[0], generation_cost=[1.0])
    env = Battery(use=[[1.0, 1.0, 1.0]], sun=[[0.0, 0.0, 0.0]], peak=[1, 2], generation_cost=[1.0, 1.0, 1.0])
    assert env.model.n_states == 3 * 41
    assert env.context_space.n == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use": [[1.0, 1.0]]}, "sun has shape"),
        ({"use": [[0.0] * 4] * 3}, "use is"),
        ({"use": [1.0]}, "use has shape"),
        ({"sun": [[-1.0] * 4] * 3}, "sun is"),
        ({"peak": []}, "peak is"),
        ({"peak": [4]}, "peak is"),
        ({"peak": [1, 1]}, "peak is"),
        ({"peak": [0, 1, 2, 3]}, "peak is"),
        ({"peak": 3}, "peak is"),
        ({"generation_cost": [1.0]}, "generation_cost has shape"),
        ({"feed_in_price": -1.0}, "feed_in_price is"),
        ({"elasticity": 0.0}, "elasticity is"),
        ({"elasticity": 0.5}, "nothing is used"),
        ({"congestion": -1.0}, "congestion is"),
        ({"wear": -1.0}, "wear is"),
        ({"efficiency": [0.9, 0.5]}, "efficiency is"),
        ({"efficiency": [0.9, 1.5]}, "efficiency is"),
        ({"subsidy_cost": -1.0}, "subsidy_cost is"),
        ({"power": 0.0}, "power is"),
        ({"power": 1.5}, "power is"),
        ({"n_rates": 1}, "n_rates is 1"),
        ({"highest_price": 1.0}, "highest_price is"),
        ({"noise_std": 0.0}, "noise_std is"),
        ({"context_probabilities": [0.5, 0.5]}, "context_probabilities has shape"),
        ({"grid_size": 1}, "grid_size is 1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        Battery(**{"grid_size": 5, **options})
