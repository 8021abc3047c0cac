"""Checks of arguments: a value comes back typed, or a named error says which argument it was and what that may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import OptionError, RegularizationError, suggest


def check_count(name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> int:
    """An integer in ``minimum..maximum``.

    Raises:
        OptionError: anything else.
    """
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if is_integer and minimum <= value and (maximum is None or value <= maximum):
        return int(value)
    bounds = f"of at least {minimum}" if maximum is None else f"in {minimum}..{maximum}"
    raise OptionError(f"{name} is {value!r}; expected an integer {bounds}.")


def check_number(
    name: str, value: Any, minimum: float = -np.inf, maximum: float = np.inf, *, above: float | None = None, note: str = ""
) -> float:
    """A finite number in ``[minimum, maximum]``, larger than ``above`` if given; ``note`` ends the message.

    Raises:
        OptionError: anything else.
    """
    try:
        number = float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if np.isfinite(number) and minimum <= number <= maximum and (above is None or number > above):
        return number
    bounds = []
    if above is not None:
        bounds.append(f"above {above:g}")
    if np.isfinite(minimum):
        bounds.append(f"at least {minimum:g}")
    if np.isfinite(maximum):
        bounds.append(f"at most {maximum:g}")
    expected = "a finite number" + (f" {' and '.join(bounds)}" if bounds else "")
    raise OptionError(f"{name} is {value!r}; expected {expected}{note}.")


def check_regularization(value: Any) -> float:
    """Lambda as a float.

    Raises:
        RegularizationError: not a positive finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 < number < float("inf"):
        raise RegularizationError(
            f"regularization is {value!r}; expected a positive finite number (lambda). The unregularised problem (lambda = 0) "
            "has no unique optimum to differentiate; use a small lambda such as 1e-3."
        )
    return number


def check_choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known names.

    Raises:
        OptionError: another, with the nearest known one.
    """
    options = list(known)
    if value not in options:
        raise OptionError(f"unknown {name} {value!r}. {suggest(value, options)}")
    return str(value)


def check_array(name: str, value: Any, shape: tuple[int | None, ...]) -> npt.NDArray[np.float64]:
    """A finite float64 array of this shape; None in ``shape``: any size of at least 1.

    Raises:
        OptionError: anything else.
    """
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise OptionError(f"{name} is {value!r}; expected numbers of shape {wanted}.") from None
    fits = array.ndim == len(shape) and all(n in (None, m) and m > 0 for n, m in zip(shape, array.shape, strict=True))
    if not fits:
        raise OptionError(f"{name} has shape {array.shape}; expected {wanted}.")
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise OptionError(f"{name} is {array[where]} at {list(where)}; expected finite numbers.")
    return array


def check_distribution(name: str, value: Any, n: int) -> npt.NDArray[np.float64]:
    """Probabilities ``(n,)``; uniform if None.

    Raises:
        OptionError: another shape, negative numbers, or a sum other than 1.
    """
    if value is None:
        return np.full(n, 1.0 / n)
    p = check_array(name, value, (n,))
    if not ((p >= 0).all() and abs(p.sum() - 1.0) <= 1e-8):
        raise OptionError(f"{name} is {p.tolist()}, with sum {p.sum():.8g}; expected non-negative numbers that sum to 1.")
    return p
