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

from bocmdp_gym.errors import UnsupportedError

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


class LinearFeatures:
    """A constant and the vectors themselves."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features ``(N, K)`` of vectors ``(N, n)``."""
        return torch.cat([torch.ones(len(inputs), 1, dtype=inputs.dtype), inputs], -1)

    def fit(self, inputs: Tensor, targets: Tensor, rounds: int) -> None:
        """Nothing to fit."""


class NetworkFeatures:
    """A constant, the standardised vectors and the last hidden layer of a network with tanh layers, trained by Adam.

    The network's last layer starts at 0. Inputs and targets are standardised by what the first round saw.

    Args:
        n_inputs, n_outputs: length of the vectors, number of values fitted.
        hidden: widths of the hidden layers.
        learning_rate: Adam's.
        batch_size: points per step.
        seed: of the first weights and of the order of the data.
    """

    def __init__(self, n_inputs: int, n_outputs: int, hidden: Sequence[int], learning_rate: float, batch_size: int, seed: int):
        self._generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for n, m in pairwise([n_inputs, *hidden]):
            layers += [self._layer(n, m), nn.Tanh()]
        # biases spread the first layer's units over the range of the data
        layers[0].bias.data.uniform_(-2.0, 2.0, generator=self._generator)  # type: ignore[operator]
        self._hidden = nn.Sequential(*layers)
        self._last = self._layer(hidden[-1], n_outputs)
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

    def fit(self, inputs: Tensor, targets: Tensor, rounds: int) -> None:
        """Bring the network's values nearer to ``targets`` ``(N, outputs)``: ``rounds`` passes over the data."""
        if self._inputs is None:
            self._inputs = _mean_and_scale(inputs)
            self._targets = _mean_and_scale(targets)
        x = self._standard(inputs).to(_NARROW)
        y = ((targets - self._targets[0]) / self._targets[1]).to(_NARROW)
        for _ in range(rounds):
            for batch in torch.randperm(len(x), generator=self._generator).split(self._batch_size):
                loss = (self._network(x[batch]) - y[batch]).square().mean()
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
        """Continue from `state`, saved by one of the same sizes."""
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
