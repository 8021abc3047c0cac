"""The record of a run: one row per iteration."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class History(list[dict[str, Any]]):
    """One record per iteration, read by row or by column.

    ``history[3]`` is the record of iteration 3 (a dict), ``history["leader_return"]`` a column ``(T,)`` with NaN where an
    iteration has no such number, ``history.columns`` their names. Every column is explained in `COLUMNS`.
    """

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if self and key not in self.columns:
            raise KeyError(f"{key!r}; columns are {self.columns}")
        return self._column(key)

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.array([record.get(name, np.nan) for record in self])

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        names: dict[str, None] = {}
        for record in self:
            names.update(dict.fromkeys(record))
        return list(names)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the columns."""
        return {name: self._column(name) for name in self.columns}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        names, columns = list(state), [state[name].tolist() for name in state]
        self[:] = [
            {name: value for name, value in zip(names, row, strict=True) if value == value}  # NaN: had no such number
            for row in zip(*columns, strict=True)
        ]


#: What each column of the history (and each logged metric) means.
COLUMNS = {
    "iteration": "outer iteration, counted from 0; its numbers belong to x before the update",
    "context": "the context xi drawn for this iteration",
    "sampled_return": "leader's return F_xi in that context, as the estimator saw it (minus the loss, with a loss)",
    "leader_return": "exact F(x) = E_xi F_xi under the follower's optimum, where it was evaluated (minus the loss)",
    "gradient_norm": "Euclidean norm of the estimate of dF_xi/dx, before clipping",
    "standard_error": "Euclidean norm of the estimate's standard error, where the estimator reports one",
    "critic_error": "held-out squared error of the fitted leader values, relative to the variance of the returns",
    "follower_critic_error": "the same of the fitted follower values, where transitions depend on x",
    "seen_pairs": "pooled estimator: pairs of state and action whose transitions have been seen, of this iteration's context",
    "smoothing": "zero-order leaders: u_t, the distance of the points compared is u_t |z|",
    "env_steps": "environment steps used so far, all iterations together",
    "model_draws": "steps drawn from the model itself so far, without the environment (geometric draws)",
    "follower_iterations": "iterations the follower needed",
    "follower_training_steps": "environment steps the follower has learnt from so far, all contexts together",
    "follower_response_steps": "steps of this iteration's response, where a callback stopped it before it had made all",
    "follower_residual": "what remains of the follower's error, by the measure its class names (a soft Bellman residual, mostly)",
    "follower_delta": "max |pi - pi*| of the follower's policy (delta of Assumption 2.4), where the model is tabular",
    "follower_value_gap": "the follower's regularised V* - V^pi at the start, of the same policy",
    "slack_NAME": "how far the constraint NAME is from its level, in the worst context; negative: violated",
    "multiplier_NAME": "its multiplier y in the augmented Lagrangian, in the worst context",
    "seconds": "wall-clock time since the run started",
}
