"""Objectives through every leader: drawn contexts, batches, checkpoints, the command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import ConfigurableEnv, errors
from leaders.checkpoints import Checkpoints
from leaders.coupling import Coupling
from leaders.evaluate import evaluate
from leaders.objectives import CVaR, EqualityTimesProductivity, Min, SoftMin
from leaders.settings import settings_from_values
from leaders.train import main
from tests.problems import finite_difference, random_model, random_x, relative_error, small_rooms

FOLLOWER = partial(followers.SoftPolicyIteration, 0.5)


def _phi(model: Any, objective: Any, x: torch.Tensor, lam: float = 0.5) -> torch.Tensor:
    mdps = model.configure(x)
    values = mdps.policy_return(mdps.solve(lam).policy).detach().numpy().reshape(-1)
    return torch.tensor(objective.value(values, model.context_probabilities), dtype=torch.float64)


def _gradient(model: Any, leader: leaders.Leader, objective: Any, follower: Any = None, seed: int = 0) -> torch.Tensor:
    """The estimate of one iteration, from a step of size 1."""
    follower = FOLLOWER() if follower is None else follower
    x = random_x(model.leader_dim)
    result = leaders.optimize(model, leader, follower, 1, x0=x, contexts="all", objective=objective, seed=seed)
    return result.x - x


@pytest.mark.parametrize(
    ("leader", "tolerance"),
    [
        (partial(leaders.ExactGradient, 1.0), 1e-7),
        (partial(leaders.AMD, 1.0, 200), 1e-6),
        (partial(leaders.HPGD, 1.0, 400_000), 0.1),
        (partial(leaders.HPGD, 1.0, estimator="geometric", samples=300_000), 0.15),
        (partial(leaders.ZeroOrder, 1.0, 1e-5, two_sided=True, directions=300), 0.3),
    ],
)
def test_every_leader_s_estimate_is_of_the_objective(leader: Any, tolerance: float) -> None:
    model = random_model(5, contexts=3, states=4, dim=3, discount=0.6, leader_discount=0.5)
    for objective in (SoftMin(1.0), CVaR(0.4)):
        truth = finite_difference(lambda x, one=objective: _phi(model, one, x), random_x(3), 1e-5)  # type: ignore[misc]
        assert relative_error(_gradient(model, leader(max_gradient_norm=None), objective), truth) < tolerance


def test_the_other_estimators_run_with_an_objective() -> None:
    rooms = small_rooms()
    for estimator, options in (("pooled", {"env_steps": 300}), ("critic", {"env_steps": 3_000})):
        for contexts in (1, "all"):
            leader = leaders.HPGD(0.1, estimator=estimator, **options)
            result = leaders.optimize(rooms, leader, followers.SoftPolicyIteration(0.1), 4, contexts=contexts, objective=Min())
            assert result.context_returns is not None
            assert result.leader_return == result.context_returns.min()
    leader = leaders.HPGD(0.1, estimator="multilevel", samples=50, levels=3)
    follower = followers.SoftQLearning(0.5, iterations=20)
    result = leaders.optimize(random_model(1), leader, follower, 3, contexts="all", objective=SoftMin(0.5))
    assert np.isfinite(result.history["sampled_return"]).all()


@pytest.mark.parametrize("two_sided", [False, True])
def test_zero_order_takes_differences_of_the_objective_itself(two_sided: bool) -> None:
    """One direction for all contexts, and points so far apart that a derivative of Phi between them would be another number."""
    model, x, u = random_model(2, contexts=3, states=4, dim=3), random_x(3), 0.7
    oracle, estimator = (
        followers.TrajectoryOracle(model, FOLLOWER()),
        leaders.ZeroOrder(smoothing=u, two_sided=two_sided).estimator,
    )
    estimator.bind(oracle)
    contexts = [(c, float(p)) for c, p in enumerate(model.context_probabilities)]
    coupling = Coupling(Min(), oracle.core, every=True)
    found = estimator.estimate_coupled(oracle, x, contexts, coupling.value, np.random.default_rng(11))
    assert found is not None
    z = torch.from_numpy(np.random.default_rng(11).standard_normal(3))
    ahead, here, behind = (_phi(model, Min(), x + step * z) for step in (u, 0.0, -u))
    expected = (ahead - behind) / (2 * u) * z if two_sided else (ahead - here) / u * z
    torch.testing.assert_close(found.gradient, expected, rtol=1e-7, atol=1e-9)
    assert found.leader_return == pytest.approx(float((ahead + behind) / 2 if two_sided else here))


def test_drawn_contexts_have_weights_over_their_probabilities() -> None:
    """A run that hardly moves: once all contexts were seen, each has dPhi/dF / p times its own gradient."""
    model, x = random_model(3, contexts=3, states=4, dim=3), random_x(3)
    objective = EqualityTimesProductivity()
    leader = leaders.ExactGradient(1e-13, max_gradient_norm=None)
    result = leaders.optimize(model, leader, FOLLOWER(), 40, x0=x, objective=objective, seed=1)
    oracle = followers.TrajectoryOracle(model, FOLLOWER())
    leader.estimator.bind(oracle)
    estimates = [leader.estimator.estimate(oracle, x, c, np.random.default_rng(0)) for c in range(3)]
    values, p = np.array([e.leader_return for e in estimates]), model.context_probabilities
    weights = objective.weights(values, p)
    seen: set[int] = set()
    for record in result.history:
        context = record["context"]
        seen.add(context)
        weight = weights[context] / p[context] if len(seen) == 3 else 1.0  # before, as for the mean
        expected = abs(weight) * float(estimates[context].gradient.norm())
        assert record["gradient_norm"] == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert len(seen) == 3


def test_running_means_are_over_the_last_visits() -> None:
    model = random_model(0, contexts=2)
    oracle = followers.TrajectoryOracle(model, FOLLOWER())
    coupling = Coupling(Min(memory=2), oracle.core, every=False)
    drawn: list[tuple[Any, float]] = [(0, 1.0)]
    assert coupling.weigh(drawn, [5.0]) == ([1.0], 5.0)  # context 1 was not seen: as for the mean
    assert coupling.weigh([(1, 1.0)], [4.0]) == ([pytest.approx(1.0 / (2 / 3))], 4.0)
    assert coupling.weigh(drawn, [1.0]) == ([pytest.approx(1.0 / (1 / 3))], 1.0)  # a mean of 3
    assert coupling.weigh(drawn, [8.0])[0] == [0.0]  # 3 + (8 - 3) / 2
    with pytest.raises(errors.UnsupportedError, match="saw none in context 0"):
        coupling.weigh(drawn, [float("nan")])


@pytest.mark.parametrize(
    ("leader", "options"),
    [
        (partial(leaders.HPGD, 0.5, 300), {"contexts": "all"}),
        (partial(leaders.HPGD, 0.5, 300), {"contexts": 1}),
        (partial(leaders.ExactGradient, 1.0), {"contexts": 2}),
        (partial(leaders.ExactGradient, 1.0), {"contexts": "all"}),
        (partial(leaders.AMD, 1.0, 5), {"contexts": "all"}),
    ],
)
def test_many_runs_at_once_are_those_runs(leader: Any, options: dict[str, Any]) -> None:
    rooms, follower, seeds = small_rooms(), followers.SoftPolicyIteration(0.05), [0, 7, 3, 12]
    options = {"objective": SoftMin(0.1), "evaluate_every": 3, **options}
    runs = leaders.optimize_many(rooms, leader(), follower, 8, seeds=seeds, **options)
    for run, seed in zip(runs, seeds, strict=True):
        alone = leaders.optimize(rooms, leader(), follower, 8, seed=seed, **options)
        assert torch.equal(run.x, alone.x)
        assert run.leader_return == alone.leader_return
        assert run.history.columns == alone.history.columns
        np.testing.assert_array_equal(run.history["sampled_return"], alone.history["sampled_return"])


def test_many_runs_on_a_device() -> None:
    rooms, follower, seeds = small_rooms(), followers.SoftPolicyIteration(0.05), [0, 7, 3, 12]
    for contexts in (1, "all"):
        made = partial(leaders.optimize_many, rooms, leaders.ExactGradient(1.0), follower, 6, seeds=seeds, contexts=contexts)
        for run, other in zip(made(objective=Min(), device="cpu"), made(objective=Min()), strict=True):
            torch.testing.assert_close(run.x, other.x, rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(run.history["sampled_return"], other.history["sampled_return"], rtol=1e-6)


def _interrupted(folder: Path, objective: Any, contexts: Any, leader: Any) -> tuple[leaders.Result, leaders.Result]:
    """The same run, whole and stopped on its way."""

    def run(**options: Any) -> leaders.Result:
        return leaders.optimize(
            small_rooms(), leader(), followers.SoftPolicyIteration(0.05), 12, seed=2, contexts=contexts, evaluate_every=4,
            objective=objective, **options,
        )  # fmt: skip

    def stop(progress: leaders.Progress) -> None:
        if progress.iteration == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoints=Checkpoints(folder, 5), callback=stop)
    return run(), run(checkpoints=Checkpoints(folder, 5), resume=True)


def worse(values: torch.Tensor) -> torch.Tensor:
    return values.min() - 0.1 * values.square().sum()


@pytest.mark.parametrize("contexts", [1, "all"])
@pytest.mark.parametrize("leader", [partial(leaders.HPGD, 0.5, 300), leaders.ZeroOrder])
@pytest.mark.parametrize("objective", [CVaR(0.6, memory=3), worse])
def test_a_resumed_run_is_the_run(objective: Any, leader: Any, contexts: Any, tmp_path: Path) -> None:
    whole, resumed = _interrupted(tmp_path, objective, contexts, leader)
    assert torch.equal(whole.x, resumed.x)
    for name in set(whole.history.columns) - {"seconds"}:
        np.testing.assert_array_equal(whole.history[name], resumed.history[name])


def test_the_objective_is_part_of_a_run_s_identity(tmp_path: Path) -> None:
    model, leader, follower = random_model(1), leaders.ExactGradient(0.1), FOLLOWER()

    def run(objective: Any) -> None:
        leaders.optimize(model, leader, follower, 3, objective=objective, checkpoints=Checkpoints(tmp_path), resume=True)

    run(CVaR(0.2))
    run(CVaR(0.2))
    with pytest.raises(errors.CheckpointError, match=r"objective\.level was 0\.2, is 0\.3"):
        run(CVaR(0.3))
    with pytest.raises(errors.CheckpointError, match="objective"):
        run(worse)


class _Continuous(ConfigurableEnv):
    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self._setup_configuration(gym.spaces.Box(-np.inf, np.inf, (1,), np.float64), gym.spaces.Box(0.0, 1.0), 0.9)

    def sample_context(self, rng: np.random.Generator) -> Any:
        return np.float32(rng.random(1))

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise AssertionError("nothing may run")


def test_what_cannot_be_coupled_is_refused_before_anything_runs() -> None:
    never = followers.CallableFollower(lambda observation: 0)
    with pytest.raises(errors.OptionError, match="finitely many contexts"):
        leaders.optimize(_Continuous(), leaders.ZeroOrder(), never, 1, objective=Min())
    with pytest.raises(errors.OptionError, match="both a loss"):
        leaders.optimize(
            random_model(0), leaders.ExactGradient(), FOLLOWER(), 1, objective=Min(),
            loss=lambda x, policy, context: policy.square().sum(),
        )  # fmt: skip


def test_constraints_keep_their_weights() -> None:
    """The share of a constraint in the gradient is the same for every objective: the difference of two runs."""
    model, x = random_model(4, contexts=3, states=4, dim=3), random_x(3)

    def step(objective: Any, constraints: list[leaders.Constraint]) -> torch.Tensor:
        leader = leaders.ExactGradient(1.0, max_gradient_norm=None)
        result = leaders.optimize(
            model, leader, FOLLOWER(), 1, x0=x, contexts="all", objective=objective, constraints=constraints
        )
        return result.x - x

    unmet = [leaders.Constraint("unmet", "follower", 100.0)]
    shares = [step(objective, unmet) - step(objective, []) for objective in (None, Min())]
    torch.testing.assert_close(shares[0], shares[1], rtol=1e-8, atol=1e-6)


def test_leader_env_pays_the_objective() -> None:
    rooms, follower = small_rooms(), followers.SoftPolicyIteration(0.05)
    made = partial(leaders.LeaderEnv, rooms, follower, bounds=(-1.0, 1.0))
    sampled = made(objective=Min(), value="sampled", env_steps=20_000)
    paid = {"mean": made(), "min": made(objective=Min()), "sampled": sampled}
    x = np.zeros(paid["mean"].low.shape)
    for env in paid.values():
        env.reset(seed=0)
    least = paid["min"].value(x)
    assert least < paid["mean"].value(x)
    assert paid["sampled"].value(x) == pytest.approx(least, abs=0.05)


def test_the_command_line_has_objectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["four-rooms", "--iterations", "4", "--leader", "exact", "--contexts", "all", "--no-progress", "--evaluate-every", "2"]
    chosen = ["--leader-objective", "cvar", "--leader-objective-level", "0.5"]
    assert main([*run, *chosen, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["leader_return"] == pytest.approx(min(summary["context_returns"]))  # two contexts of 1/2
    assert "leader_return_1" in (tmp_path / "run" / "progress.csv").read_text().splitlines()[0]
    assert main([*run, "--leader-objective", "cvar", "--out", str(tmp_path / "none")]) == 2
    assert "needs --leader-objective-level" in capsys.readouterr().err
    assert main([*run, "--leader-objective-level", "0.5", "--out", str(tmp_path / "none")]) == 2
    assert "is an option of cvar, not of --leader-objective mean" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_evaluate_reports_objectives() -> None:
    values = {"leader_objective": "cvar", "leader_objective_level": 0.5, "slip_probability": 0.44}
    settings = settings_from_values("four-rooms", values)
    x0 = np.zeros(settings.make_env().unwrapped.leader_space.shape)  # type: ignore[attr-defined]
    report = evaluate(settings, x0 + 0.1, x0, env_steps=500, factors=(1.0,))
    exact = [one.exact_leader_return for one in report.after]
    assert list(report.objectives_after) == ["CVaR(level=0.5)", "Mean()", "Min()", "EqualityTimesProductivity()"]
    assert report.objectives_after["CVaR(level=0.5)"] == report.misjudged["1"] == pytest.approx(min(exact))  # type: ignore[type-var]
    assert report.objectives_after["Mean()"] == report.exact_leader_return
    assert report.objectives_before.keys() == report.objectives_after.keys()
