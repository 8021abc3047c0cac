"""Settings that every run has, whatever its environment, and how they become a leader, a follower and a run folder.

Those of leaders come from the constructors of their estimators and of `Update`; followers and estimators from the lists of those
that have a name. The field's docstring, or the argument's, is the help text.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Union

import gymnasium as gym

import bocmdp_gym  # noqa: F401 - registers the environments
from bocmdp_gym.docstrings import argument_help, source_argument_help, summary
from bocmdp_gym.errors import OptionError
from followers import FictitiousPlay, Follower
from followers.registry import FOLLOWERS, FollowerEntry, make_follower
from leaders.annealing import Annealing
from leaders.gradients import Estimator
from leaders.leaders import (
    AMD,
    HPGD,
    ExactGradient,
    FirstOrder,
    Leader,
    LeaderByName,
    OptionHelp,
    ZeroOrder,
    estimator_options,
    option_help,
    signature_of,
)
from leaders.objectives import OBJECTIVES, Objective
from leaders.settings.options import Option, annotated, option_of, options_of
from leaders.updates import Update

#: Leaders by their names on the command line.
LEADERS: dict[str, type[LeaderByName]] = {
    "hpgd": HPGD,
    "exact": ExactGradient,
    "amd": AMD,
    "first-order": FirstOrder,
    "zero-order": ZeroOrder,
}
#: Step sizes of runs where they are not the leader's default: those that work with the paper's clipping.
LEARNING_RATES: dict[str, float] = {"exact": 1.0, "amd": 1.0}
#: The follower that a leader stands for which computes the response itself.
_PLANNER = "soft-policy-iteration"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings every environment shares; `leaders.settings.commands` has the classes with those of an environment besides."""

    # the help texts of these six, which have one list or another to tell, are in `named_fields`
    leader: str = "hpgd"
    estimator: str | None = None
    follower: str = _PLANNER
    follower_steps: int | None = None
    follower_options: Mapping[str, Any] = field(default_factory=dict)
    leader_objective: str = "mean"
    rounds: int | None = None
    """Populations: rounds of fictitious play per response, in which learning followers meet on the loads they make; the exact
    equilibrium if not given."""
    regularization: float = 0.001
    """The follower's entropy coefficient lambda > 0: how random its optimal behaviour is."""
    regularization_from: float | None = None
    """Begin with this lambda instead, and let it fall to --regularization over the first 80% of the iterations."""
    iterations: int = 10_000
    """Outer iterations: one gradient and one step of x each."""
    contexts: int | Literal["all"] = 1
    """Contexts drawn per iteration, whose gradients are averaged; all: every one, weighted by its probability."""
    seed: int = 0
    """All randomness of the run comes from it; equal seeds give equal numbers."""
    evaluate_every: int = 100
    """Iterations between exact evaluations of the leader's return, which are logged to progress.csv and TensorBoard."""
    out: Path | None = None
    """Run folder; runs/ENVIRONMENT-LEADER-SEED if not given."""
    overwrite: bool = False
    """Replace a run that is already in the folder."""
    checkpoint_every: int = 500
    """Iterations between checkpoints; SIGTERM writes one too."""
    resume: bool = False
    """Continue from the newest checkpoint in the folder; the settings must be the same. Without one, start."""
    progress: bool = True
    """Show a progress bar."""
    module: str | None = None
    """A module to import first, one that registers environments, followers or estimators of yours."""

    #: Of the command.
    name: ClassVar[str]
    #: Arguments of the environment that are settings of the run, by name.
    same: ClassVar[Mapping[str, str]] = {}

    @property
    def env_id(self) -> str:
        """The environment's id."""
        raise NotImplementedError

    def env_options(self) -> dict[str, Any]:
        """Keywords of ``gym.make``."""
        return self._arguments("environment") | {name: getattr(self, setting) for name, setting in self.same.items()}

    def make_env(self, **further: Any) -> gym.Env[Any, Any]:
        """The environment; ``further`` keywords of ``gym.make`` come on top.

        Raises:
            OptionError: an id or keyword Gymnasium refuses.
        """
        try:
            return gym.make(self.env_id, **self.env_options(), **further)
        except gym.error.UnregisteredEnv as error:
            raise OptionError(f"{error} Name the module that registers it with --module.") from error
        except (gym.error.Error, TypeError) as error:
            raise OptionError(f"cannot make {self.env_id}: {error}") from error

    def make_follower(self, regularization: float | None = None) -> Follower:
        """The follower; with another lambda if one is given.

        Raises:
            OptionError: an option that this follower does not have, or a value it refuses.
        """
        lam = self.regularization if regularization is None else regularization
        entry, given = FOLLOWERS[self.follower], dict(self.follower_options)
        for name, option in self._options("follower").items():
            value = getattr(self, name)
            if value is None:
                continue
            if option.name not in entry.options:
                users = " and ".join(who for who, one in FOLLOWERS.items() if option.name in one.options)
                raise OptionError(f"--{hyphenated(name)} is an option of follower {users}, not of {self.follower}.")
            if option.name in given:
                raise OptionError(f"{option.name} is set by --{hyphenated(name)}; leave it out of --follower-options.")
            given[option.name] = option.value(value)
        follower = make_follower(self.follower, lam, self.follower_steps, given)
        return follower if self.rounds is None else FictitiousPlay(follower, self.rounds)

    def make_leader(self) -> Leader:
        """The leader."""
        leader = LEADERS[self.leader]
        estimators = {hyphenated(name): name for name in leader.kinds}
        if self.estimator is not None and len(estimators) == 1:
            raise OptionError(f"--estimator is {self.estimator}, and leader {self.leader} has but one; leave it out.")
        estimator = self.estimator or next(iter(estimators))
        chosen = leader.kinds[estimators[estimator]]
        given = {}
        for name, option in self._options("leader").items():
            if getattr(self, name) is None:
                continue
            if option.name not in estimator_options(chosen):
                users = " and ".join(who for who, kind in _users().items() if option.name in estimator_options(kind))
                user = next(who for who, kind in _users().items() if kind is chosen)
                raise OptionError(f"--{hyphenated(name)} is an option of {users}, not of {user}.")
            given[option.name] = option.value(getattr(self, name))
        if not leader.asks_follower and (self.follower != _PLANNER or self.rounds is not None):
            unasked = f"--follower {self.follower}" if self.rounds is None else f"--rounds {self.rounds}"
            raise OptionError(
                f"{self.leader} computes the follower's optimum from the model, so {unasked} would never be "
                f"asked; leave it out, or use --leader {' or '.join(n for n, kind in LEADERS.items() if kind.asks_follower)}."
            )
        given |= self._arguments("update")
        if given["learning_rate"] is None:
            given["learning_rate"] = _learning_rate(self.leader)
        if self.make_follower().regularization is None:
            given["regularization"] = self.regularization  # the follower has none: what the leader assumes of it
        if len(estimators) > 1:
            given["estimator"] = estimators[estimator]
        return leader(**given)

    def make_schedule(self) -> Annealing | None:
        """How the follower's lambda changes over the run, if it does."""
        return None if self.regularization_from is None else Annealing(self.regularization_from)

    def make_objective(self) -> Objective:
        """What is made of the contexts' returns.

        Raises:
            OptionError: an option that this objective does not have, one that it needs and that is missing, or a value out of
                range.
        """
        kind, given = OBJECTIVES[self.leader_objective], {}
        parameters = inspect.signature(kind).parameters
        for name, option in self._options("objective").items():
            value = getattr(self, name)
            if value is not None and option.name not in parameters:
                users = " and ".join(who for who, one in OBJECTIVES.items() if option.name in inspect.signature(one).parameters)
                raise OptionError(
                    f"--{hyphenated(name)} is an option of {users}, not of --leader-objective {self.leader_objective}."
                )
            if value is not None:
                given[option.name] = option.value(value)
            elif option.name in parameters and parameters[option.name].default is inspect.Parameter.empty:
                raise OptionError(f"--leader-objective {self.leader_objective} needs --{hyphenated(name)}.")
        return kind(**given)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide a run's numbers; a checkpoint is resumed only where they are equal."""
        elsewhere = ("out", "overwrite", "resume", "checkpoint_every", "progress")
        return {"environment": self.name} | {k: v for k, v in asdict(self).items() if k not in elsewhere}

    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.name}-{self.leader}-{self.seed}"

    def _options(self, owner: str) -> dict[str, Option]:
        """The settings that are arguments of a constructor, by their names."""
        return {f.name: f.metadata["option"] for f in fields(self) if f.metadata.get("owner") == owner}

    def _arguments(self, owner: str) -> dict[str, Any]:
        """Their values, by the constructor's names for them."""
        return {option.name: option.value(getattr(self, name)) for name, option in self._options(owner).items()}


#: Names that an argument of an environment or an estimator cannot have as a setting.
RUN_NAMES = frozenset(f.name for f in fields(RunSettings)) | inspect.signature(Update).parameters.keys()


def named_fields() -> dict[str, Any]:
    """The types of those settings of every run that name one of a list, with their help texts."""
    first, *_ = estimators = {hyphenated(name): kind for name, kind in HPGD.kinds.items()}
    budgets = ", ".join(f"{name} {one.default_budget:,}" for name, one in FOLLOWERS.items() if one.default_budget is not None)
    followers = (
        "Who responds: planners (soft-policy-iteration is exact; linear-programming ignores the regularization), tabular "
        "learners, or neural learners of Stable-Baselines3."
    )
    steps = "Budget of a learning follower per response: environment steps, updates or iterations. If not given:"
    found: dict[str, tuple[Any, str, str | None]] = {
        "leader": (Literal[tuple(LEADERS)], f"Who chooses x. {_summaries(LEADERS)}", None),
        "estimator": (
            Literal[tuple(estimators)] | None,
            f"Where hpgd's gradients come from; {first} if not given. {_summaries(estimators)}",
            "",
        ),
        "follower": (Literal[tuple(FOLLOWERS)], followers, None),
        "follower_steps": (int | None, f"{steps} {budgets}.", ""),
        "follower_options": (dict[str, Any], "Further arguments of the follower's constructor, by name", "(default: {})"),
        "leader_objective": (
            Literal[tuple(OBJECTIVES)],
            f"What is made of the leader's returns in the contexts. {_summaries(OBJECTIVES)}",
            None,
        ),
    }
    return {name: annotated(Option(name, kind, None, text, {}), hint) for name, (kind, text, hint) in found.items()}


def _summaries(kinds: Mapping[str, Any]) -> str:
    return " ".join(f"{name}: {summary(kind)}" for name, kind in kinds.items())


def leader_fields(taken: Set[str]) -> list[tuple[str, Option, str]]:
    """The settings that are arguments of updates and estimators: name, option, and which of the two they are of.

    Args:
        taken: names of other settings; an estimator's option of such a name is called estimator_NAME.
    """
    signature, text = signature_of(HPGD), argument_help(Update)
    shared = [p for p in inspect.signature(Update).parameters if p in signature.parameters]
    update = options_of([signature.parameters[name] for name in shared], Update, text)
    rates = ", ".join(f"{name} {_learning_rate(name):g}" for name in LEADERS)
    update["learning_rate"] = replace(
        update["learning_rate"], kind=float | None, default=None, help=f"Step size of x, > 0. If not given: {rates}."
    )
    own: dict[str, list[Option]] = {}
    for kind in _users().values():
        named = estimator_options(kind)
        known = options_of(named.values(), kind, {})
        for name, p in named.items():
            if p.name in known:
                own.setdefault(name, []).append(known[p.name])
    told = option_help(_users())
    found = [(name, option, "update") for name, option in update.items()]
    for name, options in own.items():
        about = " ".join(map(_sentence, told[name]))
        one_of: Any = Union[(*dict.fromkeys(option.kind for option in options), None)]
        spelling = {key: value for option in options for key, value in option.spelling.items()}
        field_name = f"estimator_{name}" if name in taken else name
        found.append((field_name, Option(name, one_of, None, about, spelling), "leader"))
    return found


def follower_fields(taken: Set[str]) -> list[tuple[str, Option, str]]:
    """The settings that are arguments of followers (`followers.register`), as those of `leader_fields`.

    Args:
        taken: names of other settings; a follower's option of such a name is called follower_NAME.
    """
    found: dict[str, dict[str, Option]] = {}
    for user, entry in FOLLOWERS.items():
        for name in entry.options:
            found.setdefault(name, {})[user] = _follower_option(entry, name)
    made = []
    for name, users in found.items():
        option = next((one for one in users.values() if one.help), next(iter(users.values())))
        text = f"{option.help[:1].upper()}{option.help[1:].rstrip('.')} ({', '.join(users)})."
        field_name = f"follower_{name}" if name in taken else name
        made.append((field_name, replace(option, kind=option.kind | None, default=None, help=text), "follower"))
    return made


def _follower_option(entry: FollowerEntry, name: str) -> Option:
    """An argument of what makes a follower: its own, or that of the base class it hands keywords on to.

    Where the registry has its type, what makes the follower is not imported.

    Raises:
        OptionError: there is none, or none that a command line can hold.
    """
    if entry.options[name] is not None:
        about = source_argument_help(entry.make) if isinstance(entry.make, str) else argument_help(entry.make)
        option = option_of(name, entry.options[name], None, about.get(name, ""))
        if option is not None:
            return option
    make: Any = entry.load()
    for kind in inspect.getmro(make) if inspect.isclass(make) else (make,):
        parameter = {p.name: p for p in inspect.signature(kind).parameters.values()}.get(name)
        option = options_of([parameter], kind, argument_help(kind)).get(name) if parameter is not None else None
        if option is not None:
            return option
    raise OptionError(f"{make.__name__} has no argument {name!r} that the command line could offer; leave it out of options.")


def objective_fields() -> list[tuple[str, Option, str]]:
    """The settings that are arguments of objectives, as those of `leader_fields`; each is called leader_objective_NAME."""
    found: dict[str, tuple[Option, list[str]]] = {}
    for user, kind in OBJECTIVES.items():
        for name, option in options_of(inspect.signature(kind).parameters.values(), kind, argument_help(kind)).items():
            found.setdefault(name, (option, []))[1].append(user)
    made = []
    for name, (option, users) in found.items():
        text = f"{option.help[:1].upper()}{option.help[1:].replace(' (`Objective`)', '').rstrip('.')} ({', '.join(users)})."
        made.append((f"leader_objective_{name}", replace(option, kind=option.kind | None, default=None, help=text), "objective"))
    return made


def _sentence(said: OptionHelp) -> str:
    """What some estimators say of an option, and what it is if it is not given."""
    users = [user.removeprefix("hpgd with the ").removesuffix(" estimator") for user in said.users]
    default = "" if said.default is None else f"; {said.default} if not given"
    return f"{said.text[:1].upper()}{said.text[1:].rstrip('.')} ({', '.join(users)}{default})."


def hyphenated(name: str) -> str:
    """A name as the command line spells it."""
    return name.replace("_", "-")


def _users() -> dict[str, type[Estimator]]:
    """The estimators of all leaders, by what a run calls them."""
    return {
        f"{leader} with the {hyphenated(name)} estimator" if len(kind.kinds) > 1 else leader: estimator
        for leader, kind in LEADERS.items()
        for name, estimator in kind.kinds.items()
    }


def _learning_rate(leader: str) -> float:
    default: float = LEADERS[leader].changed["learning_rate"]
    return LEARNING_RATES.get(leader, default)
