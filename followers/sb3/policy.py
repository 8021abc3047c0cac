"""Reading the policies of Stable-Baselines3: probabilities where the family has them, actions from a generator handed in.

| family | algorithms | probabilities of a discrete action |
|---|---|---|
| categorical | PPO, A2C, TRPO | the distribution's own |
| soft values | SoftDQN | softmax(Q / lambda), lambda its own |
| values | DQN, QRDQN | 1 for the greedy action; softmax(Q / t) where a temperature t was asked for |
| continuous actions | SAC, TD3, DDPG, TQC, CrossQ, and PPO, A2C, TRPO there | none: actions only |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, reduce
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor

from bocmdp_gym.errors import ConvergenceError
from followers.generators import isolated_torch
from followers.policies import Array, Policy

#: Reads a network: the probabilities ``(N, A_k)`` of each factor k of a discrete action (one, unless MultiDiscrete).
Reader = Callable[[BasePolicy, Any], list[Array]]


def reader(policy: BasePolicy, temperature: float | None) -> Reader | None:
    """How to read probabilities from this family; None where actions are continuous."""
    if isinstance(policy, ActorCriticPolicy) and isinstance(policy.action_space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
        return _categorical
    if hasattr(policy, "action_logits"):
        return _own_logits
    if hasattr(policy, "q_net") or hasattr(policy, "quantile_net"):
        return lambda network, observations: _from_values(network, observations, temperature)
    return None


def _categorical(policy: Any, observations: Any) -> list[Array]:
    distribution = policy.get_distribution(observations).distribution
    factors = distribution if isinstance(distribution, list) else [distribution]
    return [_softmax(factor.logits) for factor in factors]


def _own_logits(policy: Any, observations: Any) -> list[Array]:
    return [_softmax(policy.action_logits(observations))]


def _from_values(policy: Any, observations: Any, temperature: float | None) -> list[Array]:
    values = policy.q_net(observations) if hasattr(policy, "q_net") else policy.quantile_net(observations).mean(dim=1)
    if temperature is not None:
        return [_softmax(values.double() / temperature)]
    greedy = torch.zeros_like(values, dtype=torch.float64)
    greedy.scatter_(1, values.argmax(dim=1, keepdim=True), 1.0)
    return [_finite(torch.where(torch.isfinite(values), greedy, torch.nan))]


def _softmax(logits: Tensor) -> Array:
    return _finite(torch.softmax(logits.double(), dim=-1))


def _finite(probabilities: Tensor) -> Array:
    array: Array = probabilities.cpu().numpy()
    if not np.isfinite(array).all():
        raise ConvergenceError("the follower's network puts out values that are not finite.")
    return array


class SB3Policy(Policy):
    """A snapshot of a Stable-Baselines3 policy: later training does not change it.

    Args:
        policy: the network, copied here.
        leader, context: the x and xi it answers.
        metrics: numbers about the training, by name.
    """

    def __init__(self, policy: BasePolicy, leader: Array, context: Any, metrics: dict[str, float]):
        self.leader, self.context, self.metrics = leader, context, metrics
        self._class, self._device, self.action_space = type(policy), policy.device, policy.action_space
        self._parameters = policy._get_constructor_parameters()
        self._weights = {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}

    @cached_property
    def network(self) -> BasePolicy:
        """The copy of the network, in evaluation mode; built when it is first needed."""
        with isolated_torch():
            network: BasePolicy = self._class(**self._parameters)
        network.load_state_dict(self._weights)
        network.set_training_mode(False)
        return network.to(self._device)

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        with isolated_torch(int(rng.integers(2**31))):  # all that the networks of SB3 draw from
            if getattr(self.network, "use_sde", False):  # its noise is drawn ahead of the actions
                self.network.reset_noise()  # type: ignore[operator]
            action, _ = self.network.predict(observation)
        return action

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        return self.act(observations, rng)


class DiscreteSB3Policy(SB3Policy):
    """A snapshot whose actions have probabilities (module docstring).

    Args:
        read: how to read them.
        observations: what is seen in each state, ``(S, ...)``, where the problem is tabular.
    """

    exposes_probabilities = True

    def __init__(
        self, policy: BasePolicy, leader: Array, context: Any, metrics: dict[str, float], read: Reader, observations: Any | None
    ):
        super().__init__(policy, leader, context, metrics)
        self._read = read
        if observations is not None and isinstance(self.action_space, gym.spaces.Discrete):
            policy.set_training_mode(False)
            self.table = self._factors(policy, observations)[0]

    def _factors(self, network: BasePolicy, observations: Any) -> list[Array]:
        with torch.no_grad():
            return self._read(network, network.obs_to_tensor(observations)[0])

    def probabilities(self, observation: Any) -> Array:
        return reduce(np.multiply.outer, [factor[0] for factor in self._factors(self.network, observation)])

    def probabilities_batch(self, observations: Any) -> Array:
        joint, *others = self._factors(self.network, observations)
        for factor in others:
            joint = joint[..., None] * factor.reshape(len(factor), *(1,) * (joint.ndim - 1), -1)
        return joint

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        return self._draw(observation, rng)[0]

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        return self._draw(observations, rng)

    def _draw(self, observations: Any, rng: np.random.Generator) -> Any:
        actions = []
        for factor in self._factors(self.network, observations):
            cumulative = factor.cumsum(-1)
            actions.append((rng.random((len(factor), 1)) * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1))
        return actions[0] if isinstance(self.action_space, gym.spaces.Discrete) else np.stack(actions, -1)
