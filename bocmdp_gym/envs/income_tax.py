r"""An income tax with brackets, and people who choose how long to work (`bocmdp_gym.income_tax` has the mathematics)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import parameters_of
from bocmdp_gym.benchmark import Benchmark, at_defaults
from bocmdp_gym.envs.income_tax_picture import draw_picture, draw_result
from bocmdp_gym.envs.population_env import PopulationEnv
from bocmdp_gym.errors import ConvergenceError, OptionError
from bocmdp_gym.income_tax import US_BRACKETS, IncomeTaxation, Objective, Taxation, pareto_skills
from bocmdp_gym.options import check_regularization
from bocmdp_gym.population import AmongOthers
from bocmdp_gym.tabular_env import TabularVectorEnv
from bocmdp_gym.validation import check_leader

#: The best rates known at the default settings, by objective.
BEST_KNOWN: dict[str, tuple[float, ...]] = {
    "welfare": (0.0, 0.4122, 0.7093, 0.6103, 0.6969, 0.7408, 0.7368),
    "equality_times_productivity": (0.0, 0.0, 0.7321, 0.7837, 0.7205, 0.7779, 0.7644),
    "rawls": (0.0, 0.6379, 0.7627, 0.6076, 0.7079, 0.752, 0.7413),
    "revenue": (0.95, 0.6955, 0.7653, 0.6072, 0.7089, 0.7521, 0.7415),
}


class IncomeTax(PopulationEnv):
    r"""An income tax with brackets: people of different skills choose their hours, and all of them share what is collected.

    ## Description
    A person works some hours, pays income tax by the marginal rates of the brackets that the income reaches, and receives the
    revenue per head. As all people's taxes make that rebate, and the rebate their hours, they are a population at an equilibrium
    (`bocmdp_gym.PopulationBOCMDP`), solved exactly for every x. The leader sets the rates, for welfare, for equality and
    productivity, for the poorest, or for revenue. An episode is one person's choice. `free_market`, `us_federal` and `saez` are
    rates to compare with.

    ## Leader parameter
    x: the marginal rates of the brackets, within ``rate_bounds``. `initial_leader` is no taxes, or the least.

    ## Context
    ``Discrete(number of skills)``: what a full-time job pays the person; with the shares of the people.

    ## Action space
    ``Discrete(levels)``: hours, action a is (a + 1) / levels of 1.25 times what the person would work without taxes.

    ## Observation space
    ``Discrete(1)``: nothing. The skill is not observed.

    ## Rewards
    Follower: the utility of its consumption, income minus tax plus rebate, less that of its hours. Leader: its objective, in
    utility or in mean skills per head; in every context the same, as it is that of all people together. ``info`` has ``hours``
    (1: full time), ``income``, ``tax`` and ``consumption`` (not in the compiled vector environment).

    ## Episode start and end
    One choice, after which the episode terminates.

    ## Arguments
    skills: what a full-time job pays, > 0, one number per context, in the unit of the brackets; None: a Pareto distribution.
    shares: of the people with each skill; None: all the same, or those of the Pareto distribution.
    n_skills: how many skills the Pareto distribution is cut into.
    pareto_exponent: of the distribution, above 1; the smaller, the more unequal.
    least_skill: where the distribution begins.
    seed: of skills drawn from the distribution, with equal shares; None: the means of its lower half, of half of the rest, ...
    brackets: where they begin, 0 first; those of the United States in 2018 for single filers, USD.
    objective: "welfare" (utilities weighted by the inverse of the skill), "equality_times_productivity" (1 minus the Gini
    coefficient, times mean income), "rawls" (the least utility) or "revenue".
    welfare_weights: of one person of each skill, in place of the inverse of the skill.
    elasticity: of hours, > 0: of income with respect to what is left of its last unit, where risk_aversion is 0.
    risk_aversion: of the isoelastic utility of consumption, >= 0; 0: quasi-linear utility, so that the rebate moves nobody.
    levels: hours to choose from.
    rate_bounds: the least and the largest rate, in [0, 1).
    regularization: the people's lambda, everybody's: a follower that has one must have this one.
    horizon: steps until truncation; episodes end after one.
    discount: of what follows the choice, which is nothing: any in [0, 1] will do.
    leader_discount: the same for the leader; None: discount.
    render_mode: "rgb_array" or "human".

    Raises:
        OptionError, DiscountError, RegularizationError: an argument out of range.

    ## Version history
    v0: first version.

    References: Zheng et al., "The AI Economist", Science Advances 8, 2022; Saez, "Using elasticities to derive optimal income tax
    rates", Review of Economic Studies 68, 2001.
    """

    def __init__(
        self,
        skills: Sequence[float] | None = None,
        shares: Sequence[float] | None = None,
        n_skills: int = 10,
        pareto_exponent: float = 2.0,
        least_skill: float = 20_000.0,
        seed: int | None = None,
        brackets: Sequence[float] = US_BRACKETS,
        objective: Objective = "welfare",
        welfare_weights: Sequence[float] | None = None,
        elasticity: float = 0.25,
        risk_aversion: float = 0.23,
        levels: int = 50,
        rate_bounds: Sequence[float] = (0.0, 0.95),
        regularization: float = 0.01,
        horizon: int = 1,
        discount: float = 1.0,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        given = locals()
        free = ("objective", "horizon", "discount", "leader_discount", "render_mode")
        settings = {parameter.name: given[parameter.name] for parameter in parameters_of(IncomeTax) if parameter.name not in free}
        self._at_defaults = at_defaults(IncomeTax, settings)
        drawn = pareto_skills(n_skills, pareto_exponent, least_skill, seed)
        if skills is not None and seed is not None:
            raise OptionError(f"seed is {seed}, but skills are given; expected one of them.")
        chosen, held = drawn if skills is None else (skills, None)
        population = IncomeTaxation(
            chosen,
            held if shares is None else shares,
            brackets,
            objective,
            welfare_weights,
            elasticity,
            risk_aversion,
            levels,
            rate_bounds,
            discount,
        )
        super().__init__(AmongOthers(population, check_regularization(regularization), leader_discount), horizon, render_mode)

    def taxation(self, x: npt.ArrayLike) -> Taxation:
        """What all people do under rates x ``(J,)``: incomes, taxes, consumption, and what becomes of equality and welfare.

        Raises:
            LeaderParameterError: another shape, or a rate out of bounds.
        """
        return self.population.taxation(check_leader(x, self.leader_space), self.regularization)

    def free_market(self) -> npt.NDArray[np.float64]:
        """No taxes ``(J,)``, or the least there may be."""
        return self.population.free_market()

    def us_federal(self) -> npt.NDArray[np.float64]:
        """The United States' rates of 2018 ``(J,)`` (`IncomeTaxation.us_federal`)."""
        return self.population.us_federal(self.regularization)

    def saez(self) -> npt.NDArray[np.float64]:
        """The rates of Saez's formula ``(J,)``, with elasticities and weights estimated at them (`IncomeTaxation.saez`).

        Raises:
            ConvergenceError: no rates that satisfy it were found.
        """
        return self.population.saez(self.regularization)

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The best rates known for the objective; None at other settings than the defaults, or another lambda."""
        if not self._at_defaults or regularization not in (None, self.regularization):
            return None
        x = np.array(BEST_KNOWN[self.population.kind])
        return Benchmark(
            value=float(self.population.leader_return(x, self.regularization)),
            objective=f"{self.population.kind.replace('_', ' ')}, maximised",
            source="best of 13 exact gradient ascents, benchmarks/income_tax.py",
            regularization=self.regularization,
            is_optimum=False,
            x=x,
        )

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Work. ``info`` has ``hours``, ``income``, ``tax`` and ``consumption``, and what `TabularEnv.step` has.

        Raises:
            ActionError, ResetError: as `TabularEnv.step`.
        """
        observation, reward, terminated, truncated, info = super().step(action)
        people, taxation, chosen = self.population, self._in_force(), (info["context"], int(action))
        income = float(people.incomes[chosen])
        tax = float(people.slices[chosen] @ taxation.rates)
        self._income = income
        info |= {"hours": float(people.hours[chosen]), "income": income, "tax": tax}
        info["consumption"] = income - tax + taxation.rebate
        return observation, reward, terminated, truncated, info

    _income: float | None = None

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        self._income = None
        return super()._reset(state)

    def _met(self, x: npt.NDArray[np.float64]) -> Taxation:
        return self.taxation(x)

    def picture(self) -> npt.NDArray[np.uint8]:
        """Marginal rates by income, with the incomes of all skills and of the person; Lorenz curves of income and consumption."""
        return draw_picture(self.population, self._in_force(), self._episode_context, self._income)

    result_name = "income_tax"

    def result_figure(self, x: npt.ArrayLike, policies: npt.NDArray[np.float64]) -> Any:
        """A matplotlib figure: marginal rates beside the baselines', what each skill has, and the Lorenz curves."""
        del policies
        baselines = {"US federal, 2018": self.us_federal()}
        with suppress(ConvergenceError):  # the figure is about x
            baselines["Saez"] = self.saez()
        return draw_result(self.population, self.taxation(self.free_market()), self.taxation(x), baselines)


def income_tax_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> TabularVectorEnv:
    """Many copies of `IncomeTax` in one compiled environment; keywords as for `IncomeTax`."""
    return TabularVectorEnv(IncomeTax(**kwargs), num_envs, autoreset_mode)
