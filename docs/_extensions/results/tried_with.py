"""The table of environments, followers and leaders that were tried together, from ``results/tried_with.json``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("tried_with")
def _tried_with(r: dict[str, Any]) -> Iterable[str]:
    """A row for each environment: which followers run with which leaders; below it, every sentence of refusal."""
    outcomes: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    seconds: dict[str, list[float]] = defaultdict(list)
    refusals: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for row in r["rows"]:
        outcomes[row["world"]][row["follower"]][row["leader"]] = row["outcome"]
        if row["outcome"] == "runs":
            seconds[row["world"]].append(row["seconds"])
        else:
            refusals[_plain(row["sentence"], row["follower"])].add((row["world"], row["follower"], row["leader"]))
    rows = []
    for world, found in outcomes.items():
        groups: dict[str, list[str]] = {"all": [], "some": [], "none": []}
        for follower, by_leader in found.items():
            runs = [leader for leader, outcome in by_leader.items() if outcome == "runs"]
            group = "all" if len(runs) == len(by_leader) else "some" if runs else "none"
            others = [leader for leader in by_leader if leader not in runs]
            name = follower if group != "some" or others == ["HPGD, critic"] else f"{follower} (not {', '.join(others)})"
            groups[group].append(name)
        cells = ["; ".join(names) or "–" for names in groups.values()]
        pace = f"{sum(seconds[world]) / len(seconds[world]):.1f}" if seconds[world] else "–"
        rows.append((world, r["pays_for"][world], *cells, pace))
    header = ("environment", "the leader pays for", "with all leaders", "without HPGD", "refused", "seconds a run")
    yield from table(header, rows)
    yield ""
    n, ran = len(r["rows"]), sum(row["outcome"] == "runs" for row in r["rows"])
    failed = sum(row["outcome"] == "failed" for row in r["rows"])
    yield f"{n:,} combinations: {ran:,} run, {n - ran - failed:,} are refused by a sentence, {failed:,} fail otherwise."
    yield ""
    yield "What is refused, and how it is said:"
    yield ""
    for sentence, where in sorted(refusals.items(), key=lambda one: -len(one[1])):
        followers = sorted({follower for _, follower, _ in where})
        worlds = {world for world, _, _ in where}
        places = next(iter(worlds)) if len(worlds) == 1 else f"{len(worlds)} environments"
        yield f"- {'; '.join(followers)} ({places}): *{sentence}*"


def _plain(sentence: str, follower: str) -> str:
    """A sentence without what differs from environment to environment and from learner to learner: spaces, names."""
    short = re.sub(r"(Box|Discrete|MultiDiscrete|MultiBinary|Tuple|Dict)\((?:[^()]|\([^()]*\))*\)", r"\1(...)", sentence)
    short = re.sub(r"no layer of \w+", "no layer of it", short)
    short = re.sub(r"observations (Box|Discrete|Dict|Tuple)\(\.\.\.\)", "observations ...", short)
    name = follower.split(",")[0]
    short = "It" + short.removeprefix(name) if short.startswith(f"{name} ") else short
    return re.sub(r"\s+", " ", short.replace("|", "/").replace("*", r"\*").replace("<", r"\<"))
