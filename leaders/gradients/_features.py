"""Features of observations and actions: vectors, and the last hidden layer of a network that was fitted to values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bocmdp_gym import BOCMDP
from bocmdp_gym.errors import DamagedError, OptionError, UnsupportedError
from bocmdp_gym.options import as_list, check_count
from bocmdp_gym.saved_state import check_like
from followers import Policy, TrajectoryOracle
from leaders.gradients.base import Array

#: The networks' precision: features need no more, and the sums over them are made in float64.
_NARROW = torch.float32


def check_space(space: gym.Space[Any]) -> None:
    """Refuse a space whose points cannot be written as vectors.

    Raises:
        UnsupportedError: neither Discrete, MultiDiscrete, MultiBinary nor Box.
    """
    known = (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary, gym.spaces.Box)
    if not isinstance(space, known):
        raise UnsupportedError(
            "value functions take observations and actions from Discrete, MultiDiscrete, MultiBinary and Box spaces, not from "
            f"{space}; flatten it, e.g. with gymnasium.wrappers.FlattenObservation, inside the leader's wrapper."
        )


def vectors(space: gym.Space[Any], values: Any) -> Tensor:
    """Points of a space (see `check_space`) as vectors ``(N, n)``: finite choices one-hot, boxes flattened."""
    array: npt.NDArray[Any] = np.asarray(values)
    if isinstance(space, gym.spaces.Discrete):
        return _one_hot(array.reshape(-1) - int(space.start), int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete):
        columns = (array - space.start).reshape(len(array), -1).T
        return torch.cat([_one_hot(column, int(n)) for column, n in zip(columns, space.nvec.reshape(-1), strict=True)], -1)
    return torch.from_numpy(array.reshape(len(array), -1).astype(np.float64))


def _one_hot(index: npt.NDArray[np.int64], n: int) -> Tensor:
    return nn.functional.one_hot(torch.from_numpy(index.astype(np.int64)), n).double()


def no_probabilities(policy: Policy) -> UnsupportedError:
    """The error where transitions depend on x and the policy only acts."""
    return UnsupportedError(
        "transitions depend on x, so the follower's values are needed, entropy included, and "
        f"{type(policy).__name__} exposes no action probabilities; use ZeroOrder."
    )


def spaces(oracle: TrajectoryOracle) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Observation and action space, of one copy where there are many."""
    env: Any = oracle.env
    single = (getattr(env, f"single_{name}_space", None) or getattr(env, f"{name}_space") for name in ("observation", "action"))
    seen, done = single
    return seen, done


def policy_probabilities(policy: Policy, observations: Any, states: Any) -> Array | None:
    """Action probabilities at N observations, ``(N, ...)``, None if the policy exposes none."""
    if policy.table is not None and states is not None:
        rows: Array = policy.table[states]
        return rows
    return np.asarray(policy.probabilities_batch(observations), dtype=np.float64) if policy.exposes_probabilities else None


def check_widths(hidden: Any) -> tuple[int, ...] | None:
    """Widths of hidden layers; None stays.

    Raises:
        OptionError: no list of positive whole numbers.
    """
    widths = as_list(hidden)
    if hidden is not None and widths is None:
        raise OptionError(f"hidden is {hidden!r}; expected the widths of hidden layers, such as (64, 64), or None.")
    return None if widths is None else tuple(check_count("hidden", width) for width in widths)


class LinearFeatures:
    """A constant and the vectors themselves."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features ``(N, K)`` of vectors ``(N, n)``."""
        return torch.cat([torch.ones(len(inputs), 1, dtype=inputs.dtype), inputs], -1)

    def fit(self, inputs: Tensor, targets: Tensor, rounds: int) -> None:
        """Nothing to fit."""


class ModelFeatures(LinearFeatures):
    """What a model says that values are linear in.

    Args:
        model: has `bocmdp_gym.BOCMDP.value_features`.
    """

    def __init__(self, model: BOCMDP):
        self._model = model

    def __call__(self, inputs: Tensor) -> Tensor:
        features = self._model.value_features(inputs.double())
        assert features is not None
        return features


class NetworkFeatures:
    """A network with tanh layers, trained by Adam. Its features: a constant, the standardised vectors and the last hidden layer.

    The last layer starts at 0. Inputs and targets are standardised by what the first round saw.

    Args:
        n_inputs, n_outputs: length of the vectors, number of values fitted.
        hidden: widths of the hidden layers; (): the values are linear.
        learning_rate: Adam's.
        batch_size: points per step.
        seed: of the first weights and of the order of the data.
    """

    def __init__(self, n_inputs: int, n_outputs: int, hidden: Sequence[int], learning_rate: float, batch_size: int, seed: int):
        self._generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        widths = [n_inputs, *hidden]
        for n, m in pairwise(widths):
            layers += [self._layer(n, m), nn.Tanh()]
        if layers:  # biases spread the first layer's units over the range of the data
            layers[0].bias.data.uniform_(-2.0, 2.0, generator=self._generator)  # type: ignore[operator]
        self._hidden = nn.Sequential(*layers)
        self._last = self._layer(widths[-1], n_outputs)
        nn.init.zeros_(self._last.weight)
        self._network = nn.Sequential(self._hidden, self._last)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=learning_rate)
        self.sizes, self._batch_size = (n_inputs, n_outputs), batch_size
        self._inputs: tuple[Tensor, Tensor] | None = None  # mean and scale, those of the first round
        self._targets = (torch.zeros(()), torch.ones(()))

    def _layer(self, n: int, m: int) -> nn.Linear:
        # skip_init: the constructor would draw from the global generator
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, n, m, dtype=_NARROW)
        nn.init.orthogonal_(layer.weight, 2**0.5, self._generator)
        nn.init.zeros_(layer.bias)
        return layer

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features ``(N, K)`` of vectors ``(N, n)``, float64, differentiable in them."""
        standard = self._standard(inputs)
        layer = self._hidden(standard.to(_NARROW))
        return torch.cat([torch.ones(len(inputs), 1, dtype=torch.float64), standard, layer.double()], -1)

    def check_sizes(self, sizes: tuple[int, int]) -> None:
        """Refuse a network of other sizes, which another environment's checkpoint may have brought.

        Raises:
            DamagedError: naming both.
        """
        if self.sizes != sizes:
            raise DamagedError(
                f"a saved network takes {self.sizes[0]} numbers to {self.sizes[1]}; expected {sizes[0]} to {sizes[1]}, as the "
                "environment has them."
            )

    def predict(self, inputs: Tensor) -> Tensor:
        """Values ``(N, outputs)`` of vectors ``(N, n)``, float64; 0 before the first fit."""
        with torch.no_grad():
            values: Tensor = self._network(self._standard(inputs).to(_NARROW)).double() * self._targets[1] + self._targets[0]
        return values

    def fit(self, inputs: Tensor, targets: Tensor, rounds: int = 1, choices: Tensor | None = None) -> None:
        """Bring the network's values nearer to ``targets``: ``rounds`` passes over the data.

        Args:
            inputs: vectors ``(N, n)``.
            targets: ``(N, outputs)``; of one output each, ``(N,)``, where there are ``choices``.
            rounds: how often.
            choices: the output that each target is of, ``(N,)``; None: all.
        """
        if self._inputs is None:
            self._inputs = _mean_and_scale(inputs)
            self._targets = _mean_and_scale(targets)
        x = self._standard(inputs).to(_NARROW)
        y = ((targets - self._targets[0]) / self._targets[1]).to(_NARROW)
        for _ in range(rounds):
            for batch in torch.randperm(len(x), generator=self._generator).split(self._batch_size):
                values = self._network(x[batch])
                if choices is not None:
                    values = values.gather(-1, choices[batch].unsqueeze(-1)).squeeze(-1)
                loss = (values - y[batch]).square().mean()
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        standards = {} if self._inputs is None else dict(enumerate((*self._inputs, *self._targets)))
        return {
            "network": dict(self._network.state_dict()),
            "optimizer": dict(self._optimizer.state_dict()["state"]),
            "generator": self._generator.get_state(),
            "standards": standards,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            DamagedError: it is not that of a network of these sizes.
        """
        check_like("network", state["network"], dict(self._network.state_dict()))
        check_like("generator", state["generator"], self._generator.get_state())
        if state["standards"]:  # it was trained
            inputs = torch.zeros(self.sizes[0], dtype=torch.float64)
            shape = (self.sizes[1],) if np.ndim(state["standards"].get(2)) else ()  # of all outputs, or of one each
            targets = torch.zeros(shape, dtype=torch.float64)
            check_like("standards", state["standards"], {0: inputs, 1: inputs, 2: targets, 3: targets})
            step, parameters = torch.zeros(()), enumerate(self._network.parameters())
            adam = {i: {"step": step, "exp_avg": p, "exp_avg_sq": p} for i, p in parameters}
            check_like("optimizer", state["optimizer"], adam)
        tensors = _as_tensors(state)
        self._network.load_state_dict(tensors["network"])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": tensors["optimizer"], "param_groups": groups})
        self._generator.set_state(tensors["generator"])
        if tensors["standards"]:
            mean, scale, target_mean, target_scale = (tensors["standards"][i] for i in range(4))
            self._inputs, self._targets = (mean, scale), (target_mean, target_scale)

    def _standard(self, inputs: Tensor) -> Tensor:
        if self._inputs is None:
            return inputs
        return (inputs - self._inputs[0]) / self._inputs[1]


def _mean_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    scale = values.std(0) if len(values) > 1 else torch.zeros_like(values[0])
    return values.mean(0), torch.where(scale > 1e-8, scale, 1.0)


def _as_tensors(value: Any) -> Any:
    """Arrays in nested dicts as tensors."""
    if isinstance(value, dict):
        return {key: _as_tensors(part) for key, part in value.items()}
    return torch.as_tensor(value) if isinstance(value, (np.ndarray, Tensor)) else value
