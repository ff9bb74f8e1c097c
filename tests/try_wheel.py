"""Install a wheel as a user would and run it: `python tests/try_wheel.py dist/erless-*.whl`.

A fresh environment in a folder of its own, with the versions of constraints.txt and nothing of the
checkout. Without torch a model is profiled, planned, packed, served and rendered for a cluster.
Then, with the extras, every verb answers `--help`, the package is the only one that came, an
image's content is there, `erless demo` serves a model, and `erless loadtest` drives a deployment.
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
        here = wheel.resolve().as_uri()
        run(folder, *pip, f"erless @ {here}")
        for words in WITHOUT_TORCH:
            run(folder, "v/bin/erless", *words.split())
        run(folder, "v/bin/python", "-c", NO_TORCH)
        run(folder, *pip, "torch")  # the build that the user's index gives, as in `make setup`
        run(folder, *pip, f"erless[serve,loadtest] @ {here}")
        files = run(folder, "v/bin/python", "-c", FILES).split()
        strangers = {file.split("/")[0] for file in files} - {"erless"}
        assert all(name.endswith(".dist-info") or name == ".." for name in strangers), strangers
        verbs = run(folder, "v/bin/python", "-c", VERBS).split()
        for verb in verbs:
            run(folder, "v/bin/erless", verb, "--help")
        assert "app/erless/serve/__main__.py" in run(folder, "v/bin/python", "-c", IMAGE).split()
        demo = json.loads(run(folder, "v/bin/erless", "demo", "-o", "json"))
        assert demo["max_relative_error"] <= 1e-5 and demo["queries_failed"] == 0, demo
        for words in STAGES:
            run(folder, "v/bin/erless", *words.split())
        result = json.loads((folder / "result" / "result.json").read_text(encoding="utf-8"))
        assert result["answered"] > 100 and not result["failures"], result
        print(f"{wheel.name}: {len(verbs)} verbs, {len(files)} files, all tried")


WITHOUT_TORCH = (  # planning, packing, serving a built-in tower, clusters
    "example rm1 --rows 2000 --out small",
    "profile --model small --log small/access.parquet --out profiled",
    "plan --workload rm1 --compare",
    "plan --model small --profile profiled --shards 2 --out small.json",
    "pack --model small --profile profiled --plan small.json --store packed",
    "deploy --store packed",
    "predict small/queries.safetensors",
    "deploy --store packed --target knative --dry-run -o json",
    "destroy",
)
NO_TORCH = "import importlib.util as u; assert u.find_spec('torch') is None"
STAGES = (
    "example rm1 --rows 2000 --out m",
    "profile --model m --log m/access.parquet --out p",
    "plan --model m --profile p --shards 2 --out plan.json",
    "pack --model m --profile p --plan plan.json --store s",
    "deploy --store s",
    "loadtest --traffic constant:50 --duration 4 --queries m/queries.safetensors --out result",
    "destroy",
)
IMAGE = """
import pathlib, tempfile
from erless.deploy.image.content import application_items
from erless.deploy.image.processors import own_processor
with tempfile.TemporaryDirectory() as scratch:
    items = application_items(own_processor(), pathlib.Path(scratch))
    print(*(item.path for item in items), sep=chr(10))
"""
FILES = "import importlib.metadata as m; [print(f) for f in m.files('erless')]"
VERBS = "from erless.cli.verbs import VERBS; print(*VERBS)"

if __name__ == "__main__":
    main(Path(sys.argv[1]))
