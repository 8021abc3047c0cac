r"""Tax design: an income tax and value added taxes for a population that works, consumes and saves (paper, appendix A).

The mathematics. Assets s, hours h, spending c_i on good i; income tax y and VAT rates v_i, together ``tax_upper * sigmoid(x)``.

    r_xi(s, a)  = u(s) - delta h^2 + prod_i (c_i / (p_i (1 + v_i)))^alpha_{xi, i},  u(s) = log(s/20 + 1) for s > 0, else s
    m(s, a)     = clip(s + (1 - y) w h - sum_i c_i)                                               onto the asset range
    s'          ~ N(m(s, a), std^2), truncated to the asset range
    rbar(a)     = 15 mean_i(c_i / (1 + v_i)) / 5 + 5 log(1 + sum_i v_i c_i / (1 + v_i) + y w h)

With ``brackets`` b_1 < b_2 < ... of income, y w h becomes sum_k y_k max(0, min(w h, b_k) - b_{k-1}), with b_0 = 0 and no end of
the last: y_k is the marginal rate of bracket k, and x has an entry for each.

VAT is in the rewards, the income tax in the transitions, the preferences alpha are the context. The leader's reward is social
welfare: what is consumed, and the public budget with diminishing returns.

*The companion on a grid.* Assets are rounded to the nearest of n equidistant points from one end of the range to the other:

    P(i | j, a) = Pr(s' in cell i | m(s_j, a)) = (F(e_{i+1}) - F(e_i)) / (F(e_n) - F(e_0)),   F the cdf of N(m, std^2),

with cell edges e halfway between points (the outer ones at the ends of the range). Differences of the cdf are non-negative,
sum to 1 whatever the grid, are smooth in y, and are exactly what rounding the simulator's next assets gives, so the two can be
compared by counting. (Weights proportional to the density at the grid points have none of that at the ends of the range.)
The error in values and gradients is of second order in the spacing. The mean depends on hours and total spending alone:
130 rows for 1,250 joint actions (`FactoredTransitions`).

*Between grid points* a table of probabilities acts as the mean of its two neighbours', weighted linearly by distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from itertools import pairwise
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from bocmdp_gym.benchmark import Benchmark, best_known
from bocmdp_gym.env import ConfigurableEnv
from bocmdp_gym.errors import ActionError, OptionError, StateError
from bocmdp_gym.options import check_array, check_count, check_distribution, check_number, check_render_mode
from bocmdp_gym.pictures import AGENT, INK, PALETTE, Canvas, Pictures
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.transitions import FactoredTransitions
from bocmdp_gym.truncated_normal import cell_probabilities, truncated_normal_draw, truncated_normal_log_density
from bocmdp_gym.validation import check_horizon

Array = npt.NDArray[np.float64]
HOURS = np.linspace(0.0, 8.0, 10)
SPENDING = np.linspace(0.0, 5.0, 5)
LABOUR_COST = 0.1
PREFERENCES = ((0.6, 0.3, 0.1), (0.1, 0.7, 0.2))
#: Best leader returns known with the default arguments, by lambda, and the x that attain them.
BEST_KNOWN = {
    0.1: (54.772367, 1.419408, -11.534366, -13.467462, -3.441256),
    0.2: (55.241341, 1.404170, -11.516354, -13.836181, -1.688113),
    0.3: (56.061256, 1.375490, -3.093610, -14.268102, -0.665410),
}


class Economy:
    """Rewards and expected assets of every joint action, as differentiable functions of the tax rates.

    Joint actions a = 0..A-1 are counted in the order of the MultiDiscrete action: hours first, the last good fastest.

    Attributes:
        nvec: levels of each part of an action.
        hours, total: hours worked and total spending, ``(A,)``; spending: per good, ``(A, goods)``.
        n_brackets: how many rates the income tax has, 1 or more.
        rows: the row of P that each joint action stores its probabilities in, ``(A,)``; M rows for different
            hours or total spending.

    Raises:
        OptionError: an argument out of range, or lengths that do not fit.
    """

    def __init__(
        self,
        prices: Sequence[float],
        wage: float,
        preferences: Sequence[Sequence[float]],
        asset_range: Sequence[float],
        noise_std: float,
        tax_upper: Sequence[float],
        brackets: Sequence[float] = (),
    ):
        self.prices = check_array("prices", prices, (None,))
        if not (self.prices > 0).all():
            raise OptionError(f"prices are {self.prices.tolist()}; expected positive numbers, one for each good.")
        goods = len(self.prices)
        self.wage = check_number("wage", wage, 0.0)
        self.preferences = check_array("preferences", preferences, (None, goods))
        if not (self.preferences > 0).all():
            raise OptionError(f"preferences are {self.preferences.tolist()}; expected positive exponents, one for each good.")
        self.low, self.high = check_array("asset_range", asset_range, (2,)).tolist()
        if not self.low < self.high:
            raise OptionError(f"asset_range is [{self.low:g}, {self.high:g}], which is empty; expected [low, high], low < high.")
        self.noise_std = check_number("noise_std", noise_std, above=0.0)
        bounds = check_array("tax_upper", tax_upper, (goods + 1,))
        if not (bounds > 0).all():
            raise OptionError(f"tax_upper is {bounds.tolist()}; expected positive bounds: of the income tax, then VAT.")
        self._brackets = self._check_brackets(brackets)
        self.n_brackets = len(self._brackets)
        self.tax_upper = np.append(np.repeat(bounds[0], self.n_brackets), bounds[1:])
        self.nvec = (len(HOURS), *(len(SPENDING),) * goods)
        self.n_actions = prod(self.nvec)
        levels = np.array(np.unravel_index(np.arange(self.n_actions), self.nvec)).T
        self.hours, self.spending = HOURS[levels[:, 0]], SPENDING[levels[:, 1:]]
        self.total = self.spending.sum(-1)
        pairs = np.column_stack([self.hours, self.total]).round(9)
        choices, rows = np.unique(pairs, axis=0, return_inverse=True)
        self.rows = rows.reshape(-1)
        self._upper, self._spending = torch.from_numpy(self.tax_upper), torch.from_numpy(self.spending)
        bundles = (self.spending / self.prices)[None] ** self.preferences[:, None]
        self._bundles = torch.from_numpy(bundles.prod(-1))  # prod_i (c_i / p_i)^alpha_i, (C, A)
        self._preferences = torch.from_numpy(self.preferences)
        self._labour_cost = torch.from_numpy(LABOUR_COST * self.hours**2)
        self._earned, self._row_earned = (torch.from_numpy(self._in_brackets(hours)) for hours in (self.hours, choices[:, 0]))
        self._row_total = torch.from_numpy(choices[:, 1].copy())

    def _check_brackets(self, brackets: Any) -> Array:
        """Where each bracket begins ``(K,)``, the first one at 0.

        Raises:
            OptionError: incomes that do not rise, or that nobody reaches.
        """
        starts = np.append(0.0, check_array("brackets", brackets, (None,)) if np.size(brackets) else [])
        most = self.wage * HOURS[-1]
        if not ((np.diff(starts) > 0).all() and (len(starts) == 1 or starts[-1] < most)):
            raise OptionError(
                f"brackets are {starts[1:].tolist()}; expected rising incomes above 0 and below {most:g}, the most that "
                "anybody earns in a step."
            )
        return starts

    def _in_brackets(self, hours: Array) -> Array:
        """What is earned in hours ``(N,)`` within each bracket, ``(N, K)``."""
        widths = np.append(np.diff(self._brackets), np.inf)
        within: Array = np.clip(self.wage * hours[:, None] - self._brackets, 0.0, widths)
        return within

    def rates(self, x: Tensor) -> Tensor:
        """Income tax (of every bracket), then VAT rates: ``tax_upper * sigmoid(x)``."""
        return self._upper * torch.sigmoid(x)

    def utility(self, rates: Tensor) -> Tensor:
        """The follower's reward without u(s), ``(C, A)``."""
        return (
            self._bundles * torch.exp(-self._preferences @ torch.log1p(rates[self.n_brackets :])).unsqueeze(-1)
            - self._labour_cost
        )

    def welfare(self, rates: Tensor) -> Tensor:
        """The leader's reward, ``(A,)``."""
        income_tax, vat = rates[: self.n_brackets], rates[self.n_brackets :]
        consumed = self._spending / (1.0 + vat)
        revenue = consumed @ vat + (income_tax * self._earned).sum(-1)
        return 15.0 * consumed.mean(-1) / 5.0 + 5.0 * torch.log1p(revenue)

    def savings(self, rates: Tensor) -> Tensor:
        """What the actions of each row add to the assets on average, ``(M,)``."""
        return ((1.0 - rates[: self.n_brackets]) * self._row_earned).sum(-1) - self._row_total

    def tables(self, x: Array) -> tuple[Array, Array, Array]:
        """What the simulator reads at x: utility ``(C, A)``, welfare ``(A,)`` and savings ``(A,)`` of joint actions."""
        rates = self.rates(torch.tensor(x))
        return self.utility(rates).numpy(), self.welfare(rates).numpy(), self.savings(rates).numpy()[self.rows]

    @property
    def centre(self) -> float:
        """The mean of the first assets before truncation: 0, or what of the range is nearest to it."""
        return min(max(0.0, self.low), self.high)

    def truncated_normal(self, mean: npt.ArrayLike, std: float, u: npt.ArrayLike) -> Array:
        """N(mean, std^2) truncated to the asset range, of uniform numbers by inversion."""
        mean = np.asarray(mean)
        low, high = ndtr((self.low - mean) / std), ndtr((self.high - mean) / std)
        values: Array = np.clip(mean + std * ndtri(low + u * (high - low)), self.low, self.high)
        return values

    def mean(self, assets: Tensor, savings: Tensor) -> Tensor:
        """m(s, a), the centre of the next assets."""
        return torch.clamp(assets + savings, self.low, self.high)


def asset_utility(assets: Array) -> Array:
    """u(s)."""
    utility: Array = np.where(assets > 0, np.log1p(np.maximum(assets, 0.0) / 20.0), assets)
    return utility


class TaxModel(TabularBOCMDP):
    """Tax design on a grid of assets (states 0..n-1 and joint actions 0..A-1), and the exact functions of assets.

    The functions of visited points (`rewards`, `log_transitions`, ...) take what the environment shows: assets ``(N, 1)`` and
    MultiDiscrete actions ``(N, 1 + goods)``, and are those of the continuous problem. State indices ``(N,)`` and joint actions
    ``(N,)`` are answered with the grid's tables.

    Args:
        economy: the numbers.
        grid_size: points n >= 2.
        initial_std: standard deviation of the first assets, N(0, std^2) truncated to the asset range.
        options: as for `TabularBOCMDP`.
    """

    takes_states = False
    noise_dim = 1

    def __init__(self, economy: Economy, grid_size: int, initial_std: float, **options: Any):
        self.economy = economy
        self.grid = np.linspace(economy.low, economy.high, grid_size)
        edges = torch.from_numpy(np.concatenate([self.grid[:1], (self.grid[1:] + self.grid[:-1]) / 2, self.grid[-1:]]))
        assets = torch.from_numpy(self.grid).unsqueeze(-1)
        utility = torch.from_numpy(asset_utility(self.grid)).unsqueeze(-1)
        centre = torch.tensor(economy.centre, dtype=torch.float64)

        def transition(rates: Tensor) -> FactoredTransitions:
            mean = economy.mean(assets, economy.savings(rates))
            return FactoredTransitions(cell_probabilities(edges, mean, economy.noise_std), economy.rows)

        super().__init__(
            reward=lambda rates: utility + economy.utility(rates).unsqueeze(1),
            leader_reward=lambda rates: economy.welfare(rates).reshape(1, 1, -1),
            transition=transition,
            initial=cell_probabilities(edges, centre, initial_std),
            leader_dim=len(economy.tax_upper),
            parametrization=economy.rates,
            **options,
        )

    def joint_actions(self, actions: Any) -> Any:
        """Joint actions ``(N,)`` of MultiDiscrete ones ``(N, 1 + goods)``."""
        return np.ravel_multi_index(tuple(np.asarray(actions, dtype=np.int64).T), self.economy.nvec)

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """r_{x, xi}(s, a)."""
        if np.ndim(observations) == 1:
            return super().rewards(x, observations, actions, context)
        utility = torch.from_numpy(asset_utility(np.asarray(observations, dtype=np.float64)[:, 0]))
        return utility + self.economy.utility(self.economy.rates(x))[context, self.joint_actions(actions)]

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """rbar_x(a)."""
        if np.ndim(observations) == 1:
            return super().leader_rewards(x, observations, actions, context)
        return self.economy.welfare(self.economy.rates(x))[self.joint_actions(actions)]

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        """The log density of the next assets, ``(N,)``."""
        if np.ndim(observations) == 1:
            return super().log_transitions(x, observations, actions, next_observations, context)
        economy = self.economy
        assets, following = (torch.as_tensor(o, dtype=torch.float64)[:, 0] for o in (observations, next_observations))
        savings = economy.savings(economy.rates(x))[economy.rows[self.joint_actions(actions)]]
        mean = economy.mean(assets, savings)
        return truncated_normal_log_density(following, mean, economy.noise_std, economy.low, economy.high)

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        """Next assets ``(N, 1)``."""
        economy = self.economy
        assets = torch.as_tensor(observations, dtype=torch.float64)[:, 0]
        savings = economy.savings(economy.rates(x))[economy.rows[self.joint_actions(actions)]]
        mean = economy.mean(assets, savings)
        return truncated_normal_draw(noise[:, 0], mean, economy.noise_std, economy.low, economy.high).unsqueeze(-1)


class TaxDesign(Pictures, ConfigurableEnv):
    r"""A leader sets an income tax and value added taxes; households work, consume and save.

    ## Description
    Every step a household chooses how long to work and how much to spend on each of three goods. What it earns after income
    tax and does not spend changes its assets, with noise. Value added tax raises prices. The leader wants consumption and
    a public budget. Preferences over goods differ between contexts. The module docstring has the mathematics.

    Assets are a real number here. ``model`` is the companion on a grid of assets, with exact values and hypergradients; a
    policy tabulated on that grid acts between two points as the mean of theirs, weighted linearly by distance (`neighbours`).

    ## Leader parameter
    x in R^(1 + goods), unbounded: income tax and VAT rates are ``tax_upper * sigmoid(x)``, in this order; with ``brackets``, one
    marginal rate of the income tax for each comes first. `initial_leader` draws x_0 ~ N(0, 1).

    ## Context
    ``Discrete(number of preferences)``: the exponents of the household's utility of consumption. It is not observed.

    ## Action space
    ``MultiDiscrete([10, 5, 5, 5])``: hours worked, 10 levels from 0 to 8; spending on goods 1 to 3, 5 levels from 0 to 5 each.

    ## Observation space
    ``Box(asset_range, (1,), float64)``: the assets.

    ## Rewards
    Follower: a utility of its assets, minus 0.1 hours^2, plus prod_i (c_i / (p_i (1 + VAT_i)))^alpha_i. Leader: three times
    the mean consumption before VAT, plus 5 log(1 + tax revenue).

    ## Episode start and end
    Assets start at N(0, initial_std^2); episodes never terminate and are truncated after ``horizon`` steps. The reset option
    ``state`` sets the assets.

    ## Arguments
    prices: prices of the goods, > 0; their number sets that of the goods.
    wage: wage per hour, at least 0.
    preferences: exponents > 0 of the goods in the utility, one row per context, one column per good.
    context_probabilities: probabilities of the contexts; uniform if None.
    tax_upper: upper bounds of income tax and VAT rates; 2 2 2 2 in the published runs, where the income tax may exceed 1.
    asset_range: smallest and largest assets.
    noise_std: standard deviation > 0 of what happens to the assets by chance.
    initial_std: standard deviation > 0 of the first assets.
    grid_size: grid points of ``model``, at least 2; an odd number puts one on 0 assets, where the utility has a kink.
    horizon: steps until truncation, or None for no limit.
    discount: the households' gamma, below 1.
    leader_discount: the leader's gamma_L, below 1; None: gamma.
    render_mode: "rgb_array" or "human".
    brackets: incomes of a step, rising, above each of which the income tax has another marginal rate; (): one rate for all.

    Raises:
        OptionError, DiscountError: an argument out of range, or lengths that do not fit.

    ## Version history
    v0: first version.

    Reference: Thoma et al., "Bilevel Optimization with Lower-Level Contextual MDPs", 2024, appendix A.
    """

    model: TaxModel
    interpolates = True

    def __init__(
        self,
        prices: Sequence[float] = (1.0, 1.0, 1.0),
        wage: float = 1.0,
        preferences: Sequence[Sequence[float]] = PREFERENCES,
        context_probabilities: Sequence[float] | None = None,
        tax_upper: Sequence[float] = (1.0, 2.0, 2.0, 2.0),
        asset_range: Sequence[float] = (-100.0, 100.0),
        noise_std: float = 5.0,
        initial_std: float = 2.0,
        grid_size: int = 101,
        horizon: int | None = 200,
        discount: float = 0.9,
        leader_discount: float | None = None,
        render_mode: str | None = None,
        brackets: Sequence[float] = (),
    ):
        given = locals()
        self._settings = {name: given[name] for name in signature(TaxDesign).parameters if name not in ("horizon", "render_mode")}
        self.economy = Economy(prices, wage, preferences, asset_range, noise_std, tax_upper, brackets)
        self.initial_std = check_number("initial_std", initial_std, above=0.0)
        self.horizon = check_horizon(horizon)
        self.render_mode = check_render_mode(render_mode, self.metadata)
        self.model = TaxModel(
            self.economy,
            check_count("grid_size", grid_size, 2),
            self.initial_std,
            discount=discount,
            leader_discount=leader_discount,
            context_probabilities=check_distribution(
                "context_probabilities", context_probabilities, len(self.economy.preferences)
            ),
        )
        self._setup_configuration(
            self.model.leader_space,
            gym.spaces.Discrete(self.model.n_contexts),
            self.model.discount,
            self.model.leader_discount,
            self.model.context_probabilities,
        )
        self.action_space = gym.spaces.MultiDiscrete(list(self.economy.nvec))
        self.observation_space = gym.spaces.Box(self.economy.low, self.economy.high, (1,), np.float64)
        self._tables: tuple[Array, Array, Array] | None = None
        self._path, self._actions = [0.0], list[int]()

    def initial_leader(self, rng: np.random.Generator) -> Array:
        """x_0 ~ N(0, 1)."""
        return rng.standard_normal(self.model.leader_dim)

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The best leader return known at this lambda (None: 0.1); None at other settings than the defaults."""
        source = "best of 10 exact gradient ascents, benchmarks/tax_design.py"
        return best_known(TaxDesign, self._settings, BEST_KNOWN, regularization, source)

    def rates(self, x: npt.ArrayLike) -> Array:
        """Income tax and VAT rates of leader parameter x."""
        return self.economy.rates(self.model.check_leader(x).detach()).numpy()

    # the grid's policies in the continuous problem

    def neighbours(self, observation: Any) -> tuple[npt.NDArray[np.int64], Array]:
        """The grid states next to observations ``(..., 1)``, below and above, and their linear weights, both ``(..., 2)``."""
        economy, last = self.economy, len(self.model.grid) - 1
        assets = np.asarray(observation, dtype=np.float64)
        position = (assets - economy.low) / (economy.high - economy.low) * last
        below = np.clip(position.astype(np.int64), 0, last - 1)
        share = np.clip(position - below, 0.0, 1.0)
        return np.concatenate([below, below + 1], -1), np.concatenate([1.0 - share, share], -1)

    def joint_action(self, index: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The MultiDiscrete action of the model's action ``index``, or those of several, one per row."""
        return np.array(np.unravel_index(index, self.economy.nvec)).T

    # playing

    def _configured(self) -> None:
        self._tables = None

    def _reset(self, state: Any | None) -> tuple[Array, dict[str, Any]]:
        if state is None:
            self._assets = self._draw(self.economy.centre, self.initial_std)
        else:
            self._assets = self.check_state(state)
        self._age = 0
        self._path, self._actions = [self._assets], []
        return self._observation(), {}

    def check_state(self, state: Any) -> float:
        """Assets as a float.

        Raises:
            StateError: no number in the asset range.
        """
        try:
            assets = float(np.asarray(state, dtype=np.float64).item())
        except (TypeError, ValueError):
            assets = float("nan")
        if not self.economy.low <= assets <= self.economy.high:
            raise StateError(
                f"start state {state!r} is out of range; expected assets in [{self.economy.low}, {self.economy.high}]."
            )
        return assets

    def _draw(self, mean: float, std: float) -> float:
        return float(self.economy.truncated_normal(mean, std, self.np_random.random()))

    def _observation(self) -> Array:
        return np.array([self._assets])

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Work, spend, and see the next assets. ``info["leader_reward"]`` is the leader's reward.

        Raises:
            ActionError: an action outside the action space.
        """
        if self._tables is None:
            self._tables = self.economy.tables(self._episode_leader)
        utility, welfare, savings = self._tables
        given = np.asarray(action)
        if given.shape != (len(self.economy.nvec),) or not ((given >= 0) & (given < self.economy.nvec)).all():
            raise ActionError(f"action {action!r} is illegal; expected an element of {self.action_space}.")
        chosen = int(np.ravel_multi_index(tuple(given.astype(np.int64)), self.economy.nvec))
        reward = float(asset_utility(np.array(self._assets)) + utility[self._episode_context, chosen])
        mean = min(max(self._assets + savings[chosen], self.economy.low), self.economy.high)
        self._assets = self._draw(float(mean), self.economy.noise_std)
        self._age += 1
        self._path.append(self._assets)
        self._actions.append(chosen)
        info = {"leader_reward": float(welfare[chosen]), "context": self._episode_context}
        return self._observation(), reward, False, self._age == self.horizon, info

    # pictures

    def picture(self) -> npt.NDArray[np.uint8]:
        """Assets over the episode's time; hours worked and spending of the last step; the tax rates."""
        economy, context = self.economy, self._episode_context
        canvas = Canvas(760, 360)
        left, right, top, bottom = 60.0, 470.0, 50.0, 320.0
        low, high = min(*self._path, -5.0), max(*self._path, 5.0)
        span = max(self.horizon or 0, len(self._path) - 1, 1)

        def place(step: int, assets: float) -> tuple[float, float]:
            return left + (right - left) * step / span, bottom - (bottom - top) * (assets - low) / (high - low)

        canvas.text((left, 24), f"assets, step {len(self._path) - 1} of {self.horizon or 'many'}, context {context}", anchor="lm")
        canvas.rectangle((left, top, right, bottom), (255, 255, 255), (200, 200, 200))
        for level in (low, 0.0, high):
            canvas.text((left - 8, place(0, level)[1]), f"{level:.0f}", anchor="rm")
        canvas.line(place(0, 0.0), place(span, 0.0), (170, 170, 170))
        points = [place(step, assets) for step, assets in enumerate(self._path)]
        for start, end in pairwise(points):
            canvas.line(start, end, AGENT, 2)
        canvas.disc(points[-1], 4, AGENT)
        rates = self.rates(self._episode_leader)
        goods, marginal = len(economy.prices), [f"income tax {k}" for k in range(1, economy.n_brackets + 1)]
        names = [*(marginal if economy.n_brackets > 1 else ["income tax"]), *(f"VAT {i}" for i in range(1, goods + 1))]
        self._bars(canvas, 50, "tax rates", names, rates, economy.tax_upper, "{:.0%}", PALETTE[0])
        if self._actions:
            last = self._actions[-1]
            done = [economy.hours[last], *economy.spending[last]]
            names = ["hours", *(f"good {i}" for i in range(1, goods + 1))]
            limits = np.array([HOURS[-1], *[SPENDING[-1]] * goods])
            self._bars(canvas, 205, "last step", names, np.array(done), limits, "{:.1f}", PALETTE[1])
        return canvas.array()

    @staticmethod
    def _bars(
        canvas: Canvas, top: float, title: str, names: Sequence[str], values: Array, limits: Array, form: str, colour: Any
    ) -> None:
        """Horizontal bars, each on the scale 0 to its limit."""
        canvas.text((505, top - 26 if top < 100 else top - 14), title, anchor="lm")
        height = min(28.0, 112.0 / len(names))
        for i, (name, value, limit) in enumerate(zip(names, values, limits, strict=True)):
            y = top + (i + 0.5) * height
            canvas.text((575, y), name, anchor="rm")
            canvas.rectangle((583, y - height / 3, 700, y + height / 3), (255, 255, 255), (200, 200, 200))
            canvas.rectangle((583, y - height / 3, 583 + 117 * value / limit, y + height / 3), colour, INK)
            canvas.text((706, y), form.format(value), anchor="lm")
