"""What a follower answered and what was played, recorded, and played again with another quantity as the leader's reward.

An estimator asks an oracle for responses and trajectories. Asked once more of the same ones, from a generator in the same state,
it estimates the gradient of another outcome with the same weights: no step is played and nothing is trained for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import BOCMDP, ConfiguredMDPs, TabularBOCMDP, Trajectories
from bocmdp_gym.model import ModelLayer
from followers import Policy, TrajectoryOracle

Array = npt.NDArray[np.float64]
#: What each step is worth, ``(N,)``, as a function of trajectories.
StepValues = Callable[[Trajectories], Array]


class Recording:
    """An oracle that keeps what it hands out; everything else is that of the oracle inside."""

    def __init__(self, oracle: TrajectoryOracle):
        self._oracle = oracle
        self.policies: list[Policy] = []
        self.batches: list[Trajectories] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._oracle, name)

    def respond(self, x: Any, context: Any, rng: np.random.Generator) -> Policy:
        """As `TrajectoryOracle.respond`."""
        self.policies.append(self._oracle.respond(x, context, rng))
        return self.policies[-1]

    def sample(self, *arguments: Any, **options: Any) -> Trajectories:
        """As `TrajectoryOracle.sample`."""
        self.batches.append(self._oracle.sample(*arguments, **options))
        return self.batches[-1]


class Replay:
    """An oracle that hands out what was recorded, with another leader's reward.

    Args:
        oracle: whose answers they are.
        model: the problem with the outcome as the leader's reward.
        values: the outcome of each step; None: that of the tabular model.
    """

    def __init__(self, oracle: TrajectoryOracle, model: BOCMDP, values: StepValues | None):
        self._oracle, self.model = oracle, model
        self._values = self._on_table if values is None else values
        self._configured: tuple[bytes, ConfiguredMDPs] | None = None
        self.follower: Any = _Answered(oracle.follower)
        self._policies: deque[Policy] = deque()
        self._batches: deque[Trajectories] = deque()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._oracle, name)

    @property
    def seen_model(self) -> BOCMDP:
        """As `TrajectoryOracle.seen_model`."""
        return self._oracle.layers.seen(self.model)

    def load(self, recording: Recording) -> list[Trajectories]:
        """Take what was recorded. Returns the trajectories with the outcome as leader's reward."""
        batches = [replace(batch, leader_rewards=self._values(batch)) for batch in recording.batches]
        self._policies, self._batches = deque(recording.policies), deque(batches)
        return batches

    def respond(self, x: Any, context: Any, rng: np.random.Generator) -> Policy:
        """The next response that was recorded."""
        del x, context, rng
        return self._policies.popleft()

    def sample(self, *arguments: Any, **options: Any) -> Trajectories:
        """The next trajectories."""
        del arguments, options
        return self._batches.popleft()

    def configure(self, x: Any) -> ConfiguredMDPs:
        """The arrays of the problem with the outcome, as `TrajectoryOracle.configure`."""
        assert isinstance(self.model, TabularBOCMDP)
        leader = np.asarray(x.detach() if isinstance(x, Tensor) else x, dtype=np.float64)
        if self._configured is None or self._configured[0] != leader.tobytes():
            self._configured = leader.tobytes(), self.model.configure_with_graph(leader)
        return self._configured[1]

    def configure_for(self, policy: Policy) -> ConfiguredMDPs:
        """As `TrajectoryOracle.configure_for`."""
        return self.configure(policy.leader)

    def _on_table(self, batch: Trajectories) -> Array:
        values: Array = self.configure(batch.leader).arrays(batch.context).leader_reward[batch.states, batch.actions]
        return values


class _Answered:
    """A follower that has answered already: it says what it is, and neither learns nor forgets."""

    resumes, training_steps = True, 0

    def __init__(self, follower: Any):
        self._follower = follower

    def __getattr__(self, name: str) -> Any:
        return getattr(self._follower, name)

    def state(self) -> dict[Any, Any]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[Any, Any]) -> None:
        """Nothing to do."""


class OutcomeModel(ModelLayer):
    """A model that is no table, with an outcome in the place of the leader's reward.

    Args:
        model: the environment's.
        outcome: (x, observations, actions, context) -> ``(N,)``; None: it is known of trajectories alone.
    """

    def __init__(self, model: BOCMDP, outcome: Callable[..., Tensor] | None):
        super().__init__(model)
        self._outcome = outcome

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        """The outcome."""
        del outcomes
        if self._outcome is None:
            return torch.zeros(len(actions), dtype=torch.float64)
        return self._outcome(x, observations, actions, context)
