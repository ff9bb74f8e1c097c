"""Install a wheel as a user would and run it: `python tests/try_wheel.py dist/erless-*.whl`.

A fresh environment in a folder of its own, with the versions of constraints.txt and nothing of the
checkout: every verb answers `--help`, the package is the only one that came, an image is built, and
`erless demo` serves a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
TIMEOUT_S = 1200


def run(folder: Path, *command: str | Path) -> str:
    """Run `command` in `folder`; its standard output. Ends the program where it fails."""
    variables = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    variables["PATH"] = f"{folder / 'v' / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
        check=False,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}")
    return done.stdout


def main(wheel: Path) -> None:
    """Install `wheel` and try every way in."""
    with tempfile.TemporaryDirectory(prefix="erless-wheel-") as name:
        folder = Path(name)
        run(folder, sys.executable, "-m", "venv", "v")
        pip = (folder / "v" / "bin" / "pip", "install", "--quiet", "--constraint", CONSTRAINTS)
        run(folder, *pip, "torch")  # the build that the user's index gives, as in `make setup`
        run(folder, *pip, f"erless[loadtest] @ {wheel.resolve().as_uri()}")
        files = run(folder, "v/bin/python", "-c", FILES).split()
        strangers = {file.split("/")[0] for file in files} - {"erless"}
        assert all(each.endswith(".dist-info") or each == ".." for each in strangers), strangers
        verbs = run(folder, "v/bin/python", "-c", VERBS).split()
        for verb in verbs:
            run(folder, "v/bin/erless", verb, "--help")
        demo = json.loads(run(folder, "v/bin/erless", "demo", "-o", "json"))
        run(folder, "v/bin/erless", "report", "--help")
        print(f"{wheel.name}: {len(verbs)} verbs, {len(files)} files, demo {sorted(demo)[:4]} …")


FILES = "import importlib.metadata as m; [print(f) for f in m.files('erless')]"
VERBS = "from erless.cli.verbs import VERBS; print(*VERBS)"

if __name__ == "__main__":
    main(Path(sys.argv[1]))
