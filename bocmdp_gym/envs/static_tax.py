r"""Static tax problems whose optimum is known in closed form: what tax design is without saving.

*A household* with income m = (1 - tau) w h spends it on goods with shares alpha_i (which sum to 1), prices p_i and VAT t_i, and
so has utility kappa m prod_i (p_i (1 + t_i))^-alpha_i - delta h^2 with kappa = prod_i alpha_i^alpha_i. It works

    h* = kappa (1 - tau) w prod_i (p_i (1 + t_i))^-alpha_i / (2 delta),

and the revenue w h (1 - (1 - tau) sum_i alpha_i / (1 + t_i)) is at most kappa w^2 / (8 delta) for p = 1, reached wherever t is
uniform and (1 - tau) / (1 + t) = 1/2: many rates, one wedge. An entropy-regularised household chooses hours around h* with
variance lambda / (2 delta), symmetrically, so its mean hours and the revenue are those of h* as long as they stay off the ends.

*A linear income tax* t on people of ability w with a constant elasticity e: they earn y at an effort of
(y / w)^(1 + 1/e) / (1 + 1/e), hence y* = w^(1+e) (1 - t)^e. Revenue is largest at t = 1 / (1 + e). With welfare weights g, and
revenue handed back in equal parts, welfare E[g (utility + E[t y])] is largest at

    t = (1 - gbar) / (1 - gbar + e),   gbar = E[g y] / (E[g] E[y]).

(Diamond 1975; Piketty and Saez, Handbook of Public Economics 5, 2013.) Each is one choice: a state, an action, the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_array, check_count, check_distribution, check_number
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.transitions import SuccessorTransitions


def static_household(
    shares: Sequence[float] = (0.6, 0.3, 0.1),
    prices: Sequence[float] = (1.0, 1.0, 1.0),
    wage: float = 1.0,
    labour_cost: float = 0.1,
    tax_upper: Sequence[float] = (1.0, 2.0, 2.0, 2.0),
    levels: int = 401,
) -> TabularBOCMDP:
    """A household chooses its hours, and the leader maximises revenue; x as in `TaxDesign`.

    Args:
        shares: alpha > 0, summing to 1. prices: p > 0. wage: w > 0. labour_cost: delta > 0.
        tax_upper: upper bounds of tau and the t_i.
        levels: hours to choose from, equidistant from 0 to twice what is worked without taxes.

    Raises:
        OptionError: an argument out of range, or lengths that do not fit.
    """
    alpha = check_array("shares", shares, (None,))
    if not (alpha > 0).all() or abs(alpha.sum() - 1.0) > 1e-8:
        raise OptionError(f"shares are {alpha.tolist()}; expected positive numbers that sum to 1.")
    p = check_array("prices", prices, (len(alpha),))
    if not (p > 0).all():
        raise OptionError(f"prices are {p.tolist()}; expected positive numbers, one for each good.")
    w, delta = check_number("wage", wage, above=0.0), check_number("labour_cost", labour_cost, above=0.0)
    upper = check_array("tax_upper", tax_upper, (len(alpha) + 1,))
    if not (upper > 0).all():
        raise OptionError(f"tax_upper is {upper.tolist()}; expected positive bounds: of the income tax, then VAT.")
    value_of_income = float(np.prod((alpha / p) ** alpha))  # kappa prod p^-alpha
    hours = torch.linspace(0.0, value_of_income * w / delta, check_count("levels", levels, 2), dtype=torch.float64)
    weights, bounds = torch.from_numpy(alpha), torch.from_numpy(upper)

    def reward(rates: Tensor) -> Tensor:
        income = (1.0 - rates[0]) * w * hours
        return (value_of_income * income * torch.exp(-weights @ torch.log1p(rates[1:])) - delta * hours**2).reshape(1, 1, -1)

    def revenue(rates: Tensor) -> Tensor:
        kept = (1.0 - rates[0]) * (weights / (1.0 + rates[1:])).sum()
        return (w * hours * (1.0 - kept)).reshape(1, 1, -1)

    return _one_choice(reward, revenue, len(hours), len(upper), lambda x: bounds * torch.sigmoid(x))


def linear_income_tax(
    abilities: Sequence[float] = (1.0, 2.0, 3.0),
    elasticity: float = 0.5,
    welfare_weights: Sequence[float] | None = None,
    probabilities: Sequence[float] | None = None,
    levels: int = 2001,
) -> TabularBOCMDP:
    """People choose their income, and the leader sets t = sigmoid(x), x in R, for revenue or for weighted welfare.

    Args:
        abilities: w > 0, one context each. elasticity: e > 0.
        welfare_weights: g >= 0 (not all 0), one per ability, for welfare with revenue handed back; None for revenue alone.
        probabilities: of the abilities; uniform if None.
        levels: incomes to choose from, equidistant from 0 to 1.25 times what is earned without taxes.

    Raises:
        OptionError: an argument out of range, or lengths that do not fit.
    """
    w = check_array("abilities", abilities, (None,))
    if not (w > 0).all():
        raise OptionError(f"abilities are {w.tolist()}; expected positive numbers.")
    e = check_number("elasticity", elasticity, above=0.0)
    with np.errstate(over="ignore"):
        earned = w ** (1.0 + e)  # without taxes
    if not np.isfinite(earned).all():
        raise OptionError(f"elasticity is {e:g}; expected one at which people of ability {w.max():g} earn a finite income.")
    chances = check_distribution("probabilities", probabilities, len(w))
    share = torch.linspace(0.0, 1.25, check_count("levels", levels, 2), dtype=torch.float64)
    untaxed = torch.from_numpy(earned).reshape(-1, 1, 1)
    income = untaxed * share
    effort = untaxed * share ** (1.0 + 1.0 / e) / (1.0 + 1.0 / e)

    def reward(t: Tensor) -> Tensor:
        return (1.0 - t) * income - effort

    weights, returned = torch.zeros(len(w), 1, 1, dtype=torch.float64), 1.0
    if welfare_weights is not None:
        g = check_array("welfare_weights", welfare_weights, (len(w),))
        if not (g >= 0).all() or not g.any():
            raise OptionError(f"welfare_weights are {g.tolist()}; expected non-negative numbers, not all 0.")
        weights, returned = torch.from_numpy(g).reshape(-1, 1, 1), float(chances @ g)

    def welfare(t: Tensor) -> Tensor:
        return weights * reward(t) + returned * t * income

    return _one_choice(reward, welfare, len(share), 1, torch.sigmoid, chances)


def _one_choice(
    reward: Callable[[Tensor], Tensor],
    leader_reward: Callable[[Tensor], Tensor],
    n_actions: int,
    dim: int,
    parametrization: Callable[[Tensor], Tensor],
    probabilities: npt.ArrayLike | None = None,
) -> TabularBOCMDP:
    """A problem of one state that ends after one action."""
    stay = SuccessorTransitions(np.zeros((1, n_actions, 1), dtype=np.int32), torch.ones(1, n_actions, 1, dtype=torch.float64))
    return TabularBOCMDP(
        reward=reward,
        leader_reward=leader_reward,
        transition=stay,
        initial=torch.ones(1, dtype=torch.float64),
        termination=torch.ones(1, 1, 1, dtype=torch.float64),
        discount=0.9,
        leader_dim=dim,
        context_probabilities=probabilities,
        parametrization=parametrization,
    )
