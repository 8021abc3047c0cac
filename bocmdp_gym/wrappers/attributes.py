"""Setting an environment's physical attributes by name: what `LeaderParameters` and `ContextWrapper` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    _attributes: Attributes | None
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
    """Named numeric attributes of ``env.unwrapped``, read and set together.

    An attribute that is an int stays one where its value is whole, and becomes a float where it is not.

    Args:
        env: the environment.
        names: attributes, dotted for attributes of attributes (``"world.gravity"``).
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
        self._places = [self._place(name) for name in self.names]
        self._whole = [isinstance(value, (int, np.integer)) for value in self._read()]

    def _place(self, name: str) -> tuple[Any, str]:
        """The object that holds an attribute, and the attribute's own name."""
        holder: Any = self._env
        *path, last = name.split(".")
        for part in [*path, last]:
            if not hasattr(holder, part):
                numbers = [n for n, v in vars(holder).items() if isinstance(v, (int, float)) and not n.startswith("_")]
                raise OptionError(f"{type(self._env).__name__} has no attribute {name!r}. {suggest(part, sorted(numbers))}")
            if part is not last:
                holder = getattr(holder, part)
        return holder, last

    def _read(self) -> list[Any]:
        values = [getattr(holder, name) for holder, name in self._places]
        for name, value in zip(self.names, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise OptionError(f"attribute {name!r} is {value!r}; expected a number.")
        return values

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """Their present values ``(n,)``."""
        return np.array(self._read(), dtype=np.float64)

    def set(self, values: npt.ArrayLike) -> None:
        """Set all of them."""
        for (holder, name), whole, value in zip(self._places, self._whole, np.asarray(values).tolist(), strict=True):
            setattr(holder, name, int(value) if whole and value == int(value) else float(value))

    def update(self) -> None:
        """Recompute what is derived from them."""
        if self._update is not None:
            self._update(self._env)

    def check(self, values: npt.ArrayLike) -> None:
        """Check, after a reset, that the environment kept them.

        Raises:
            UnsupportedError: the environment overwrote an attribute.
        """
        for name, wanted, found in zip(self.names, np.asarray(values).tolist(), self._read(), strict=True):
            if wanted != found:
                raise UnsupportedError(
                    f"{type(self._env).__name__} changed attribute {name!r} from {wanted:g} to {found:g} in its reset, so it "
                    "cannot be set from outside; choose the attribute it is computed from."
                )
