"""One run from its settings, and everything it leaves in its folder."""

from __future__ import annotations

import sys

from bocmdp_gym import TabularBOCMDP, configurable
from leaders.constraints import Constraint
from leaders.loop import optimize
from leaders.plots import learning_curve, save
from leaders.report import at_the_end, write_run_report
from leaders.report.run_record import read_run
from leaders.result import Result
from leaders.run_folder import SUMMARY, RunFolder
from leaders.settings import RunSettings


def train(settings: RunSettings) -> Result:
    """One run, with everything it leaves in its folder (`leaders.run_folder`).

    Raises:
        BOCMDPError: settings that cannot work, or a folder in use, before anything runs; files that cannot be written.

    Warns:
        ReportWarning: all is there but the report.
    """
    env, leader, follower = settings.make_env(), settings.make_leader(), settings.make_follower()
    objective = settings.make_objective()
    constraints = [Constraint(**constraint) for constraint in configurable(env).constraints()]
    with RunFolder(settings) as run:
        if settings.resume:
            found = "continuing from its newest checkpoint" if run.checkpoints.any() else "no checkpoint there, so starting"
            print(f"{run.path}: {found}", file=sys.stderr)
        result = optimize(
            env,
            leader,
            follower,
            settings.iterations,
            seed=settings.seed,
            objective=objective,
            constraints=constraints,
            contexts=settings.contexts,
            regularization_schedule=settings.make_schedule(),
            evaluate_every=settings.evaluate_every,
            callback=lambda progress: run.log(progress.record, progress.history),
            callback_every=1,
            checkpoints=run.checkpoints,
            resume=settings.resume,
            progress=settings.progress,
        )
        run.finish_logs(result.history)
        run.write_history(result.history)
        title = f"{settings.name}: {settings.leader} against {settings.follower}"
        save(learning_curve(result.history, title), run.path / "learning_curve.png")
        core, model, regularization = result.oracle.core, result.oracle.model, leader.estimator.regularization
        if core.result_name is not None and isinstance(model, TabularBOCMDP) and regularization is not None:
            policies = model.solve(result.x, regularization).policy.numpy()
            save(core.result_figure(result.x.numpy(), policies), run.path / f"{core.result_name}.png")
        run.write_summary(
            {
                "leader_return": result.leader_return,
                "context_returns": None if result.context_returns is None else result.context_returns.tolist(),
                "x": result.x.tolist(),
                "x0": result.x0.tolist(),
                "x_random": result.x_random.tolist(),
                "estimator": result.estimator,
                "iterations": result.iterations,
                "env_steps": result.env_steps,
                "seconds": result.seconds,
            }
        )
        seen = run.path / SUMMARY
        with at_the_end(run.path, settings.module):
            seen = write_run_report(read_run(run.path, settings.module), result.oracle)
    env.close()
    print(f"{_returns(result)}{result.iterations:,} iterations in {result.seconds:.1f} s; see {seen}")
    print(f"gradients are from {result.estimator}")
    return result


def _returns(result: Result) -> str:
    """Where the leader's return ended and began: exact where it is known, else as sampled in the iterations."""
    columns = result.history.columns
    if result.leader_return is not None and "leader_return" in columns:
        return f"leader's return {result.leader_return:.4f} (was {result.history['leader_return'][0]:.4f}) after "
    if "sampled_return" in columns:
        sampled = result.history["sampled_return"]
        return f"leader's return {sampled[-1]:.4f} in the last iteration's episodes (was {sampled[0]:.4f}) after "
    return ""
