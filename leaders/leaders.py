"""Leaders: an estimator of the hypergradient, composed with an update rule.

What `HPGD` and its relatives take is not listed here: it is what the constructors of their estimators and of `Update` take, and
so are their signatures and the texts about their arguments.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.arguments import WithArguments, known_options, parameters_of
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.docstrings import argument_help, summary
from bocmdp_gym.errors import OptionError, UnknownOptionError, suggest
from followers import TrajectoryOracle
from leaders.gradients import AdaptiveModelDesignEstimator, Estimator, ExactEstimator, FirstOrderEstimator, ZeroOrderEstimator
from leaders.gradients.registry import ESTIMATORS, add_estimator
from leaders.updates import Update, optimizer_options


class Leader(WithArguments):
    """A leader is an estimator of dF_xi/dx and an update of x; `leaders.optimize` runs the loop.

    Args:
        estimator: where gradients come from.
        update: what is done with them.

    Raises:
        OptionError: something else than an estimator and an update.
    """

    #: Whether the follower is asked for its responses; if not, the leader computes the optimal one itself.
    asks_follower: ClassVar[bool] = True

    def __init__(self, estimator: Estimator, update: Update):
        for name, value, kind in (("estimator", estimator, Estimator), ("update", update, Update)):
            if not isinstance(value, kind):
                hint = " Make an instance of it." if inspect.isclass(value) and issubclass(value, kind) else ""
                raise OptionError(f"{name} is {value!r}; expected an instance of {kind.__name__}.{hint}")
        self.estimator, self.update = estimator, update
        self._oracle: TrajectoryOracle | None = None

    @with_gradients
    def estimate(self, oracle: TrajectoryOracle, x: Any, context: Any, rng: np.random.Generator) -> Tensor:
        """One stochastic estimate of dF_xi/dx, ``(d,)``.

        Raises:
            as `Estimator.bind`, if this leader cannot work with ``oracle``.
        """
        if oracle is not self._oracle:  # what an estimator carries from x to x must survive
            self.estimator.bind(oracle)
            self._oracle = oracle
        return self.estimator.estimate(oracle, as_tensor(x), context, rng).gradient


class LeaderByName(Leader):
    """Base class of leaders that make their estimator and their update from one list of keywords.

    A subclass names its estimators. Its signature and the arguments in its docstring are made from those of the estimators and of
    `Update`; an option of an estimator that has the name of one of the leader's own is called estimator_NAME.

    Attributes:
        kinds: its estimators, by name.
        leading: its first arguments, which may be given by position.
        changed: defaults that are not those of `Update`.
    """

    kinds: ClassVar[Mapping[str, type[Estimator]]]
    leading: ClassVar[tuple[str, ...]] = ("learning_rate",)
    changed: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.5, "max_gradient_norm": 1.0}
    _introduction: ClassVar[str]

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):  # it does not have the signature of its base
            cls.__signature__ = Signature(parameters_of(cls))
        if "kinds" in vars(cls):
            cls._introduction = inspect.cleandoc(cls.__doc__ or "")
            describe(cls)

    def __init__(self, *arguments: Any, **options: Any):
        given = dict(zip(self.leading, arguments, strict=False)) | options
        twice = [name for name in self.leading[: len(arguments)] if name in options]
        if twice or len(arguments) > len(self.leading):
            complaint = f"{twice[0]} is given twice" if twice else f"{len(arguments)} arguments are given without their names"
            leading = ", ".join(self.leading)
            raise UnknownOptionError(f"{complaint}; expected {type(self).__name__}({leading}), and everything else by its name.")
        if type(self).__init__ is LeaderByName.__init__:  # by name, whichever way they were given
            self._given_arguments = given
        names = tuple(self.kinds)
        meant = given.keys() if len(names) == 1 else _UPDATE  # else None stands for the default of the estimator chosen
        values = {name: value for name, value in given.items() if value is not None or name in meant}
        chosen = values.pop("estimator", names[0]) if len(names) > 1 else names[0]
        if not isinstance(chosen, str) or chosen not in self.kinds:
            raise OptionError(f"unknown estimator {chosen!r}. {suggest(chosen, self.kinds)}")
        own = {name: p.name for name, p in estimator_options(self.kinds[chosen]).items()}
        regularization = values.pop("regularization", None)
        made = {own[name]: values.pop(name) for name in list(values) if name in own}
        theirs = {name for kind in self.kinds.values() for name in estimator_options(kind)}  # None says: another estimator's
        self._check_known(chosen, values | {name: None for name in given if name not in theirs | _OWN | made.keys()})
        super().__init__(
            self.kinds[chosen](**made, regularization=regularization),
            Update(**{**self.changed, **values}),
        )

    def _check_known(self, chosen: str, values: Mapping[str, Any]) -> None:
        """Refuse keywords that neither this estimator nor the update has."""
        others = {name: estimator_options(kind) for name, kind in self.kinds.items()}
        further = optimizer_options(values.get("optimizer", "SGD"))
        for name in values:
            if name in _UPDATE or further is None or name in further:
                continue
            users = " or ".join(f"estimator={other!r}" for other, options in others.items() if name in options)
            if users:
                raise OptionError(f"{name} is an option of {users}, not of estimator={chosen!r}.")
            known = dict.fromkeys([*signature_of(type(self)).parameters, *further])
            known.pop(_REST, None)
            raise UnknownOptionError(f"{type(self).__name__} has no option {name!r}. {suggest(name, known)}")


#: The arguments of an update, and the name of what goes on to the optimiser.
_UPDATE = {p.name: p for p in inspect.signature(Update).parameters.values()}
_REST = next(p.name for p in _UPDATE.values() if p.kind is Parameter.VAR_KEYWORD)
del _UPDATE[_REST]
_OWN = {"estimator", "regularization", *_UPDATE}


def estimator_options(kind: type[Estimator]) -> dict[str, Parameter]:
    """What an estimator's constructor takes besides ``regularization``, by the name that a leader's keyword has."""
    named = [p for p in inspect.signature(kind).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {f"estimator_{p.name}" if p.name in _OWN else p.name: p for p in named if p.name != "regularization"}


def signature_of(leader: type[LeaderByName]) -> Signature:
    """What a leader takes: its first arguments, its estimators' options, lambda, and its update's options."""
    several = len(leader.kinds) > 1
    found: dict[str, Parameter] = {}
    for kind in leader.kinds.values():
        for name, p in estimator_options(kind).items():
            p = p.replace(name=name)
            if several:  # each estimator has its own default
                said = inspect.formatannotation(p.annotation).strip("'")
                p = p.replace(annotation=said if "None" in said else f"{said} | None", default=None)
            found.setdefault(name, p)
    if several:
        found["estimator"] = Parameter("estimator", Parameter.KEYWORD_ONLY, default=next(iter(leader.kinds)), annotation="str")
    found["regularization"] = Parameter("regularization", Parameter.KEYWORD_ONLY, default=None, annotation="float | None")
    for name, p in _UPDATE.items():
        found[name] = p.replace(default=leader.changed.get(name, p.default))
    first = [found.pop(name).replace(kind=Parameter.POSITIONAL_OR_KEYWORD) for name in leader.leading]
    rest = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in found.values()]
    return Signature([*first, *rest, Parameter(_REST, Parameter.VAR_KEYWORD, annotation="Any")])


def describe(leader: type[LeaderByName]) -> None:
    """Give a leader its signature, and its docstring the arguments (again, when an estimator is registered)."""
    leader.__signature__ = signature_of(leader)
    about = argument_help(Update)
    several = len(leader.kinds) > 1
    for name, told in option_help(leader.kinds).items():
        if several:
            about[name] = " ".join(
                f"{one.text.rstrip('.')} ({', '.join(one.users)}"
                + ("" if one.default is None else f"; {one.default!r} if None")
                + ")."
                for one in told
            )
        else:
            about[name] = told[0].text
    if several:
        kinds = " ".join(f'"{name}": {summary(kind)}' for name, kind in leader.kinds.items())
        about["estimator"] = f"where gradients come from. {kinds}"
    about["regularization"] = "lambda; the follower's if None, required where the follower has none."
    lines = ["Args:"]
    for name in leader.__signature__.parameters:
        text = f"{name}: {about.get(name, '')}".rstrip(": ")
        lines += textwrap.wrap(text, 120, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)
    before, raises, after = leader._introduction.partition("Raises:")
    leader.__doc__ = "\n".join([before.rstrip(), "", *lines, *(["", raises + after] if raises else [])])


class OptionHelp(NamedTuple):
    """What is said of an option by the estimators ``users``, and its default there."""

    users: list[str]
    text: str
    default: Any


def option_help(kinds: Mapping[str, type[Estimator]]) -> dict[str, list[OptionHelp]]:
    """What several estimators say of each of their options, by the name that a leader's keyword has."""
    found: dict[str, list[OptionHelp]] = {}
    for user, kind in kinds.items():
        about = argument_help(kind)
        for name, p in estimator_options(kind).items():
            said = found.setdefault(name, [])
            same = [one for one in said if (one.text, one.default) == (about.get(p.name, ""), p.default)]
            if same:
                same[0].users.append(user)
            else:
                said.append(OptionHelp([user], about.get(p.name, ""), p.default))
    return found


class HPGD(LeaderByName):
    """Hyper Policy Gradient Descent (paper, Algorithm 1): learns from trajectories of the follower's policy.

    Any other `Estimator` composes with an update as ``Leader(estimator, update)``, or gets a name here by `register_estimator`.

    Raises:
        OptionError: an unknown estimator, a keyword of another estimator, or a value out of range.
    """

    kinds = ESTIMATORS
    leading = ("learning_rate", "env_steps", "estimator")


class ExactGradient(LeaderByName):
    """Ascent along the exact hypergradient: knows the model, samples nothing. The yardstick for every other leader."""

    asks_follower = False
    kinds = {"exact": ExactEstimator}


class AMD(LeaderByName):
    """Adaptive model design (paper, Algorithm 7): sweeps the values and their derivatives forward; knows the model.

    `ExactGradient` climbs along the same gradient without the sweeps' lag, and faster; this leader is the paper's baseline.
    """

    asks_follower = False
    kinds = {"amd": AdaptiveModelDesignEstimator}
    leading = ("learning_rate", "sweeps")


class ZeroOrder(LeaderByName):
    """Differences of the leader's return along random directions (paper, Algorithm 8): any environment, any follower.

    Raises:
        OptionError: a value out of range.
    """

    kinds = {"zero-order": ZeroOrderEstimator}
    leading = ("learning_rate", "smoothing")
    changed = {"learning_rate": 0.1, "max_gradient_norm": 1.0}


class FirstOrder(LeaderByName):
    """Ascent along how the follower answers a small payment in the leader's reward: any follower, without its lambda.

    Raises:
        OptionError: a value out of range.
    """

    kinds = {"first-order": FirstOrderEstimator}
    leading = ("learning_rate", "weight")


@known_options()
def register_estimator(name: str, kind: type[Estimator]) -> None:
    """Give an estimator a name: ``HPGD(estimator=name)`` then makes it, and the command line offers it with its options.

    Args:
        name: lower-case words with underscores; the command line writes hyphens instead.
        kind: its class. Its constructor's arguments become options of `HPGD`, the texts of its docstring explain them, and
            ``regularization`` must be one of them.

    Raises:
        OptionError: a name that is taken, or has another form; or something that is no class of estimators.
    """
    add_estimator(name, kind)
    describe(HPGD)


def as_tensor(x: Any) -> Tensor:
    """x as a float64 tensor without a graph."""
    return x.detach() if isinstance(x, Tensor) else torch.tensor(np.array(x, dtype=np.float64))
