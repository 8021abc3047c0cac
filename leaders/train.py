"""Run a leader against a follower in an environment: ``python -m leaders.train --help``, or ``bocmdp-train --help``."""

from __future__ import annotations

import itertools
import sys
from dataclasses import fields

from bocmdp_gym import TabularBOCMDP, configurable
from bocmdp_gym.errors import BOCMDPError, RunInterruptedError
from leaders.constraints import Constraint
from leaders.loop import optimize
from leaders.plots import learning_curve, save
from leaders.report import at_the_end, write_run_report
from leaders.report.run_record import read_run
from leaders.result import Result
from leaders.run_folder import SUMMARY, RunFolder
from leaders.settings import RunSettings, commands, import_module, settings_from_values
from leaders.settings.command_line import choose


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


def parse(arguments: list[str] | None = None) -> RunSettings:
    """Settings from the command line.

    Raises:
        OptionError: as `settings_from_values`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    for option, value in itertools.pairwise([*itertools.chain.from_iterable(one.split("=", 1) for one in given), ""]):
        if option == "--module":
            import_module(value)  # it may bring environments, estimators and followers of its own
    chosen: RunSettings = choose(commands(), "leaders.train", __doc__, given)
    return settings_from_values(chosen.name, {field.name: getattr(chosen, field.name) for field in fields(chosen)})


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Returns the exit status: 0, 2 for settings that cannot work or files (but the report) that cannot be written, and 128 plus
    its number after a signal (143: SIGTERM, 130: SIGINT, 129: SIGHUP).
    """
    try:
        train(parse(arguments))
    except RunInterruptedError as error:
        print(error, file=sys.stderr)
        return 128 + error.signal
    except (BOCMDPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
