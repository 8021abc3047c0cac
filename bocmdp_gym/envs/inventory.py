r"""Inventory: a supplier's wholesale price, holding support and advertising for shops that order stock.

The mathematics. Stock s, order q_a, filled up to the shelf's capacity: y = min(s + q_a, capacity). Demand is D ~ N(d, (rho d)^2)
with d = d_xi (1 + L (1 - e^-z)), z the supplier's effort. What is expected to be left, and sold, of y is

    left = rho d (u Phi(u) + phi(u)),  u = (y - d) / (rho d),      sold = y - left,

and stock goes on from m = left, with noise (counting, breakage, returns): x moves it through the effort. With wholesale price w,
support b and retail price p_xi,

    r    = p_xi sold - w (y - s) - (h - b) left - g left^2,
    rbar = (w - c) (y - s) - b left - k z.

Support is paid for what is not sold, so shops dare to hold more; g, what a crowded store costs, keeps them from hoarding for the
support alone (double marginalisation and buy-backs: Pasternack, Marketing
Science 1985; Cachon, "Supply chain coordination with contracts", 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.envs.storage import Outcome, Storage
from bocmdp_gym.envs.storage_env import StorageEnv
from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_array, check_count, check_distribution, check_number

#: Optima with the default arguments, by lambda: the leader's return, and x.
BEST_KNOWN: dict[float, tuple[float, ...]] = {
    0.1: (9.147219, 2.166215, 0.799931, 1.089309),
    0.05: (9.562471, 2.163209, 0.844909, 1.136643),
    0.2: (8.701382, 2.208095, 0.747992, 1.006552),
}


class Shop(Storage):
    """The numbers and functions of the module docstring; x is (w, b, z).

    Raises:
        OptionError: an argument out of range, or lengths that do not fit.
    """

    n_periods = 1
    level_name = "truckloads in stock"
    leader_names = ("wholesale price", "support", "effort")

    def __init__(
        self,
        demands: Sequence[float],
        prices: Sequence[float],
        demand_spread: float,
        production_cost: float,
        holding_cost: float,
        crowding_cost: float,
        highest_support: float,
        effort_effect: float,
        effort_cost: float,
        order_size: float,
        n_orders: int,
        capacity: float,
        noise_std: float,
    ):
        self.demands = check_array("demands", demands, (None,))
        self.n_contexts = len(self.demands)
        self.prices = check_array("prices", prices, (self.n_contexts,))
        for name, values in (("demands", self.demands), ("prices", self.prices)):
            if not (values > 0).all():
                raise OptionError(f"{name} are {values.tolist()}; expected positive numbers, one for each context.")
        self.demand_spread = check_number("demand_spread", demand_spread, above=0.0)
        self.holding_cost = check_number("holding_cost", holding_cost, 0.0)
        self.crowding_cost = check_number("crowding_cost", crowding_cost, 0.0)
        highest_support = check_number("highest_support", highest_support, above=0.0)
        largest = float(self.prices.max())
        self.production_cost = check_number("production_cost", production_cost, 0.0, note=", less than the highest price")
        if not self.production_cost < largest:
            raise OptionError(f"production_cost is {self.production_cost:g}; expected less than the highest price, {largest:g}.")
        self.effort_effect = check_number("effort_effect", effort_effect, 0.0)
        self.effort_cost = check_number("effort_cost", effort_cost, 0.0)
        self.n_actions = check_count("n_orders", n_orders, 2)
        self.moves = check_number("order_size", order_size, above=0.0) * np.arange(self.n_actions, dtype=np.float64)
        self.low, self.high = 0.0, check_number("capacity", capacity, above=0.0)
        self.noise_std = check_number("noise_std", noise_std, above=0.0)
        self.start_mean, self.start_std = self.high / 4, self.high / 10
        self.status_quo = np.array([min(2.0 * self.production_cost, largest), 0.0, 0.0])
        bounds = np.array([self.production_cost, 0.0, 0.0]), np.array([largest, highest_support, 3.0])
        self.leader_space = gym.spaces.Box(*bounds, dtype=np.float64)
        self._demands, self._prices, self._orders = map(torch.from_numpy, (self.demands, self.prices, self.moves))

    def outcome(self, x: Tensor, level: Tensor, period: Tensor, action: Tensor, context: Tensor) -> Outcome:
        wholesale, support, effort = x
        shelf = torch.clamp(level + self._orders[action], max=self.high)
        demand = self._demands[context] * (1.0 + self.effort_effect * (1.0 - torch.exp(-effort)))
        spread = self.demand_spread * demand
        surplus = (shelf - demand) / spread
        left = spread * (surplus * torch.special.ndtr(surplus) + torch.exp(-0.5 * surplus.square()) / (2.0 * pi) ** 0.5)
        delivered, sold = shelf - level, shelf - left
        return Outcome(
            self._prices[context] * sold
            - wholesale * delivered
            - (self.holding_cost - support + self.crowding_cost * left) * left,
            (wholesale - self.production_cost) * delivered - support * left - self.effort_cost * effort,
            torch.clamp(left, max=self.high),
        )


class Inventory(StorageEnv):
    r"""A supplier sets a wholesale price, support for unsold stock and advertising; shops order, sell and store.

    ## Description
    Every week a shop orders so many truckloads, sells what customers want of them, and pays for storing the rest. The supplier
    earns the margin on what is ordered, pays part of what storing costs, so that shops dare to order more, and advertises, which
    moves demand, and so the stock of the next week. Shops differ between contexts: many customers at a low price, or few at a
    high one. The module docstring has the mathematics.

    Stock is a real number here. ``model`` is the companion on a grid, with exact values and hypergradients; see
    {py:class}`bocmdp_gym.envs.storage.StorageModel`.

    ## Leader parameter
    x = (wholesale price, holding support per truckload left, advertising effort), in ``Box([production_cost, 0, 0], [highest
    price, highest_support, 3])``. `initial_leader` is twice the production cost, no support and no effort.

    ## Context
    ``Discrete(number of demands)``: the kind of shop. It is not observed.

    ## Action space
    ``Discrete(n_orders)``: orders of 0, 1, 2, ... times ``order_size`` truckloads. What does not fit is not delivered.

    ## Observation space
    ``Box(0, capacity, (1,), float64)``: the stock before ordering, in truckloads.

    ## Rewards
    Follower: what is expected to be sold at the retail price, minus the wholesale price of what is delivered, minus what of
    the cost of storing is not supported. Leader: its margin on what is delivered, minus support and the cost of advertising.

    ## Episode start and end
    Stock starts at N(capacity / 4, (capacity / 10)^2); episodes never terminate and are truncated after ``horizon`` steps. The
    reset option ``state`` sets the stock.

    ## Arguments
    demands: mean truckloads > 0 a week without advertising, one per context.
    prices: retail prices > 0 per truckload, one per context.
    demand_spread: standard deviation > 0 of a week's demand, as a share of its mean.
    production_cost: the supplier's cost per truckload, at least 0 and below the highest price.
    holding_cost: cost of a truckload left at the end of a week, at least 0.
    crowding_cost: cost besides of a truckload left, per truckload left, at least 0.
    highest_support: the bound > 0 of the support.
    effort_effect: by what share demand rises with unbounded advertising, at least 0.
    effort_cost: the supplier's cost of a unit of effort per shop and week, at least 0.
    order_size: truckloads > 0 of the smallest order.
    n_orders: how many sizes of orders there are, no order included, at least 2.
    capacity: truckloads > 0 that fit on the shelf.
    noise_std: standard deviation > 0 of the stock left.
    context_probabilities: probabilities of the contexts; uniform if None.
    grid_size: grid points of ``model``, at least 2.
    horizon: steps until truncation, or None for no limit.
    discount: the shops' gamma, below 1.
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
        demands: Sequence[float] = (1.2, 0.9, 0.6),
        prices: Sequence[float] = (2.5, 3.0, 3.5),
        demand_spread: float = 0.4,
        production_cost: float = 0.5,
        holding_cost: float = 0.2,
        crowding_cost: float = 0.3,
        highest_support: float = 1.0,
        effort_effect: float = 0.6,
        effort_cost: float = 0.25,
        order_size: float = 0.5,
        n_orders: int = 5,
        capacity: float = 4.0,
        noise_std: float = 0.3,
        context_probabilities: Sequence[float] | None = None,
        grid_size: int = 81,
        horizon: int | None = 100,
        discount: float = 0.9,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        self._settings = self._of_the_model(locals())
        self.shop = Shop(
            demands, prices, demand_spread, production_cost, holding_cost, crowding_cost, highest_support,
            effort_effect, effort_cost, order_size, n_orders, capacity, noise_std,
        )  # fmt: skip
        self._setup_storage(
            self.shop,
            grid_size,
            horizon,
            render_mode,
            discount=discount,
            leader_discount=leader_discount,
            context_probabilities=check_distribution("context_probabilities", context_probabilities, self.shop.n_contexts),
        )
