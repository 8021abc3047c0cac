"""Reading the policies of Stable-Baselines3: probabilities where the family has them, actions from a generator handed in.

| family | algorithms | probabilities of a discrete action |
|---|---|---|
| categorical | PPO, A2C, TRPO | the distribution's own |
| soft values | SoftDQN | softmax(Q / lambda), lambda its own |
| values | DQN, QRDQN | 1 for the greedy action; softmax(Q / t) where a temperature t was asked for |
| best action | ARS | 1 for the action it chooses |
| continuous actions | SAC, TD3, DDPG, TQC, CrossQ, and PPO, A2C, TRPO, ARS there | none: actions only |
| along an episode | RecurrentPPO, MaskablePPO (`followers.sb3.episodes`) | none: they depend on more than the observation |
| masks of states | MaskablePPO where a tabular model has an ``action_mask`` | `masked_table` |
| one of your own that overrides ``predict`` or ``_predict`` | any | none, unless it has ``action_logits(obs)``, ``(N, A)`` |

Where a Discrete space starts at k, the first probability is that of action k; MultiDiscrete spaces likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import reduce
from types import FunctionType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor

from bocmdp_gym.errors import ConvergenceError, UnsupportedError
from followers.generators import isolated_torch
from followers.policies import Array, Policy
from followers.sb3.views import View

#: Packages whose policies choose actions as the families above do.
_FAMILIES = ("stable_baselines3", "sb3_contrib")

#: Reads a network: the probabilities ``(N, A_k)`` of each factor k of a discrete action (one, unless MultiDiscrete).
Reader = Callable[[BasePolicy, Any], list[Array]]


def decides_itself(kind: type[Any]) -> bool:
    """Whether a class of policies chooses its actions in code of its own, of which no probabilities can be read."""
    if hasattr(kind, "action_logits"):
        return False
    owners = (next((base for base in kind.__mro__ if name in vars(base)), BasePolicy) for name in ("predict", "_predict"))
    return any(owner.__module__.split(".")[0] not in _FAMILIES for owner in owners)


def reader(policy: BasePolicy, temperature: float | None) -> Reader | None:
    """How to read probabilities from this family; None where actions are continuous, or chosen by code of the policy's own."""
    if decides_itself(type(policy)) and temperature is None:
        return None
    if isinstance(policy, ActorCriticPolicy) and isinstance(policy.action_space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
        return _categorical
    if hasattr(policy, "action_logits"):
        return _own_logits
    if hasattr(policy, "q_net") or hasattr(policy, "quantile_net"):
        return lambda network, observations: _from_values(network, observations, temperature)
    is_ars = any(base.__name__ == "ARSPolicy" for base in type(policy).__mro__)  # of sb3-contrib, which need not be there
    if is_ars and isinstance(policy.action_space, gym.spaces.Discrete):
        return _chosen
    return None


def _categorical(policy: Any, observations: Any) -> list[Array]:
    distribution = policy.get_distribution(observations).distribution
    factors = distribution if isinstance(distribution, list) else [distribution]
    return [_softmax(factor.logits) for factor in factors]


def masked_table(policy: Any, view: View, observations: Any, masks: npt.NDArray[np.bool_]) -> Array:
    """Probabilities ``(S, A)`` of a network that takes masks ``(S, A)``, shown ``observations`` ``(S, ...)`` of the states."""
    policy.set_training_mode(False)
    with torch.no_grad():
        seen, _ = policy.obs_to_tensor(view.observe(observations))
        logits = policy.get_distribution(seen).distribution.logits.double()
    return _softmax(logits.masked_fill(torch.from_numpy(~masks).to(logits.device), -torch.inf))


def _own_logits(policy: Any, observations: Any) -> list[Array]:
    return [_softmax(policy.action_logits(observations))]


def _chosen(policy: Any, observations: Any) -> list[Array]:
    chosen = policy._predict(observations, deterministic=True)
    return [torch.nn.functional.one_hot(chosen, int(policy.action_space.n)).double().cpu().numpy()]


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
        view: how the learner saw the environment.

    Raises:
        UnsupportedError: the network cannot be copied.
    """

    batched = True

    def __init__(self, policy: BasePolicy, leader: Array, context: Any, metrics: dict[str, float], view: View):
        self.leader, self.context, self.metrics = leader, context, metrics
        self.view, self.network = view, snapshot(policy)

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        with isolated_torch(int(rng.integers(2**31))):  # all that the networks of SB3 draw from
            if getattr(self.network, "use_sde", False):  # its noise is drawn ahead of the actions
                self.network.reset_noise()  # type: ignore[operator]
            action = self._choose(self.view.observe(observation))
        return self.view.act(action)

    def _choose(self, observations: Any) -> Any:
        """The networks' actions for what they see, one or several; torch's generator is seeded."""
        return self.network.predict(observations)[0]

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        return self.act(observations, rng)


def snapshot(policy: BasePolicy) -> BasePolicy:
    """A copy of a network in evaluation mode, without its optimisers: what it is, not what its constructor would make of it.

    Raises:
        UnsupportedError: it holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for part in _reachable(policy):
        if isinstance(part, torch.optim.Optimizer):
            memo[id(part)] = None
        elif isinstance(part, Tensor) and not part.is_leaf:  # what the last update computed, which torch would not copy
            memo[id(part)] = part.detach().clone()
    try:
        copied = deepcopy(policy, memo)
    except Exception as error:  # what cannot be copied says so in its own words
        raise UnsupportedError(
            f"{type(policy).__name__} cannot be copied ({type(error).__name__}: {error}), and a follower's answer is a copy of "
            "its policy; keep what cannot be copied out of the policy, or define __deepcopy__ for it."
        ) from error
    copied.set_training_mode(False)
    return copied


def _reachable(start: Any) -> Iterator[Any]:
    """Everything an object holds, through attributes and containers."""
    seen: dict[int, Any] = {}
    waiting = [start]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, (type, ModuleType, FunctionType, str, bytes, np.ndarray)):
            continue
        seen[id(part)] = part
        yield part
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, (list, tuple, set, frozenset)):
            waiting += part
        if not isinstance(part, Tensor):
            waiting += getattr(part, "__dict__", {}).values()


class DiscreteSB3Policy(SB3Policy):
    """A snapshot whose actions have probabilities (module docstring).

    Args:
        read: how to read them.
        observations: what is seen in each state, ``(S, ...)``, where the problem is tabular.
    """

    exposes_probabilities = True

    def __init__(
        self,
        policy: BasePolicy,
        leader: Array,
        context: Any,
        metrics: dict[str, float],
        view: View,
        read: Reader,
        observations: Any | None,
    ):
        super().__init__(policy, leader, context, metrics, view)
        self._read = read
        if observations is not None and isinstance(view.action_space, gym.spaces.Discrete):
            self.table = self._factors(observations)[0]

    def _factors(self, observations: Any) -> list[Array]:
        with torch.no_grad():
            return self._read(self.network, self.network.obs_to_tensor(self.view.observe(observations))[0])

    def probabilities(self, observation: Any) -> Array:
        one: Array = reduce(np.multiply.outer, [factor[0] for factor in self._factors(observation)])
        return one.reshape(self.view.factors)

    def probabilities_batch(self, observations: Any) -> Array:
        joint, *others = self._factors(observations)
        for factor in others:
            joint = joint[..., None] * factor.reshape(len(factor), *(1,) * (joint.ndim - 1), -1)
        return joint.reshape(len(joint), *self.view.factors)

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        return self._draw(observation, rng)[0]

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        return self._draw(observations, rng)

    def _draw(self, observations: Any, rng: np.random.Generator) -> Any:
        actions = []
        for factor in self._factors(observations):
            cumulative = factor.cumsum(-1)
            actions.append((rng.random((len(factor), 1)) * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1))
        return self.view.act(actions[0] if self.view.is_single else np.stack(actions, -1))
