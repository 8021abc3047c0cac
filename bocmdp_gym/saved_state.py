"""State on disk: nested dictionaries and lists of arrays and plain values, in one file that is whole or refused.

A file is one safetensors file: arrays as tensors, everything else as JSON in its metadata, with a checksum over every byte.
Nothing is pickled. What a file holds is checked for damage here, and for sense by who loads it: see `loading`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from bocmdp_gym.errors import BOCMDPError, CheckpointError, DamagedError
from bocmdp_gym.files import write_atomically

#: Version 2: one tree of JSON with references to arrays, and the checksum over the whole file.
FORMAT = "bocmdp-gym state 2"
_BLANK = "0" * 64  # where the checksum stands, while it is computed
_ARRAY = "array"  # the only key without a type before it
_DAMAGED = "it is damaged or truncated"


def write_state(path: Path, state: dict[Any, Any]) -> None:
    """Write a state whole or not at all.

    Raises:
        FolderError: the file cannot be written.
        CheckpointError: the state holds something that is neither an array nor JSON.
    """
    write_atomically(path, encode(state))


def read_state(path: Path) -> dict[Any, Any]:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: there is no such file; as `DamagedError`, it is damaged, or something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from error
    return decode(content, str(path))


def encode(state: dict[Any, Any]) -> bytes:
    """A state as the bytes of a file: dictionaries keep their order, tuples become lists.

    Raises:
        CheckpointError: it holds something that is neither an array nor JSON.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    text = json.dumps(_tree(state, arrays, "state"))
    content = to_bytes(arrays, {"format": FORMAT, "json": text, "sha256": _BLANK})
    size = 8 + int.from_bytes(content[:8], "little")
    header = content[:size].replace(_entry(_BLANK), _entry(hashlib.sha256(content).hexdigest()), 1)
    return b"".join((header, memoryview(content)[size:]))


def decode(content: bytes, name: str) -> dict[Any, Any]:
    """The state in the bytes of a file; ``name`` says which, in messages.

    Raises:
        DamagedError: the bytes are damaged, or of something else.
    """
    try:
        size = 8 + int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8:size])["__metadata__"]
        said, text, checksum = metadata["format"], metadata["json"], metadata["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{name}: {_DAMAGED}, or no state of this library ({type(error).__name__}: {error}).") from error
    if said != FORMAT:
        raise DamagedError(f"{name}: it has format {said!r}; expected {FORMAT!r}.")
    digest = hashlib.sha256(content[:size].replace(_entry(str(checksum)), _entry(_BLANK), 1))
    digest.update(memoryview(content)[size:])
    if digest.hexdigest() != checksum:
        raise DamagedError(f"{name}: {_DAMAGED}: its checksum does not match.")
    with loading(name):
        arrays = from_bytes(content)
        state = _untree(json.loads(text), arrays)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}; expected a dictionary")
    return state


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Name the file where a state, whole as it is, is not what it should be: entries missing, or of another type.

    Raises:
        DamagedError: for any error inside that Python or an array library raises; named ones pass.
    """
    try:
        yield
    except BOCMDPError:
        raise
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        missing = f"it has no entry {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise DamagedError(f"{name} is whole, but not what it should be: {missing}.") from error


def entry(state: Any, name: Any, kind: Any = object) -> Any:
    """An entry of a state.

    Raises:
        DamagedError: there is none, or it is not of the type (or one of the types) ``kind``.
    """
    if not isinstance(state, dict) or name not in state:
        raise DamagedError(f"the state has no entry {name!r}.")
    value = state[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object and kind is not bool):
        raise DamagedError(f"the state's {name} is {value!r}, of type {type(value).__name__}.")
    return value


def count_entry(state: Any, name: str, maximum: int | None = None) -> int:
    """An entry that counts something.

    Raises:
        DamagedError: it is not an integer of at least 0, and at most ``maximum``.
    """
    value: int = entry(state, name, int)
    if value < 0 or (maximum is not None and value > maximum):
        bounds = "of at least 0" if maximum is None else f"in 0..{maximum}"
        raise DamagedError(f"the state's {name} is {value}; expected an integer {bounds}.")
    return value


def number_entry(state: Any, name: str) -> float:
    """An entry that is a finite number of at least 0, such as seconds.

    Raises:
        DamagedError: it is not.
    """
    value = float(entry(state, name, (int, float)))
    if not 0.0 <= value < math.inf:
        raise DamagedError(f"the state's {name} is {value}; expected a finite number of at least 0.")
    return value


def array_entry(state: Any, name: Any, shape: tuple[int, ...], kind: str = "f") -> np.ndarray[Any, Any]:
    """An entry that is an array of a shape (-1: any size there) and a kind of numbers ("f", "i", ...), all finite; a copy.

    Raises:
        DamagedError: it is not.
    """
    found = entry(state, name, (np.ndarray, torch.Tensor))
    value: np.ndarray[Any, Any] = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found
    fits = value.ndim == len(shape) and all(n in (-1, m) for n, m in zip(shape, value.shape, strict=True))
    if not fits or value.dtype.kind not in kind:
        raise DamagedError(f"the state's {name} has shape {value.shape} and type {value.dtype}; expected {shape}, {kind!r}.")
    if not np.isfinite(value).all():
        raise DamagedError(f"the state's {name} has entries that are not finite.")
    return value.copy()


def arrays_by_context(state: Any, shape: tuple[int, ...] | None = None, kind: str = "f") -> dict[int, np.ndarray[Any, Any]]:
    """A state that holds one array for each context it has seen, each as `array_entry` has it; None: of any shape.

    Raises:
        DamagedError: it does not.
    """
    found = {}
    for context in entry({"state": state}, "state", dict):
        if type(context) is not int or context < 0:
            raise DamagedError(f"the state has an entry for the context {context!r}; expected a number of at least 0.")
        own = np.shape(entry(state, context, np.ndarray)) if shape is None else shape
        found[context] = array_entry(state, context, own, kind)
    return found


def check_like(name: str, saved: Any, fresh: Any) -> None:
    """Check a part of a state against one made afresh: the same entries, shapes and types, and finite numbers.

    Raises:
        DamagedError: naming what differs.
    """
    if isinstance(fresh, torch.Tensor):
        fresh = fresh.detach().cpu().numpy()
    if isinstance(fresh, dict):
        if not isinstance(saved, dict) or saved.keys() != fresh.keys():
            held = sorted(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
            raise DamagedError(f"{name} of the state holds {held}; expected {sorted(map(str, fresh))}.")
        for key, value in fresh.items():
            check_like(f"{name}[{key!r}]", saved[key], value)
    elif isinstance(fresh, np.ndarray):
        array = array_entry({name: saved}, name, fresh.shape, fresh.dtype.kind)
        if array.dtype != fresh.dtype:
            raise DamagedError(f"{name} of the state has type {array.dtype}; expected {fresh.dtype}.")
    elif type(saved) is not type(fresh):
        raise DamagedError(f"{name} of the state is {saved!r}; expected {type(fresh).__name__}.")


def _entry(checksum: str) -> bytes:
    """How a checksum stands in a file's header."""
    return f'"sha256":"{checksum}"'.encode()


def _tree(value: Any, arrays: dict[str, Any], where: str) -> Any:
    """A value as JSON: keys get their type before them, and arrays are named by numbers."""
    if isinstance(value, dict):
        tree = {}
        for key, part in value.items():
            integer = isinstance(key, (int, np.integer)) and not isinstance(key, bool)
            if not (integer or key is None or isinstance(key, str)):
                raise CheckpointError(
                    f"{where} has the key {key!r}, of type {type(key).__name__}; only str, int and None can be saved."
                )
            tree["n" if key is None else f"{'i' if integer else 's'}{key}"] = _tree(part, arrays, f"{where}[{key!r}]")
        return tree
    if isinstance(value, (list, tuple)):
        return [_tree(part, arrays, where) for part in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        if value.dtype.kind not in "biuf":
            raise CheckpointError(f"{where} is an array of {value.dtype}, which cannot be saved; only numbers can.")
        arrays[name] = np.array(value, order="C")
        return {_ARRAY: name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"{where} is {value!r}, of type {type(value).__name__}, which is neither an array nor JSON.")


def _untree(tree: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(tree, list):
        return [_untree(part, arrays) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if _ARRAY in tree:
        return arrays[tree[_ARRAY]]
    keys: dict[str, Callable[[str], Any]] = {"n": lambda text: None, "i": int, "s": str}
    return {keys[key[0]](key[1:]): _untree(part, arrays) for key, part in tree.items()}
