"""Setting an environment's physical attributes by name: what `LeaderParameters` and `ContextWrapper` share."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import OptionError, UnsupportedError, suggest
from bocmdp_gym.options import check_function


class AttributeLayer:
    """A layer that sets attributes. What is derived from them is recomputed once the layers inside have set theirs too.

    A derived attribute may depend on those of several layers (a pole's mass times length, one a context's, the other the
    leader's). So at a reset each layer sets its own and hands its update to the next such layer inside; the innermost runs
    all updates, its own first, just before the environment resets.
    """

    env: gym.Env[Any, Any]
    _attributes: Attributes | Applied | None
    _handed: tuple[Callable[[], None], ...] = ()

    def _update(self) -> None:
        if self._attributes is not None:
            self._attributes.update()

    def _settle(self) -> None:
        """A reset: this layer has set its attributes."""
        updates, self._handed = (self._update, *self._handed), ()
        inner = self._inner_layer()
        if inner is not None:
            inner._handed = updates
            return
        for update in updates:
            update()

    def _update_all(self) -> None:
        """Between resets: run the updates of this layer and of those inside, innermost first."""
        inner = self._inner_layer()
        if inner is not None:
            inner._update_all()
        self._update()

    def _inner_layer(self) -> AttributeLayer | None:
        layer: Any = self.env
        while not isinstance(layer, AttributeLayer):
            if not isinstance(layer, gym.Wrapper):
                return None
            layer = layer.env
        return layer


class Attributes:
    """Named numeric attributes of ``env.unwrapped``, and items of those, read and set together.

    A name is what one would write after ``env.unwrapped.``: ``length``, ``world.gravity``, ``model.body_mass[1]``,
    ``config["reward_speed"]``. One that is an int stays an int where its value is whole, and becomes a float where it is not
    (an item of an array of ints cannot). Names are looked up each time, as environments may make their parts anew.

    Args:
        env: the environment.
        names: of the attributes.
        update: called with ``env.unwrapped`` by `update`, to recompute what is derived from the attributes.

    Raises:
        OptionError: an attribute that does not exist or is not a number, or no names.
    """

    def __init__(self, env: gym.Env[Any, Any], names: Sequence[str], update: Callable[[Any], None] | None = None):
        self._env = env.unwrapped
        self._update = None if update is None else check_function("update", update, "env.unwrapped")
        given: Any = [names] if isinstance(names, str) else names
        if not isinstance(given, Sequence) or not given or not all(isinstance(name, str) and name for name in given):
            raise OptionError(f"names is {names!r}; expected at least one attribute of the environment, by name.")
        self.names = list(given)
        self._paths = [_parse(name) for name in self.names]
        self._whole = [isinstance(value, (int, np.integer)) for value in self._read()]

    def _read(self) -> list[Any]:
        values = []
        for name, path in zip(self.names, self._paths, strict=True):
            value = self._env
            for part in path:
                value = self._follow(value, part, name)
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise OptionError(f"attribute {name!r} is {value!r}; expected a number.{_items_of(name, value)}")
            values.append(value)
        return values

    def _follow(self, holder: Any, part: Part, name: str) -> Any:
        """An attribute or an item of what a name has led to."""
        try:
            return part.of(holder)
        except (AttributeError, LookupError, TypeError) as error:
            held = holder if part.item and isinstance(holder, dict) else _members(holder)
            kinds = (int, float, np.ndarray)
            known = sorted(n for n, v in held.items() if type(n) is str and isinstance(v, kinds) and n[:1] != "_")
            hint = f"{type(holder).__name__}: {error}." if part.item and held is not holder else suggest(part.key, known)
            raise OptionError(f"{type(self._env).__name__} has no attribute {name!r}. {hint}") from None

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """Their present values ``(n,)``."""
        return np.array(self._read(), dtype=np.float64)

    def set(self, values: npt.ArrayLike) -> None:
        """Set all of them.

        Raises:
            UnsupportedError: an attribute that cannot be set, or of which a copy was set.
        """
        numbers = np.asarray(values).tolist()
        for name, path, whole, value in zip(self.names, self._paths, self._whole, numbers, strict=True):
            holder = self._env
            for part in path[:-1]:
                holder = self._follow(holder, part, name)
            try:
                path[-1].put(holder, int(value) if whole and value == int(value) else float(value))
            except (AttributeError, TypeError, ValueError) as error:
                raise UnsupportedError(
                    f"attribute {name!r} of {type(self._env).__name__} cannot be set to {value:g}: {error}. Use apply=, a "
                    "function that changes the environment."
                ) from error
        for name, wanted, found in self._lost(values):
            raise UnsupportedError(
                f"attribute {name!r} of {type(self._env).__name__} was set to {wanted:g} and is {found:g}: it belongs to a copy "
                "of what the environment uses. Use apply=, a function that changes the environment."
            )

    def update(self) -> None:
        """Recompute what is derived from them."""
        if self._update is not None:
            self._update(self._env)

    def check(self, values: npt.ArrayLike) -> None:
        """Check, after a reset, that the environment kept them.

        Raises:
            UnsupportedError: the environment overwrote an attribute.
        """
        for name, wanted, found in self._lost(values):
            raise UnsupportedError(
                f"{type(self._env).__name__} changed attribute {name!r} from {wanted:g} to {found:g} in its reset, so it "
                "cannot be set from outside; choose the attribute it is computed from."
            )

    def _lost(self, values: npt.ArrayLike) -> Iterator[tuple[str, Any, Any]]:
        """Names whose values are others than these, those and what they are."""
        for name, wanted, found in zip(self.names, np.asarray(values).tolist(), self._read(), strict=True):
            rounded = isinstance(found, (float, np.floating)) and np.float32(wanted) == np.float32(found)  # many compute so
            if wanted != found and not rounded:
                yield name, wanted, found


class Applied:
    """A function of an environment and values, in the place of `Attributes`.

    Args:
        env: the environment.
        apply: called with ``env.unwrapped`` and the values by `set`.
        update: called with ``env.unwrapped`` by `update`.

    Raises:
        OptionError: what is no function.
    """

    def __init__(self, env: gym.Env[Any, Any], apply: Callable[[Any, Any], None], update: Callable[[Any], None] | None = None):
        self._env, self._apply = env.unwrapped, check_function("apply", apply, "env.unwrapped, values")
        self._update = None if update is None else check_function("update", update, "env.unwrapped")

    def set(self, values: npt.ArrayLike) -> None:
        """Apply values."""
        self._apply(self._env, values)

    def update(self) -> None:
        """Recompute what is derived from them."""
        if self._update is not None:
            self._update(self._env)

    def check(self, values: npt.ArrayLike) -> None:
        """What a function changed is not known, so nothing is checked."""


def parameters_of(
    env: gym.Env[Any, Any],
    names: Sequence[str] | None,
    apply: Callable[[Any, Any], None] | None,
    update: Callable[[Any], None] | None,
) -> Attributes | Applied:
    """How a leader's values get into an environment: by names, or by a function.

    Raises:
        OptionError: neither or both.
    """
    if (names is None) == (apply is None):
        raise OptionError("expected either names of attributes, or names=None and apply=, a function of (env.unwrapped, x).")
    return Attributes(env, names, update) if names is not None else Applied(env, cast("Any", apply), update)


class Part(NamedTuple):
    """One step of a name: an attribute, or an item."""

    key: Any
    item: bool

    def of(self, holder: Any) -> Any:
        """What stands there."""
        return holder[self.key] if self.item else getattr(holder, self.key)

    def put(self, holder: Any, value: Any) -> None:
        """Put a number there.

        Raises:
            ValueError: an array of ints, and a number that is not whole.
        """
        if not self.item:
            setattr(holder, self.key, value)
            return
        if isinstance(holder, np.ndarray) and holder.dtype.kind in "iu" and not isinstance(value, int):
            raise ValueError("it is in an array of ints")
        holder[self.key] = value


def _parse(name: str) -> list[Part]:
    """The parts of a name.

    Raises:
        OptionError: it is none.
    """
    parts: list[Part] = []
    try:
        node: ast.expr = ast.parse(name, mode="eval").body
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                parts.append(Part(node.attr, item=False))
            elif isinstance(node, ast.Subscript):
                parts.append(Part(ast.literal_eval(node.slice), item=True))
            else:
                raise ValueError(name)
            node = node.value
    except (SyntaxError, ValueError):
        raise OptionError(
            f'{name!r} is no name of an attribute; expected e.g. "length", "model.opt.gravity[2]" or \'config["speed"]\'.'
        ) from None
    return [Part(node.id, item=False), *reversed(parts)]


def _members(holder: Any) -> dict[str, Any]:
    """An object's attributes by name, as far as they can be read."""
    if hasattr(holder, "__dict__"):
        return vars(holder)
    found = {}
    for name in dir(holder):
        if not name.startswith("_"):
            with suppress(Exception):  # properties may fail
                found[name] = getattr(holder, name)
    return found


def _items_of(name: str, value: Any) -> str:
    """How to name an item of what has some."""
    if isinstance(value, np.ndarray) and value.ndim and value.size:
        return f" Its items have names such as {name + str([0] * value.ndim)!r}."
    if isinstance(value, dict) and value:
        return f" Its items have names such as {name + '[' + repr(next(iter(value))) + ']'!r}."
    return ""
