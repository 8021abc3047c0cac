r"""Building control: a designer insulates zones and connects them by airflow, a controller heats and cools them (BC-HG, 2025).

The mathematics. s in R^4 are the zones' deviations from their set points, a in R^2 the power of two units. With
i = sigmoid(x_1..4) the zones' insulation, f = sigmoid(x_5..8) the airflow between zone j and its neighbour j + 1 on a ring, and
A0, k, B as below (zones are counted modulo 4),

    A_jj   = A0_jj + k_j (1 - i_j) - A0_{j,j+1} f_j - A0_{j,j-1} f_{j-1},
    A_{j,j+1} = A0_{j,j+1} f_j,       A_{j+1,j} = A0_{j+1,j} f_j,
    s'     ~ N(A s + B a, 0.02^2 I),       s_0 ~ N(0, 25 I),
    r      = -s' diag(8, 1, 5, 6) s - 0.01 |a|^2,
    rbar   = -Var_j(s_j) - 0.5 |a|^2 - 0.1 |i|^2 - 0.1 |f|^2,         Var_j(s_j) = s'(I/4 - 11'/16) s.

The controller minds each zone, the designer how equal they are and what control, insulation and airflow cost. x is in the
transitions, so it moves what the controller is paid only through where its actions lead.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.benchmark import Benchmark, best_known
from bocmdp_gym.linear_quadratic import LinearQuadraticBOCMDP
from bocmdp_gym.linear_quadratic_env import LinearQuadraticEnv, LinearQuadraticVectorEnv
from bocmdp_gym.options import check_number
from bocmdp_gym.pictures import INK, PALETTE, Canvas, Pictures

COUPLING = np.array([[1.0, 0.05, 0.0, 0.05], [0.03, 1.0, 0.04, 0.0], [0.0, 0.04, 1.0, 0.06], [0.05, 0.0, 0.03, 1.0]])
LEAKAGE = np.array([0.04, 0.03, 0.06, 0.05])
POWER = np.array([[0.1, 0.0], [0.6, 0.0], [0.0, 0.55], [0.0, 0.3]])
DISCOMFORT = np.array([8.0, 1.0, 5.0, 6.0])
ZONES, BOUND = 4, 10.0
#: Best leader return known with the default arguments, by lambda, and the x that attains it.
BEST_KNOWN = {0.1: (-162.510768, 10.0, -10.0, 10.0, 10.0, -10.0, 1.257308, 10.0, 10.0)}


def dynamics(x: Tensor) -> Tensor:
    """A(x) ``(4, 4)``."""
    base, zone = torch.from_numpy(COUPLING), torch.arange(ZONES)
    after = (zone + 1) % ZONES
    insulation, airflow = torch.sigmoid(x[:ZONES]), torch.sigmoid(x[ZONES:])
    onwards, back = base[zone, after] * airflow, base[after, zone] * airflow  # A_{j, j+1} and A_{j+1, j}
    own = base.diagonal() + torch.from_numpy(LEAKAGE) * (1.0 - insulation) - onwards - back.roll(1)
    matrix = torch.diag(own)
    return matrix.index_put((zone, after), onwards).index_put((after, zone), back)


class BuildingControl(Pictures, LinearQuadraticEnv):
    r"""A designer chooses the insulation of four zones and the airflow between them; a controller heats and cools them.

    ## Description
    Zones in a ring drift away from their set points, faster the less they are insulated, and exchange heat with their neighbours
    by airflow. A controller with two units brings them back; it minds some zones more than others, and hardly the power it
    uses. The designer wants zones that are equally warm, little power, and little spent on insulation and airflow. The problem
    is linear-quadratic: ``model`` has exact values and hypergradients, and ``followers.LinearQuadratic`` answers optimally. It is
    BuildingThermalControl of the "Boltzmann covariance" hypergradient (BC-HG, 2025). The module docstring has the mathematics.

    ## Leader parameter
    x in ``Box(-10, 10, (8,))``: insulation of the four zones and airflow from each to the next are sigmoid(x). `initial_leader`
    is 0, where all rates are 1/2.

    ## Context
    ``Discrete(1)``.

    ## Action space
    ``Box(-action_bound, action_bound, (2,), float32)``: the power of the two units.

    ## Observation space
    ``Box(-clip, clip, (4,), float64)``: the zones' deviations from their set points.

    ## Rewards
    Follower: -s' diag(8, 1, 5, 6) s - 0.01 |a|^2. Leader: minus the variance over the zones, minus 0.5 |a|^2, minus 0.1 times the
    squared rates.

    ## Episode start and end
    Deviations start at N(0, 25 I); episodes never terminate and are truncated after ``horizon`` steps. The reset option ``state``
    sets the deviations.

    ## Arguments
    noise_std: standard deviation > 0 of what happens to a zone by chance.
    initial_std: standard deviation > 0 of a zone's first deviation.
    clip: deviations are cut here, > 0; None: nowhere, as in ``model``. The controller's optimum does not come near 30.
    action_bound: bound > 0 on a unit's power, which ``model`` does not know; the controller's optimum stays within 100.
    horizon: steps until truncation, or None for no limit.
    discount: the controller's gamma, below 1.
    leader_discount: the designer's gamma_L, below 1; None: gamma.
    render_mode: "rgb_array" or "human".

    Raises:
        OptionError, DiscountError: an argument out of range.

    ## Version history
    v0: first version.
    """

    def __init__(
        self,
        noise_std: float = 0.02,
        initial_std: float = 5.0,
        clip: float | None = 30.0,
        action_bound: float = 100.0,
        horizon: int | None = 100,
        discount: float = 0.9,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        own = {"noise_std": noise_std, "initial_std": initial_std, "discount": discount, "leader_discount": leader_discount}
        self._settings = own
        identity = np.eye(ZONES)
        unequal = identity / ZONES - np.full((ZONES, ZONES), 1.0 / ZONES**2)
        model = LinearQuadraticBOCMDP(
            state_matrix=dynamics,
            input_matrix=POWER,
            noise_covariance=check_number("noise_std", noise_std, above=0.0) ** 2 * identity,
            cost=np.diag([*DISCOMFORT, 0.01, 0.01]),
            leader_cost=torch.block_diag(torch.from_numpy(unequal), 0.5 * torch.eye(2, dtype=torch.float64)),
            leader_bonus=lambda x: -0.1 * torch.sigmoid(x).square().sum(),
            initial_covariance=check_number("initial_std", initial_std, above=0.0) ** 2 * identity,
            leader_dim=2 * ZONES,
            leader_space=gym.spaces.Box(-BOUND, BOUND, (2 * ZONES,), np.float64),
            discount=discount,
            leader_discount=leader_discount,
        )
        self._setup_linear_quadratic(model, horizon, clip, action_bound, render_mode)
        self._path: list[npt.NDArray[np.float64]] = []

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The best leader return known at this lambda (None: 0.1); None at other settings than the defaults."""
        source = "quasi-Newton ascent on exact gradients, the same from 30 starts, benchmarks/building_control.py"
        objective = "leader return of the model, without clip and horizon, maximised"
        return best_known(BuildingControl, self._settings, BEST_KNOWN, regularization, source, objective)

    def rates(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Insulation and airflow ``(8,)`` of leader parameter x."""
        return torch.sigmoid(self.model.check_leader(x).detach()).numpy()

    def _reset(self, state: Any | None) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        observation, info = super()._reset(state)
        self._path = [observation]
        return observation, info

    def step(self, action: Any) -> tuple[npt.NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """As `LinearQuadraticEnv.step`."""
        outcome = super().step(action)
        self._path.append(outcome[0])
        return outcome

    def picture(self) -> npt.NDArray[np.uint8]:
        """The zones' deviations over the episode's time, and the rates."""
        canvas = Canvas(760, 360)
        left, right, top, bottom = 60.0, 490.0, 50.0, 320.0
        size = max(5.0, float(np.abs(self._path).max(initial=0.0)))
        span = max(self.horizon or 0, len(self._path) - 1, 1)

        def place(step: int, deviation: float) -> tuple[float, float]:
            return left + (right - left) * step / span, (top + bottom) / 2 - (bottom - top) / 2 * deviation / size

        canvas.text((left, 26), f"deviations, step {max(len(self._path) - 1, 0)} of {self.horizon or 'many'}", anchor="lm")
        canvas.rectangle((left, top, right, bottom), (255, 255, 255), (200, 200, 200))
        for level in (-size, 0.0, size):
            canvas.text((left - 8, place(0, level)[1]), f"{level:.0f}", anchor="rm")
        canvas.line(place(0, 0.0), place(span, 0.0), (170, 170, 170))
        for zone in range(ZONES):
            points = [place(step, float(state[zone])) for step, state in enumerate(self._path)]
            for start, end in pairwise(points):
                canvas.line(start, end, PALETTE[zone], 2)
            for point in points[-1:]:
                canvas.disc(point, 4, PALETTE[zone])
        canvas.text((525, 26), "insulation, airflow to the next", anchor="lm")
        for i, rate in enumerate(self.rates(self._episode_leader)):
            y, zone = top + 16 + 32.0 * i, i % ZONES
            canvas.text((525, y), f"{'airflow' if i >= ZONES else 'zone'} {zone + 1}", anchor="lm")
            canvas.rectangle((590, y - 9, 690, y + 9), (255, 255, 255), (200, 200, 200))
            canvas.rectangle((590, y - 9, 590 + 100 * rate, y + 9), PALETTE[zone], INK)
            canvas.text((698, y), f"{rate:.0%}", anchor="lm")
        return canvas.array()


def building_control_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> LinearQuadraticVectorEnv:
    """Many copies of `BuildingControl` in one environment; keywords as for `BuildingControl`."""
    return LinearQuadraticVectorEnv(BuildingControl(**kwargs), num_envs, autoreset_mode)
