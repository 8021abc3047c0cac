r"""SoftDQN: deep Q-learning of the regularised problem, so that a neural follower solves the paper's objective.

The mathematics (paper, eq. 1 and 2). With Q the network and Q' its slowly moving copy, a transition (s, a, r, s') is regressed on

    r + gamma (1 - d) lambda logsumexp(Q'(s', .) / lambda),        d = 1 where the episode terminated (a time limit is no end),

and the agent behaves as it will be judged, by pi(a|s) = softmax(Q(s, .) / lambda). With tables for Q this is soft Q-learning.
Reference for the networks: Mnih et al., "Human-level control through deep reinforcement learning", 2015; for the soft target:
Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies", 2017.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, MultiInputPolicy, QNetwork
from torch import Tensor

from bocmdp_gym.errors import OptionError
from bocmdp_gym.tabular import check_regularization
from followers.sb3 import SB3Follower


class SoftValueNetwork(QNetwork):
    """The target network: one column lambda logsumexp(Q' / lambda), so that DQN's maximum over columns is the soft value."""

    def __init__(self, *args: Any, regularization: float, **options: Any):
        super().__init__(*args, **options)
        self.regularization = regularization

    def forward(self, obs: Any) -> Tensor:
        q: Tensor = super().forward(obs)
        return self.regularization * torch.logsumexp(q / self.regularization, dim=1, keepdim=True)


class SoftDQNPolicy(DQNPolicy):
    """A Q-network that acts by softmax(Q / lambda), greedily where asked to be deterministic."""

    def __init__(self, *args: Any, regularization: float, **options: Any):
        self.regularization = regularization
        super().__init__(*args, **options)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        options = self._update_features_extractor(self.net_args, features_extractor=None)
        self.q_net_target = SoftValueNetwork(**options, regularization=self.regularization).to(self.device)
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.q_net_target.set_training_mode(False)

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
    """Deep soft Q-learning (module docstring); everything else is Stable-Baselines3's `DQN`.

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


class SoftDQNFollower(SB3Follower):
    """`SB3Follower` with `SoftDQN`: a neural follower that solves the regularised problem, lambda known to the leader.

    Args:
        regularization: lambda > 0.
        total_timesteps, settings: as for `SB3Follower`.

    Raises:
        RegularizationError: lambda is not positive and finite. Otherwise as `SB3Follower`.
    """

    def __init__(self, regularization: float, total_timesteps: int, **settings: Any):
        super().__init__(SoftDQN, total_timesteps, regularization=regularization, **settings)
