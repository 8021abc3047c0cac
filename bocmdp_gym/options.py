"""Checks of arguments: a value is returned typed, or a named error says which argument it was and what it may be."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import OptionError, RegularizationError, suggest

#: As far as probabilities given in float32 may be off a sum of 1 by their rounding; they are divided by their sum in float64.
FLOAT32_TOLERANCE = 1e-5
#: The largest integer of the compiled kernels.
_LARGEST = 2**63 - 1
#: Types of arrays that hold real numbers, as NumPy abbreviates them.
_REAL = "iufO"


def as_integer(value: Any) -> int | None:
    """An integer as an int: whatever its type is, as long as it has no fractional part (``1e4``, ``np.int64(3)``, a 0-d array).

    None for everything else: booleans, strings, arrays of several.
    """
    if type(value) is int:
        return value
    number = as_number(value)
    if not np.isfinite(number) or number != np.floor(number):
        return None
    return int(number) if isinstance(value, float) else int(value)


def check_count(name: str, value: Any, minimum: int = 1, maximum: int = _LARGEST) -> int:
    """An integer in ``minimum..maximum``; ``1e4`` is one, 1.5 is not.

    Raises:
        OptionError: anything else.
    """
    number = as_integer(value)
    if number is not None and minimum <= number <= maximum:
        return number
    bounds = f"of at least {minimum}" if maximum == _LARGEST else f"in {minimum}..{maximum}"
    raise OptionError(f"{name} is {value!r}; expected an integer {bounds}.")


def check_number(
    name: str, value: Any, minimum: float = -np.inf, maximum: float = np.inf, *, above: float | None = None, note: str = ""
) -> float:
    """A finite number in ``[minimum, maximum]``, larger than ``above`` if given; ``note`` ends the message.

    Raises:
        OptionError: anything else.
    """
    number = as_number(value)
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


def as_number(value: Any) -> float:
    """A single real number as a float; NaN for everything else: strings, booleans, arrays of several, masked, beyond float64."""
    if type(value) is float:
        return value
    array = as_array(value)
    return float("nan") if array is None or array.ndim != 0 else float(array)


def as_array(value: Any) -> npt.NDArray[np.float64] | None:
    """A float64 copy; None for what are not real numbers: strings, booleans, complex numbers, and arrays with masked entries."""
    try:
        torch = sys.modules.get("torch")  # who hands over a tensor has imported it
        if torch is not None and isinstance(value, torch.Tensor):
            value = value.detach().cpu().to_dense().numpy()
        if np.ma.isMaskedArray(value) and np.ma.is_masked(value):
            return None
        given = np.array(value)
        if given.dtype.kind == "O" and any(isinstance(one, (str, bytes, bool, np.bool_)) for one in given.flat):
            return None
        return given.astype(np.float64, copy=False) if given.dtype.kind in _REAL else None
    except (TypeError, ValueError, OverflowError, RuntimeError, NotImplementedError):
        return None


def as_list(value: Any) -> list[Any] | None:
    """The entries of a list, a tuple, a range or an array; None for what has none: numbers, texts, arrays without axes."""
    if isinstance(value, (str, bytes)) or not (isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim)):
        return None
    return list(value)


def float32_rounding(value: Any, p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities ``(n,)`` freed of the rounding of float32, where ``value``, as given, had it: divided by their sum."""
    kind = getattr(value, "dtype", None)
    total = p.sum()
    return p / total if str(kind).endswith(("float32", "float16")) and abs(total - 1.0) <= FLOAT32_TOLERANCE else p


def check_regularization(value: Any) -> float:
    """Lambda as a float.

    Raises:
        RegularizationError: not a positive finite number.
    """
    number = as_number(value)
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
    if not isinstance(value, str) or value not in options:
        raise OptionError(f"unknown {name} {value!r}. {suggest(value, options)}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        OptionError: anything else.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise OptionError(f"{name} is {value!r}; expected True or False.")


def check_function(name: str, value: Any, arguments: str) -> Any:
    """Something that can be called; ``arguments`` says with what, for the message.

    Raises:
        OptionError: a class, or what cannot be called.
    """
    if callable(value) and not isinstance(value, type):
        return value
    raise OptionError(f"{name} is {value!r}; expected a function of ({arguments}).")


def check_instance(name: str, value: Any, kind: type) -> None:
    """An instance of a class.

    Raises:
        OptionError: anything else, the class itself included.
    """
    if not isinstance(value, kind):
        raise OptionError(f"{name} is {value!r}; expected an instance of {kind.__name__}.")


def check_folder(name: str, value: Any) -> Path:
    """A path.

    Raises:
        OptionError: neither a path nor a text that is one.
    """
    if isinstance(value, (str, PurePath)) and str(value):
        return Path(value)
    raise OptionError(f"{name} is {value!r}; expected a path.")


def check_generator(rng: Any) -> np.random.Generator:
    """A generator of NumPy.

    Raises:
        OptionError: anything else.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    raise OptionError(f"rng is {rng!r}; expected numpy.random.default_rng(seed).")


def check_render_mode(value: Any, metadata: dict[str, Any]) -> str | None:
    """One of an environment's render modes, or None.

    Raises:
        OptionError: another.
    """
    return None if value is None else check_choice("render_mode", value, metadata["render_modes"])


def check_array(name: str, value: Any, shape: tuple[int | None, ...]) -> npt.NDArray[np.float64]:
    """A finite float64 array of this shape; None in ``shape``: any size of at least 1.

    Raises:
        OptionError: anything else.
    """
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
    array = as_array(value)
    if array is None:
        raise OptionError(f"{name} is {value!r}; expected numbers of shape {wanted}.")
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
    p = float32_rounding(value, check_array(name, value, (n,)))
    if not ((p >= 0).all() and abs(p.sum() - 1.0) <= 1e-8):
        raise OptionError(f"{name} is {p.tolist()}, with sum {float(p.sum())!r}; expected non-negative numbers that sum to 1.")
    return p
