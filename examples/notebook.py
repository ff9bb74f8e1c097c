"""Write examples/recommender.ipynb from examples/recommender.py; `--check`: is it so already?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def notebook(script: str) -> str:
    """The notebook of a script whose cells begin with `# %% words`."""
    docstring, *cells = script.split("\n# %% ")
    heading = docstring.strip().strip('"').splitlines()[0]
    written = [_cell("markdown", f"# {heading}")]
    for cell in cells:
        words, _, code = cell.partition("\n")
        written += [_cell("markdown", words), _cell("code", code.strip("\n"))]
    for number, entry in enumerate(written):
        entry["id"] = f"cell-{number}"
    document = {"cells": written, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1) + "\n"


def _cell(kind: str, text: str) -> dict[str, object]:
    cell: dict[str, object] = {"cell_type": kind, "id": "", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return {**cell, "source": text.splitlines(keepends=True)}


if __name__ == "__main__":
    text = notebook((HERE / "recommender.py").read_text(encoding="utf-8"))
    file = HERE / "recommender.ipynb"
    if "--check" in sys.argv:
        sys.exit(file.read_text(encoding="utf-8") != text)
    file.write_text(text, encoding="utf-8")
