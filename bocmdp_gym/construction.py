"""`Constructed`: environments, wrappers and problems refuse unknown arguments before their constructor sees them."""

from __future__ import annotations

from typing import Any, Self

from bocmdp_gym.arguments import check_arguments


class Constructed:
    """Base of classes whose constructors refuse unknown keywords, and remember the others; their reprs stay Gymnasium's.

    Raises:
        UnknownOptionError: a keyword that the constructor does not have, with the nearest it has, or too many arguments.
    """

    _given_arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the arguments; deprecated ones are for `bocmdp_gym.deprecation` to convert."""
        deprecated = getattr(cls.__init__, "deprecated_arguments", ())
        given = check_arguments(cls, args, {name: value for name, value in kwargs.items() if name not in deprecated})
        self = super().__new__(cls)
        object.__setattr__(self, "_given_arguments", given)  # some are frozen dataclasses
        return self
