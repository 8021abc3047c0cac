r"""Home batteries: tariffs by time of day, and a subsidy of better batteries.

The mathematics. A day has T periods; p_k is the peak or the off-peak price. In period k a home uses n_{xi, k} at price 1, and
less at higher ones, linearly. What it uses is worth U, the area under that demand curve, measured from n:

    l = n (1 - delta),   delta = elasticity (p_k - 1),      U = -n (delta + delta^2 / (2 elasticity)).

Charge s in [0, 1] is a share of the battery's capacity, the unit of energy. Action a charges c = min(a+, 1 - s) or
discharges d = min(a-, s); with sun_{xi, k} from its roof a home takes g = l - sun + c - d from the grid (it feeds in -g), and

    r    = U - wear (c + d) - p_k g+ + f g-,
    rbar = U - wear (c + d) - cost_k g - congestion g^2 - k z,
    m    = s + eta(z) c - d,      eta(z) = eta_0 + (eta_1 - eta_0) (1 - e^-z).

Payments between home and operator cancel in the leader's reward, which is welfare: a good tariff makes homes feel what generation
and the grid's losses (quadratic in the flow) cost at the time, by two prices for homes of all kinds. The subsidy z moves
transitions: less of what is charged is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.envs.storage import Outcome, Storage
from bocmdp_gym.envs.storage_env import StorageEnv
from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import as_integer, as_list, check_array, check_count, check_distribution, check_number

USE = ((0.3, 0.5, 0.4, 0.9), (0.3, 0.5, 0.4, 0.9), (0.6, 0.3, 0.3, 1.2))
SUN = ((0.0, 0.0, 0.0, 0.0), (0.0, 0.4, 0.8, 0.0), (0.0, 0.0, 0.0, 0.0))
#: Optima with the default arguments, by lambda: the leader's return, and x.
BEST_KNOWN: dict[float, tuple[float, ...]] = {
    0.1: (-6.093854, 1.405623, 2.953100, 1.173807),
    0.05: (-5.915096, 1.333092, 2.722981, 1.178307),
    0.2: (-6.444935, 1.524186, 3.193685, 0.977629),
}


class Home(Storage):
    """The numbers and functions of the module docstring; x is (off-peak price, peak price, z).

    Raises:
        OptionError: an argument out of range, or lengths that do not fit.
    """

    low, high = 0.0, 1.0
    start_mean, start_std = 0.5, 0.1
    level_name = "charge"
    leader_names = ("off-peak price", "peak price", "subsidy")

    def __init__(
        self,
        use: Sequence[Sequence[float]],
        sun: Sequence[Sequence[float]],
        peak: Sequence[int],
        generation_cost: Sequence[float],
        feed_in_price: float,
        elasticity: float,
        congestion: float,
        wear: float,
        efficiency: Sequence[float],
        subsidy_cost: float,
        power: float,
        n_rates: int,
        highest_price: float,
        noise_std: float,
    ):
        self.use = check_array("use", use, (None, None))
        self.n_contexts, self.n_periods = self.use.shape
        if not (self.use > 0).all():
            raise OptionError(f"use is {self.use.tolist()}; expected positive numbers, a row per context, a column per period.")
        self.sun = check_array("sun", sun, self.use.shape)
        if not (self.sun >= 0).all():
            raise OptionError(f"sun is {self.sun.tolist()}; expected numbers of at least 0, shaped as use.")
        hours = [as_integer(period) for period in as_list(peak) or []]
        self.peak = np.isin(np.arange(self.n_periods), [hour for hour in hours if hour is not None])
        if not 0 < self.peak.sum() == len(hours) < self.n_periods:
            raise OptionError(
                f"peak is {peak!r}; expected different periods in 0..{self.n_periods - 1}, at least one, and not all of them."
            )
        self.generation_cost = check_array("generation_cost", generation_cost, (self.n_periods,))
        self.feed_in_price = check_number("feed_in_price", feed_in_price, 0.0)
        self.highest_price = check_number("highest_price", highest_price, above=1.0)
        self.elasticity = check_number("elasticity", elasticity, above=0.0)
        if not self.elasticity * (self.highest_price - 1.0) < 1.0:
            raise OptionError(
                f"at elasticity {self.elasticity:g} and highest_price {self.highest_price:g} nothing is used; expected "
                "elasticity * (highest_price - 1) below 1."
            )
        self.congestion, self.wear = check_number("congestion", congestion, 0.0), check_number("wear", wear, 0.0)
        self.efficiency = check_array("efficiency", efficiency, (2,))
        if not 0.0 <= self.efficiency[0] <= self.efficiency[1] <= 1.0:
            raise OptionError(
                f"efficiency is {self.efficiency.tolist()}; expected [without, with full subsidy], rising, in [0, 1]."
            )
        self.subsidy_cost = check_number("subsidy_cost", subsidy_cost, 0.0)
        self.n_actions = check_count("n_rates", n_rates, 2)
        self.moves = check_number("power", power, 0.0, 1.0, above=0.0) * np.linspace(-1.0, 1.0, self.n_actions)
        self.noise_std = check_number("noise_std", noise_std, above=0.0)
        self.status_quo = np.array([1.0, 1.0, 0.0])
        bounds = np.zeros(3), np.array([self.highest_price, self.highest_price, 3.0])
        self.leader_space = gym.spaces.Box(*bounds, dtype=np.float64)
        self._use, self._sun, self._cost = map(torch.from_numpy, (self.use, self.sun, self.generation_cost))
        self._peak, self._moves = torch.from_numpy(self.peak), torch.from_numpy(self.moves)

    def outcome(self, x: Tensor, level: Tensor, period: Tensor, action: Tensor, context: Tensor) -> Outcome:
        off_peak, on_peak, subsidy = x
        price, move = torch.where(self._peak[period], on_peak, off_peak), self._moves[action]
        charged, discharged = torch.minimum(move.clamp(min=0.0), self.high - level), torch.minimum(-move.clamp(max=0.0), level)
        liked, less = self._use[context, period], self.elasticity * (price - 1.0)
        taken = liked * (1.0 - less) - self._sun[context, period] + charged - discharged
        worth = -liked * (less + less.square() / (2.0 * self.elasticity)) - self.wear * (charged + discharged)
        lowest, highest = self.efficiency
        kept = lowest + (highest - lowest) * (1.0 - torch.exp(-subsidy))
        return Outcome(
            worth - price * taken.clamp(min=0.0) - self.feed_in_price * taken.clamp(max=0.0),
            worth - self._cost[period] * taken - self.congestion * taken.square() - self.subsidy_cost * subsidy,
            level + kept * charged - discharged,
        )


class Battery(StorageEnv):
    r"""A grid operator sets a tariff by time of day and subsidises better batteries; homes charge and discharge theirs.

    ## Description
    A day has four periods: night, morning, afternoon and evening, the peak. In each a home charges its battery, lets it rest, or
    runs on it. Homes use less at a higher price. The operator cares for welfare: what use is worth to homes, minus what
    generation, the grid's losses and the subsidy cost; payments cancel. Homes differ between contexts: ordinary ones,
    ones with a solar roof, and ones with an electric car. The module docstring has the mathematics.

    The charge is a real number here. ``model`` is the companion on a grid, with exact values and hypergradients; see
    {py:class}`bocmdp_gym.envs.storage.StorageModel`.

    ## Leader parameter
    x = (off-peak price, peak price, subsidy), in ``Box(0, [highest_price, highest_price, 3])``. `initial_leader` is price 1 at
    all times, and no subsidy. The subsidy moves transitions: less is lost of what is charged.

    ## Context
    ``Discrete(rows of use)``: the kind of home. It is not observed.

    ## Action space
    ``Discrete(n_rates)``: rates from full discharging, -power, to full charging, +power, equally spaced.

    ## Observation space
    ``Box((3,), float64)``: the charge in [0, 1], and cos and sin of the time of day. With a single period: the charge alone.

    ## Rewards
    Follower: what its use is worth, minus wear and the bill. Leader: what use is worth, minus wear, the costs of generation, the
    grid's losses, and the subsidy.

    ## Episode start and end
    Charge starts at N(0.5, 0.1^2) at night, period 0; episodes never terminate and are truncated after ``horizon`` steps. The
    reset option ``state`` sets the charge, or (charge, period).

    ## Arguments
    use: energy > 0 used at price 1, one row per context, one column per period, in units of the battery's capacity.
    sun: energy from the roof, at least 0, shaped as ``use``.
    peak: the periods that the peak price holds in.
    generation_cost: of a unit of energy, one per period.
    feed_in_price: paid for what is fed in, at least 0.
    elasticity: by what share use falls when the price rises from 1 to 2, > 0.
    congestion: the grid's losses at a flow of 1, at least 0.
    wear: cost of a unit charged or discharged, at least 0.
    efficiency: the share of what is charged that is kept, without and with unbounded subsidy.
    subsidy_cost: the operator's cost of a unit of subsidy per home and period, at least 0.
    power: the largest rate, a share of the capacity per period, in (0, 1].
    n_rates: how many rates there are, at least 2; an odd number includes rest.
    highest_price: the bound of both prices, above 1.
    noise_std: standard deviation > 0 of the next charge.
    context_probabilities: probabilities of the contexts; uniform if None.
    grid_size: grid points of ``model`` in each period, at least 2.
    horizon: steps until truncation, or None for no limit.
    discount: the homes' gamma, below 1.
    leader_discount: the leader's gamma_L, below 1; None: gamma.
    render_mode: "rgb_array" or "human".

    Raises:
        OptionError, DiscountError: an argument out of range, or lengths that do not fit.

    ## Version history
    v0: first version.
    """

    best_known = BEST_KNOWN

    def __init__(
        self,
        use: Sequence[Sequence[float]] = USE,
        sun: Sequence[Sequence[float]] = SUN,
        peak: Sequence[int] = (3,),
        generation_cost: Sequence[float] = (0.3, 0.8, 0.6, 2.0),
        feed_in_price: float = 0.3,
        elasticity: float = 0.15,
        congestion: float = 1.0,
        wear: float = 0.01,
        efficiency: Sequence[float] = (0.6, 0.95),
        subsidy_cost: float = 0.02,
        power: float = 0.5,
        n_rates: int = 5,
        highest_price: float = 4.0,
        noise_std: float = 0.05,
        context_probabilities: Sequence[float] | None = None,
        grid_size: int = 41,
        horizon: int | None = 100,
        discount: float = 0.9,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        self._settings = self._of_the_model(locals())
        self.home = Home(
            use, sun, peak, generation_cost, feed_in_price, elasticity, congestion, wear, efficiency, subsidy_cost, power,
            n_rates, highest_price, noise_std,
        )  # fmt: skip
        self._setup_storage(
            self.home,
            grid_size,
            horizon,
            render_mode,
            discount=discount,
            leader_discount=leader_discount,
            context_probabilities=check_distribution("context_probabilities", context_probabilities, self.home.n_contexts),
        )
