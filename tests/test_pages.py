"""The pages of the documentation: code that fits its column, stored pictures, and docstrings as reStructuredText."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from bocmdp_gym.registration import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
EXTENSIONS = ROOT / "docs" / "_extensions"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}


def extension(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.pop(name, None)


def code_lines(text: str) -> list[tuple[int, str]]:
    """Number and text of the lines within fences, and of those that are indented by four spaces after a blank line."""
    found, fenced, indented = [], False, False
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if re.match(r"```|~~~", line.strip()):
            fenced = not fenced
            continue
        indented = line.startswith("    ") and (indented or number == 1 or not lines[number - 2].strip())
        if fenced or indented:
            found.append((number, line.removeprefix("    ") if indented and not fenced else line))
    return found


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_code_fits_its_column(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = extension("formulas", monkeypatch).COLUMNS
    long = [f"{page.name}:{number}: {line}" for number, line in code_lines(page.read_text()) if len(line) > columns]
    assert not long, f"wider than {columns} columns, so a reader must scroll:\n" + "\n".join(long)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_code_of_recipes_fits_its_column(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = extension("formulas", monkeypatch).COLUMNS
    assert not [line for line in path.read_text().splitlines() if len(line) > columns]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_of_notebooks_fits_its_column(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = extension("formulas", monkeypatch).COLUMNS
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not [line for cell in cells for line in cell.source.splitlines() if len(line) > columns]


def test_wide_lines_are_seen() -> None:
    text = "prose\n\n    indented\n    more\n\n```python\nfenced\n```\nprose\n    continued\n"
    assert code_lines(text) == [(3, "indented"), (4, "more"), (7, "fenced")]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("V* and pi*", r"V\* and pi\*"),
        ("There *on arrival* in", "There *on arrival* in"),
        ("*Finite*: all. *Sampled*: some", "*Finite*: all. *Sampled*: some"),
        ("budget * softmax(x) * c", r"budget \* softmax(x) \* c"),
        ("(*one*) of |V|", r"(*one*) of \|V\|"),
        ("`a * b` of `Estimate`s", r"`a * b` of `Estimate`\ s"),
    ],
)
def test_emphasis_is_kept_and_signs_of_mathematics_are_escaped(written: str, read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert extension("formulas", monkeypatch).readable([written]) == [read]


def test_formulas_wider_than_the_column_are_set_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    formulas = extension("formulas", monkeypatch)
    blocks = [formulas.readable(["", "    " + "x" * width]) for width in (formulas.COLUMNS, formulas.COLUMNS + 1)]
    assert [("   :class: wide" in block) for block in blocks] == [False, True]


def test_pictures_before_and_after_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = extension("before_and_after", monkeypatch)
    stored = {path.stem for path in (drawn.IMAGES / "before_and_after").glob("*.png")}
    assert stored == {drawn.stem(env_id) for env_id in drawn.CASES}
    assert drawn.CASES.keys() <= {entry.id for entry in ENVIRONMENTS}
    for path in drawn.IMAGES.rglob("*.png"):
        assert path.stat().st_size < 100_000, f"{path} is large; see before_and_after.save"


def test_front_page_shows_the_stored_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = extension("before_and_after", monkeypatch)
    page = (ROOT / "docs" / "index.md").read_text()
    stored = {path.name for path in (drawn.IMAGES / "front").glob("*.png")}
    assert stored == set(re.findall(r"\(images/front/(\w+\.png)\)", page))
    assert len(stored) == len(drawn.FRONT) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_carry_their_outputs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run in order; see make notebooks"
    assert any(cell.outputs for cell in cells)
    before = nbformat.writes(notebook)
    assert nbformat.writes(extension("notebook_outputs", monkeypatch).stored(notebook)) == before


def test_what_only_the_terminal_shows_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.v4.new_notebook(metadata=KERNEL)
    output = nbformat.v4.new_output
    shown = [output("stream", name="stderr", text="12%"), output("stream", name="stdout", text="0.3")]
    notebook.cells = [nbformat.v4.new_code_cell("run()", outputs=shown, metadata={"execution": {"busy": "now"}})]
    (cell,) = extension("notebook_outputs", monkeypatch).stored(notebook).cells
    assert [kept.text for kept in cell.outputs] == ["0.3"]
    assert cell.metadata == {}


def test_outputs_that_name_a_place_on_this_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.v4.new_notebook(metadata=KERNEL)
    shown = nbformat.v4.new_output("stream", name="stdout", text="saved in /home/me/runs")
    notebook.cells = [nbformat.v4.new_code_cell("save()", outputs=[shown])]
    with pytest.raises(ValueError, match="the path /home/me/runs"):
        extension("notebook_outputs", monkeypatch).stored(notebook)
