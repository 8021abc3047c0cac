"""One learner of an `SB3Follower`: its buffer when x changes, its log, and a watch over its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from bocmdp_gym.errors import ConvergenceError
from followers.base import Task
from followers.policies import Array
from followers.sb3.normalization import Statistics
from followers.sb3.replay import empty_buffer, end_last_episode, relabel
from followers.sb3.views import View

#: Network parameters are looked at after this many steps at the latest, losses after each update.
CHECK_STEPS = 512


@dataclass
class Learner:
    """An algorithm with the x it last answered."""

    model: BaseAlgorithm
    log: ContinuousLog
    leader: Array | None
    learning_starts: int
    statistics: Statistics | None = None

    def face(self, task: Task, replay: str, view: View) -> None:
        """Let no reward of another x survive in the replay buffer, and take up the learner's own normalisation."""
        model, changed = self.model, self.leader is not None and not np.array_equal(self.leader, task.leader)
        if self.statistics is not None:
            assert model._vec_normalize_env is not None
            self.statistics.put_into(model._vec_normalize_env)
        if isinstance(model, OffPolicyAlgorithm):
            end_last_episode(model)
        if changed and isinstance(model, OffPolicyAlgorithm):
            if replay == "relabel":
                assert self.leader is not None
                relabel(model, task, self.leader, view)
            else:
                model.replay_buffer = empty_buffer(model)
                model.learning_starts = model.num_timesteps + self.learning_starts
        self.leader = task.leader


def set_progress(model: BaseAlgorithm, begin: int, length: int) -> None:
    """Let schedules run from 1 to 0 over so many steps, of which some are made already, and stay at 0.

    Stable-Baselines3 measures progress from the learner's first step to the end of this ``learn``, so that response k would begin
    at 1/k of a learning rate that falls to 0, and DQN would explore in its first responses only. It also lets the last rollout
    overshoot the end, where such a learning rate is negative.

    Args:
        model: about to ``learn``.
        begin: steps before this ``learn``.
        length: steps from 1 to 0.
    """
    start = model.num_timesteps - begin

    def update(num_timesteps: int, total_timesteps: int) -> None:
        del total_timesteps
        model._current_progress_remaining = max(0.0, 1.0 - (num_timesteps - start) / length)

    model._update_current_progress_remaining = update  # type: ignore[method-assign]
    update(model.num_timesteps, length)
    if hasattr(model, "exploration_schedule"):
        model.exploration_rate = model.exploration_schedule(model._current_progress_remaining)  # type: ignore[attr-defined]


class Saved(NamedTuple):
    """A learner that waits for its context to come up (see `followers.sb3.state`)."""

    state: dict[str, Any]
    leader: Array | None


class ContinuousLog(Logger):
    """One log for learners that follow one another: steps continue where the last one's ended.

    Attributes:
        steps: steps logged so far.
        offset: added to the steps of the learner at work.
    """

    def __init__(self, formats: list[Any], steps: int):
        super().__init__(None, formats)
        self.steps = self.offset = steps

    def continue_with(self, model: BaseAlgorithm) -> None:
        """Take on a learner, which may have trained before."""
        self.offset = self.steps - model.num_timesteps
        model.set_logger(self)

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        """As `Logger.record`, with the steps of all learners."""
        super().record(key, value + self.offset if key == "time/total_timesteps" else value, exclude)

    def dump(self, step: int = 0) -> None:
        """As `Logger.dump`, at the step of all learners."""
        super().dump(step + self.offset)


class Watch(BaseCallback):
    """Stops a learner at the first loss or parameter that is not finite."""

    def __init__(self, context: Any):
        super().__init__()
        self._context, self._checked = context, 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.check_losses()
        if self.num_timesteps - self._checked >= CHECK_STEPS:
            self.check_parameters()

    def check_losses(self) -> None:
        """Look at what the last update logged."""
        for name, value in self.logger.name_to_value.items():
            if name.endswith("loss") and not math.isfinite(value):
                self._refuse(f"{name} is {value}")

    def check_parameters(self) -> None:
        """Look at every parameter of the networks."""
        self._checked = self.num_timesteps
        for name, parameter in self.model.policy.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                self._refuse(f"its parameter {name} is not finite")

    def explain(self, error: ValueError) -> None:
        """See through torch, which refuses to make a distribution of numbers that are not finite."""
        self.check_parameters()
        if "satisfy the constraint" in str(error):
            self._refuse("its networks put out numbers that are not finite")

    def _refuse(self, what: str) -> NoReturn:
        raise ConvergenceError(
            f"{type(self.model).__name__} diverged in context {self._context} by training step {self.num_timesteps}: {what}. "
            "Lower its learning_rate, or bring the rewards to a reasonable size."
        )


def as_callbacks(callback: Any) -> list[BaseCallback]:
    """A callback, a list of them, a function or None, as a list of callbacks."""
    given = [] if callback is None else callback if isinstance(callback, list) else [callback]
    return [c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in given]
