"""The record of a run: one row per iteration."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import DamagedError
from bocmdp_gym.saved_state import entry

#: Records that are put into columns at a time.
_CHUNK = 256


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
        self._stored = 0  # rows in the columns; the latest are the records themselves, to the last of which callbacks may add
        self._latest: list[dict[str, Any]] = []
        for record in records:
            self.append(record)

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of an iteration."""
        if len(self._latest) >= _CHUNK:
            self._settle()
        self._latest.append(record)

    def __len__(self) -> int:
        return self._stored + len(self._latest)

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
        return list(dict.fromkeys((*self._columns, *(name for record in self._latest for name in record))))

    def state(self, start: int = 0) -> dict[str, Any]:
        """What a checkpoint keeps: the columns, from row ``start`` on; those without a number there are left out."""
        if start >= len(self):
            return {}
        present = [name for name in self.columns if self._has(name, start)]
        return {name: self._column(name, start) for name in present}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._columns, self._stored, self._latest = {}, 0, []
        self.extend_from_state(state)

    def extend_from_state(self, state: dict[str, Any]) -> None:
        """Add the rows of a `state`.

        Raises:
            DamagedError: its columns are not of one length, or hold no numbers.
        """
        self._settle()
        for name in state:
            entry({name: state[name]}, name, np.ndarray)
            if not isinstance(name, str) or state[name].ndim != 1:
                raise DamagedError(f"the history's {name!r} has shape {state[name].shape}; expected a column of numbers.")
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
        """Move the latest records into the columns."""
        for name in dict.fromkeys(name for record in self._latest for name in record):
            column = self._columns.setdefault(name, _Column(self._stored))
            values = [record[name] for record in self._latest if name in record]
            if len(values) < len(self._latest) or not column.append_all(values):
                for row, record in enumerate(self._latest, start=self._stored):
                    if name in record:
                        column.fill(row)
                        column.append(record[name])
        self._stored += len(self._latest)
        self._latest = []
        for column in self._columns.values():
            column.fill(self._stored)

    def _row(self, index: int) -> dict[str, Any]:
        if index >= self._stored:
            return self._latest[index - self._stored]
        return {name: column.values[index] for name, column in self._columns.items() if column.present[index]}

    def _has(self, name: str, start: int) -> bool:
        """Whether a column has a value from row ``start`` on."""
        self._settle_all_but_last()
        column = self._columns.get(name)
        return (column is not None and 1 in column.present[start:]) or any(name in record for record in self._latest)

    def _column(self, name: str, start: int) -> npt.NDArray[Any]:
        self._settle_all_but_last()
        column = self._columns.get(name) or _Column(self._stored)
        values = column.read(start)
        if not self._latest:
            return values
        last = self._latest[0].get(name, np.nan)
        if not len(values):
            return np.array([last])
        return np.append(values, last) if values.ndim == 1 and np.ndim(last) == 0 else np.array([*values, last])

    def _settle_all_but_last(self) -> None:
        """Bring the columns up to the last record, to which a callback may still add."""
        if len(self._latest) > 1:
            last = self._latest.pop()
            self._settle()
            self._latest = [last]


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

    def append_all(self, values: list[Any]) -> bool:
        """Add as many rows, if all their values are of the column's own type, as they mostly are."""
        kinds = set(map(type, values))
        if len(kinds) != 1:
            return False
        typecode = _TYPECODES.get(kinds.pop())
        if typecode is None or (self.typecode != typecode and not (self.values is None and not self.present)):
            return False
        if self.values is None:
            self._make_room(typecode)
        try:
            self.values.extend(array(typecode, values))
        except OverflowError:
            return False
        self.present.extend(b"\x01" * len(values))
        return True

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


#: How values of these types are stored.
_TYPECODES = {float: "d", np.float64: "d", int: "q"}


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
    "leader_return": "exact F(x) under the follower's optimum, where it was evaluated: E_xi F_xi or the objective's value (minus "
    "the loss, with a loss)",
    "leader_return_XI": "exact F_xi in context XI, where it was evaluated and an objective couples contexts (20 at most)",
    "gradient_norm": "Euclidean norm of the estimate of dF_xi/dx, before clipping",
    "standard_error": "Euclidean norm of the estimate's standard error, where the estimator reports one",
    "critic_error": "held-out squared error of the fitted leader values, relative to the variance of the returns",
    "follower_critic_error": "the same of the fitted follower values, where transitions depend on x",
    "td_error": "TD estimator: root of the mean squared TD error of the leader's Q, over the iteration's steps",
    "seen_pairs": "pooled estimator: pairs of state and action whose transitions have been seen, of this iteration's context",
    "regularization": "the follower's lambda in this iteration, where a schedule decides on it",
    "weight": "first-order leader: w, what the follower is paid per unit of the leader's reward, on one side and on the other",
    "paid_gain": "first-order leader: the leader's gain per unit of weight, (F_w - F_-w) / 2w; optimal answers make it positive",
    "smoothing": "zero-order leaders: u_t, the distance of the points compared is u_t |z|",
    "env_steps": "environment steps used so far, all iterations together",
    "model_draws": "steps drawn from the model itself so far, without the environment (geometric draws)",
    "follower_iterations": "iterations the follower needed",
    "follower_lambda": "lambda under which the policy of a follower that has none looks most like a softmax of its own Q",
    "follower_lambda_error": "its standard error, over states",
    "follower_training_steps": "environment steps the follower has learnt from so far, all contexts together",
    "agent_calls": "how often the agent of a CallableFollower was called for this iteration's response and what was asked of it",
    "follower_response_steps": "steps of this iteration's response, where a callback stopped it before it had made all",
    "follower_residual": "what remains of the follower's error, by the measure its class names (a soft Bellman residual, mostly)",
    "follower_delta": "max |pi - pi*| of the follower's policy (delta of Assumption 2.4), where the model is tabular",
    "follower_value_gap": "the follower's regularised V* - V^pi at the start, of the same policy",
    "exploitability": "fictitious play: what followers of the population could gain on average by the best answer to its loads",
    "population_rounds": "fictitious play: rounds of this iteration's response",
    "slack_NAME": "how far the constraint NAME is from its level, in the worst context; negative: violated",
    "slack_error_NAME": "the standard error of a sampled slack",
    "multiplier_NAME": "its multiplier y in the augmented Lagrangian, in the worst context",
    "seconds": "wall-clock time from the start of the run to this iteration's estimate",
}
