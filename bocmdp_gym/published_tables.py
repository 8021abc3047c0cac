r"""Gymnasium's own tables (FrozenLake, Taxi, CliffWalking) as the arrays of a model, held against the environment itself.

A table may not be what the environment plays: dynamics may live in ``step``, or a wrapper may change them. So some steps are
played, and compared with it. An outcome that the table does not have is an error at once. For frequencies, two sums of what has
mean zero where the table is right (martingale differences d_t, each known to be at most M and to have the variance v_t),

    -log p(o_t) - H(s_t, a_t)      and      1{o_t is the last outcome seen at (s_t, a_t)} - p(that outcome),

must stay within Bernstein's (Freedman's) bound M L / 3 + sqrt((M L / 3)^2 + 2 L sum v_t), L = log(2 / 1e-6): at most four alarms
in a million where nothing is wrong, of start states and outcomes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.arguments import known_options
from bocmdp_gym.errors import ModelError, UnsupportedError
from bocmdp_gym.layers import is_transparent, layers_of
from bocmdp_gym.options import check_count, check_flag, check_instance
from bocmdp_gym.transitions import PROBABILITY_TOLERANCE, SuccessorTransitions
from bocmdp_gym.validation import refuse_multi_agent

#: Steps of the environment that a table is held against.
CHECK_SAMPLES = 300
#: Steps after which another start state is chosen, in environments that can be put into one.
_EPISODE = 6
_LOG = float(np.log(2 / 1e-6))


class GymnasiumTables(NamedTuple):
    """Arrays read from an environment's published tables; see `gymnasium_tables`."""

    reward: Tensor  # (1, S, A)
    transition: SuccessorTransitions
    initial: Tensor  # (S,)
    termination: Tensor  # (1, S, A)


@known_options()
def gymnasium_tables(
    env: gym.Env[Any, Any], *, check_samples: int = CHECK_SAMPLES, check_rewards: bool = True
) -> GymnasiumTables:
    """Reward, transitions, initial distribution and termination from ``env.unwrapped.P`` (FrozenLake, Taxi, CliffWalking).

    There an episode ends *on arrival* in a done state. Here q(s, a) is the probability of a done successor and P the
    distribution over the others, so no value or entropy is earned after the end.

    Args:
        env: the environment; wrappers that leave the problem alone may be around it.
        check_samples: steps of a copy of the environment that the tables are held against; 0: none.
        check_rewards: whether its rewards must be the table's, too.

    Raises:
        UnsupportedError: the environment publishes no tables, is a multi-agent one, has a wrapper that changes the problem, or
            a part (Taxi's ``fickle_passenger``) that is known not to be in its table.
        ModelError: tables that list no problem (actions that differ from state to state, rows that do not sum to 1), or another
            one than the environment plays.
    """
    refuse_multi_agent(env)
    check_samples = check_count("check_samples", check_samples, 0)
    check_rewards = check_flag("check_rewards", check_rewards)
    check_instance("env", env, gym.Env)
    base = env.unwrapped
    table, initial = getattr(base, "P", None), getattr(base, "initial_state_distrib", None)
    if not isinstance(table, Mapping) or initial is None:
        raise UnsupportedError(
            f"{type(base).__name__} publishes no tables (env.unwrapped.P and env.unwrapped.initial_state_distrib); expected an "
            "environment such as FrozenLake-v1, Taxi-v4 or CliffWalking-v1. Write the arrays yourself and pass them to "
            "TabularBOCMDP, or use a leader wrapper."
        )
    _refuse_layers(env)
    if getattr(base, "fickle_passenger", False):
        raise UnsupportedError(
            f"{type(base).__name__}'s fickle_passenger changes destinations in its step, which its table does not have; use "
            "fickle_passenger=False, or a leader wrapper."
        )
    start = np.array(initial, dtype=np.float64)
    n_states, n_actions = _check_table(base, table, start)
    width = max(len(table[s][a]) for s in table for a in table[s])
    succ = np.zeros((n_states, n_actions, width), dtype=np.int32)
    prob = np.zeros((n_states, n_actions, width))
    reward, termination = np.zeros((1, n_states, n_actions)), np.zeros((1, n_states, n_actions))
    for s in range(n_states):
        for a in range(n_actions):
            for k, (p, successor, r, done) in enumerate(table[s][a]):
                reward[0, s, a] += p * r
                succ[s, a, k] = successor
                if done:
                    termination[0, s, a] += p
                else:
                    prob[s, a, k] = p
            going_on = prob[s, a].sum()
            if going_on > 0.0:
                prob[s, a] /= going_on
            else:  # certain end: where it would go does not matter
                succ[s, a], prob[s, a, 0] = s, 1.0
                termination[0, s, a] = 1.0
    if check_samples:
        _Comparison(base, table, start, check_rewards).play(check_samples)
    return GymnasiumTables(
        torch.from_numpy(reward),
        SuccessorTransitions(succ, torch.from_numpy(prob)),
        torch.from_numpy(start),
        torch.from_numpy(termination.clip(0.0, 1.0)),
    )


def masks_of_states(env: gym.Env[Any, Any], n_states: int, n_actions: int) -> npt.NDArray[np.bool_]:
    """``env.unwrapped.action_mask(state)`` of every state, ``(S, A)``, as Taxi has it.

    Raises:
        UnsupportedError: the environment has no such method.
        ModelError: it returns something else than a mask of its actions.
    """
    base: Any = env.unwrapped
    method = getattr(base, "action_mask", None)
    if not callable(method):
        raise UnsupportedError(
            f"action_mask is True, and {type(base).__name__} has no method action_mask(state) as Taxi has; leave action_mask "
            "out, or give the mask itself, (S, A) booleans."
        )
    masks = [np.asarray(method(state)) for state in range(n_states)]
    for state, mask in enumerate(masks):
        if mask.shape != (n_actions,) or mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1)).all():
            raise ModelError(f"action_mask({state}) of {type(base).__name__} is {mask}; expected {n_actions} entries, 0 or 1.")
    return np.array(masks, dtype=np.bool_)


def _refuse_layers(env: gym.Env[Any, Any]) -> None:
    for layer in layers_of(env):
        if isinstance(layer, gym.Wrapper) and not is_transparent(layer):
            raise UnsupportedError(
                f"{type(layer).__name__} may change observations, actions, rewards or dynamics, and the tables of "
                f"{type(env.unwrapped).__name__} know nothing of it; pass env.unwrapped if the model is meant to be without it, "
                "write what it does into the arrays, or use a leader wrapper."
            )


def _check_table(base: Any, table: Mapping[Any, Any], initial: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Numbers of states and actions.

    Raises:
        ModelError: keys that do not count from 0, states with other actions than the rest, malformed or incomplete rows.
    """
    name = type(base).__name__
    states = set(table)
    if not table or states != set(range(len(table))):
        raise ModelError(f"the table of {name} has {len(table)} states that are not numbered 0..{len(table) - 1}.")
    sizes = [len(table[s]) for s in range(len(table))]
    n_states, n_actions = len(table), max(sizes)
    for space, n, what in ((base.observation_space, n_states, "states"), (base.action_space, n_actions, "actions")):
        if isinstance(space, gym.spaces.Discrete) and (int(space.n), int(space.start)) != (n, 0):
            raise ModelError(f"the table of {name} has {n} {what}, and the environment's space is {space}.")
    if initial.shape != (n_states,):
        raise ModelError(f"initial_state_distrib of {name} has shape {initial.shape}; expected ({n_states},).")
    for s in range(n_states):
        row = table[s]
        actions = sorted(row) if isinstance(row, Mapping) else list(range(len(row)))
        if actions != list(range(n_actions)):
            raise ModelError(
                f"state {s} in the table of {name} lists the actions {actions}, and another has {n_actions} of them; expected "
                f"0..{n_actions - 1} in every state. Give a missing action a row of its own, such as one that stays and costs."
            )
        for a in actions:
            try:
                listed = np.array([[float(v) for v in outcome] for outcome in row[a]]).reshape(-1, 4)
            except (TypeError, ValueError) as error:
                raise ModelError(
                    f"state {s}, action {a} in the table of {name} is {row[a]!r}; expected a list of (probability, successor, "
                    "reward, done)."
                ) from error
            p, successors = listed[:, 0], listed[:, 1]
            where = f"state {s}, action {a} in the table of {name}"
            if not np.isfinite(listed).all() or (p < 0.0).any():
                raise ModelError(f"{where} has the outcomes {row[a]!r}; expected finite numbers, probabilities of at least 0.")
            if not abs(p.sum() - 1.0) <= PROBABILITY_TOLERANCE:
                raise ModelError(f"the probabilities of {where} sum to {p.sum():.12g}; expected 1.")
            if (successors != np.floor(successors)).any() or (successors < 0).any() or (successors >= n_states).any():
                raise ModelError(f"{where} has the successors {successors.tolist()}; expected states in 0..{n_states - 1}.")
    return n_states, n_actions


class _Sum:
    """A sum of what has mean zero where the table is right."""

    def __init__(self, what: str):
        self.what, self.total, self.variance, self.largest = what, 0.0, 0.0, 0.0

    def add(self, difference: float, variance: float, largest: float) -> None:
        self.total += difference
        self.variance += variance
        self.largest = max(self.largest, largest)

    @property
    def is_off(self) -> bool:
        linear = self.largest * _LOG / 3.0
        return abs(self.total) > linear + (linear**2 + 2.0 * _LOG * self.variance) ** 0.5


class _Comparison:
    """Steps of a copy of an environment beside its table."""

    def __init__(self, base: Any, table: Mapping[Any, Any], initial: npt.NDArray[np.float64], check_rewards: bool):
        self._name, self._table, self._initial, self._check_rewards = type(base).__name__, table, initial, check_rewards
        try:
            self._env = deepcopy(base)
        except Exception:  # noqa: BLE001 - windows and the like cannot be copied, and are not needed
            self._env = copy(base)
            self._env._np_random = None
        self._env.render_mode = None
        self._last: dict[Any, Any] = {}
        self._sums = {
            what: (_Sum(f"likely and unlikely {what}"), _Sum(f"repeated {what}")) for what in ("start states", "outcomes")
        }
        # Gymnasium's own keep their whole state in ``s``, so they can be put anywhere
        self._can_be_placed = any(cls.__module__.startswith("gymnasium.envs.toy_text") for cls in type(base).__mro__)

    def play(self, steps: int) -> None:
        """Play random actions from the start, and from everywhere where that is possible.

        Raises:
            ModelError: what happened is not what the table says.
        """
        rng = np.random.default_rng(0)
        n_states, n_actions = len(self._table), len(self._table[0])
        ended, age = True, 0
        for i in range(steps):
            if ended or (self._can_be_placed and age >= _EPISODE):
                observation, _ = self._env.reset(seed=0 if i == 0 else None)
                state = self._state(observation)
                self._compare_start(state)
                if self._can_be_placed and hasattr(self._env, "s") and rng.random() < 0.75:
                    state = self._env.s = int(rng.integers(n_states))
                age = 0
            random = [a for a in range(n_actions) if len(self._table[state][a]) > 1]
            action = int(rng.integers(n_actions) if not random or rng.random() < 0.5 else rng.choice(random))
            observation, reward, ended, _, _ = self._env.step(action)
            successor = self._state(observation)
            self._compare_step(state, action, successor, float(reward), bool(ended))
            state, age = successor, age + 1
        for one in (one for pair in self._sums.values() for one in pair):
            if one.is_off:
                raise ModelError(
                    f"in {steps} sampled steps of {self._name}, {one.what} came at other rates than its table says, beyond "
                    f"chance (one in a million). {_ADVICE}"
                )

    def _state(self, observation: Any) -> int:
        number = np.asarray(observation) if not isinstance(observation, (dict, tuple)) else np.empty(0)
        if number.size == 1 and number.dtype.kind in "iu":
            return int(number.reshape(()))
        raise UnsupportedError(
            f"{self._name} shows {observation!r}, and its table counts states; pass check_samples=0 if the table is right "
            "all the same."
        )

    def _compare_start(self, state: int) -> None:
        p = self._initial
        if not 0 <= state < len(p) or p[state] <= 0.0:
            raise ModelError(f"{self._name} started in state {state}, which its initial_state_distrib does not. {_ADVICE}")
        self._count("start states", None, state, dict(enumerate(p.tolist())))

    def _compare_step(self, state: int, action: int, successor: int, reward: float, ended: bool) -> None:
        listed = self._table[state][action]
        probabilities: dict[Any, float] = {}
        for p, to, r, done in listed:
            key = (int(to), bool(done), _digits(r) if self._check_rewards else None)
            probabilities[key] = probabilities.get(key, 0.0) + float(p)
        outcome = (successor, ended, _digits(reward) if self._check_rewards else None)
        if probabilities.get(outcome, 0.0) <= 0.0:
            raise ModelError(
                f"{self._name} went from state {state} under action {action} to state {successor} with reward {reward:g}, "
                f"{'and the episode ended' if ended else 'and went on'}; its table has {listed!r} there. {_ADVICE}"
            )
        self._count("outcomes", (state, action), outcome, probabilities)

    def _count(self, what: str, where: Any, outcome: Any, probabilities: Mapping[Any, float]) -> None:
        p = np.array([q for q in probabilities.values() if q > 0.0])
        surprise = -np.log(p)
        entropy = float(p @ surprise)
        deviations = surprise - entropy
        surprises, repeats = self._sums[what]
        surprises.add(-float(np.log(probabilities[outcome])) - entropy, float(p @ deviations**2), float(np.abs(deviations).max()))
        if where in self._last:
            again = probabilities[self._last[where]]
            repeats.add(float(outcome == self._last[where]) - again, again * (1.0 - again), max(again, 1.0 - again))
        self._last[where] = outcome


def _digits(reward: Any) -> float:
    """A reward without the rounding of float32."""
    return float(f"{float(reward):.5g}")


_ADVICE = (
    "The table is not what is played: write the arrays yourself, use a leader wrapper, or, if the table is right all the same, "
    "pass check_samples=0."
)
