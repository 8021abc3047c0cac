"""The report of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.files import write_atomically
from followers import TrajectoryOracle
from leaders.contexts import every_context
from leaders.history import COLUMNS, History
from leaders.plots import learning_curve
from leaders.report.outcomes import Outcomes, evaluated_outcomes, outcomes_of
from leaders.report.page import array_png, embedded, figure_png, is_wide, page
from leaders.report.run_record import RunRecord
from leaders.run_arguments import generator
from leaders.run_folder import EVALUATION_PICTURE, REPORT, VIDEO, VIDEO_BEFORE
from leaders.settings import RunSettings
from leaders.settings.run import hyphenated
from leaders.settings.spelled import command_of
from leaders.video import pictured, snapshot

#: Components of x that are listed, at most.
_LISTED = 24
#: Steps of the follower before the environment's picture is taken.
_STEPS = 30


@dataclass(frozen=True)
class Pictures:
    """The environment, or the result in it, at the first x and at the last; or why there are none."""

    before: bytes | None = None
    after: bytes | None = None
    caption: str = ""
    missing: str = ""


def write_run_report(record: RunRecord, oracle: TrajectoryOracle | None = None) -> Path:
    """Write the report of a run into its folder. Returns its path.

    Args:
        record: of the run.
        oracle: its environment and follower, where they are at hand; made from its settings if None.

    Raises:
        BOCMDPError: its settings do not work any more, or its evaluation is damaged.
        FolderError: the file cannot be written.
    """
    with _oracle(record.settings, oracle) as own:
        outcomes = outcomes_of(record, own)
        pictures = _pictures(record, own, outcomes)
    settings, history, folder = record.settings, record.history, record.folder
    evaluated = evaluated_outcomes(record) if (folder / EVALUATION_PICTURE).exists() else None
    films = {name: folder / file for name, file in (("before", VIDEO_BEFORE), ("after", VIDEO))}
    title = f"{settings.name}: {settings.leader} against {settings.follower}"
    text = page(
        "run.html",
        title=title,
        record=record,
        env_steps=None if not len(history) else history[-1].get("env_steps"),
        objective=settings.leader_objective,
        ends=_ends(record, outcomes),
        outcomes=outcomes,
        evaluation=None if evaluated is None else embedded((folder / EVALUATION_PICTURE).read_bytes()),
        shares=_shares(outcomes),
        largest=_largest(outcomes),
        curve=embedded(figure_png(_curve(history))) if len(history) else None,
        pictures=pictures,
        wide=pictures.after is not None and is_wide(pictures.after),
        source=embedded,
        films={name: embedded(path.read_bytes(), "gif") for name, path in films.items() if path.exists()},
        components=list(zip(record.x0.tolist(), record.x.tolist(), strict=True))[:_LISTED],
        dimension=len(record.x),
        metrics=_metrics(history),
        chosen=_chosen(settings),
        command=command_of(settings),
    )
    path = folder / REPORT
    write_atomically(path, text)
    return path


@contextmanager
def _oracle(settings: RunSettings, given: TrajectoryOracle | None) -> Iterator[TrajectoryOracle]:
    if given is not None:
        yield given
        return
    with settings.make_env() as env:
        yield TrajectoryOracle(env, settings.make_follower())


def _pictures(record: RunRecord, oracle: TrajectoryOracle, outcomes: Outcomes | None) -> Pictures:
    """The result's figure where the environment draws one, else the environment itself."""
    try:
        if outcomes is not None and outcomes.policies:
            drawn = [oracle.core.result_figure(x, p) for x, p in zip((record.x0, record.x), outcomes.policies, strict=True)]
            before, after = map(figure_png, drawn)
            return Pictures(before, after)
        return _rendered(record, oracle)
    except UnsupportedError as error:
        return Pictures(missing=str(error).split(", so there is")[0])
    except Exception as error:  # noqa: BLE001 - a user's own drawing may fail in any way: the report says how, and the run stands
        return Pictures(missing=f"drawing it failed ({type(error).__name__}: {error})")


def _rendered(record: RunRecord, oracle: TrajectoryOracle) -> Pictures:
    with pictured(record.settings) as env:
        every, planner, taken = every_context(oracle.core), oracle.follower.exact, []
        context = oracle.core.sample_context(generator(0)) if every is None else every[0][0]
        for x in (record.x0, record.x):
            policy = oracle.respond(x, context, generator(0)) if planner else None
            taken.append(array_png(snapshot(env, x, context, policy, generator(0), _STEPS)))
    seen = f"after {_STEPS} steps of the follower at most" if planner else "at the start of an episode"
    before, after = taken
    return Pictures(before, after, f"Context {np.asarray(context).tolist()}, {seen}.")


def _curve(history: History) -> Any:
    """The learning curve, as wide as the page."""
    figure = learning_curve(history)
    figure.set_size_inches(10.3, 5.0)
    return figure


def _ends(record: RunRecord, outcomes: Outcomes | None) -> tuple[float | None, float | None]:
    """The run's own objective at its start and its end, exact where it is; None where it is not known."""
    if "leader_return" in record.history.columns:
        first, last = _first_and_last(record.history["leader_return"])
        return first, last if record.leader_return is None else record.leader_return
    return (None, None) if outcomes is None else (outcomes.leader.before, outcomes.leader.after)


def _shares(outcomes: Outcomes | None) -> tuple[float, float] | None:
    """The follower's share of both returns, before and after; None where it would be no share."""
    if outcomes is None:
        return None
    leader, follower = outcomes.leader, outcomes.follower
    pairs = [(follower.before, leader.before), (follower.after, leader.after)]
    if not all(min(pair) >= 0 and sum(pair) > 0 for pair in pairs):
        return None
    before, after = (mine / (mine + other) for mine, other in pairs)
    return before, after


def _first_and_last(column: npt.NDArray[Any]) -> tuple[float | None, float | None]:
    """The first and the last number of a column of the history."""
    known = column[np.isfinite(column)] if column.dtype.kind in "iuf" and column.ndim == 1 else column[:0]
    return (float(known[0]), float(known[-1])) if len(known) else (None, None)


def _largest(outcomes: Outcomes | None) -> float:
    """The largest change of anybody's return, the length of the longest bar."""
    lines = [] if outcomes is None else outcomes.contexts
    changes = [abs(side.change) for line in lines for side in (line.leader, line.follower) if np.isfinite(side.change)]
    return max(changes, default=0.0) or 1.0


def _metrics(history: History) -> list[tuple[str, float | None, float | None, str]]:
    """Every metric of a run: its name, its first and its last value, and what it means."""
    return [(name, *_first_and_last(history[name]), meaning(name)) for name in history.columns]


def meaning(metric: str) -> str:
    """What a column of the history is; those of a user's own callback and follower are not explained."""
    if metric in COLUMNS:
        return COLUMNS[metric]
    patterns = {name: re.sub("[A-Z]+$", "", name) for name in COLUMNS if name[-1].isupper()}
    named = max((name for name, start in patterns.items() if metric.startswith(start)), key=len, default=None)
    return "" if named is None else COLUMNS[named]


def _chosen(settings: RunSettings) -> list[tuple[str, str, bool]]:
    """Every setting that decides the numbers: its name, its value, and whether that is another than the default."""
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(settings)}
    values = {name: value for name, value in settings.fingerprint().items() if name in defaults}
    return [(hyphenated(name), _shown(value), value != defaults[name]) for name, value in values.items()]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
