"""Run the README as a newcomer reads it: `python tests/try_readme.py [FOLDER]`.

Every line of its `console` blocks, top to bottom, in an empty folder, with this environment's
commands. A block below a comment `<!-- not run here: why -->` is left out, and the reason told. The
long ones run at a small scale (`SMALL`). Ends with the first command that fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(?:<!-- not run here: ([^>]+) -->\n)?```console\n(.*?)```", re.DOTALL)
TIMEOUT_S = 600
SMALL = {
    "--rows 200000": "--rows 5000",
    "step:20,60,20 ": "step:20,60,20 --duration 6 ",
    "--duration 86400": "--duration 7200",
}


def commands(text: str) -> tuple[list[str], list[str]]:
    """The commands to run, in order, and why the blocks that are left out are."""
    run, left_out = [], []
    for reason, block in BLOCK.findall(text):
        lines = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
        if reason:
            left_out.append(f"{lines[0]}: {reason}")
        else:
            run += lines
    return run, left_out


def main(folder: Path) -> None:
    """Run all of them in `folder`."""
    run, left_out = commands(README.read_text(encoding="utf-8"))
    assert len(run) > 15, run
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command in run:
        small = command
        for long, short in SMALL.items():
            small = small.replace(long, short)
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", small],
            cwd=folder,
            env={**os.environ, "PATH": path, "COLUMNS": "80"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        print(f"{time.monotonic() - began:6.1f} s  {small}", flush=True)
        if done.returncode:
            raise SystemExit(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
        wide = [line for line in done.stdout.splitlines() if len(line) > 80 and "│" in line]
        if wide:
            raise SystemExit(f"wider than 80 columns:\n{wide[0]}")
    for reason in left_out:
        print(f"left out   {reason}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="erless-readme-") as name:
            try:
                main(Path(name))
            finally:
                subprocess.run(
                    [sys.executable, "-m", "erless", "destroy", "--yes"], cwd=name, check=False
                )
