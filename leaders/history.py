"""The record of a run: one row per iteration."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import DamagedError


class History(Sequence[dict[str, Any]]):
    """One record per iteration, read by row or by column.

    ``history[3]`` is the record of iteration 3 (a dict), ``history["leader_return"]`` a column ``(T,)`` with NaN where an
    iteration has no such number, ``history.columns`` their names. Every column is explained in `COLUMNS`. Columns are kept as
    arrays of numbers, about 9 bytes each per iteration.

    Args:
        records: the first rows.
    """

    def __init__(self, records: Iterable[dict[str, Any]] = ()):
        self._columns: dict[str, _Column] = {}
        self._stored = 0  # rows in the columns; one more is the last record itself, which callbacks may still add to
        self._last: dict[str, Any] | None = None
        for record in records:
            self.append(record)

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of an iteration."""
        self._settle()
        self._last = record

    def __len__(self) -> int:
        return self._stored + (self._last is not None)

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, key: slice) -> list[dict[str, Any]]: ...

    @overload
    def __getitem__(self, key: str) -> npt.NDArray[Any]: ...

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if len(self) > 0 and key not in self.columns:
                raise KeyError(f"{key!r}; columns are {self.columns}")
            return self._column(key, 0)
        if isinstance(key, slice):
            return [self._row(i) for i in range(*key.indices(len(self)))]
        index = key.__index__()
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError(f"the history has {len(self)} iterations, and no number {key}")
        return self._row(index)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._row(i) for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (History, list)):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"History({len(self)} iterations of {', '.join(self.columns)})"

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order in which they first appeared."""
        return list(dict.fromkeys((*self._columns, *(self._last or ()))))

    def state(self, start: int = 0) -> dict[str, Any]:
        """What a checkpoint keeps: the columns, from row ``start`` on; those without a number there are left out."""
        if start >= len(self):
            return {}
        present = [name for name in self.columns if self._has(name, start)]
        return {name: self._column(name, start) for name in present}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._columns, self._stored, self._last = {}, 0, None
        self.extend_from_state(state)

    def extend_from_state(self, state: dict[str, Any]) -> None:
        """Add the rows of a `state`.

        Raises:
            DamagedError: its columns are not of one length.
        """
        self._settle()
        lengths = {len(column) for column in state.values()}
        if len(lengths) > 1:
            raise DamagedError(f"columns of the history have lengths {sorted(lengths)}; expected one.")
        length = lengths.pop() if lengths else 0
        for name, column in state.items():
            self._columns.setdefault(name, _Column(self._stored)).extend(column)
        self._stored += length
        for column in self._columns.values():
            column.fill(self._stored)

    def _settle(self) -> None:
        """Move the last record into the columns."""
        if self._last is None:
            return
        columns = self._columns
        for name, value in self._last.items():
            if name not in columns:
                columns[name] = _Column(self._stored)
            columns[name].append(value)
        self._stored += 1
        if len(self._last) < len(columns):
            for column in columns.values():
                column.fill(self._stored)
        self._last = None

    def _row(self, index: int) -> dict[str, Any]:
        if index == self._stored and self._last is not None:
            return self._last
        return {name: column.values[index] for name, column in self._columns.items() if column.present[index]}

    def _has(self, name: str, start: int) -> bool:
        """Whether a column has a value from row ``start`` on."""
        column = self._columns.get(name)
        return (column is not None and 1 in column.present[start:]) or name in (self._last or {})

    def _column(self, name: str, start: int) -> npt.NDArray[Any]:
        column = self._columns.get(name) or _Column(self._stored)
        values = column.read(start)
        if self._last is None:
            return values
        last = self._last.get(name, np.nan)
        if not len(values):
            return np.array([last])
        return np.append(values, last) if values.ndim == 1 and np.ndim(last) == 0 else np.array([*values, last])


class _Column:
    """The values of one column, as compact as their type allows.

    Attributes:
        values: one per row, anything where there is none.
        present: 1 for each row that has a value.
    """

    def __init__(self, length: int):
        self.values: Any = None  # the first value decides how
        self.typecode: str | None = None
        self.present = bytearray()
        self.fill(length)

    def append(self, value: Any) -> None:
        """Add a row that has a value."""
        typecode = _typecode(value)
        if typecode != self.typecode:
            self._make_room(typecode)
        self.values.append(value)
        self.present.append(1)

    def _make_room(self, typecode: str) -> None:
        """Let the column hold values of another type than before."""
        if self.values is None:
            self.values = array(typecode, bytes(8 * len(self.present))) if typecode else [None] * len(self.present)
            self.typecode = typecode
        elif typecode and self.typecode:  # whole numbers among others
            self.values, self.typecode = array("d", self.values), "d"
        elif self.typecode:
            self.values, self.typecode = self.values.tolist(), ""

    def fill(self, length: int) -> None:
        """Add rows without a value until there are ``length``."""
        missing = length - len(self.present)
        if missing > 0:
            self.present.extend(bytes(missing))
            if isinstance(self.values, array):
                self.values.frombytes(bytes(missing * self.values.itemsize))
            elif self.values is not None:
                self.values.extend([None] * missing)

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Add a row for every one of an array's; NaN: it has no value."""
        for value in values.tolist():
            if isinstance(value, float) and value != value:
                self.fill(len(self.present) + 1)
            else:
                self.append(value)

    def read(self, start: int) -> npt.NDArray[Any]:
        """The rows from ``start`` on, NaN where there is no value."""
        present = np.frombuffer(bytes(self.present[start:]), dtype=bool)
        if isinstance(self.values, array):
            values = np.array(self.values[start:], dtype=np.float64 if self.values.typecode == "d" else np.int64)
            return values if present.all() else np.where(present, values, np.nan)
        rows = [None] * len(present) if self.values is None else self.values[start:]
        return np.array([row if here else np.nan for row, here in zip(rows, present, strict=True)])


def _typecode(value: Any) -> str:
    """How a value can be stored: as a whole number or as another in 8 bytes; "" for what is neither."""
    if type(value) is float or isinstance(value, np.floating):
        return "d"
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return "q"
    return ""


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
    "weight": "first-order leader: w, what the follower is paid per unit of the leader's reward, on one side and on the other",
    "paid_gain": "first-order leader: the leader's gain per unit of weight, (F_w - F_-w) / 2w; optimal answers make it positive",
    "smoothing": "zero-order leaders: u_t, the distance of the points compared is u_t |z|",
    "env_steps": "environment steps used so far, all iterations together",
    "model_draws": "steps drawn from the model itself so far, without the environment (geometric draws)",
    "follower_iterations": "iterations the follower needed",
    "follower_lambda": "lambda under which the policy of a follower that has none looks most like a softmax of its own Q",
    "follower_lambda_error": "its standard error, over states",
    "follower_training_steps": "environment steps the follower has learnt from so far, all contexts together",
    "follower_response_steps": "steps of this iteration's response, where a callback stopped it before it had made all",
    "follower_residual": "what remains of the follower's error, by the measure its class names (a soft Bellman residual, mostly)",
    "follower_delta": "max |pi - pi*| of the follower's policy (delta of Assumption 2.4), where the model is tabular",
    "follower_value_gap": "the follower's regularised V* - V^pi at the start, of the same policy",
    "slack_NAME": "how far the constraint NAME is from its level, in the worst context; negative: violated",
    "multiplier_NAME": "its multiplier y in the augmented Lagrangian, in the worst context",
    "seconds": "wall-clock time from the start of the run to this iteration's estimate",
}
