from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv

import followers
import leaders
from bocmdp_gym import errors
from followers import IndependentLearners, SB3Follower, TrajectoryOracle
from followers.seat import JointPolicy
from tests.followers.problems import bandit
from tests.games import Dilemma, game

QUICK: dict[str, Any] = {
    "n_envs": 4,
    "n_steps": 16,
    "batch_size": 32,
    "learning_rate": 0.03,
    "n_epochs": 5,
    "device": "cpu",
    "policy_kwargs": {"net_arch": [8]},
}
PAID, UNPAID = np.array([3.0]), np.array([0.0])


def learner(steps: int = 64, **options: Any) -> SB3Follower:
    return SB3Follower("PPO", steps, **{**QUICK, **options})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cooperation(oracle: TrajectoryOracle, policy: Any) -> float:
    batch = oracle.sample(policy, 200, rng())
    return float(np.mean([list(actions.values()) for actions in batch.actions]))


def same(one: Any, other: Any) -> bool:
    """Whether two joint policies have the same networks."""
    pairs = [
        zip(p.network.parameters(), q.network.parameters(), strict=True)
        for p, q in zip(one.policies.values(), other.policies.values(), strict=True)
    ]
    return all(bool((a == b).all()) for pair in pairs for a, b in pair)


@pytest.mark.parametrize("options", [{}, {"shared": True}])
def test_they_cooperate_where_they_are_paid_to(options: Any) -> None:
    follower = IndependentLearners(learner(), rounds=8, **options)
    oracle = TrajectoryOracle(game(Dilemma), follower)
    paid = oracle.respond(PAID, 0, rng())
    assert isinstance(paid, JointPolicy)
    assert cooperation(oracle, paid) > 0.9
    assert paid.metrics == {"follower_training_steps": 8 * 64.0 * (1 if options else 2)}
    assert follower.training_steps == oracle.training_steps == paid.metrics["follower_training_steps"]
    follower.reset()
    assert cooperation(oracle, oracle.respond(UNPAID, 0, rng())) < 0.1


def test_trajectories_are_of_all_agents() -> None:
    oracle = TrajectoryOracle(game(), IndependentLearners(learner()))
    batch = oracle.sample(oracle.respond([1.0], 0, rng()), 30, rng())
    assert batch.lengths.tolist() == [3] * 10
    assert batch.terminated.all()
    present = ["abc", "bc", "c"] * 10
    chosen = [sum(actions[agent] for agent in there) for actions, there in zip(batch.actions, present, strict=True)]
    np.testing.assert_array_equal(batch.rewards, 2.0 * np.array(chosen))  # the game's 1 and a bonus of 1
    np.testing.assert_array_equal(batch.leader_rewards, 0.0)


@pytest.mark.parametrize("algorithm", ["DQN", "RecurrentPPO"])
def test_other_algorithms_play(algorithm: str) -> None:
    settings: Any = {
        "DQN": {"learning_starts": 10, "batch_size": 8},
        "RecurrentPPO": {
            "n_steps": 16,
            "batch_size": 16,
            "n_epochs": 1,
            "policy_kwargs": {"lstm_hidden_size": 8, "net_arch": [8]},
        },
    }[algorithm]
    follower = IndependentLearners(SB3Follower(algorithm, 32, device="cpu", **settings), rounds=2)
    oracle = TrajectoryOracle(game(), follower)
    assert follower.greedy == (algorithm == "DQN")
    assert follower.markov == (algorithm == "DQN")
    for x in (UNPAID, PAID):  # the second with a buffer dropped
        batch = oracle.sample(oracle.respond(x, 0, rng()), 12, rng())
        assert (batch.n_steps, batch.n_episodes) == (12, 4)


def test_each_agent_may_have_settings_of_its_own() -> None:
    given = {"a": learner(64), "b": learner(128, learning_rate=1e-3)}
    follower = IndependentLearners(given)
    TrajectoryOracle(game(Dilemma), follower).respond(PAID, 0, rng())
    assert follower.learners["b"].settings["learning_rate"] == 1e-3
    assert follower.training_steps == 64 + 128


def test_all_play_against_those_of_the_rounds_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    follower = IndependentLearners(learner(), rounds=2)
    oracle = TrajectoryOracle(game(Dilemma), follower)
    met, answered = list[Any](), list[Any]()
    respond = SB3Follower.respond

    def watched(self: SB3Follower, task: Any, generator: Any) -> Any:
        met.append(dict(follower._lineup.policies))
        answered.append(respond(self, task, generator))
        return answered[-1]

    monkeypatch.setattr(SB3Follower, "respond", watched)
    final: Any = oracle.respond(PAID, 0, rng())
    assert met[0] == met[1] != met[2] == met[3]
    assert list(met[2].values()) == answered[:2]
    assert list(final.policies.values()) == answered[2:]


def test_equal_seeds_give_equal_answers_and_others_do_not() -> None:
    answers = []
    for seed in (0, 0, 1):
        oracle = TrajectoryOracle(game(Dilemma), IndependentLearners(learner(), rounds=2))
        first = oracle.respond(PAID, 0, rng(seed))
        oracle.sample(first, 50, rng())  # plays in the same environment in between
        answers.append(oracle.respond(UNPAID, 0, rng(seed)))
    assert same(answers[0], answers[1])
    assert not same(answers[0], answers[2])
    assert not same(answers[0], first)


@pytest.mark.parametrize("shared", [False, True])
def test_a_state_continues_to_the_bit(tmp_path: Path, shared: bool) -> None:
    def made() -> Any:
        follower = IndependentLearners(learner(normalize="observation"), rounds=2, shared=shared)
        return follower, TrajectoryOracle(game(Dilemma), follower)

    follower, oracle = made()
    oracle.respond(PAID, 0, rng())
    follower.save(tmp_path)
    wanted = oracle.respond(UNPAID, 0, rng(1))
    fresh, other = made()
    fresh.load(tmp_path)
    assert fresh.training_steps == follower.training_steps / 2
    assert same(other.respond(UNPAID, 0, rng(1)), wanted)
    assert fresh.training_steps == follower.training_steps


def test_without_warm_starts_each_response_begins_anew() -> None:
    oracle = TrajectoryOracle(game(Dilemma), IndependentLearners(learner(warm_start=False)))
    first = oracle.respond(PAID, 0, rng(3))
    assert same(first, oracle.respond(PAID, 0, rng(3)))
    assert oracle.training_steps == 4 * 64


def test_logs_of_agents_lie_apart(tmp_path: Path) -> None:
    follower = IndependentLearners(learner(log_dir=tmp_path))
    TrajectoryOracle(game(Dilemma), follower).respond(PAID, 0, rng())
    follower.reset()
    assert {path.parent.parent.name for path in tmp_path.rglob("progress.csv")} == {"a", "b"}


def test_a_copy_has_learnt_nothing() -> None:
    follower = IndependentLearners(learner(), rounds=3, shared=True)
    TrajectoryOracle(game(Dilemma), follower).respond(PAID, 0, rng())
    copied = follower.copy()
    assert isinstance(copied, IndependentLearners)
    assert (copied.rounds, copied.shared_learner, copied.learners, follower.training_steps) == (3, True, {}, 0)


class Unequal(Dilemma):
    def action_space(self, agent: str) -> gym.Space[Any]:
        return gym.spaces.Discrete(2 if agent == "a" else 3)


@pytest.mark.parametrize(
    ("env", "follower", "error", "message"),
    [
        (bandit, lambda: IndependentLearners(learner()), errors.UnsupportedError, "has one agent.*MarkovGame"),
        (game, learner, errors.UnsupportedError, r"game of 3 agents.*IndependentLearners\(SB3Follower\(\.\.\.\)\)"),
        (game, lambda: followers.SoftPolicyIteration(0.1), errors.UnsupportedError, "no tabular model|has none"),
        (game, lambda: IndependentLearners({"a": learner(), "z": learner()}), errors.OptionError, "no agent 'z'"),
        (game, lambda: IndependentLearners({"a": learner()}), errors.OptionError, r"no learner is given for \['b', 'c'\]"),
        (game, lambda: IndependentLearners(learner(discount=0.5)), errors.DiscountError, "discount 0.5"),
        (game, lambda: IndependentLearners(SB3Follower("SAC", 200)), errors.UnsupportedError, "SAC cannot take"),
        (lambda: game(Unequal), lambda: IndependentLearners(learner(), shared=True), errors.UnsupportedError, "'b' cannot share"),
        (
            lambda: gym.wrappers.TransformReward(game(), lambda reward: 2 * reward),
            lambda: IndependentLearners(learner()), errors.UnsupportedError, "TransformReward around MarkovGame",
        ),
        (
            lambda: gym.vector.SyncVectorEnv([game]), lambda: IndependentLearners(learner()), errors.UnsupportedError,
            "give the oracle a single game",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_when_they_meet(env: Any, follower: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        TrajectoryOracle(env(), follower())


@pytest.mark.parametrize("wrong", [None, "PPO", {}, {"a": "PPO"}, followers.SoftPolicyIteration(0.1)])
def test_what_is_no_learner_is_refused(wrong: Any) -> None:
    with pytest.raises(errors.OptionError):
        IndependentLearners(wrong)
    with pytest.raises(errors.OptionError, match="shared"):
        IndependentLearners({"a": learner()}, shared=True)


def test_states_of_other_games_are_refused() -> None:
    follower = IndependentLearners(learner())
    with pytest.raises(errors.OptionError, match="make an oracle first"):
        follower.load_state({})
    TrajectoryOracle(game(Dilemma), follower)
    three = IndependentLearners(learner())
    TrajectoryOracle(game(), three)
    with pytest.raises(errors.OptionError, match=r"learners of \['a', 'b', 'c'\]; expected \['a', 'b'\]"):
        follower.load_state(three.state())
    with pytest.raises(errors.DamagedError):
        follower.load_state({"learners": {}, "training_steps": 0} | {"learners": 3})


def test_copies_in_other_processes_are_refused() -> None:
    follower = IndependentLearners(learner(vec_env_class=SubprocVecEnv))
    oracle = TrajectoryOracle(game(Dilemma), follower)
    with pytest.raises(errors.UnsupportedError, match="another process"):
        oracle.respond(PAID, 0, rng())


@pytest.mark.parametrize("leader", [leaders.FirstOrder(), leaders.ExactGradient(), leaders.HPGD(regularization=0.1)])
def test_leaders_that_need_more_than_returns_say_why_not(leader: Any) -> None:
    with pytest.raises(errors.BOCMDPError, match=r"agents of MarkovGame answer each other.*ZeroOrder"):
        leaders.optimize(game(Dilemma), leader, IndependentLearners(learner()), 1)


def test_zero_order_leads_and_continues_from_a_checkpoint(tmp_path: Path) -> None:
    leader = leaders.ZeroOrder(1.0, env_steps=60, smoothing=1.0)
    options: Any = {"seed": 0, "x0": [1.0], "progress": False}

    def run() -> Any:
        checkpoints, follower = leaders.Checkpoints(tmp_path, every=1), IndependentLearners(learner(), rounds=2)
        return leaders.optimize(game(Dilemma), leader, follower, 3, checkpoints=checkpoints, resume=True, **options)

    whole = run()
    assert whole.x != [1.0]
    assert whole.history["follower_training_steps"][-1] == 3 * 2 * 2 * 2 * 64  # iterations, sides, rounds, agents
    for path in sorted(tmp_path.glob("*.safetensors"))[1:]:
        path.unlink()  # all but the first
    np.testing.assert_array_equal(run().x, whole.x)


def test_leader_env_reads_returns() -> None:
    follower = IndependentLearners(learner(warm_start=False), rounds=4)
    earned = game(Dilemma, leader_reward=lambda x, step: sum(step.rewards.values()))
    env = leaders.LeaderEnv(earned, follower, value="sampled", env_steps=100)
    env.reset(seed=0)
    low, high = env.values([[0.0], [3.0]])
    assert high - low > 2.0  # two agents who cooperate earn 4 together, others 0


def test_a_game_of_others_is_played() -> None:
    pytest.importorskip("pettingzoo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the old way to make PettingZoo's games
        from pettingzoo.classic import rps_v2

        rps = rps_v2.parallel_env(max_cycles=3)
    pay_rock: Any = lambda x, step: {agent: x[0] * (action == 0) for agent, action in step.actions.items()}  # noqa: E731
    env = game(env=rps, bonus=pay_rock, leader_reward=lambda x, step: sum(step.bonuses.values()))
    oracle = TrajectoryOracle(env, IndependentLearners(learner(), rounds=8))
    batch = oracle.sample(oracle.respond([5.0], 0, rng()), 90, rng())
    assert np.mean([list(actions.values()) for actions in batch.actions]) < 0.2  # mostly rock
    assert not batch.terminated.any()
