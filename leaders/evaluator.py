"""`Evaluator`: the leader's exact value at an x, whatever the follower has learnt so far."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.losses import evaluate_loss
from bocmdp_gym.optimum import WarmSolver
from followers import Policy, TrajectoryOracle, suboptimality
from leaders.coupling import Coupling
from leaders.gradients import Loss
from leaders.gradients.exact import policy_return

Array = npt.NDArray[np.float64]


class Evaluator:
    """Exact E_xi of the leader's return (or another objective; or E_xi of minus a loss) under the follower's optimum.

    The follower itself is not touched.

    The same optimum says how far the follower's own policy is from it.

    Args:
        oracle: of a problem with exact returns (`bocmdp_gym.BOCMDP.exact_returns`).
        regularization: lambda.
        loss: a function f(x, policy (S, A), context); None: the leader's return.
        coupling: the objective of the contexts' returns; None: their mean.
    """

    def __init__(
        self, oracle: TrajectoryOracle, regularization: float, loss: Loss | None = None, coupling: Coupling | None = None
    ):
        self._oracle, self._regularization, self._loss, self._coupling = oracle, regularization, loss, coupling
        self._solver = WarmSolver()

    def __call__(self, x: Tensor) -> float:
        return self.combined(self.values(x))

    def values(self, x: Tensor) -> Array:
        """The leader's return (or minus the loss) in every context ``(C,)``."""
        model = self._oracle.model
        if not isinstance(model, TabularBOCMDP):
            assert model is not None
            share = self._oracle.layers.share
            return np.array(
                [
                    float(model.context_return(x.detach(), self._regularization, context, leader_share=share))
                    for context in range(len(self._oracle.core.context_probabilities))
                ]
            )
        mdps = self._oracle.configure(x)
        values = np.empty(mdps.model.n_contexts)
        for context in range(len(values)):
            policy = self._solver.solve(mdps, context, self._regularization).policy
            if self._loss is None:
                values[context] = policy_return(mdps.arrays(context), policy)
            else:
                values[context] = -float(evaluate_loss(self._loss, x.detach(), torch.from_numpy(policy), context))
        return values

    def combined(self, values: Array) -> float:
        """The objective of `values`."""
        if self._coupling is not None:
            return self._coupling.value(self._coupling.possible(values))
        total = 0.0
        for probability, value in zip(self._oracle.core.context_probabilities, values, strict=True):
            total += probability * value
        return total

    def suboptimality(self, policy: Policy, regularization: float | None = None) -> dict[str, float]:
        """The columns that say how far a response is from the follower's optimum; none where it exposes no probabilities.

        Args:
            policy: the response.
            regularization: the lambda it answers to, if that is not the evaluator's.
        """
        table = self._oracle.tabulate(policy)
        if table is None:
            return {}
        mdps = self._oracle.configure(table.leader)
        measured = suboptimality(mdps, table, table.leader, regularization or self._regularization, solver=self._solver)
        return {"follower_delta": measured.delta, "follower_value_gap": measured.value_gap}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the warm starts."""
        return self._solver.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        model = self._oracle.model
        self._solver.load_state(state, model.n_states if isinstance(model, TabularBOCMDP) else -1)


def evaluator(
    oracle: TrajectoryOracle, regularization: float, loss: Loss | None = None, coupling: Coupling | None = None
) -> Evaluator | None:
    """An evaluator, if its exact number is that of the problem played; else None, with a warning that says why."""
    if oracle.layers.changing is None:
        return Evaluator(oracle, regularization, loss, coupling)
    warnings.warn(
        f"{oracle.layers.changing} may change what the follower sees, does or is paid, so the model of "
        f"{type(oracle.core).__name__} is that of another problem; the exact leader_return and the "
        "follower's suboptimality are left out.",
        UserWarning,
        stacklevel=2,
    )
    return None
