"""The identity of a run: everything that changes its numbers, as plain values that a checkpoint keeps and a resume compares.

Followers, estimators and environments are told by what they were constructed with; functions by their code and what it refers
to; arrays, and a tabular model at two x, by digests that are blind to rounding, so that a run may continue on another processor.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.arguments import Constructed, parameters_of
from bocmdp_gym.env import ConfigurableEnv
from bocmdp_gym.errors import BOCMDPError
from bocmdp_gym.hooks import Adapted
from bocmdp_gym.transitions import TransitionOperator
from followers import TrajectoryOracle
from followers.environments import single

#: Arguments that say where something is kept or shown, and change no number.
_ELSEWHERE = frozenset({"log_dir", "log_interval", "render_mode", "address", "verbose", "tensorboard_log"})
#: Arrays of more entries than this are told by a digest.
_SHORT = 64
_DEPTH = 5
_DIGEST = "digest"


def describe(value: Any, depth: int = 0) -> Any:
    """A value as plain ones: equal for equal settings in every process, different where numbers would differ."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        return _array(value)
    if isinstance(value, PurePath):
        return str(value)
    if depth > _DEPTH:
        return _name(type(value))
    inner = functools.partial(describe, depth=depth + 1)
    if isinstance(value, Mapping):
        return {str(key): inner(part) for key, part in value.items() if key not in _ELSEWHERE}
    if isinstance(value, (list, tuple, range)):
        return [inner(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, functools.partial):
        return {"partial": inner(value.func), "arguments": inner(value.args), "keywords": inner(value.keywords)}
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return _function(value, depth)
    if isinstance(value, np.random.Generator):
        return {"generator": type(value.bit_generator).__name__, _DIGEST: _hash(repr(value.bit_generator.state))}
    if isinstance(value, (gym.Env, VectorEnv)):
        return describe_env(value, depth)
    if isinstance(value, TabularBOCMDP):
        return _model(value)
    if isinstance(value, TransitionOperator):
        return {"class": _name(type(value)), "values": _array(value.values), "successors": _array(value.successors())}
    if isinstance(value, gym.Space):
        return str(value)
    if isinstance(value, torch.nn.Module):
        return {"class": _name(type(value)), _DIGEST: {name: _array(part) for name, part in value.state_dict().items()}}
    if hasattr(value, "__qualname__"):  # functions of other kinds: built-in, compiled
        return _name(value)
    return {"class": _name(type(value)), **_settings(value, depth)}


def describe_env(env: Any, depth: int = 0) -> dict[str, Any]:
    """An environment, layer by layer, outermost first: classes, and what they were constructed with.

    Args:
        env: an environment, or a vector environment of copies of one.
        depth: of the value it is part of.
    """
    layers: dict[str, Any] = {}
    if isinstance(env, VectorEnv):
        layers |= {"copies": env.num_envs, "vector class": _name(type(env.unwrapped))}
    layer: Any = single(env)
    layers["observations"], layers["actions"] = str(layer.observation_space), str(layer.action_space)
    while True:
        name = type(layer).__name__
        while name in layers:
            name += "+"
        layers[name] = {"class": _name(type(layer)), **_settings(layer, depth)}
        if isinstance(getattr(layer, "model", None), TabularBOCMDP):
            layers[name]["model"] = _model(layer.model)
        if not isinstance(layer, gym.Wrapper):
            break
        layer = layer.env
    if layer.spec is not None and not isinstance(layer, ConfigurableEnv):
        layers["spec"] = describe({"id": layer.spec.id, **layer.spec.kwargs}, depth + 1)
    return layers


def describe_oracle(oracle: TrajectoryOracle) -> dict[str, Any]:
    """What an oracle answers with: environment and follower."""
    core, environment = oracle.core, describe_env(oracle.env)
    environment |= {"leader space": str(core.leader_space), "discount": core.discount, "leader_discount": core.leader_discount}
    return {"environment": environment, "follower": describe(oracle.follower)}


def differences(before: Any, now: Any) -> str:
    """What differs between two descriptions, in words; empty if nothing does. Digests are left out where there is more to say."""
    found = dict(_compare(before, now, ""))
    named = {name: said for name, said in found.items() if _DIGEST not in name.split(".")}
    return "; ".join(f"{name} {said}" for name, said in (named or found).items())


def _compare(before: Any, now: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in dict.fromkeys((*before, *now))
            for line in _compare(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for i, (old, new) in pairs for line in _compare(old, new, f"{name}.{i}")]
    same = before == now or (before != before and now != now)
    if same and isinstance(before, bool) == isinstance(now, bool):  # 1 is 1.0, and not True
        return []
    return [(name, f"was {_short(before)}, is {_short(now)}")]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}"


def _name(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', type(kind).__name__)}"


def _hash(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def _array(value: Any) -> Any:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.size <= _SHORT:
        return array.tolist() if array.dtype.kind != "O" else repr(array.tolist())
    return {"shape": list(array.shape), _DIGEST: _projection(array)}


def _projection(array: np.ndarray[Any, Any]) -> list[str]:
    """An array as three sums with random weights, to 9 digits: rounding leaves them alone, any other change does not."""
    if array.dtype.kind not in "biuf":
        return [_hash(repr(array.tolist()))]
    flat = np.ascontiguousarray(array).reshape(-1).astype(np.float64)
    weights = np.random.default_rng(0).standard_normal(len(flat))
    with np.errstate(all="ignore"):
        return [f"{float(weights @ part):.8e}" for part in (flat, np.arctan(flat), np.arctan(1e3 * flat))]


def _model(model: TabularBOCMDP) -> dict[str, Any]:
    """A tabular model: its sizes and discounts, and its arrays at two x."""
    low, high = model.leader_space.low, model.leader_space.high
    away = model.example + 0.37 * np.cos(1.0 + np.arange(model.leader_dim))
    digests: dict[str, Any] = {}
    for number, x in enumerate((model.example, np.clip(away, low, high))):
        try:
            mdps = model.configure(torch.tensor(x))
        except (BOCMDPError, ArithmeticError, LookupError, RuntimeError, ValueError) as error:  # it need not work everywhere
            digests[f"x{number}"] = type(error).__name__
            continue
        parts = {name: getattr(mdps, name) for name in ("reward", "leader_reward", "initial", "termination")}
        parts |= {"transition": mdps.transition.values, "successors": mdps.transition.successors()}
        if model.mask is not None:
            parts["action_mask"] = model.mask.allowed
        for name, part in parts.items():
            array = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
            digests[f"{name} at x{number}"] = [*map(str, array.shape), *_projection(array)]
    return {
        "contexts": model.context_probabilities.tolist(),
        "states": model.n_states,
        "actions": model.n_actions,
        "discount": model.discount,
        "leader_discount": model.leader_discount,
        _DIGEST: digests,
    }


def _settings(value: Any, depth: int) -> dict[str, Any]:
    """What an object was constructed with, defaults included; what it holds under its constructor's names, if nobody recorded."""
    if is_dataclass(value):
        return {f.name: describe(getattr(value, f.name), depth + 1) for f in fields(value) if f.name not in _ELSEWHERE}
    given = _recorded(value)
    try:
        parameters = parameters_of(type(value))
    except (TypeError, ValueError, StopIteration):
        parameters = ()
    found = {}
    for p in parameters:
        if p.name in given:
            found[p.name] = given[p.name]
        elif p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        elif given or isinstance(value, Constructed):
            found[p.name] = p.default
        else:
            held = [one for one in (p.name, f"_{p.name}") if one in vars(value)] if hasattr(value, "__dict__") else []
            if held:
                found[p.name] = vars(value)[held[0]]
    found |= {name: part for name, part in given.items() if name not in found}
    found = {name: part for name, part in found.items() if part is not inspect.Parameter.empty and name not in _ELSEWHERE}
    if isinstance(value, gym.Env):  # what is inside, and the model, are told by themselves
        found = {name: part for name, part in found.items() if not isinstance(part, (gym.Env, Adapted, TabularBOCMDP))}
    return {name: describe(part, depth + 1) for name, part in found.items()}


def _recorded(value: Any) -> dict[str, Any]:
    """The arguments that a constructor recorded, by name."""
    saved = dict(value._saved_kwargs) if isinstance(value, gym.utils.RecordConstructorArgs) else {}
    return saved | (value._given_arguments if isinstance(value, Constructed) and value._records else {})


def _function(value: Any, depth: int) -> dict[str, Any]:
    """A function: its name, its code, and what that refers to: defaults, enclosed values, numbers and arrays of its module."""
    function = value.__func__ if isinstance(value, types.MethodType) else value
    inner = functools.partial(describe, depth=depth + 1)
    found: dict[str, Any] = {"function": _name(function), _DIGEST: _code(function.__code__)}
    if isinstance(value, types.MethodType):
        found["of"] = inner(value.__self__) if not isinstance(value.__self__, gym.Env) else _name(type(value.__self__))
    if function.__defaults__:
        found["defaults"] = inner(function.__defaults__)
    if function.__kwdefaults__:
        found["keyword defaults"] = inner(function.__kwdefaults__)
    try:
        variables = inspect.getclosurevars(function)
    except ValueError:  # a name that is not bound yet
        return found
    for name, part in {**variables.globals, **variables.nonlocals}.items():
        own = name in variables.nonlocals
        if isinstance(part, (bool, int, float, str, np.generic, np.ndarray, Tensor)) or (own and not isinstance(part, gym.Env)):
            found[name] = inner(part)
    return found


def _code(code: types.CodeType) -> str:
    constants = [_code(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return _hash(repr((code.co_code, code.co_names, constants)))
