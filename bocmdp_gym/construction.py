"""`Constructed`: constructors that refuse unknown keywords with the nearest known one."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any, Self

from bocmdp_gym.errors import UnknownOptionError, suggest


def check_keywords(kind: type, keywords: dict[str, Any]) -> None:
    """Check keywords of a constructor against its signature.

    Raises:
        UnknownOptionError: one it does not have, with the nearest it has.
    """
    init: Any = kind.__init__  # type: ignore[misc]
    _, *parameters = signature(init).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is not Parameter.VAR_POSITIONAL]
    deprecated = getattr(init, "deprecated_arguments", ())  # see `bocmdp_gym.deprecation`
    for name in keywords:
        if name not in known and name not in deprecated:
            raise UnknownOptionError(f"{kind.__name__} has no option {name!r}. {suggest(name, known)}")


class Constructed:
    """Base of classes whose constructors refuse unknown keywords.

    Raises:
        UnknownOptionError: a keyword that the constructor does not have.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the keywords before the constructor sees them."""
        del args
        check_keywords(cls, kwargs)
        return super().__new__(cls)
