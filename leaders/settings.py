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
EstimatorName = Literal["monte_carlo", "geometric", "critic", "multilevel"]
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
    """Where hpgd's gradients come from: monte_carlo (the paper's experiments), geometric (the paper's Algorithms 2 and 5), critic
    (fitted values, also for problems that are no tables), multilevel (random numbers of a soft-q-learning follower's updates)."""
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
    """Independent draws per gradient (hpgd with the geometric or multilevel estimator)."""
    levels: int = 10
    """The follower makes 2^levels updates in effect (hpgd with the multilevel estimator)."""
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
        if self.leader == "hpgd":
            own: dict[EstimatorName, dict[str, Any]] = {
                "monte_carlo": {"env_steps": self.env_steps, "bootstrap_truncated": self.bootstrap_truncated},
                "critic": {"env_steps": self.env_steps},
                "geometric": {"samples": self.samples},
                "multilevel": {"samples": self.samples, "levels": self.levels},
            }
            return HPGD(estimator=self.estimator, **own[self.estimator], **options)
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
