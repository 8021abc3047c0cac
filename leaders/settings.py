"""Typed settings of a run: what the command line of `leaders.train` offers, and how they become objects.

Every field's docstring is its help text. One dataclass per environment; the fields they share are in `RunSettings`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym

import bocmdp_gym  # noqa: F401 - registers the environments
from bocmdp_gym.errors import OptionError
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
EstimatorName = Literal["monte_carlo", "pooled", "geometric", "critic", "multilevel"]
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


#: Which leaders take an option that is not everybody's.
_SAMPLED = (
    "hpgd with the monte_carlo estimator",
    "hpgd with the pooled estimator",
    "hpgd with the critic estimator",
)
_DRAWN = ("hpgd with the geometric estimator", "hpgd with the multilevel estimator")
_OWN_OPTIONS: dict[str, tuple[str, ...]] = {
    "env_steps": (*_SAMPLED, "zero-order"),
    "bootstrap_truncated": _SAMPLED[:1],
    "share_contexts": _SAMPLED[1:2],
    "samples": _DRAWN,
    "levels": _DRAWN[1:],
    "sweeps": ("amd",),
    "smoothing": ("zero-order",),
}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings every environment shares."""

    leader: LeaderName = "hpgd"
    """Who chooses x: hpgd learns from trajectories of the follower; exact climbs the exact hypergradient of the model; amd is
    adaptive model design; zero-order compares returns at nearby x."""
    estimator: EstimatorName | None = None
    """Where hpgd's gradients come from: monte_carlo, the default (the paper's experiments), pooled (exact on the model that all
    steps so far have shown; for dynamics that do not depend on x), geometric (Algorithms 2, 5), critic (fitted values, also for
    problems that are no tables), multilevel (random numbers of a soft-q-learning follower's updates)."""
    follower: FollowerName = "soft-policy-iteration"
    """Who responds: planners (soft-policy-iteration is exact; linear-programming ignores the regularization), tabular learners,
    or neural learners of Stable-Baselines3."""
    follower_steps: int | None = None
    """Budget of a learning follower per response: environment steps, updates or iterations; its own default if not given."""
    regularization: float = 0.001
    """The follower's entropy coefficient lambda > 0: how random its optimal behaviour is."""
    iterations: int = 10_000
    """Outer iterations: one gradient and one step of x each."""
    contexts: int | Literal["all"] = 1
    """Contexts drawn per iteration, whose gradients are averaged; all: every one, weighted by its probability."""
    seed: int = 0
    """All randomness of the run comes from it; equal seeds give equal numbers."""
    learning_rate: float | None = None
    """Step size of x; the leader's own default if not given (hpgd 0.5, exact and amd 1.0, zero-order 0.1)."""
    optimizer: str = "SGD"
    """Any class of torch.optim."""
    max_gradient_norm: float = 1.0
    """Gradients longer than this are scaled down to it."""
    env_steps: int | None = None
    """Environment steps per gradient (hpgd), or per sampled return (zero-order); 10,000 if not given. The last episode is
    finished on top."""
    samples: int | None = None
    """Independent draws per gradient (hpgd with the geometric or multilevel estimator); 20,000 if not given."""
    levels: int | None = None
    """The follower makes 2^levels updates in effect (hpgd with the multilevel estimator); 10 if not given."""
    sweeps: int | None = None
    """Sweeps per gradient (amd); 100 if not given."""
    smoothing: float | None = None
    """C of the smoothing u_t = C/(t + 1) (zero-order); 1 if not given."""
    schedule: str = "constant"
    """Factor on the learning rate: constant, inverse-sqrt, linear or cosine."""
    bootstrap_truncated: bool | None = None
    """Continue episodes that the time limit cut as the average visit to their last state (hpgd); the paper does not."""
    share_contexts: bool | None = None
    """Count transitions of all contexts together, where they are the same ones (hpgd with the pooled estimator)."""
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
        """The environment.

        Raises:
            OptionError: an id or keyword Gymnasium refuses.
        """
        try:
            return gym.make(self.env_id, **self.env_options())
        except gym.error.UnregisteredEnv as error:
            raise OptionError(f"{error} Name the module that registers it with --module.") from error
        except (gym.error.Error, TypeError) as error:
            raise OptionError(f"cannot make {self.env_id}: {error}") from error

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
        estimator = self.estimator or "monte_carlo"
        kind = f"hpgd with the {estimator} estimator" if self.leader == "hpgd" else self.leader
        given = {name: getattr(self, name) for name in _OWN_OPTIONS if getattr(self, name) is not None}
        for name in given:
            if kind not in _OWN_OPTIONS[name]:
                raise OptionError(
                    f"--{name.replace('_', '-')} is an option of {' and '.join(_OWN_OPTIONS[name])}, not of {kind}."
                )
        if self.leader in ("exact", "amd") and self.follower != "soft-policy-iteration":
            raise OptionError(
                f"{self.leader} computes the follower's optimum from the model, so --follower {self.follower} would never be "
                "asked; leave it out, or use --leader hpgd or zero-order."
            )
        if self.leader == "hpgd":
            return HPGD(estimator=estimator, **given, **options)
        return {"amd": AMD, "zero-order": ZeroOrder, "exact": ExactGradient}[self.leader](**given, **options)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide a run's numbers; a checkpoint is resumed only where they are equal."""
        elsewhere = ("out", "overwrite", "resume", "checkpoint_every", "progress")
        return {"environment": self.name} | {k: v for k, v in asdict(self).items() if k not in elsewhere}

    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.name}-{self.leader}-{self.seed}"
