"""Many runs of `leaders.train` at once: over environments, leaders, followers, seeds and hyper-parameters.

Every combination is one run in a folder of its own. Runs go to processes on this machine, or to Ray. The same command after an
interruption continues where it was: what is finished is not run again, what was interrupted resumes from its checkpoint.

What to run is said in a file (TOML or JSON), by options, or by both; options win:

    environments = ["four-rooms"]       # names of `python -m leaders.train`
    leaders = ["hpgd", "exact"]
    seeds = 10                          # 0 to 9; or a list of seeds
    [settings]                          # any option of leaders.train, the same in every run
    iterations = 2000
    [grid]                              # lists of values, every combination of which is run
    regularization = [0.001, 0.003]
    [[cases]]                           # settings that go together: each case once per combination
    learning_rate = 0.5
    schedule = "cosine"
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from bocmdp_gym.errors import BOCMDPError, OptionError, RunInterruptedError, suggest
from bocmdp_gym.files import remove_scratch
from bocmdp_gym.options import check_count
from leaders.report import at_the_end, write_sweep_report
from leaders.run_folder import REPORT
from leaders.settings import RunSettings, settings_from_values
from leaders.settings.command_line import read
from leaders.settings.modules import module_of, refuse_unnamed_modules
from leaders.sweep_table import TABLES, write_tables
from leaders.sweep_tasks import check_environments, run_task, task_of
from leaders.tasks import Backend, Outcomes, run_tasks
from leaders.tasks.results import RESULT

#: Settings that say where and how a run is kept, not what it is: the sweep decides on them.
_OURS = ("out", "overwrite", "resume", "progress")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to run: every environment with every leader, follower, case, grid point and seed.

    Attributes:
        environments: names of `leaders.settings.commands`.
        leaders, followers: names as on the command line; empty: those of the settings.
        seeds: seeds of the runs.
        settings: of every run.
        grid: values by name of a setting; every combination is run.
        cases: settings that go together; each is run with every combination.

    Raises:
        OptionError: a list that is empty, or something else where a list is expected.
    """

    environments: Sequence[str] = ("four-rooms",)
    leaders: Sequence[str] = ()
    followers: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    cases: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if isinstance(self.seeds, Sequence) and not isinstance(self.seeds, str):
            object.__setattr__(self, "seeds", tuple(check_count("a seed", seed, 0) for seed in self.seeds))
        lists = {"environments": self.environments, "leaders": self.leaders, "followers": self.followers, "seeds": self.seeds}
        for name, values in (lists | {"cases": self.cases} | dict(self.grid)).items():
            if isinstance(values, (str, Mapping)) or not isinstance(values, Sequence):
                raise OptionError(f"{name} is {values!r}; expected a list.")
            if not values and name not in ("leaders", "followers", "cases"):
                raise OptionError(f"{name} is an empty list; expected at least one value.")
        for name, table in {"settings": self.settings, "grid": self.grid, **{f"case {c!r}": c for c in self.cases}}.items():
            if not isinstance(table, Mapping):
                raise OptionError(f"{name} is {table!r}; expected names with values.")

    def runs(self) -> list[RunSettings]:
        """The settings of every run, seeds innermost.

        Raises:
            OptionError, UnsupportedError, ...: settings that cannot work, as in `leaders.train`.
        """
        axes: list[list[dict[str, Any]]] = [[{"environment": name} for name in self.environments]]
        axes += [[{"leader": name} for name in self.leaders]] if self.leaders else []
        axes += [[{"follower": name} for name in self.followers]] if self.followers else []
        axes += [[dict(case) for case in self.cases]] if self.cases else []
        axes += [[{name: value} for value in values] for name, values in self.grid.items()]
        axes.append([{"seed": seed} for seed in self.seeds])
        runs = []
        for combination in itertools.product(*axes):
            values = dict(self.settings)
            for part in combination:
                twice = [name for name in part if name in values]
                if twice:
                    raise OptionError(f"the sweep sets {twice[0]!r} twice; leave it to one of settings, lists, cases and grid.")
                values |= part
            for name in _OURS:
                if name in values:
                    raise OptionError(f"a sweep decides on {name!r} itself; leave it out.")
            runs.append(settings_from_values(values.pop("environment"), values))
        for settings in runs:
            settings.make_leader()
            settings.make_objective()
        return runs


def sweep(
    plan: Sweep,
    out: Path | str,
    *,
    backend: Backend = "processes",
    workers: int | None = None,
    retries: int = 2,
    progress: bool = True,
    address: str | None = None,
) -> Outcomes:
    """Run a plan, and write its tables to ``out``: results.csv and results.md (a row per setting), runs.csv (a row per run).

    report.html there shows them with the learning curves, and links the runs' reports (`leaders.report`).

    Args:
        plan: what to run.
        out: the sweep's folder; each run has one in it.
        backend, workers, retries, progress, address: see `leaders.tasks.run_tasks`.

    Raises:
        BOCMDPError: settings that cannot work, or a folder in use, before anything runs.
    """
    out = Path(out)
    runs = [(*task_of(settings), settings) for settings in plan.runs()]
    check_environments([settings for key, _, settings in runs if not (out / key / RESULT).exists()], backend, workers)
    tasks = {key: task for key, task, _ in runs}
    finish = partial(_finish, tasks=tasks, folder=out)
    return run_tasks(tasks, run_task, out, backend, workers, retries, progress, address, finish)


def _finish(outcomes: Outcomes, tasks: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    for name in (*TABLES, REPORT):
        remove_scratch(folder, name)
    write_tables(tasks, outcomes, folder)
    with at_the_end(folder):
        write_sweep_report(folder)


def read_plan(path: Path) -> dict[str, Any]:
    """The fields of a `Sweep` from a TOML or JSON file; a number of ``seeds`` is the list 0, 1, ...

    Raises:
        OptionError: no such file, not TOML or JSON, or a field that a sweep does not have.
    """
    try:
        text = path.read_text()
        values: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise OptionError(f"cannot read the sweep {path}: {error.strerror}.") from error
    except ValueError as error:  # of both formats
        raise OptionError(f"{path} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}.") from error
    known = [f.name for f in fields(Sweep)]
    if not isinstance(values, dict):
        raise OptionError(f"{path} holds {type(values).__name__}; expected an object with fields among {', '.join(known)}.")
    for name in values:
        if name not in known:
            raise OptionError(f"{path} has a field {name!r}. {suggest(name, known)}")
    if isinstance(values.get("seeds"), (int, float)):
        values["seeds"] = list(range(check_count("seeds", values["seeds"])))
    return values


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Run many settings and seeds, and put what they find into one table."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """What to run, as TOML or JSON: environments, leaders, followers, seeds, settings, grid, cases; the options below win."""
    out: Path = Path("runs/sweep")
    """The sweep's folder. Start again with the same one to continue."""
    environments: tuple[str, ...] | None = None
    """Names of environments, as in leaders.train; four-rooms if not given."""
    leaders: tuple[str, ...] | None = None
    """Names of leaders."""
    followers: tuple[str, ...] | None = None
    """Names of followers."""
    seeds: int | None = None
    """Number of seeds: 0, 1, ...; one if not given."""
    set: tuple[str, ...] = ()
    """NAME=VALUE: any option of leaders.train, the same in every run, such as iterations=500."""
    grid: tuple[str, ...] = ()
    """NAME=VALUE,VALUE,...: values every combination of which is run, such as regularization=0.001,0.003."""
    backend: Backend = "processes"
    """processes on this machine, ray, or serial (no other process)."""
    address: str | None = None
    """Address of a running Ray cluster, or auto; with --backend ray one is started on this machine if not given."""
    workers: int | None = None
    """Runs at a time; one per core if not given."""
    retries: int = 2
    """Further attempts at a run whose worker died or that failed."""
    progress: bool = True
    """Show a progress bar, with the time left."""

    def plan(self) -> Sweep:
        """The file's plan, with what the options change of it.

        Raises:
            OptionError: as `read_plan` and `Sweep`, or an option that is not of the form NAME=VALUE.
        """
        values = {} if self.file is None else read_plan(self.file)
        given = dict(_named(text, "set") for text in self.set)
        _refuse_modules(values, None if "module" not in given else str(_value(given["module"])))
        for name in ("environments", "leaders", "followers"):
            if getattr(self, name) is not None:
                values[name] = list(getattr(self, name))
        if self.seeds is not None:
            values["seeds"] = list(range(check_count("seeds", self.seeds)))
        grid = {name: _listed(text) for name, text in (_named(text, "grid") for text in self.grid)}
        values["settings"] = {n: v for n, v in values.get("settings", {}).items() if n not in grid}
        values["settings"] |= {name: _value(text) for name, text in given.items()}
        values["grid"] = {n: v for n, v in values.get("grid", {}).items() if n not in given} | grid
        return Sweep(**values)


def _refuse_modules(plan: Mapping[str, Any], module: str | None) -> None:
    """Refuse a plan's file that has something imported which the command line does not name.

    Raises:
        OptionError: naming it.
    """
    tables = [plan.get("settings"), *(plan.get("cases") or ()), *_points(plan.get("grid"))]
    for table in tables:
        if isinstance(table, Mapping):
            refuse_unnamed_modules(table, module, "the sweep's file", f"--set module={module_of(table)}")


def _points(grid: Any) -> list[dict[str, Any]]:
    """Every value of a grid, under its name."""
    if not isinstance(grid, Mapping):
        return []
    return [{name: value} for name, values in grid.items() if isinstance(values, (list, tuple)) for value in values]


def _named(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise OptionError(f"--{option} {text!r} is not of the form NAME=VALUE.")
    return name.replace("-", "_"), value


def _value(text: str) -> Any:
    """A value as TOML writes it; anything else is a string, and none is None."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _listed(text: str) -> list[Any]:
    """Values between commas, those within brackets together."""
    listed = _value(f"[{text}]")
    return listed if isinstance(listed, list) else [_value(part) for part in text.split(",")]


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Returns the exit status: 0, 1 if runs failed, 2 for settings that cannot work or files that cannot be written, and 128 plus
    its number after a signal (130: Ctrl-C).
    """
    chosen = read(SweepSettings, "leaders.sweep", __doc__, arguments)
    running = {name: getattr(chosen, name) for name in ("backend", "address", "workers", "retries", "progress")}
    try:
        outcomes = sweep(chosen.plan(), chosen.out, **running)
    except (KeyboardInterrupt, RunInterruptedError) as error:
        print(f"interrupted; the same command continues from what is in {chosen.out}/", file=sys.stderr)
        return 128 + (error.signal if isinstance(error, RunInterruptedError) else signal.SIGINT)
    except (BOCMDPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for key, damage in outcomes.damaged.items():
        print(f"{key} was run again: {damage}", file=sys.stderr)
    print((chosen.out / "results.md").read_text(), end="")
    finished, ran = len(outcomes.results), len(outcomes.ran)
    total = finished + len(outcomes.failures)
    print(f"\n{finished} of {total} runs finished, {total - ran} of them before this start; see {chosen.out / REPORT}")
    return 1 if outcomes.failures else 0


if __name__ == "__main__":
    sys.exit(main())
