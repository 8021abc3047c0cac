"""What a run shows on its way, and what it answers in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from followers import TrajectoryOracle
from leaders.history import History

#: Why a run stopped: it made all its iterations, or its callback asked it to.
Stopped = Literal["iterations", "callback"]


@dataclass
class Result(Constructed):
    """What a run found.

    Attributes:
        x: the last iterate ``(d,)``.
        x0: where the run started ``(d,)``.
        x_random: an iterate drawn uniformly from those before the last, x_0..x_{T-1}, the one Theorem 2.5 speaks of.
        history: one record per iteration (`leaders.history.COLUMNS`).
        leader_return: exact F(x) at ``x`` (the objective's value; minus the loss, with a loss); None without a tabular model.
        env_steps: environment steps used.
        iterations: T, the iterations made.
        stopped: why it stopped: "iterations", it made all it was asked for; "callback", the callback returned True. A run that
            ends otherwise has no result: it raises an error.
        seconds: wall-clock time.
        oracle: the environment and follower the run used, as the run left them.
        estimator: where gradients came from, with its options: that which ``HPGD(estimator="auto")`` chose, for example.
        context_returns: exact F_xi at ``x`` in every context ``(C,)``; None where ``leader_return`` is.
    """

    x: Tensor
    x0: Tensor
    x_random: Tensor
    history: History
    leader_return: float | None
    env_steps: int
    iterations: int
    stopped: Stopped
    seconds: float
    oracle: TrajectoryOracle
    estimator: str
    context_returns: npt.NDArray[np.float64] | None = None


@dataclass
class Progress(Constructed):
    """What a callback is shown: the state after the record's iteration was taken.

    Attributes:
        iteration: counted from 0.
        x: after the iteration's step ``(d,)``.
        record: the iteration's record, which belongs to x before the step.
        history: all records so far.
        oracle: the environment and follower of the run.
        run: which one of `leaders.optimize_many`; 0 for `leaders.optimize`.
    """

    iteration: int
    x: Tensor
    record: dict[str, Any]
    history: History
    oracle: TrajectoryOracle
    run: int = 0


#: Is shown a run's progress; True stops the run.
Callback = Callable[[Progress], bool | None]
