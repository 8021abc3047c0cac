r"""SoftDQN: deep Q-learning of the regularised problem, so that a neural follower solves the paper's objective.

The mathematics (paper, eq. 1 and 2). With Q the network and Q' its slowly moving copy, a transition (s, a, r, s') is regressed on

    r + gamma (1 - d) lambda logsumexp(Q'(s', .) / lambda),        d = 1 where the episode terminated (a time limit is no end),

by least squares: DQN's own loss grows only linearly beyond 1, so where returns are random by more than that it finds a number
between their mean and their median, and Q* is a mean. The agent behaves as it will be judged, by pi(a|s) proportional to
exp(Q(s, a) / lambda). With tables for Q this is soft Q-learning.

Reference for the networks: Mnih et al., "Human-level control through deep reinforcement learning", 2015; for the soft target:
Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies", 2017.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, MultiInputPolicy
from torch import Tensor
from torch.nn.functional import mse_loss

from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_regularization


class SoftDQNPolicy(DQNPolicy):
    """A Q-network that acts by softmax(Q / lambda), greedily where asked to be deterministic."""

    def __init__(self, *args: Any, regularization: float, **options: Any):
        self.regularization = regularization
        super().__init__(*args, **options)

    def action_logits(self, obs: Any) -> Tensor:
        """Q / lambda, ``(N, A)``: the logits of pi."""
        q: Tensor = self.q_net(obs)
        return q / self.regularization

    def _predict(self, obs: Any, deterministic: bool = True) -> Tensor:
        logits = self.action_logits(obs)
        if deterministic:
            return logits.argmax(dim=1)
        return torch.distributions.Categorical(logits=logits).sample()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "regularization": self.regularization}


class SoftCnnPolicy(SoftDQNPolicy, CnnPolicy):
    """`SoftDQNPolicy` for images."""


class SoftMultiInputPolicy(SoftDQNPolicy, MultiInputPolicy):
    """`SoftDQNPolicy` for dictionaries of observations."""


class SoftDQN(DQN):
    """Deep soft Q-learning (module docstring); the rest is Stable-Baselines3's `DQN`.

    Args:
        policy, env: as for DQN.
        regularization: lambda > 0.
        exploration_initial_eps, exploration_final_eps: uniform actions mixed into softmax(Q / lambda), as in DQN; none by
            default. Where lambda is small and rewards are rare, softmax(Q / lambda) alone may never see one.
        options: any other argument of DQN.

    Raises:
        RegularizationError: lambda is not positive and finite.
        OptionError: n-step targets (they leave out the entropy of the steps between), or a memory-saving replay buffer (it
            takes a time limit for the end of the problem).
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": SoftDQNPolicy,
        "CnnPolicy": SoftCnnPolicy,
        "MultiInputPolicy": SoftMultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[SoftDQNPolicy],
        env: Any,
        regularization: float | None = None,
        *,
        exploration_initial_eps: float = 0.0,
        exploration_final_eps: float = 0.0,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **options: Any,
    ):
        super().__init__(
            policy,
            env,
            exploration_initial_eps=exploration_initial_eps,
            exploration_final_eps=exploration_final_eps,
            policy_kwargs=dict(policy_kwargs or {}),
            _init_setup_model=False,
            **options,
        )
        self.regularization = regularization
        if self.n_steps > 1:
            raise OptionError(
                f"n_steps is {self.n_steps}; expected 1, since an n-step target leaves out the entropy of the steps between."
            )
        if self.optimize_memory_usage:
            raise OptionError(
                "optimize_memory_usage makes a replay buffer that takes a time limit for the end of the problem, and SoftDQN has "
                "to tell them apart; leave it off and lower buffer_size instead."
            )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self.regularization = check_regularization(self.regularization)
        self.policy_kwargs["regularization"] = self.regularization
        super()._setup_model()

    def set_regularization(self, regularization: float) -> None:
        """Behave, and learn, by another lambda from now on. What is in the replay buffer depends on none."""
        self.regularization = self.policy.regularization = regularization  # type: ignore[assignment]

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Regress on the soft targets (module docstring), ``gradient_steps`` times."""
        assert self.regularization is not None
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        losses = []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            with torch.no_grad():
                following = self.q_net_target(batch.next_observations) / self.regularization
                value = self.regularization * torch.logsumexp(following, dim=1, keepdim=True)
                target = batch.rewards + (1.0 - batch.dones) * self.gamma * value
            q = self.q_net(batch.observations).gather(1, batch.actions.long())
            loss = mse_loss(q, target)
            losses.append(loss.item())
            self.policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", float(np.mean(losses)))
