r"""Games in which the leader acts at every step, before the follower, who sees it.

The mathematics is in `bocmdp_gym.acting`; here are games. *Matrix games* are played once: the leader commits to a distribution
over rows l, a row is drawn and shown, and the follower answers with a column a. It answers row l by softmax(r(l, .) / lambda), so

    F(x) = sum_l pi_x(l) sum_a softmax(r(l, .) / lambda)_a rbar(l, a)

is linear in pi_x, and the best row, alone, is optimal: the Stackelberg equilibrium as lambda -> 0 (Zhang et al. 2020).

*DiscreteToy4* has states S (the start), A and B; the leader has two actions, the follower three: stay, a, b.

    S:  a -> A, pays the follower 1 and the leader 1;   b -> B, pays the follower 1;   stay -> S
    A:  l = 0:  stay -> S;   a -> A;   b -> B, pays the follower the bonus R
        l = 1:  anything -> S, and costs the follower 1
    B:  stay -> S;   a, b -> B

The leader earns where the follower goes to A, and nothing while it comes back by B. To punish in A sends it straight back to S,
but a follower who expects too much of that goes to B at once. So the leader's best policy is mixed, and only pi_x(1|A) matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_array, check_choice, check_number
from bocmdp_gym.pictures import AGENT, INK, Canvas, PicturedEnv, signed_colour
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.tabular_env import TabularVectorEnv

Array = npt.NDArray[np.float64]
GameName = Literal["discrete-toy-4", "escape", "maintain"]
Observation = Literal["index", "pair"]
GAMES, OBSERVATIONS = get_args(GameName), get_args(Observation)
#: (leader's, follower's) payoffs of the matrix games; rows are the leader's actions.
PAYOFFS: dict[str, tuple[list[list[float]], list[list[float]]]] = {
    "escape": ([[15, 10, 0], [10, 10, 0], [0, 0, 30]], [[15, 10, 0], [10, 10, 0], [0, 0, 30]]),
    "maintain": ([[20, 0, 0], [30, 10, 0], [0, 0, 5]], [[15, 0, 0], [0, 5, 0], [0, 0, 10]]),
}
LAMBDA = 0.05
_SURE = 40.0  # the logit of what is done for certain, up to exp(-40)
_SCANNED = np.linspace(-30.0, 30.0, 601)


class Game(NamedTuple):
    """A game that starts in state 0."""

    reward: Array  # (S, L, A)
    leader_reward: Array  # (S, L, A)
    transition: Array  # (S, L, A, S)
    termination: Array | None
    states: Sequence[str]
    actions: Sequence[str]


class LeaderActs(PicturedEnv):
    r"""The leader makes a move at every step, the follower sees it and answers: DiscreteToy4 and Stackelberg matrix games.

    ## Description
    *"discrete-toy-4"*: three states. The follower earns by leaving the start for A or for B, the leader only where it takes A.
    In A the leader lets it go on to B, for a bonus, or sends it back at a loss. *"escape"*, *"maintain"*: one choice, three rows
    of the leader's and three columns of the follower's. In Escape the payoffs are common, 30 at best, and 15 is an equilibrium
    too, in which players who improve in turn may be caught. In Maintain the leader does best by its first row (20, answered by
    the first column) although, that column given, its second row would pay it 30; players who move at the same time end at 10
    or 5. *Your own*: ``reward`` and ``leader_reward``. A game of several states of your own is
    ``bocmdp_gym.TabularEnv(bocmdp_gym.TabularBOCMDP.acting_leader(...))``. The module docstring has the mathematics.

    ## Leader parameter
    x in R^(S L), unbounded: the logits of the leader's policy, states first (``x.reshape(S, L)``). It moves which of its actions
    the follower meets, no reward. `initial_leader` draws x_0 ~ N(0, 0.01^2): a policy close to uniform.

    ## Context
    ``Discrete(1)``: there is only one.

    ## Action space
    ``Discrete(A)``: the follower's actions; stay, a, b, or the columns.

    ## Observation space
    ``observation="index"``: ``Discrete(S L)``, s L + l for state s and the leader's action l. ``"pair"``:
    ``MultiDiscrete([S, L])``. ``info["leader_action"]`` is l, too, as observed along with it.

    ## Rewards
    Those of the game; the leader's is paid by ``info["leader_reward"]``.

    ## Episode start and end
    Starts in S, with a draw of the leader's action; truncated after ``horizon`` steps. Matrix games terminate after one.

    ## Arguments
    game: "discrete-toy-4", "escape" or "maintain".
    bonus: R, what "discrete-toy-4" pays the follower for going from A to B.
    reward: the follower's payoffs in a matrix game of your own, rows of the leader's, columns of its actions; None for ``game``.
    leader_reward: the leader's in it.
    horizon: steps until truncation, or None for no limit (matrix games).
    observation: "index" or "pair".
    discount: the follower's gamma.
    leader_discount: the leader's gamma_L; None: gamma.
    render_mode: "rgb_array" or "human".

    Raises:
        OptionError, DiscountError: an argument out of range, or payoffs of one side alone.

    ## Version history
    v0: first version.

    Reference: the matrix games have the payoffs of the code of Zhang et al., "Bi-level Actor-Critic for Multi-agent
    Coordination", AAAI 2020 ("penalty" and "climbing" in it); DiscreteToy4 is a benchmark of BC-HG (2025).
    """

    def __init__(
        self,
        game: GameName = "discrete-toy-4",
        bonus: float = 1.0,
        reward: Sequence[Sequence[float]] | None = None,
        leader_reward: Sequence[Sequence[float]] | None = None,
        horizon: int | None = 150,
        observation: Observation = "index",
        discount: float = 0.99,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        check_choice("game", game, GAMES)
        check_choice("observation", observation, OBSERVATIONS)
        bonus = check_number("bonus", bonus)
        if (reward is None) != (leader_reward is None):
            raise OptionError("a game of your own needs payoffs of both sides; give reward and leader_reward, (L, A) each.")
        if reward is not None:
            paid = check_array("reward", reward, (None, None))
            self.game = _matrix_game(paid, check_array("leader_reward", leader_reward, paid.shape))
        elif game in PAYOFFS:
            leaders, followers = map(np.array, PAYOFFS[game])
            self.game = _matrix_game(followers.astype(np.float64), leaders.astype(np.float64))
        else:
            self.game = _discrete_toy_4(bonus)
        n_states, self.n_leader_actions, _ = self.game.reward.shape
        model = TabularBOCMDP.acting_leader(
            reward=self.game.reward,
            leader_reward=self.game.leader_reward,
            transition=self.game.transition,
            initial=np.eye(n_states)[0],
            termination=self.game.termination,
            discount=discount,
            leader_discount=leader_discount,
        )
        super().__init__(model, horizon, render_mode)
        self._shows_pairs = observation == "pair"
        if self._shows_pairs:
            self.observation_space = gym.spaces.MultiDiscrete([n_states, self.n_leader_actions])

    def initial_leader(self, rng: np.random.Generator) -> Array:
        """x_0 ~ N(0, 0.01^2): close to the uniform policy."""
        return 0.01 * rng.standard_normal(self.model.leader_dim)

    def leader_policy(self, x: npt.ArrayLike | Tensor) -> Array:
        """The leader's policy of x, ``(S, L)``."""
        logits = self.model.check_leader(x).detach().reshape(-1, self.n_leader_actions)
        policy: Array = torch.softmax(logits, -1).numpy()
        return policy

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The largest leader's return at this lambda (None: 0.05): in closed form for a matrix game, by a scan for DiscreteToy4.

        0.0, the limit lambda -> 0, is known for matrix games; where several columns are best answers, all are equally likely.
        """
        regularization = LAMBDA if regularization is None else regularization
        if self.game.termination is not None:
            return self._best_row(regularization)
        return self._best_in_state_a(regularization) if regularization > 0.0 else None

    def _best_row(self, regularization: float) -> Benchmark:
        r, rbar = self.game.reward[0], self.game.leader_reward[0]
        gap = r - r.max(-1, keepdims=True)
        answer = np.exp(gap / regularization) if regularization > 0.0 else (gap == 0.0).astype(np.float64)
        values = (answer * rbar).sum(-1) / answer.sum(-1)
        return Benchmark(
            value=float(values.max()),
            objective="leader return, maximised",
            source=f"closed form: the return is linear in the leader's policy, and row {values.argmax()} is best",
            regularization=regularization,
            is_optimum=True,
            x=_SURE * (np.arange(len(values)) == values.argmax()),
        )

    def _best_in_state_a(self, regularization: float) -> Benchmark:
        """Only pi_x(1|A) matters: its logit is scanned, and the best refined between its neighbours."""
        direction = np.eye(self.model.leader_dim)[self.n_leader_actions + 1]
        values = self.model.leader_return(np.outer(_SCANNED, direction), regularization).numpy()
        best = int(np.clip(values.argmax(), 1, len(values) - 2))

        def cost(logit: float) -> float:
            return -float(self.model.leader_return(logit * direction, regularization))

        found = minimize_scalar(cost, bounds=(_SCANNED[best - 1], _SCANNED[best + 1]), method="bounded", options={"xatol": 1e-8})
        return Benchmark(
            value=max(-float(found.fun), float(values.max())),
            objective="leader return, maximised",
            source=f"the return depends on pi_x(1|A) alone; scanned, it is largest at {1.0 / (1.0 + np.exp(-found.x)):.6f}",
            regularization=regularization,
            is_optimum=False,
            x=float(found.x) * direction,
        )

    # the leader's action, as observed

    def observe(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.stack(np.divmod(states, self.n_leader_actions), -1) if self._shows_pairs else states

    def _observe_one(self, state: int) -> Any:
        return np.array(divmod(state, self.n_leader_actions)) if self._shows_pairs else state

    def states_of(self, observations: Any) -> Any:
        if not self._shows_pairs:
            return observations
        pairs = np.asarray(observations)
        return pairs[..., 0] * self.n_leader_actions + pairs[..., 1]

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        observation, info = super()._reset(state)
        return observation, {**info, "leader_action": self._state % self.n_leader_actions}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As `TabularEnv.step`; ``info["leader_action"]`` is the leader's action that the returned observation shows."""
        observation, reward, terminated, truncated, info = super().step(action)
        info["leader_action"] = self._state % self.n_leader_actions
        return observation, reward, terminated, truncated, info

    # pictures

    def picture(self) -> npt.NDArray[np.uint8]:
        """A table for each state: the leader's probabilities of its rows, payoffs (follower's, leader's), the row in play."""
        policy, (n_states, n_rows, n_columns) = self.leader_policy(self._episode_leader), self.game.reward.shape
        cell, high, left, top = 76, 34, 66, 62
        width = left + cell * n_columns + 24
        canvas = Canvas(max(n_states * width, 400), top + high * n_rows + 24)
        canvas.text((10, 8), "rows: the leader's move; cells: follower's | leader's payoff", anchor="la")
        scale = max(np.abs(self.game.leader_reward).max(), 1e-12)
        for state, name in enumerate(self.game.states):
            x0 = state * width + left
            canvas.text((x0 - left + 12, top - 14), name, size=17, anchor="lm")
            for column, action in enumerate(self.game.actions):
                canvas.text((x0 + cell * (column + 0.5), top - 14), action)
            for row in range(n_rows):
                y = top + high * row
                canvas.text((x0 - 8, y + high / 2), f"{policy[state, row]:.0%}", anchor="rm")
                for column in range(n_columns):
                    follower, leader = (r[state, row, column] for r in (self.game.reward, self.game.leader_reward))
                    box = (x0 + cell * column, y, x0 + cell * (column + 1), y + high)
                    canvas.rectangle(box, signed_colour(leader / scale), INK)
                    canvas.text((box[0] + cell / 2, y + high / 2), f"{follower:.3g} | {leader:.3g}")
        state, row = divmod(self._state, n_rows)
        x0, y = state * width + left, top + high * row
        canvas.rectangle((x0, y, x0 + cell * n_columns, y + high), None, AGENT, 4)
        return canvas.array()


def _matrix_game(reward: Array, leader_reward: Array) -> Game:
    """A game that is played once; payoffs ``(L, A)``."""
    rows, columns = reward.shape
    ends, names = np.ones((1, 1, 1)), [f"column {a}" for a in range(columns)]
    return Game(reward[None], leader_reward[None], np.ones((1, rows, columns, 1)), ends, [""], names)


def _discrete_toy_4(bonus: float) -> Game:
    """States S, A, B; the follower's actions stay, a, b (see the module docstring)."""
    s, a, b = range(3)
    _, to_a, to_b = range(3)
    reward, leader_reward, following = np.zeros((3, 2, 3)), np.zeros((3, 2, 3)), np.empty((3, 2, 3), dtype=np.int64)
    following[s] = [s, a, b]
    following[a] = [[s, a, b], [s, s, s]]
    following[b] = [s, b, b]
    reward[s, :, [to_a, to_b]] = 1.0
    reward[a, 0, to_b] = bonus
    reward[a, 1] = -1.0
    leader_reward[s, :, to_a] = 1.0
    return Game(reward, leader_reward, np.eye(3)[following], None, ["S", "A", "B"], ["stay", "a", "b"])


class LeaderActsVectorEnv(TabularVectorEnv):
    """Many copies of `LeaderActs`; infos tell the leader's action, too."""

    env: LeaderActs

    def _shown(self, infos: dict[str, Any], states: npt.NDArray[np.int64], told: npt.NDArray[np.bool_]) -> dict[str, Any]:
        return infos | {"leader_action": np.where(told, states % self.env.n_leader_actions, 0), "_leader_action": told}

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As `NativeVectorEnv.reset`."""
        observations, infos = super().reset(seed=seed, options=options)
        return observations, self._shown(infos, self._states, infos["_context"])

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As `NativeVectorEnv.step`."""
        *taken, infos = super().step(actions)
        if "final_info" in infos:
            infos["final_info"] = self._shown(infos["final_info"], self._final_states, infos["_final_info"])
        observations, rewards, terminations, truncations = taken
        return observations, rewards, terminations, truncations, self._shown(infos, self._states, infos["_context"])


def leader_acts_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> LeaderActsVectorEnv:
    """Many copies of `LeaderActs` in one compiled environment; keywords as for `LeaderActs`."""
    return LeaderActsVectorEnv(LeaderActs(**kwargs), num_envs, autoreset_mode)
