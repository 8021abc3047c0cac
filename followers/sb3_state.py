"""A learner's whole state on disk: networks and optimisers in safetensors, the replay buffer in npz, counters in JSON.

Nothing is pickled, and nothing unpickled: the algorithm itself is rebuilt from the follower's settings, only numbers are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from torch import Tensor

from bocmdp_gym.errors import OptionError

#: Counters that decide what an algorithm does next.
_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate", "learning_starts")


class LearnerState(NamedTuple):
    """What a learner is, besides its settings."""

    tensors: dict[str, Tensor]  # networks, optimisers and loose variables, by dotted name
    scalars: dict[str, Any]  # entries of the optimisers' states that are no tensors
    counters: dict[str, float]
    buffer: dict[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, model: BaseAlgorithm) -> LearnerState:
        """Read it from a model (copied)."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        modules, variables = model._get_torch_save_params()
        for name in modules:
            part = recursive_getattr(model, name)
            if isinstance(part, torch.optim.Optimizer):
                for index, entries in part.state_dict()["state"].items():
                    for key, value in entries.items():
                        store = tensors if isinstance(value, Tensor) else scalars
                        store[f"{name}/{index}/{key}"] = value
            else:
                tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
        for name in variables:
            if (value := recursive_getattr(model, name)) is not None:
                tensors[f"variable/{name}"] = value
        tensors = {name: tensor.detach().clone().cpu().contiguous() for name, tensor in tensors.items()}
        counters = {name: vars(model)[name] for name in _COUNTERS if name in vars(model)}
        return cls(tensors, scalars, counters, _buffer_arrays(model))

    def restore(self, model: BaseAlgorithm) -> None:
        """Put it into a freshly built model.

        Raises:
            OptionError: it belongs to a learner with other networks, or other settings.
        """
        try:
            model.set_parameters(self._parameters(model), exact_match=True)
        except (KeyError, RuntimeError, ValueError) as error:
            raise OptionError(
                f"the saved learner does not fit {type(model).__name__} as it is set up now: {error}. Load it with the settings "
                "it was saved with."
            ) from error
        for name, tensor in self.tensors.items():
            if name.startswith("variable/"):
                recursive_getattr(model, name.removeprefix("variable/")).data.copy_(tensor)
        for name, value in self.counters.items():
            setattr(model, name, value)
        _fill_buffer(model, self.buffer)

    def _parameters(self, model: BaseAlgorithm) -> dict[str, Any]:
        """As `BaseAlgorithm.set_parameters` takes them; optimisers keep the settings they were just built with."""
        parameters: dict[str, Any] = {}
        for name in model._get_torch_save_params()[0]:
            part = recursive_getattr(model, name)
            own = {key.removeprefix(f"{name}/"): t for key, t in self.tensors.items() if key.startswith(f"{name}/")}
            if not isinstance(part, torch.optim.Optimizer):
                parameters[name] = own
                continue
            own |= {key.removeprefix(f"{name}/"): v for key, v in self.scalars.items() if key.startswith(f"{name}/")}
            entries: dict[int, dict[str, Any]] = {}
            for key, value in own.items():
                index, entry = key.split("/")
                entries.setdefault(int(index), {})[entry] = value
            parameters[name] = {"state": entries, "param_groups": part.state_dict()["param_groups"]}
        return parameters

    def write(self, folder: Path) -> None:
        """Write it into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / "learner.safetensors")
        (folder / "learner.json").write_text(json.dumps({"scalars": self.scalars, "counters": self.counters}))
        np.savez(folder / "buffer.npz", **self.buffer)  # type: ignore[arg-type]

    @classmethod
    def read(cls, folder: Path) -> LearnerState:
        """Read what `write` wrote."""
        record = json.loads((folder / "learner.json").read_text())
        with np.load(folder / "buffer.npz", allow_pickle=False) as stored:
            buffer = {name: stored[name] for name in stored.files}
        return cls(load_file(folder / "learner.safetensors"), record["scalars"], record["counters"], buffer)


def _buffer_arrays(model: BaseAlgorithm) -> dict[str, npt.NDArray[Any]]:
    """The filled part of the replay buffer, by dotted name; empty where there is none."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        return {}
    arrays: dict[str, npt.NDArray[Any]] = {"pos": np.array(buffer.pos), "full": np.array(buffer.full)}
    for name, array in _storage(buffer).items():
        arrays[name] = array[: buffer.size()].copy()
    return arrays


def _fill_buffer(model: BaseAlgorithm, arrays: dict[str, npt.NDArray[Any]]) -> None:
    buffer: Any = getattr(model, "replay_buffer", None)
    if buffer is None:
        return
    for name, array in _storage(buffer).items():
        array[: len(arrays[name])] = arrays[name]
    buffer.pos, buffer.full = int(arrays["pos"]), bool(arrays["full"])


def _storage(buffer: Any) -> dict[str, npt.NDArray[Any]]:
    """The buffer's arrays of transitions."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, value in vars(buffer).items():
        parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        found |= {k: v for k, v in parts.items() if isinstance(v, np.ndarray) and v.shape[:1] == (buffer.buffer_size,)}
    return found
