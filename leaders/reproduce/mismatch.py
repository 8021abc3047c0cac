"""A leader whose trajectories come from another environment than the one its follower plans in: an experiment, never a default.

The published code behind the paper's Table 1 plans, and evaluates the leader, with slip probability 0.44, while its simulator
moves with 0.33: HPGD there estimates the gradient of another problem than the one it is judged by. This module says so in one
place, and nothing else in the library knows of it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import OptionError
from followers import Policy, TrajectoryOracle
from leaders.gradients import Estimate, Loss, PolicyEstimator


class MismatchedSimulator(PolicyEstimator):
    """An estimator that sees the follower's policy played in ``simulator``, whatever environment the follower answered in.

    The follower plans in the run's own environment, and the run's evaluations are made there; the estimate is all the
    simulator's: its trajectories and, where the estimator reads a model, its model. Compose it with an update:

        simulator = gym.make("bocmdp/FourRooms-v0", slip_probability=0.33)
        estimator = MismatchedSimulator(MonteCarloEstimator(10_000), simulator)
        leader = Leader(estimator, Update(0.5, max_gradient_norm=1.0))
        leaders.optimize(gym.make("bocmdp/FourRooms-v0", slip_probability=0.44), leader, follower, 10_000)

    Args:
        estimator: what is made of the trajectories.
        simulator: an environment with the same leader parameter, contexts, states and actions as the run's.
    """

    def __init__(self, estimator: PolicyEstimator, simulator: gym.Env[Any, Any] | TabularBOCMDP):
        super().__init__(estimator.requested_regularization)
        self.estimator_there, self.simulator = estimator, simulator
        self.needs_model, self.needs_regularization = estimator.needs_model, estimator.needs_regularization
        self.accepts_loss = estimator.accepts_loss
        self._there: TrajectoryOracle | None = None

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        """As `Estimator.bind`, here and in the simulator.

        Raises:
            OptionError: the simulator's spaces are not those of the run's environment.
        """
        super().bind(oracle, loss)
        self._there = there = TrajectoryOracle(self.simulator, oracle.follower)
        for name, here, other in (
            ("leader parameter", oracle.core.leader_space, there.core.leader_space),
            ("context", oracle.core.context_space, there.core.context_space),
            ("observation", oracle.env.observation_space, there.env.observation_space),
            ("action", oracle.env.action_space, there.env.action_space),
        ):
            if here != other:
                raise OptionError(
                    f"the simulator's {name} space is {other}, and the environment's is {here}; expected the same: a simulator "
                    "may differ in its dynamics and rewards alone."
                )
        self.estimator_there.bind(there, loss)

    def state(self) -> dict[Any, Any]:
        return self.estimator_there.state()

    def load_state(self, state: dict[Any, Any]) -> None:
        self.estimator_there.load_state(state)

    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        if self._there is None:
            raise OptionError("MismatchedSimulator.estimate was called before bind(oracle).")
        before = self._there.env_steps
        estimate = self.estimator_there.estimate_policy(self._there, policy, x, context, rng)
        oracle.count_steps(self._there.env_steps - before)
        return estimate
