"""A learner's whole state as plain data: what a checkpoint keeps, and what files hold.

`state_of` takes it out of an algorithm and `restore` puts it into a freshly built one; between the two lie nested dictionaries of
arrays and JSON-able values (`bocmdp_gym.saved_state`). Nothing is pickled: the algorithm itself is rebuilt from the follower's
settings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from torch.nn.utils import parameters_to_vector

from bocmdp_gym.errors import DamagedError, OptionError
from bocmdp_gym.saved_state import array_entry, count_entry, entry, number_entry
from followers.sb3.normalization import Statistics

Arrays = dict[str, npt.NDArray[Any]]

#: Counters that decide what an algorithm does next.
_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate", "learning_starts")
_SEPARATOR = ":"
_VARIABLE = "variable"
_STATISTICS = "statistics"


def state_of(model: BaseAlgorithm, statistics: Statistics | None = None) -> dict[str, Any]:
    """Networks, optimisers and normalisation ("tensors", "scalars"), "counters", and the "buffer"; copied."""
    tensors: dict[str, Any] = {}
    scalars: dict[str, Any] = {}
    modules, variables = model._get_torch_save_params()
    for name in modules:
        part = recursive_getattr(model, name)
        if isinstance(part, torch.optim.Optimizer):
            for index, entries in part.state_dict()["state"].items():
                for key, value in entries.items():
                    store = tensors if isinstance(value, torch.Tensor) else scalars
                    store[_SEPARATOR.join((name, str(index), key))] = value
        else:
            tensors |= {_SEPARATOR.join((name, key)): value for key, value in part.state_dict().items()}
    for name in variables:
        if (value := recursive_getattr(model, name)) is not None:
            tensors[_SEPARATOR.join((_VARIABLE, name))] = value
    own = {} if statistics is None else statistics.state()
    return {
        "tensors": {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}
        | {_SEPARATOR.join((_STATISTICS, name)): array for name, array in own.items()},
        "scalars": scalars,
        "counters": {name: vars(model)[name] for name in _COUNTERS if name in vars(model)},
        "buffer": _buffer_arrays(model),
    }


def statistics_in(state: dict[str, Any]) -> Arrays:
    """The normalisation's share of a state, for `Statistics.load_state`; empty where there was none."""
    return _part(state["tensors"], _STATISTICS)


def restore(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Put what `state_of` took out into a freshly built model.

    Raises:
        OptionError: it belongs to a learner with other networks, or other settings.
    """
    try:
        model.set_parameters(_parameters(model, state), exact_match=True)
        _fill_buffer(model, state["buffer"])
        for name, array in _part(state["tensors"], _VARIABLE).items():
            recursive_getattr(model, name).data.copy_(torch.as_tensor(array))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(
            f"the saved learner does not fit {type(model).__name__} as it is set up now: {error}. Load it with the settings it "
            "was saved with."
        ) from error
    if hasattr(model, "weights"):  # ARS moves these, and has its policy follow
        model.weights = parameters_to_vector(model.policy.parameters()).detach()
    for name, value in state["counters"].items():
        setattr(model, name, value)


def _parameters(model: BaseAlgorithm, state: dict[str, Any]) -> dict[str, Any]:
    """As `BaseAlgorithm.set_parameters` takes them; optimisers keep the settings they were just built with."""
    parameters: dict[str, Any] = {}
    for name in model._get_torch_save_params()[0]:
        part = recursive_getattr(model, name)
        own: dict[str, Any] = {key: torch.as_tensor(array) for key, array in _part(state["tensors"], name).items()}
        if isinstance(part, torch.optim.Optimizer):
            entries: dict[int, dict[str, Any]] = {}
            for key, value in (own | _part(state["scalars"], name)).items():
                index, entry = key.split(_SEPARATOR)
                entries.setdefault(int(index), {})[entry] = value
            own = {"state": entries, "param_groups": part.state_dict()["param_groups"]}
        parameters[name] = own
    return parameters


def _part(named: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What lies under a prefix."""
    prefix += _SEPARATOR
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def check_state(state: Any) -> dict[str, Any]:
    """What `state_of` takes out, from a file that may hold anything.

    Raises:
        DamagedError: entries are missing, of another type, or impossible.
    """
    found: dict[str, Any] = {name: entry(state, name, dict) for name in ("tensors", "scalars", "counters", "buffer")}
    for group in ("tensors", "buffer"):
        for name in found[group]:
            entry(found[group], name, np.ndarray)
    for name in found["scalars"]:
        entry(found["scalars"], name, (int, float))
    for name in found["counters"]:
        if name not in _COUNTERS:
            raise DamagedError(f"the state counts {name!r}; expected some of {', '.join(_COUNTERS)}.")
        number_entry(found["counters"], name) if name == "exploration_rate" else count_entry(found["counters"], name)
    if found["buffer"]:
        for name in ("pos", "full"):
            array_entry(found["buffer"], name, (), "bi")
    return found


def _buffer_arrays(model: BaseAlgorithm) -> Arrays:
    """The filled part of the replay buffer, by dotted name; empty where there is none."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        return {}
    arrays: Arrays = {"pos": np.array(buffer.pos), "full": np.array(buffer.full)}
    return arrays | {name: array[: buffer.size()].copy() for name, array in _storage(buffer).items()}


def _fill_buffer(model: BaseAlgorithm, arrays: Arrays) -> None:
    buffer: Any = getattr(model, "replay_buffer", None)
    if buffer is None:
        return
    position, full = int(arrays["pos"]), bool(arrays["full"])
    filled = buffer.buffer_size if full else position
    if not 0 <= position < max(buffer.buffer_size, 1):
        raise ValueError(f"the replay buffer's position is {position}, of {buffer.buffer_size}")
    for name, array in _storage(buffer).items():
        if arrays[name].shape != (filled, *array.shape[1:]):
            raise ValueError(f"{name} of the replay buffer has shape {arrays[name].shape}; expected {(filled, *array.shape[1:])}")
        array[:filled] = arrays[name]
    buffer.pos, buffer.full = position, full


def _storage(buffer: Any) -> Arrays:
    """The buffer's arrays of transitions."""
    found: Arrays = {}
    for name, value in vars(buffer).items():
        parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        found |= {k: v for k, v in parts.items() if isinstance(v, np.ndarray) and v.shape[:1] == (buffer.buffer_size,)}
    return found
