"""Fictitious play: exact and learned answers against the exact equilibrium, states, and refusals."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import bocmdp_gym
import leaders
from bocmdp_gym import PopulationBOCMDP, errors
from bocmdp_gym.wrappers.leader_share import LeaderShare
from followers import CallableFollower, FictitiousPlay, Follower, SoftPolicyIteration, SoftQLearning, StepSize, TrajectoryOracle
from leaders.branches import Branches
from tests.bocmdp_gym.test_population import random_population
from tests.problems import random_model

LAMBDA = 1.0


def roads(network: str = "braess", **options: Any) -> Any:
    return gym.make("bocmdp/RoadTolls-v0", network=network, **options)


def learner(iterations: int = 2_000) -> SoftQLearning:
    return SoftQLearning(LAMBDA, iterations=iterations, step_size=StepSize.visits(20.0))


def played(env: Any, follower: Follower, rounds: int, x: Any = None, seed: int = 0, **options: Any) -> Any:
    """What a fresh population does at x."""
    play = FictitiousPlay(follower, rounds, **options)
    oracle = TrajectoryOracle(env, play)
    x = np.zeros(oracle.core.leader_space.shape) if x is None else x
    return play.play(np.asarray(x, dtype=np.float64), np.random.default_rng(seed))


def distance(model: PopulationBOCMDP, response: Any, regularization: float = LAMBDA) -> float:
    """The largest difference of a load from the exact equilibrium's, relative to the largest load."""
    exact = model.equilibrium(response.leader, regularization).loads.numpy()
    return float(np.abs(response.loads - exact).max() / exact.max())


@pytest.mark.parametrize("network", ["braess", "grid"])
def test_exact_followers_come_to_the_equilibrium(network: str) -> None:
    env = roads(network, size=3)
    model, x = bocmdp_gym.configurable(env).population, bocmdp_gym.configurable(env).leader_space.low + 0.5
    found = played(env, SoftPolicyIteration(LAMBDA), 300, x, tolerance=2e-5)
    assert found.exploitability <= 2e-5
    assert found.rounds < 300
    assert distance(model, found) < 1e-3
    exact = model.equilibrium(x, LAMBDA)
    np.testing.assert_allclose(found.values, exact.value, rtol=1e-3)
    reached = found.visits.sum(-1) > 1e-3 * model.mass[:, None]
    np.testing.assert_allclose(found.policies[reached], exact.policy.numpy()[reached], atol=5e-3)


@pytest.mark.parametrize("terminating", [True, False])
def test_exact_followers_come_to_the_equilibrium_of_any_population(terminating: bool) -> None:
    """Whose transitions, starts and ends the loads move too."""
    model = random_population(0, terminating=terminating)
    x = np.random.default_rng(1).standard_normal(4)
    found = played(model, SoftPolicyIteration(0.5), 400, x)
    assert distance(model, found, 0.5) < 1e-3


def test_exploitability_falls_with_rounds_and_learning() -> None:
    """Of soft Q-learning on a city: more rounds, and more steps per round where these are few."""
    env = roads("grid", size=3)
    model = bocmdp_gym.configurable(env).population
    by_rounds = [played(env, learner(5_000), rounds) for rounds in (2, 6, 18)]
    gaps = [one.exploitability for one in by_rounds]
    assert gaps[0] > 3.0 * gaps[1] > 9.0 * gaps[2] > 0.0
    assert distance(model, by_rounds[-1]) < 0.05
    few = [played(env, learner(steps), 6).exploitability for steps in (50, 200, 5_000)]
    assert few[0] > few[1] > few[2]


def test_the_leader_is_paid_at_the_loads_that_were_made() -> None:
    """After one round everybody jams the road that was free: the arrays, the samples and the objective say so."""
    env = roads(objective="travel_time")
    core, rng = bocmdp_gym.configurable(env), np.random.default_rng(0)
    oracle = TrajectoryOracle(env, FictitiousPlay(SoftPolicyIteration(LAMBDA), rounds=1))
    policy = oracle.respond(np.zeros(5), 0, rng)
    response = oracle.follower.response  # type: ignore[attr-defined]
    times = core.network.times(bocmdp_gym.traffic.torch.from_numpy(response.loads)).numpy()
    expected = -float(response.loads @ times) / core.population.n_trips
    exact = float(core.population.leader_return(np.zeros(5), LAMBDA))
    assert expected < exact - 1.0
    batch = oracle.sample(policy, 500, rng)
    np.testing.assert_allclose(batch.discounted_returns(1.0, leader=True), expected)
    assert leaders.LeaderEnv(env, oracle.follower).value(np.zeros(5)) == pytest.approx(expected)
    for context in range(oracle.configure_for(policy).model.n_contexts):
        arrays = oracle.configure_for(policy).arrays(context)
        np.testing.assert_array_equal(np.unique(arrays.reward[core.population.slots[0] >= 0]), np.unique(-times))


def test_one_response_serves_all_classes() -> None:
    env, rng = roads("grid", size=2), np.random.default_rng(0)
    play = FictitiousPlay(learner(), rounds=2)
    oracle = TrajectoryOracle(env, play)
    x = np.zeros(oracle.core.leader_space.shape)
    oracle.respond(x, 0, rng)
    first = play.response
    oracle.respond(x, 1, rng)
    assert play.response is first
    oracle.respond(x, 0, rng)  # asked again, it goes on
    assert play.response is not first
    again = play.response
    oracle.respond(x + 1.0, 2, rng)
    assert play.response is not again


@pytest.mark.parametrize("step", [None, 0.25, lambda k: 2.0 / (k + 2.0)])
def test_a_schedule_of_steps_is_kept(step: Any) -> None:
    """Three rounds by hand: what is produced first, then averages of what there was and of what answers it."""
    env = roads()
    model, x = bocmdp_gym.configurable(env).population, np.zeros(5)
    found = played(env, SoftPolicyIteration(LAMBDA), 3, step=step)

    def produced(loads: Any) -> Any:
        policy = model.problem.solve(np.concatenate([x, loads]), LAMBDA).policy
        return model.loads_of(model.visits(x, loads, policy))

    loads = produced(np.zeros(5))
    for k in (1, 2):
        alpha = step(k) if callable(step) else 1.0 / (k + 1.0) if step is None else step
        loads = loads + alpha * (produced(loads) - loads)
    np.testing.assert_allclose(found.loads, loads, rtol=1e-7)


def test_the_next_response_starts_from_the_last_one() -> None:
    env, rng = roads("grid", size=3), np.random.default_rng(0)
    play = FictitiousPlay(SoftPolicyIteration(LAMBDA), rounds=4)
    oracle = TrajectoryOracle(env, play)
    x = np.zeros(oracle.core.leader_space.shape)
    cold = play.play(x, rng)
    warm = play.play(x + 0.01, rng)
    play.reset()
    assert play.response is None
    fresh = play.play(x + 0.01, rng)
    assert warm.exploitability < 0.5 * fresh.exploitability
    assert fresh.exploitability == pytest.approx(cold.exploitability, rel=0.2)


def test_a_policy_without_probabilities_is_counted_in_episodes() -> None:
    """A rule that answers no loads: its visits are those of the rule, whatever the rounds; its gains are plain ones."""
    env = roads()
    model = bocmdp_gym.configurable(env).population
    rule = CallableFollower(lambda observation: int(observation == 0) if observation < 2 else 0)
    found = played(env, rule, 2, sample_steps=300)
    table = np.zeros((1, 4, 2))
    table[0, 0, 1] = table[0, 1, 0] = table[0, 2, 0] = 1.0
    np.testing.assert_allclose(found.loads, model.loads_of(model.visits(np.zeros(5), found.loads, table)), rtol=1e-9)
    assert found.exploitability > 1.0


def test_what_never_ends_is_refused() -> None:
    env = roads()  # node 2 has one road alone: action 1 stays there
    with pytest.raises(errors.ConvergenceError, match="never ends its episodes under its policy"):
        played(env, CallableFollower(lambda observation: 1), 1, sample_steps=300)


def test_equal_seeds_give_equal_answers_and_states_continue_bit_for_bit() -> None:
    env = roads("grid", size=2)
    x = np.ones(bocmdp_gym.configurable(env).leader_space.shape)

    def started() -> tuple[Any, Any]:
        play = FictitiousPlay(learner(500), rounds=2)
        rng = np.random.default_rng(3)
        oracle = TrajectoryOracle(env, play)
        oracle.respond(x, 1, rng)
        return oracle, rng

    (oracle, rng), (other, other_rng) = started(), started()
    assert oracle.follower.response.loads.tobytes() == other.follower.response.loads.tobytes()
    fresh = TrajectoryOracle(env, FictitiousPlay(learner(500), rounds=2))
    fresh.follower.load_state(other.follower.state())
    for context in (0, 1, 2):  # the same response, the next, and again the same
        expected, found = oracle.respond(x, context, rng), fresh.respond(x, context, other_rng)
        assert expected.table is not None
        assert found.table is not None
        assert expected.table.tobytes() == found.table.tobytes()
        assert expected.metrics == found.metrics
        ours, theirs = (one.configure_for(p).arrays(context) for one, p in ((oracle, expected), (fresh, found)))
        assert ours.leader_reward.tobytes() == theirs.leader_reward.tobytes()


def test_branches_leave_the_population_where_the_first_one_led_it() -> None:
    env, rng = roads(), np.random.default_rng(0)
    play = FictitiousPlay(learner(200), rounds=2)
    oracle = TrajectoryOracle(env, play)
    with Branches(play) as branches:
        loads = []
        for shift in (0.0, 5.0, 0.0):
            branches.begin()
            oracle.respond(np.zeros(5) + shift, 0, np.random.default_rng(1))
            loads.append(play.response.loads)  # type: ignore[union-attr]
    np.testing.assert_array_equal(loads[0], loads[2])
    assert not np.array_equal(loads[0], loads[1])
    np.testing.assert_array_equal(play.response.loads, loads[0])  # type: ignore[union-attr]
    np.testing.assert_array_equal(play.response.leader, np.zeros(5))  # type: ignore[union-attr]
    del rng


def test_a_copy_has_learnt_nothing_and_says_how_it_was_made() -> None:
    play = FictitiousPlay(learner(200), rounds=3, tolerance=0.1)
    TrajectoryOracle(roads(), play).respond(np.zeros(5), 0, np.random.default_rng(0))
    twin = play.copy()
    assert repr(twin) == repr(play)
    assert twin.response is None
    assert twin.follower is not play.follower


def test_damaged_states_are_refused() -> None:
    play, other = FictitiousPlay(learner(200), rounds=1), FictitiousPlay(learner(200), rounds=1)
    TrajectoryOracle(roads(), play).respond(np.zeros(5), 0, np.random.default_rng(0))
    TrajectoryOracle(roads("grid", size=2), other)
    with pytest.raises(errors.DamagedError, match="leader has shape"):
        other.load_state(play.state())
    with pytest.raises(errors.DamagedError, match="no entry 'follower'"):
        other.load_state({})


def test_settings_that_cannot_work_are_refused() -> None:
    play = FictitiousPlay(SoftPolicyIteration(LAMBDA))
    with pytest.raises(errors.OptionError, match="plays already"):
        FictitiousPlay(play)
    for options in ({"rounds": 0}, {"tolerance": 0.0}, {"step": 0.0}, {"step": 1.5}, {"sample_steps": 0}):
        with pytest.raises(errors.OptionError, match=next(iter(options))):
            FictitiousPlay(SoftPolicyIteration(LAMBDA), **options)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match=r"step \(step\(1\)\) is 3"):
        played(roads(), SoftPolicyIteration(LAMBDA), 2, step=lambda k: 3)
    with pytest.raises(errors.UnsupportedError, match="has no population; use SoftPolicyIteration by itself"):
        TrajectoryOracle(random_model(0), play)
    with pytest.raises(errors.OptionError, match="play by regularization 1"):
        TrajectoryOracle(roads(), FictitiousPlay(SoftPolicyIteration(0.5)))
    with pytest.raises(errors.UnsupportedError, match="a share of the leader's reward"):
        TrajectoryOracle(LeaderShare(roads(), 0.1), play)
    with pytest.raises(errors.UnsupportedError, match="TransformReward around it may change"):
        TrajectoryOracle(gym.wrappers.TransformReward(roads(), lambda reward: reward), play)
    with pytest.raises(errors.UnsupportedError, match="leave compiled out"):
        TrajectoryOracle(roads(), play, compiled=False)


@pytest.mark.parametrize("leader", [leaders.HPGD(), leaders.HPGD(estimator="critic"), leaders.FirstOrder(0.1)])
def test_leaders_that_need_the_equilibrium_are_refused(leader: leaders.Leader) -> None:
    with pytest.raises(errors.UnsupportedError, match="at their exact equilibrium"):
        leaders.optimize(roads(), leader, FictitiousPlay(SoftPolicyIteration(LAMBDA)), 1)


def test_a_zero_order_leader_leads_learners_and_resumes_bit_for_bit(tmp_path: Any) -> None:
    """Braess's network: without tolls drivers take 92 minutes, at best 83 (`ExactGradient`)."""
    options: dict[str, Any] = {"optimizer": "Adam", "max_gradient_norm": None, "smoothing": 1.0, "decay": False}

    def run(folder: Any, **more: Any) -> Any:
        follower = FictitiousPlay(learner(500), rounds=3)
        leader = leaders.ZeroOrder(2.0, two_sided=True, **options)
        checkpoints = leaders.Checkpoints(folder, every=10)
        env = roads(tollable=[4])
        return leaders.optimize(env, leader, follower, 20, x0=[0.0], evaluate_every=19, checkpoints=checkpoints, **more)

    whole = run(tmp_path / "whole")
    returns, gaps = whole.history["leader_return"], whole.history["exploitability"]
    assert returns[0] == pytest.approx(-92.0, abs=0.1)
    assert returns[-1] > -84.0
    assert (gaps >= 0.0).all()
    assert (whole.history["population_rounds"] == 3).all()
    run(tmp_path / "cut", callback=lambda progress: progress.iteration == 9, callback_every=1)
    resumed = run(tmp_path / "cut", resume=True)
    assert resumed.x.numpy().tobytes() == whole.x.numpy().tobytes()
    np.testing.assert_array_equal(resumed.history["exploitability"], gaps)


def test_leader_env_says_how_far_followers_are() -> None:
    env = leaders.LeaderEnv(roads(), FictitiousPlay(learner(500), rounds=3))
    env.reset(seed=0)
    *_, info = env.step(-np.ones(5, dtype=np.float32))
    assert set(info) == {"x", "exploitability", "population_rounds"}
    assert 0.0 < info["exploitability"] < 0.1


def test_a_sampled_constraint_is_refused() -> None:
    constraint = leaders.SampledConstraint("short", outcome=lambda x, s, a, c: s.double(), at_most=1.0)
    with pytest.raises(errors.UnsupportedError, match="write the outcome into its objective"):
        leaders.optimize(roads(), leaders.ZeroOrder(), FictitiousPlay(learner(200)), 1, constraints=[constraint])
