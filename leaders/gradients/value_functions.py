"""Value functions fitted by regression: linear (solved exactly) or small networks, of observations and actions as vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.saved_state import array_entry, check_like

#: Keeps the linear systems solvable where features never occur or coincide; relative to the mean square of a feature.
_RIDGE = 1e-8


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


def features(space: gym.Space[Any], values: Any) -> Tensor:
    """Points of a space (see `check_space`) as vectors ``(N, n)``: finite choices one-hot, boxes flattened."""
    array: npt.NDArray[Any] = np.asarray(values)
    if isinstance(space, gym.spaces.Discrete):
        return _one_hot(array.reshape(-1) - int(space.start), int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete):
        columns = (array - space.start).reshape(len(array), -1).T
        return torch.cat([_one_hot(column, int(n)) for column, n in zip(columns, space.nvec.reshape(-1), strict=True)], -1)
    return torch.from_numpy(array.reshape(len(array), -1).astype(np.float64))


def _one_hot(index: npt.NDArray[Any], n: int) -> Tensor:
    return nn.functional.one_hot(torch.from_numpy(index.astype(np.int64)), n).double()


class ValueFunction(ABC):
    """A regression from vectors to one value, or to one value per choice.

    Attributes:
        sizes: length of the vectors, number of choices.
    """

    sizes: tuple[int, int]

    @abstractmethod
    def fit(self, inputs: Tensor, choices: Tensor, targets: Tensor) -> None:
        """One round: bring the value of ``choices`` (N,) at ``inputs`` (N, n) nearer to ``targets`` (N,)."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """Values of all choices, ``(N, outputs)``."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`, saved by one of the same sizes."""


class LinearValue(ValueFunction):
    """Least squares, solved exactly in every round; on one-hot inputs, visit averages.

    Args:
        n_inputs, n_outputs: length of the vectors, number of choices.
    """

    def __init__(self, n_inputs: int, n_outputs: int):
        self.sizes = (n_inputs, n_outputs)
        self._weights = torch.zeros(n_inputs + 1, n_outputs, dtype=torch.float64)

    def fit(self, inputs: Tensor, choices: Tensor, targets: Tensor) -> None:
        inputs = _with_constant(inputs)
        identity = torch.eye(inputs.shape[-1], dtype=inputs.dtype)
        for choice in range(self._weights.shape[-1]):
            rows, values = inputs[choices == choice], targets[choices == choice]
            gram = rows.T @ rows
            ridge = _RIDGE * gram.diagonal().mean() + 1e-300
            self._weights[:, choice] = torch.linalg.solve(gram + ridge * identity, rows.T @ values)

    def predict(self, inputs: Tensor) -> Tensor:
        return _with_constant(inputs) @ self._weights

    def state(self) -> dict[str, Any]:
        return {"weights": self._weights}

    def load_state(self, state: dict[str, Any]) -> None:
        self._weights = torch.from_numpy(array_entry(state, "weights", tuple(self._weights.shape)))


def _with_constant(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], -1)


class NetworkValue(ValueFunction):
    """A network with tanh layers, trained by Adam, one pass over the data a round; inputs and targets are standardised.

    Args:
        n_inputs, n_outputs: length of the vectors, number of choices.
        hidden: widths of the hidden layers.
        learning_rate: Adam's.
        batch_size: points per step.
        seed: of the first weights and of the order of the data.
    """

    def __init__(self, n_inputs: int, n_outputs: int, hidden: Sequence[int], learning_rate: float, batch_size: int, seed: int):
        self._generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for n, m in pairwise([n_inputs, *hidden, n_outputs]):
            # skip_init: the constructor would draw from the global generator
            layer = nn.utils.skip_init(nn.Linear, n, m, dtype=torch.float64)
            nn.init.orthogonal_(layer.weight, 2**0.5, self._generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.Tanh()]
        self._network = nn.Sequential(*layers[:-1])
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=learning_rate)
        self.sizes, self._batch_size = (n_inputs, n_outputs), batch_size
        self._inputs: tuple[Tensor, Tensor] | None = None  # mean and scale, those of the first round
        self._targets = (torch.zeros(()), torch.ones(()))

    def fit(self, inputs: Tensor, choices: Tensor, targets: Tensor) -> None:
        if self._inputs is None:
            self._inputs = _mean_and_scale(inputs)
            self._targets = _mean_and_scale(targets)
        x, y = self._standard(inputs), (targets - self._targets[0]) / self._targets[1]
        for batch in torch.randperm(len(x), generator=self._generator).split(self._batch_size):
            values = self._network(x[batch]).gather(-1, choices[batch].unsqueeze(-1)).squeeze(-1)
            loss = (values - y[batch]).square().mean()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    def predict(self, inputs: Tensor) -> Tensor:
        if self._inputs is None:
            return inputs.new_zeros(len(inputs), self.sizes[1])
        with torch.no_grad():
            values: Tensor = self._network(self._standard(inputs)) * self._targets[1] + self._targets[0]
        return values

    def state(self) -> dict[str, Any]:
        standards = {} if self._inputs is None else dict(enumerate((*self._inputs, *self._targets)))
        return {
            "network": dict(self._network.state_dict()),
            "optimizer": dict(self._optimizer.state_dict()["state"]),
            "generator": self._generator.get_state(),
            "standards": standards,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        check_like("network", state["network"], dict(self._network.state_dict()))
        check_like("generator", state["generator"], self._generator.get_state())
        if state["standards"]:  # it was trained
            inputs, scalar = torch.zeros(self.sizes[0], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
            check_like("standards", state["standards"], {0: inputs, 1: inputs, 2: scalar, 3: scalar})
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
        assert self._inputs is not None
        return (inputs - self._inputs[0]) / self._inputs[1]


def _mean_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    scale = values.std(0) if len(values) > 1 else torch.zeros_like(values[0])
    return values.mean(0), torch.where(scale > 1e-8, scale, 1.0)


def _as_tensors(value: Any) -> Any:
    """Arrays in nested dicts as tensors."""
    if isinstance(value, dict):
        return {key: _as_tensors(part) for key, part in value.items()}
    return torch.as_tensor(value) if isinstance(value, (np.ndarray, Tensor)) else value
