r"""How far a policy is from the follower's optimum.

The mathematics. Per context, with pi* and V* the regularised optimum at x, d^pi = M_pi^-T mu the discounted visitation and
<y>_pi = sum_s d^pi(s) y(s) / sum_s d^pi(s) the mean over what a policy visits:

    delta               max_{s,a} |pi(a|s) - pi*(a|s)|                     (Assumption 2.4)
    value gap           sum_s mu(s) (V*(s) - V^pi(s)) = sum_s d^pi(s) lambda KL(pi(.|s), pi*(.|s)) >= 0
    total variation     <1/2 sum_a |pi - pi*|>_{pi*}
    entropy             <H(pi)>_pi, and <H(pi*)>_{pi*} of the optimum

Of a population, whose classes of mass m_xi play pi_xi at loads rho, the *exploitability* is the mean value gap of its followers,

    sum_xi m_xi sum_s mu_xi(s) (V*_xi(s; rho) - V^pi_xi(s; rho)) / sum_xi m_xi >= 0,

what each could gain on average by answering the loads at best, all others staying as they are. Where the policies make just these
loads, it is 0 at an equilibrium, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym import PopulationBOCMDP, TabularBOCMDP
from bocmdp_gym.action_mask import check_exist
from bocmdp_gym.arguments import Constructed, known_options
from bocmdp_gym.errors import ContextError, ConvergenceError, LeaderParameterError, ModelError
from bocmdp_gym.mdps import ConfiguredMDPs
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.options import as_array, check_instance, check_regularization
from followers.evaluation import entropy, policy_values, visitation
from followers.linear_programming import plain_optimum
from followers.policies import Array, TabularPolicy


@dataclass(frozen=True)
class Suboptimality(Constructed):
    """Distances of a policy from the follower's optimum (definitions in the module docstring).

    Attributes:
        delta: the largest over contexts of the max-norm policy gap, delta of Assumption 2.4.
        value_gap: V* - V^pi, regularised, averaged over starts and, by P_xi, over the contexts measured.
        total_variation: weighted by the optimum's discounted visitation, averaged over contexts.
        entropy: of the policy, weighted by its own discounted visitation, averaged over contexts.
        optimal_entropy: the same of the optimum.
        contexts: the contexts measured ``(C',)``.
        deltas, value_gaps: delta and value gap of each of them ``(C',)``.
    """

    delta: float
    value_gap: float
    total_variation: float
    entropy: float
    optimal_entropy: float
    contexts: tuple[int, ...]
    deltas: tuple[float, ...]
    value_gaps: tuple[float, ...]


@known_options()
def suboptimality(
    model: TabularBOCMDP | ConfiguredMDPs,
    policy: TabularPolicy | Tensor | npt.ArrayLike,
    x: Any,
    regularization: float,
    *,
    solver: WarmSolver | None = None,
) -> Suboptimality:
    """Measure a policy against the regularised optimum at x.

    Args:
        model: the problem; or its arrays at x, where they are at hand.
        policy: a `TabularPolicy`, measured in its own context, or a table for every context ``(C, S, A)``.
        x: the leader parameter ``(d,)``.
        regularization: lambda > 0 of the objective that is to be maximised.
        solver: keeps warm starts between calls.

    Raises:
        ModelError: a table of another shape, or whose rows are no distributions.
        LeaderParameterError, RegularizationError, ConvergenceError: as `TabularBOCMDP.solve`.
    """
    lam = check_regularization(regularization)
    if not isinstance(model, ConfiguredMDPs):
        check_instance("model", model, TabularBOCMDP)
        model = model.configure(x)
    mdps = model
    if mdps.x.ndim != 1:
        raise LeaderParameterError(f"leader parameter has shape {tuple(mdps.x.shape)}; expected one x, (d,).")
    if solver is not None:
        check_instance("solver", solver, WarmSolver)
    solver = WarmSolver() if solver is None else solver
    contexts, tables = _tables(mdps, policy)
    rows = np.array([_measure(mdps, c, t, lam, solver) for c, t in zip(contexts, tables, strict=True)])
    weights = mdps.model.context_probabilities[list(contexts)]
    weights = weights / weights.sum() if weights.sum() > 0.0 else np.full(len(weights), 1.0 / len(weights))
    _, value_gap, variation, own, optimal = (float(v) for v in weights @ rows)
    return Suboptimality(
        delta=float(rows[:, 0].max()),
        value_gap=value_gap,
        total_variation=variation,
        entropy=own,
        optimal_entropy=optimal,
        contexts=tuple(contexts),
        deltas=tuple(rows[:, 0].tolist()),
        value_gaps=tuple(rows[:, 1].tolist()),
    )


@known_options()
def exploitability(
    population: PopulationBOCMDP, policies: Tensor | npt.ArrayLike, x: Any, loads: Any, regularization: float | None
) -> float:
    """What followers of a population could gain on average by the best answer to its loads (module docstring).

    Args:
        population: who meets.
        policies: of the classes, ``(C, S, A)``.
        x: the leader parameter ``(d,)``.
        loads: that the policies make ``(K,)``.
        regularization: lambda, in whose values gains are counted; None: in plain ones.

    Raises:
        ModelError: policies of another shape, or whose rows are no distributions.
        LeaderParameterError, OptionError: x or loads of another shape, or not finite.
        RegularizationError, ConvergenceError: as `TabularBOCMDP.solve`; and policies that never end their episodes, of which
            there are no values.
    """
    check_instance("population", population, PopulationBOCMDP)
    point = population.point(x, loads)
    mdps = population.problem.configure(point)
    if regularization is not None:
        gain = suboptimality(mdps, policies, point, regularization).value_gap
    else:
        gaps = []
        for context, table in zip(*_tables(mdps, policies), strict=True):
            arrays = mdps.arrays(context)
            gaps.append(arrays.initial @ (plain_optimum(arrays)[1] - policy_values(arrays, table, 0.0).value))
        gain = float(mdps.model.context_probabilities @ np.array(gaps))
    if not np.isfinite(gain):
        raise ConvergenceError(
            "a class of the population never ends its episodes under its policy, so that it has no values; expected policies "
            "that end from wherever they come. Let followers learn longer, or for more rounds, or choose at random among good "
            "actions (a softmax of their values)."
        )
    return max(0.0, gain)


def _measure(mdps: ConfiguredMDPs, context: int, table: Array, lam: float, solver: WarmSolver) -> tuple[float, ...]:
    """Policy gap, value gap, total variation, entropy and the optimum's entropy in one context."""
    arrays = mdps.arrays(context)
    optimum = solver.solve(mdps, context, lam)
    difference = np.abs(table - optimum.policy)
    own, optimal = entropy(table), entropy(optimum.policy)
    if arrays.action_mask is not None:
        check_exist(table, arrays.action_mask, f" in context {context}")
    q = np.where(table > 0.0, optimum.q, 0.0)
    divergence = optimum.value - (table * q).sum(-1) - lam * own  # lambda KL(pi, pi*), without dividing by pi*
    visits, optimal_visits = visitation(arrays, table), visitation(arrays, optimum.policy)
    return (
        float(difference.max()),
        float(visits @ divergence),
        float(optimal_visits @ difference.sum(-1) / (2.0 * optimal_visits.sum())),
        float(visits @ own / visits.sum()),
        float(optimal_visits @ optimal / optimal_visits.sum()),
    )


def _tables(mdps: ConfiguredMDPs, policy: TabularPolicy | Tensor | npt.ArrayLike) -> tuple[list[int], Array]:
    """Contexts, and a checked table for each."""
    model = mdps.model
    if isinstance(policy, TabularPolicy):
        if not 0 <= policy.context < model.n_contexts:
            raise ContextError(f"the policy answers context {policy.context}; expected one in 0..{model.n_contexts - 1}.")
        contexts, tables, expected = [policy.context], policy.table[None], (1, model.n_states, model.n_actions)
    else:
        given = as_array(policy)
        if given is None:
            raise ModelError(f"the policy is {policy!r}; expected a TabularPolicy, or probabilities (C, S, A).")
        tables = given
        contexts, expected = list(range(model.n_contexts)), (model.n_contexts, model.n_states, model.n_actions)
    if tables.shape != expected:
        raise ModelError(f"the policy has shape {tables.shape}; expected {expected}, (contexts, states, actions).")
    bad = ~((tables >= 0.0).all(-1) & (np.abs(tables.sum(-1) - 1.0) <= 1e-6))
    if bad.any():
        c, s = (int(i) for i in np.argwhere(bad)[0])
        raise ModelError(
            f"the policy's probabilities at state {s}, context {contexts[c]} are {tables[c, s]}; expected a distribution."
        )
    return contexts, tables
