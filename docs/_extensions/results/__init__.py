"""Tables of ``benchmarks/results`` for the pages: read from the stored JSON, with the command and the machine that made it.

Each file here shows one study, or a family of them: a function marked ``@stored("NAME")`` takes the results stored in
``benchmarks/results/NAME.json`` and yields lines of Markdown; pages include them from ``_generated/includes/NAME.md``. A new
study adds a file. One whose benchmark wrote ``NAME.md`` beside its JSON needs none.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from .common import PARTS, TABLES, table

__all__ = ["table", "write_results"]

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
#: What `leaders.reproduce` left: Markdown tables with a JSON beside each.
REPRODUCTION = RESULTS / "reproduction"

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)  # its functions marked `stored` are in TABLES then


def write_results(out: Path) -> None:
    """Write one Markdown file per stored result into ``out``."""
    for name, lines in TABLES.items():
        record = json.loads((RESULTS / f"{name}.json").read_text())
        machine = f"{record['processor']}, Python {record['python']}"
        footer = f"*`{record['command']}` ({machine}); stored in `benchmarks/results/{name}.json`.*"
        (out / f"{name}.md").write_text("\n".join([*lines(record["results"]), "", footer, ""]))
        parts = PARTS[name](record["results"]) if name in PARTS else {}
        for part, text in parts.items():
            (out / f"{name}_{part}.md").write_text(f"{text}\n")
    for path in RESULTS.glob("*.md"):  # the benchmark wrote its table itself
        record = json.loads(path.with_suffix(".json").read_text())
        (out / path.name).write_text(f"{path.read_text()}\n*`{record['command']}` ({record['processor']}).*\n")
    for path in REPRODUCTION.glob("*.md"):
        record = json.loads(path.with_suffix(".json").read_text())
        footer = f"*`{record['command']}` ({record['machine']}); stored in `benchmarks/results/reproduction/{path.stem}.json`.*"
        body = path.read_text().replace(" ± ", "\u00a0±\u00a0")  # a number stays on one line
        (out / path.name).write_text(f"{body}\n{footer}\n")
