"""The record of a run: one row per iteration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


class History:
    """One record per iteration, read by row or by column.

    ``history[3]`` is the record of iteration 3 (a dict), ``history["leader_return"]`` a column ``(T,)`` with NaN where an
    iteration has no such number, ``history.columns`` their names. Every column is explained in `COLUMNS`.
    """

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []

    def append(self, record: dict[str, Any]) -> None:
        """Add one iteration."""
        self._records.append(record)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if self._records and key not in self.columns:
                raise KeyError(f"{key!r}; columns are {self.columns}")
            return self._column(key)
        return self._records[key]

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.array([record.get(name, np.nan) for record in self._records])

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        names: dict[str, None] = {}
        for record in self._records:
            names.update(dict.fromkeys(record))
        return list(names)


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
    "smoothing": "zero-order leaders: u_t, the distance of the points compared is u_t |z|",
    "env_steps": "environment steps used so far, all iterations together",
    "follower_iterations": "iterations the follower needed",
    "follower_residual": "the follower's remaining soft Bellman residual",
    "seconds": "wall-clock time since the run started",
}
