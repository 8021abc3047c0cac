r"""People under an income tax with brackets, as a population: the model of `bocmdp/IncomeTax-v0`.

The mathematics. People of skill w_i, a share m_i of all (sum m = 1), work l hours (1: full time), earn z = w_i l and pay

    T(z) = sum_j t_j min(max(z - b_j, 0), b_{j+1} - b_j),          0 = b_1 < b_2 < ... < b_J,  b_{J+1} infinite,

t_j the marginal rates, which are x. What is collected is handed back, the same R = E T(z) to everybody, so that they consume
c = z - T(z) + R. With wbar the mean skill, eta the risk aversion and e the elasticity, they choose hours by the utility

    u = ((c / wbar)^(1 - eta) - 1) / (1 - eta) - l^(1 + 1/e) / (1 + 1/e)          (eta = 1: log(c / wbar) instead).

It is isoelastic in consumption; eta = 0 is quasi-linear, where z = w (w (1 - t) / wbar)^e under a flat tax t: e is the
elasticity of income with respect to 1 - t, and the rebate moves nobody. For eta > 0 the rebate makes people work less: their
answers depend on what all others pay. So they are a population (`bocmdp_gym.population`) that meets through its own distribution,

    rho_{i,a} = m_i pi_i(a),          R = sum_{i,a} rho_{i,a} T(z_{i,a}),

and every aggregate is a function of (x, rho, V), V_i the value of skill i, worth of variety included. The leader maximises one of

    welfare                       sum_i m_i g_i V_i / sum_i m_i g_i,  g_i = 1 / w_i, the inverse of full-time pay, or as given
    equality_times_productivity   (1 - G n / (n - 1)) E z / wbar,  G the Gini coefficient of mean consumption across n skills
    rawls                         min_i V_i
    revenue                       R / wbar

(Zheng et al., "The AI Economist", 2022; there the welfare weights are the inverse of the incomes in force, so that they move with
the taxes; here they are fixed, so that the optimum is efficient and Saez's formula holds at it.) The best tax is a trade-off that
`IncomeTaxation.saez` states in a formula, up to its approximations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.equilibrium import Equilibrium
from bocmdp_gym.errors import ConvergenceError, OptionError
from bocmdp_gym.inequality import equality, gini
from bocmdp_gym.options import check_array, check_choice, check_count, check_distribution, check_number
from bocmdp_gym.population import PopulationBOCMDP

Array = npt.NDArray[np.float64]
Objective = Literal["welfare", "equality_times_productivity", "rawls", "revenue"]
OBJECTIVES = ("welfare", "equality_times_productivity", "rawls", "revenue")
#: The federal income tax of the United States in 2018 for single filers: where brackets begin, USD, and their marginal rates.
US_BRACKETS = (0.0, 9_525.0, 38_700.0, 82_500.0, 157_500.0, 200_000.0, 500_000.0)
US_RATES = (0.10, 0.12, 0.22, 0.24, 0.32, 0.35, 0.37)
#: The longest hours, over those without taxes.
_LONGEST = 1.25
_ROUNDS, _CHANGE, _ACCEPTED = 500, 1e-7, 0.01  # of the iteration for Saez's formula
_NOTHING = 1e-6  # a gain, over all income, that is rounding


@dataclass(frozen=True)
class Taxation(Constructed):
    """What happens under some rates. Money is in the unit of the skills.

    Attributes:
        equilibrium: the people's (`bocmdp_gym.Equilibrium`).
        rates: ``(J,)``.
        hours, incomes, taxes, consumption: means of each skill ``(C,)``; consumption is income minus tax plus rebate.
        utilities: V of each skill ``(C,)``.
        rebate: R, the revenue per head.
        productivity: mean income.
        gini_incomes, gini: Gini coefficients of mean incomes and of mean consumption across skills.
        equality: 1 - gini n / (n - 1).
        welfare: sum of the utilities with the welfare weights.
    """

    equilibrium: Equilibrium
    rates: Array
    hours: Array
    incomes: Array
    taxes: Array
    consumption: Array
    utilities: Array
    rebate: float
    productivity: float
    gini_incomes: float
    gini: float
    equality: float
    welfare: float


class IncomeTaxation(PopulationBOCMDP):
    """People of different skills, and a leader who sets the marginal rates of an income tax.

    Args:
        skills: what a full-time job pays, > 0, one number per class ``(C,)``.
        shares: of the people, > 0; all the same if None.
        brackets: where they begin ``(J,)``, in the unit of the skills: 0 first, then increasing.
        objective: "welfare", "equality_times_productivity", "rawls" or "revenue".
        welfare_weights: g >= 0 of one person of each skill ``(C,)``, not all 0; None: 1 / skill.
        elasticity: e > 0.
        risk_aversion: eta >= 0; 0: quasi-linear.
        levels: hours to choose from: action a is (a + 1) / levels of 1.25 times the hours without taxes.
        rate_bounds: least and largest rate, in [0, 1).
        discount: of what follows the choice, which is nothing.

    Raises:
        OptionError, DiscountError: an argument out of range, or lengths that do not fit.

    Attributes:
        skills, shares, brackets, elasticity, risk_aversion: as given.
        mean_skill: wbar.
        hours, incomes: of every skill and action ``(C, A)``.
        slices: the part of an income that is in each bracket ``(C, A, J)``.
        weights: the welfare weights of classes, m g, which sum to 1 ``(C,)``.
    """

    def __init__(
        self,
        skills: Sequence[float] | Array,
        shares: Sequence[float] | Array | None = None,
        brackets: Sequence[float] = US_BRACKETS,
        objective: Objective = "welfare",
        welfare_weights: Sequence[float] | None = None,
        elasticity: float = 0.25,
        risk_aversion: float = 0.23,
        levels: int = 50,
        rate_bounds: Sequence[float] = (0.0, 0.95),
        discount: float = 1.0,
    ):
        self.skills = _check_positive("skills", check_array("skills", skills, (None,)))
        n = len(self.skills)
        self.shares = _check_positive("shares", check_distribution("shares", shares, n))
        self.brackets = _check_brackets(brackets)
        self.kind = check_choice("objective", objective, OBJECTIVES)
        self.elasticity = e = check_number("elasticity", elasticity, above=0.0)
        self.risk_aversion = eta = check_number("risk_aversion", risk_aversion, 0.0)
        self.rate_bounds = low, high = _check_bounds(rate_bounds)
        given = 1.0 / self.skills if welfare_weights is None else check_array("welfare_weights", welfare_weights, (n,))
        if (given < 0.0).any() or not given.any():
            raise OptionError(f"welfare_weights are {given.tolist()}; expected non-negative numbers, not all 0.")
        self.weights: Array = self.shares * given / (self.shares @ given)
        self.mean_skill = float(self.shares @ self.skills)
        steps = check_count("levels", levels, 2)
        relative = self.skills / self.mean_skill
        with np.errstate(over="ignore", under="ignore"):
            untaxed = relative ** ((1.0 - eta) / (eta + 1.0 / e))
            self.hours: Array = untaxed[:, None] * np.linspace(_LONGEST / steps, _LONGEST, steps)
            effort = self.hours ** (1.0 + 1.0 / e) / (1.0 + 1.0 / e)
        if not (np.isfinite(effort).all() and (untaxed > 0.0).all()):
            raise OptionError(
                f"elasticity is {e:g}; expected one at which skills from {relative.min():.3g} to {relative.max():.3g} times the "
                "mean work hours above 0 that are finite."
            )
        self.incomes: Array = self.skills[:, None] * self.hours
        widths = np.diff(self.brackets, append=np.inf)
        self.slices: Array = np.clip(self.incomes[..., None] - self.brackets, 0.0, widths)
        self._slices, self._incomes = torch.from_numpy(self.slices), torch.from_numpy(self.incomes)
        self._effort, self._weights = torch.from_numpy(effort), torch.from_numpy(self.weights)
        d, pairs = len(self.brackets), n * steps
        super().__init__(
            reward=lambda x, loads: (self.utility(self.consumption(x, loads)) - self._effort).unsqueeze(1),
            load=sparse.eye_array(pairs, format="csr"),
            mass=self.shares,
            objective=self._objective_of,
            transition=np.ones((1, 1, steps, 1)),
            initial=np.ones((1, 1)),
            termination=np.ones((1, 1, steps)),
            discount=discount,
            leader_dim=d,
            leader_space=gym.spaces.Box(low, high, (d,), np.float64),
        )

    def taxes(self, x: Tensor) -> Tensor:
        """T of every skill and action ``(C, A)``."""
        return self._slices @ x

    def rebate(self, x: Tensor, loads: Tensor) -> Tensor:
        """R."""
        return (loads * self.taxes(x).reshape(-1)).sum()

    def consumption(self, x: Tensor, loads: Tensor) -> Tensor:
        """c of every skill and action ``(C, A)``."""
        return self._incomes - self.taxes(x) + self.rebate(x, loads)

    def utility(self, consumption: Tensor) -> Tensor:
        """Of consumption alone, in its shape."""
        relative, power = consumption / self.mean_skill, 1.0 - self.risk_aversion
        return relative.log() if power == 0.0 else (relative**power - 1.0) / power

    def means(self, loads: Tensor, of: Tensor) -> Tensor:
        """Means of each skill ``(C,)`` of something ``(C, A)`` at loads rho."""
        return (loads.reshape(self.hours.shape) * of).sum(1) / torch.from_numpy(self.shares)

    def _objective_of(self, x: Tensor, loads: Tensor, values: Tensor) -> Tensor:
        if self.kind == "welfare":
            return (self._weights * values[:, 0]).sum()
        if self.kind == "rawls":
            return values.min()
        if self.kind == "revenue":
            return self.rebate(x, loads) / self.mean_skill
        productivity = (loads * self._incomes.reshape(-1)).sum() / self.mean_skill
        return equality(self.means(loads, self.consumption(x, loads)), self.shares) * productivity

    def taxation(self, x: Any, regularization: float, **options: Any) -> Taxation:
        """What people do under rates x ``(J,)``; options go to `equilibrium`.

        Raises:
            As `equilibrium`.
        """
        point = self._check_leader(x).detach()
        found = self.equilibrium(point, regularization, **options)
        taxes = self.taxes(point)
        parts = (torch.from_numpy(self.hours), self._incomes, taxes, self.consumption(point, found.loads))
        hours, incomes, paid, consumption = (self.means(found.loads, part).numpy() for part in parts)
        utilities = found.value[:, 0].numpy()
        return Taxation(
            equilibrium=found,
            rates=point.numpy().copy(),
            hours=hours,
            incomes=incomes,
            taxes=paid,
            consumption=consumption,
            utilities=utilities,
            rebate=float(self.rebate(point, found.loads)),
            productivity=float(self.shares @ incomes),
            gini_incomes=gini(incomes, self.shares),
            gini=gini(consumption, self.shares),
            equality=equality(consumption, self.shares),
            welfare=float(self.weights @ utilities),
        )

    # ---------------------------------------------------------------------------------------------------- baselines

    def free_market(self) -> Array:
        """No taxes, or the least there may be ``(J,)``."""
        return np.full(len(self.brackets), self.rate_bounds[0])

    def us_federal(self, regularization: float) -> Array:
        """The United States' rates of 2018 ``(J,)``, within the bounds; skills are then in USD.

        In other brackets, the mean federal rate on the income that is in them at no taxes.
        """
        loads = self.equilibrium(self.free_market(), regularization).loads.numpy().reshape(self.hours.shape)
        federal, rates = np.array(US_BRACKETS), np.array(US_RATES)
        widths = np.diff(federal, append=np.inf)
        upper = np.append(self.brackets[1:], np.inf)
        found = rates[np.searchsorted(federal, self.brackets, side="right") - 1]
        for j, (start, end) in enumerate(zip(self.brackets, upper, strict=True)):
            ends = np.clip(self.incomes, start, end)[..., None]
            paid = (np.clip(ends - federal, 0.0, widths) - np.clip(start - federal, 0.0, widths)) @ rates
            base = float((loads * self.slices[..., j]).sum())
            if base > 0.0:
                found[j] = (loads * paid).sum() / base
        clipped: Array = np.clip(found, *self.rate_bounds)
        return clipped

    def saez(self, regularization: float) -> Array:
        """The rates that satisfy Saez's formula ``(J,)``, with what it needs estimated at these very rates, within the bounds.

        A little more tax in bracket j takes B_j = E[slice_j] from the people, whose worth to the leader is gbar_j B_j, and
        changes all incomes together by dZ/dt_j = -e_j Z_j / (1 - t_j), Z_j the income of those whose last unit is in the
        bracket: this defines its elasticity e_j. With t_j lost on each unit of it,

            t_j / (1 - t_j) = (1 - gbar_j) B_j / (e_j Z_j),

        in the top bracket t = (1 - gbar) / (1 - gbar + a e) with a = Z / B, Pareto's exponent; 1 / (1 + a e) for the largest
        revenue. The weights g_i are what one more unit of consumption of skill i is worth, over its mean across people: welfare
        weights times marginal utilities; those of the poorest alone for "rawls"; 0 for "revenue". For
        "equality_times_productivity", which is no sum of utilities, they are those of "welfare". A rate that changes nothing is
        the least: that of a bracket which nobody reaches, or everybody fills, and then gets back what it takes.

        The formula takes it that nobody's answer in one bracket is taxed at another's rate.

        Raises:
            As `equilibrium`. ConvergenceError: iteration with falling steps finds no rates that satisfy it to 0.01, as where
                incomes jump between brackets.

        Reference: Saez, "Using elasticities to derive optimal income tax rates", Review of Economic Studies 68, 2001.
        """
        rates, change = self.free_market(), np.inf
        for n in range(_ROUNDS):
            wanted = self._saez_step(rates, regularization)
            change, step = float(np.abs(wanted - rates).max()), 0.5 / (1.0 + max(0, n - 50) / 5.0)
            if step * change < _CHANGE:
                break
            rates = rates + step * (wanted - rates)
        if change > _ACCEPTED:
            raise ConvergenceError(
                f"Saez's formula still asks for a change of a rate by {change:.2g} after {_ROUNDS} rounds; raise "
                "regularization, so that incomes do not jump between brackets."
            )
        return rates

    def _saez_step(self, rates: Array, regularization: float) -> Array:
        x = torch.tensor(rates, requires_grad=True)
        found = self.equilibrium(x, regularization)
        (response,) = torch.autograd.grad((found.loads * self._incomes.reshape(-1)).sum(), x)
        loads = found.loads.detach().numpy().reshape(self.hours.shape)
        marginal = (self.consumption(x, found.loads).detach().numpy() / self.mean_skill) ** -self.risk_aversion
        if self.kind == "revenue":
            per_person = np.zeros(len(self.skills))
        elif self.kind == "rawls":
            per_person = np.eye(len(self.skills))[int(found.value.detach()[:, 0].argmin())] / self.shares
        else:
            per_person = self.weights / self.shares
        worth = loads * marginal * per_person[:, None]
        worth /= max(worth.sum(), 1e-300)
        base = np.einsum("ca,caj->j", loads, self.slices)
        gain = base - np.einsum("ca,caj->j", worth, self.slices)
        lost = np.maximum(-response.numpy() * (1.0 - rates), 0.0)  # e_j Z_j
        wanted = np.where(gain > _NOTHING * base.sum(), gain / np.maximum(gain + lost, 1e-300), 0.0)
        clipped: Array = np.clip(wanted, *self.rate_bounds)
        return clipped


def pareto_skills(n: int, exponent: float, least: float, seed: int | None = None) -> tuple[Array, Array]:
    """Skills and shares ``(n,)`` of people whose skills are Pareto: P(w > v) = (least / v)^exponent.

    Without a seed, classes are the lower half of all, half of the rest, and so on, each with its mean skill, the last one with
    the whole tail: a few classes reach far up. With a seed, n skills are drawn, and shares are the same.

    Args:
        n: number of classes.
        exponent: a > 1.
        least: the least skill, > 0.
        seed: of the draws; None: no draws.

    Raises:
        OptionError: a value out of range.
    """
    n = check_count("n_skills", n, maximum=1000)
    a, least = check_number("pareto_exponent", exponent, above=1.0), check_number("least_skill", least, above=0.0)
    if seed is not None:
        draws = np.random.default_rng(check_count("seed", seed, 0)).random(n)
        return np.sort(least * (1.0 - draws) ** (-1.0 / a)), np.full(n, 1.0 / n)
    above = np.append(0.5 ** np.arange(n), 0.0)  # the share of people above each edge
    shares = above[:-1] - above[1:]
    totals = least * a / (a - 1.0) * above ** (1.0 - 1.0 / a)
    return (totals[:-1] - totals[1:]) / shares, shares


def _check_positive(name: str, values: Array) -> Array:
    wrong = np.flatnonzero(values <= 0.0)
    if wrong.size:
        raise OptionError(f"{name} is {values[wrong[0]]} at {[int(wrong[0])]}; expected positive numbers.")
    return values


def _check_brackets(brackets: Any) -> Array:
    """Where brackets begin.

    Raises:
        OptionError: they do not begin at 0, or do not increase.
    """
    array = check_array("brackets", brackets, (None,))
    if array[0] != 0.0:
        raise OptionError(f"brackets begin at {array[0]}; expected 0 first: every income is in a bracket.")
    wrong = np.flatnonzero(np.diff(array) <= 0.0)
    if wrong.size:
        j = int(wrong[0])
        raise OptionError(
            f"brackets is {array[j + 1]} at [{j + 1}], after {array[j]}; expected increasing numbers: where each bracket begins."
        )
    return array


def _check_bounds(bounds: Any) -> tuple[float, float]:
    """Least and largest rate.

    Raises:
        OptionError: not increasing within [0, 1).
    """
    low, high = check_array("rate_bounds", bounds, (2,))
    if not 0.0 <= low < high < 1.0:
        raise OptionError(
            f"rate_bounds is {(float(low), float(high))}; expected a least and a larger rate in [0, 1): a rate of 1 "
            "leaves nothing of what is earned, and negative ones could leave somebody without anything to consume."
        )
    return float(low), float(high)
