"""Typed settings of a run: what the command line of `leaders.train` offers, and how they become objects.

Every field's docstring is its help text. One dataclass per environment; the fields they share are in `RunSettings`.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym

import bocmdp_gym  # noqa: F401 - registers the environments
from bocmdp_gym.envs.four_rooms import LAYOUT
from bocmdp_gym.errors import OptionError, suggest
from followers import (
    Follower,
    LinearProgramming,
    NaturalPolicyGradient,
    SB3Follower,
    SoftDQNFollower,
    SoftPolicyIteration,
    SoftQLearning,
    SoftValueIteration,
    VanillaPolicyGradient,
)
from leaders.base import AMD, HPGD, ExactGradient, Leader, ZeroOrder

LeaderName = Literal["hpgd", "exact", "amd", "zero-order"]
EstimatorName = Literal["monte_carlo", "geometric", "critic"]
FollowerName = Literal[
    "soft-policy-iteration",
    "soft-value-iteration",
    "soft-q-learning",
    "natural-policy-gradient",
    "vanilla-policy-gradient",
    "linear-programming",
    "soft-dqn",
    "ppo",
    "a2c",
    "dqn",
]

#: Step sizes that work with the paper's clipping, per leader.
LEARNING_RATES: dict[str, float] = {"hpgd": 0.5, "exact": 1.0, "amd": 1.0, "zero-order": 0.1}
#: Budgets of learning followers per response: environment steps, updates or iterations.
FOLLOWER_STEPS: dict[str, int] = {
    "soft-q-learning": 100_000,
    "natural-policy-gradient": 20,
    "vanilla-policy-gradient": 20_000,
    "soft-dqn": 5_000,
    "ppo": 5_000,
    "a2c": 5_000,
    "dqn": 5_000,
}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings every environment shares."""

    leader: LeaderName = "hpgd"
    """Who chooses x: hpgd learns from trajectories of the follower; exact climbs the exact hypergradient of the model; amd is
    adaptive model design; zero-order compares returns at nearby x."""
    estimator: EstimatorName = "monte_carlo"
    """Where hpgd's gradients come from: monte_carlo (the paper's experiments), geometric (the paper's Algorithms 2 and 5)
    or critic (values fitted by regression, for problems that are no tables)."""
    follower: FollowerName = "soft-policy-iteration"
    """Who responds: planners (soft-policy-iteration is exact; linear-programming ignores the regularization), tabular learners,
    or neural learners of Stable-Baselines3."""
    follower_steps: int | None = None
    """Budget of a learning follower per response: environment steps, updates or iterations; its own default if not given."""
    regularization: float = 0.001
    """The follower's entropy coefficient lambda > 0: how random its optimal behaviour is."""
    iterations: int = 10_000
    """Outer iterations: one context, one gradient and one step of x each."""
    seed: int = 0
    """All randomness of the run comes from it; equal seeds give equal numbers."""
    learning_rate: float | None = None
    """Step size of x; the leader's own default if not given (hpgd 0.5, exact and amd 1.0, zero-order 0.1)."""
    optimizer: str = "SGD"
    """Any class of torch.optim."""
    max_gradient_norm: float = 1.0
    """Gradients longer than this are scaled down to it."""
    env_steps: int = 10_000
    """Environment steps per gradient (hpgd), or per sampled return (zero-order); the last episode is finished on top."""
    samples: int = 20_000
    """Independent draws per gradient (hpgd with the geometric estimator)."""
    sweeps: int = 100
    """Sweeps per gradient (amd)."""
    smoothing: float = 1.0
    """C of the smoothing u_t = C/(t + 1) (zero-order)."""
    schedule: str = "constant"
    """Factor on the learning rate: constant, inverse-sqrt, linear or cosine."""
    bootstrap_truncated: bool = False
    """Continue episodes that the time limit cut as the average visit to their last state (hpgd); the paper does not."""
    evaluate_every: int = 100
    """Iterations between exact evaluations of the leader's return, which are logged to progress.csv and TensorBoard."""
    out: Path | None = None
    """Run folder; runs/ENVIRONMENT-LEADER-SEED if not given."""
    overwrite: bool = False
    """Replace a run that is already in the folder."""
    checkpoint_every: int = 500
    """Iterations between checkpoints; SIGTERM writes one too."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder; the settings must be the same. Without one, start."""
    progress: bool = True
    """Show a progress bar."""

    name: ClassVar[str]

    @property
    def env_id(self) -> str:
        """The environment's id."""
        raise NotImplementedError

    def env_options(self) -> dict[str, Any]:
        """Keywords of ``gym.make``."""
        shared = {field.name for field in fields(RunSettings)}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in shared}

    def make_env(self) -> gym.Env[Any, Any]:
        """The environment."""
        return gym.make(self.env_id, **self.env_options())

    def make_follower(self, regularization: float | None = None) -> Follower:
        """The follower; with another lambda if one is given."""
        lam = self.regularization if regularization is None else regularization
        steps = self.follower_steps
        if self.follower in FOLLOWER_STEPS and steps is None:
            steps = FOLLOWER_STEPS[self.follower]
        elif self.follower not in FOLLOWER_STEPS and steps is not None:
            raise OptionError(
                f"--follower-steps is {steps}, and {self.follower} solves to a tolerance; leave it out, or choose one of "
                f"{', '.join(FOLLOWER_STEPS)}."
            )
        if self.follower == "soft-policy-iteration":
            return SoftPolicyIteration(lam)
        if self.follower == "soft-value-iteration":
            return SoftValueIteration(lam)
        if self.follower == "linear-programming":
            return LinearProgramming()
        assert steps is not None
        if self.follower == "soft-dqn":
            return SoftDQNFollower(lam, steps)
        if self.follower in ("ppo", "a2c", "dqn"):
            return SB3Follower(self.follower.upper(), steps)
        planner = {
            "soft-q-learning": SoftQLearning,
            "natural-policy-gradient": NaturalPolicyGradient,
            "vanilla-policy-gradient": VanillaPolicyGradient,
        }[self.follower]
        made: Follower = planner(lam, iterations=steps)
        return made

    def make_leader(self) -> Leader:
        """The leader."""
        options: dict[str, Any] = {
            "learning_rate": LEARNING_RATES[self.leader] if self.learning_rate is None else self.learning_rate,
            "optimizer": self.optimizer,
            "max_gradient_norm": self.max_gradient_norm,
            "schedule": self.schedule,
        }
        if self.make_follower().regularization is None:
            options["regularization"] = self.regularization  # the follower has none: what the leader assumes of it
        if self.leader == "hpgd" and self.estimator == "geometric":
            return HPGD(estimator="geometric", samples=self.samples, **options)
        if self.leader == "hpgd" and self.estimator == "critic":
            return HPGD(estimator="critic", env_steps=self.env_steps, **options)
        if self.leader == "hpgd":
            return HPGD(env_steps=self.env_steps, bootstrap_truncated=self.bootstrap_truncated, **options)
        if self.leader == "amd":
            return AMD(sweeps=self.sweeps, **options)
        if self.leader == "zero-order":
            return ZeroOrder(smoothing=self.smoothing, env_steps=self.env_steps, **options)
        return ExactGradient(**options)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide a run's numbers; a checkpoint is resumed only where they are equal."""
        elsewhere = ("out", "overwrite", "resume", "checkpoint_every", "progress")
        return {"environment": self.name} | {k: v for k, v in asdict(self).items() if k not in elsewhere}

    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.name}-{self.leader}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class FourRoomsSettings(RunSettings):
    """Four-Rooms (paper, sections 3 and F.2): penalties lead a walker past a marked cell."""

    slip_probability: float = 1 / 3
    """Probability that a move goes another way than chosen; the paper's text says 1/3, its table was made with 0.44."""
    penalty_cost: float = 1.0
    """What the leader pays per unit of penalty placed (the paper's beta)."""
    penalty_budget: float = 0.2
    """Sum of all penalties."""
    start: tuple[int, int] = (4, 1)
    """Row and column of the start, counted from 0."""
    goals: tuple[tuple[int, int], ...] = ((1, 9), (11, 11))
    """Rows and columns of the goals, one per context."""
    waypoint: tuple[int, int] = (8, 4)
    """Row and column of the marked cell the leader wants visited."""
    layout: Path | None = None
    """A text file with another layout, x for walls; the paper's four rooms if not given."""
    horizon: int = 200
    """Steps after which an episode is cut."""

    name: ClassVar[str] = "four-rooms"

    @property
    def env_id(self) -> str:
        return "bocmdp/FourRooms-v0"

    def env_options(self) -> dict[str, Any]:
        options = super().env_options()
        if self.layout is not None and not self.layout.is_file():
            raise OptionError(f"layout {self.layout} is not a file; expected a text file of rows, walls written x.")
        options["layout"] = LAYOUT if self.layout is None else self.layout.read_text()
        return options


@dataclass(frozen=True, kw_only=True)
class RandomMDPSettings(RunSettings):
    """A random model in which x moves rewards, transitions, starts and the leader's reward."""

    model_seed: int = 0
    """Seed of the model; --seed is that of the run."""
    n_states: int = 20
    """Number of states."""
    n_actions: int = 4
    """Number of actions."""
    n_contexts: int = 2
    """Number of contexts."""
    branching: int | None = None
    """Successors per state and action; all states if not given."""
    discount: float = 0.95
    """The follower's and the leader's discount."""
    horizon: int = 200
    """Steps after which an episode is cut."""
    leader_dim: int = 10
    """Dimension of x."""

    name: ClassVar[str] = "random-mdp"

    @property
    def env_id(self) -> str:
        return "bocmdp/RandomMDP-v0"

    def env_options(self) -> dict[str, Any]:
        options = super().env_options()
        return {"seed": options.pop("model_seed"), **options}


@dataclass(frozen=True, kw_only=True)
class TaxDesignSettings(RunSettings):
    """Tax design (paper, appendix A): income tax and VAT rates for households that work, consume and save."""

    leader: LeaderName = "exact"
    """Who leads; assets are no table, so hpgd needs --estimator critic here."""
    regularization: float = 0.1
    """The follower's entropy coefficient lambda > 0; 0.1, 0.2 or 0.3 in the published runs."""
    iterations: int = 1000
    """Outer iterations: one context, one gradient and one step of x each."""
    prices: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Prices of the goods."""
    wage: float = 1.0
    """Wage per hour."""
    tax_upper: tuple[float, float, float, float] = (1.0, 2.0, 2.0, 2.0)
    """Upper bounds of the income tax and the VAT rates."""
    asset_range: tuple[float, float] = (-100.0, 100.0)
    """Smallest and largest assets."""
    noise_std: float = 5.0
    """Standard deviation of what happens to the assets by chance."""
    grid_size: int = 101
    """Grid points of the model that is solved."""
    horizon: int = 200
    """Steps after which an episode is cut."""

    name: ClassVar[str] = "tax-design"

    @property
    def env_id(self) -> str:
        return "bocmdp/TaxDesign-v0"


@dataclass(frozen=True, kw_only=True)
class CustomSettings(RunSettings):
    """Your own configurable environment, registered with Gymnasium."""

    id: str
    """Its id, such as mine/Roads-v0."""
    module: str | None = None
    """A module to import first, the one that registers it."""
    options: str = "{}"
    """Keywords of gym.make, as JSON."""

    name: ClassVar[str] = "custom"

    @property
    def env_id(self) -> str:
        return self.id

    def env_options(self) -> dict[str, Any]:
        try:
            options = json.loads(self.options)
        except json.JSONDecodeError as error:
            raise OptionError(f"--options is not JSON: {error}; expected an object such as '{{\"size\": 5}}'.") from error
        if not isinstance(options, dict):
            raise OptionError(f"--options is {self.options}; expected a JSON object such as '{{\"size\": 5}}'.")
        return options

    def make_env(self) -> gym.Env[Any, Any]:
        if self.module is not None:
            try:
                importlib.import_module(self.module)
            except ImportError as error:
                raise OptionError(f"cannot import --module {self.module}: {error}.") from error
        try:
            return super().make_env()
        except gym.error.UnregisteredEnv as error:
            raise OptionError(f"{error} Name the module that registers it with --module.") from error


#: What the command line offers, by name.
ENVIRONMENTS: dict[str, type[RunSettings]] = {
    s.name: s for s in (FourRoomsSettings, RandomMDPSettings, TaxDesignSettings, CustomSettings)
}


def settings_from_summary(summary: dict[str, Any]) -> RunSettings:
    """The settings of a run, from its summary.json.

    Raises:
        OptionError: the summary is not of a run of this version.
    """
    name, values = summary.get("name"), summary.get("settings")
    if name not in ENVIRONMENTS or not isinstance(values, dict):
        raise OptionError(f"the summary names the environment {name!r}. {suggest(name, ENVIRONMENTS)}")
    kind = ENVIRONMENTS[name]
    known = {field.name for field in fields(kind)}
    unknown = set(values) - known
    if unknown:
        raise OptionError(f"the summary has settings this version does not know: {', '.join(sorted(unknown))}.")
    return kind(**{key: _from_json(key, value) for key, value in values.items()})


def _from_json(name: str, value: Any) -> Any:
    if name in ("out", "layout") and value is not None:
        return Path(value)
    return tuple(_from_json("", v) for v in value) if isinstance(value, list) else value
