"""Run notebooks and keep their outputs in them, so that they are pages: make notebooks.

    python docs/_extensions/notebook_outputs.py [NOTEBOOK ...]

What is kept is what a reader sees: results and pictures. Progress bars, warnings to the terminal and times of execution are not.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
#: A place on the machine that a notebook was run on.
PLACE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|var|opt|usr)/[\w./-]*")


def stored(notebook: Any) -> Any:
    """The notebook as it is kept.

    Raises:
        ValueError: an output names a place on this machine.
    """
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key != "execution"}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            shown = output.get("text", "") + "".join(v for k, v in output.get("data", {}).items() if k.startswith("text/"))
            if found := PLACE.search(shown):
                raise ValueError(f"an output shows the path {found[0]}; print something else in:\n{cell.source}")
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)} | {"language_info": {"name": "python"}}
    return notebook


def run(path: Path) -> None:
    """Run one notebook where it lies, and write it back."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(stored(notebook), path)
    print(path.name, f"{path.stat().st_size / 1024:.0f} KB", flush=True)


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        run(path)
