"""Followers by name: what ``--follower`` of the command line offers. `register` adds yours."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bocmdp_gym.errors import OptionError, UnknownOptionError, suggest
from bocmdp_gym.options import check_count
from followers.base import Follower
from followers.sb3.normalized import Normalized


@dataclass(frozen=True)
class FollowerEntry:
    """One follower with a name.

    Attributes:
        make: its class, or another function that makes it; or where that is, "module:name", to be imported when it is asked for.
        budget: the keyword of its budget per response; None: it solves to a tolerance.
        default_budget: the budget of a run that names none; the constructor's default if None.
        options: arguments of its constructor that are options of the command line by themselves, with their types; None: the
            constructor's annotation says it.
        fixed: further keywords.
    """

    make: str | Callable[..., Follower]
    budget: str | None
    default_budget: int | None
    options: Mapping[str, Any]
    fixed: Mapping[str, Any]

    def load(self) -> Callable[..., Follower]:
        """What makes it, imported where that is to be."""
        if not isinstance(self.make, str):
            return self.make
        module, _, attribute = self.make.partition(":")
        found: Callable[..., Follower] = getattr(importlib.import_module(module), attribute)
        return found


#: All of them, by name.
FOLLOWERS: dict[str, FollowerEntry] = {}


def register(
    name: str,
    make: str | Callable[..., Follower],
    *,
    budget: str | None = None,
    default_budget: int | None = None,
    options: Sequence[str] | Mapping[str, Any] = (),
    **fixed: Any,
) -> None:
    """Give a follower a name on the command line.

    Args:
        name: lower-case words and digits with hyphens between them.
        make: its class, or another function that makes it; or where that is, "module:name", to be imported when it is asked for.
            If it has an argument ``regularization``, a run passes its lambda.
        budget: the keyword of its budget per response (environment steps, updates, iterations), which ``--follower-steps`` sets.
        default_budget: the budget of a run that names none; the constructor's default if None.
        options: arguments of its constructor (or of a base's, where it hands on keywords) that the command line offers as options
            of their own, with the texts of the docstring; all others go into ``--follower-options``. A mapping has their types
            besides, so that the command line is known without importing what makes the follower.
        fixed: further keywords that this name stands for.

    Raises:
        OptionError: a name that is taken, or has another form; something that makes no follower; a default budget without a
            budget; ``options`` that are no names.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise OptionError(f"the follower's name is {name!r}; expected lower-case words with hyphens, such as 'my-follower'.")
    if not (callable(make) or (isinstance(make, str) and re.fullmatch(r"[\w.]+:\w+", make))):
        raise OptionError(f"{name} is made by {make!r}; expected a class of followers, a function, or 'module:name'.")
    if inspect.isclass(make) and not issubclass(make, Follower):
        raise OptionError(f"{make.__name__} is not a follower; derive it from followers.Follower.")
    if budget is None and default_budget is not None:
        raise OptionError(f"default_budget is {default_budget}, and no budget is named; expected budget='iterations', say.")
    if default_budget is not None:
        default_budget = check_count("default_budget", default_budget)
    listed = isinstance(options, (Sequence, Mapping)) and not isinstance(options, str)
    if not listed or not all(isinstance(one, str) for one in options):
        raise OptionError(f"options is {options!r}; expected names of arguments of {name}'s constructor, such as ['tolerance'].")
    types = dict(options) if isinstance(options, Mapping) else dict.fromkeys(options)
    entry = FollowerEntry(make, budget, default_budget, types, fixed)
    if FOLLOWERS.get(name, entry) != entry:
        raise OptionError(f"another follower is called {name!r} already; choose another name.")
    FOLLOWERS[name] = entry


def make_follower(
    name: str, regularization: float | None = None, steps: int | None = None, options: Mapping[str, Any] | None = None
) -> Follower:
    """A follower by its name.

    Args:
        name: one of `FOLLOWERS`.
        regularization: lambda, for those that have one.
        steps: budget per response; the entry's default if None.
        options: further keywords of its constructor.

    Raises:
        OptionError: an unknown name, a budget for a follower that has none, or an option that it does not have or refuses.
    """
    if name not in FOLLOWERS:
        raise OptionError(f"unknown follower {name!r}. {suggest(name, FOLLOWERS)}")
    entry = FOLLOWERS[name]
    if entry.budget is None and steps is not None:
        learners = ", ".join(other for other, one in FOLLOWERS.items() if one.budget is not None)
        raise OptionError(
            f"the budget of follower {name} is {steps}, and it solves to a tolerance; leave --follower-steps out, or choose one "
            f"of {learners}."
        )
    make = entry.load()
    parameters = inspect.signature(make).parameters
    keywords = dict(entry.fixed)
    if regularization is not None and "regularization" in parameters:
        keywords["regularization"] = regularization
    budget = entry.default_budget if steps is None else steps
    if entry.budget is not None and budget is not None:
        keywords[entry.budget] = budget
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options or {}:
        if option in keywords:
            raise OptionError(f"{option} of follower {name} is set already; leave it out of its options.")
        if option not in parameters and not anything:
            raise UnknownOptionError(f"follower {name} has no option {option!r}. {suggest(option, parameters)}")
    return make(**keywords, **(options or {}))


register("soft-policy-iteration", "followers:SoftPolicyIteration")
register("soft-value-iteration", "followers:SoftValueIteration")
register("soft-q-learning", "followers:SoftQLearning", budget="iterations", default_budget=100_000)
register(
    "natural-policy-gradient",
    "followers:NaturalPolicyGradient",
    budget="iterations",
    default_budget=20,
)
register("vanilla-policy-gradient", "followers:VanillaPolicyGradient", budget="iterations", default_budget=20_000)
register("linear-programming", "followers:LinearProgramming")
register("linear-quadratic", "followers:LinearQuadratic")
_SB3: dict[str, Any] = {"budget": "total_timesteps", "default_budget": 5_000}
_NORMALIZE = {"normalize": Normalized}
_FOLLOWER = "followers.sb3.follower:SB3Follower"
register("soft-dqn", "followers.sb3.soft_dqn_follower:SoftDQNFollower", **_SB3, options=_NORMALIZE)
register("ppo", _FOLLOWER, **_SB3, options=_NORMALIZE, algorithm="PPO")
register("a2c", _FOLLOWER, **_SB3, options=_NORMALIZE, algorithm="A2C")
register("dqn", _FOLLOWER, **_SB3, options={"softmax_temperature": float} | _NORMALIZE, algorithm="DQN")
