"""The command line as a user meets it: processes, exit codes, one JSON document, no remains."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from erless.cli.main import app
from erless.cli.verbs import VERBS
from tests.conftest import ROOT, Cli


def test_help_lists_the_verbs_and_imports_nothing_heavy(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.returncode == 0
    for word in ("init", "config", "example", "import", "bundle", "predict"):
        assert word in shown.stdout
    program = (
        "import sys; from typer.main import get_command; from erless.cli.main import app\n"
        "root = get_command(app)\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'pyarrow', 'boto3', 'scipy', 'kubernetes'}\n"
        "planning = {'plan', 'drift', 'replan'}  # their options are those of a pydantic model\n"
        "assert all(root.get_command(None, name) for name in set(root.commands) - planning)\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert all(root.get_command(None, name) for name in planning)\n"
        "assert heavy & set(sys.modules) == {'pydantic'}, heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_every_verb_shows_an_example_and_takes_output(cli: Cli) -> None:
    verbs = dict(_verbs(get_command(app), ()))
    assert len(verbs) > 30
    for words, verb in verbs.items():
        assert f"Example: `erless {' '.join(words)}" in (verb.help or ""), words
        assert "output" in {each.name for each in verb.params}, words
    shown = cli("example", "rm1", "--help")
    assert shown.returncode == 0
    assert "Example: erless example rm1" in shown.stdout
    assert "--output" in shown.stdout


def test_groups_show_an_example_too() -> None:
    command: Any = get_command(app)
    groups = [(name, command.get_command(None, name)) for name in VERBS]
    for name, group in groups:
        if hasattr(group, "commands"):
            assert group.epilog.startswith(f"Example: `erless {name} "), name


def _verbs(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each verb of the command line by its words."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name in command.commands:
        yield from _verbs(command.get_command(None, name), (*words, name))


def test_the_help_says_of_a_verb_what_its_own_help_does() -> None:
    command: Any = get_command(app)
    for name, (_, line) in VERBS.items():
        own = command.get_command(None, name).help
        assert own.split("\n\n")[0].replace("\n", " ") == line, name


def test_the_help_imports_no_verb() -> None:
    program = (
        "import sys; from erless.cli.main import main\n"
        "sys.argv = ['erless', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'erless.cli.verbs' in sys.modules\n"
        "assert 'erless.cli.release.plan' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


def test_version_and_completion(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("erless 0.")
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [sys.executable, "-m", "erless", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        check=False,
    )
    assert "complete" in shown.stdout


def test_usage_errors_are_2(cli: Cli, tmp_path: Path) -> None:
    assert cli("predict", "--nope").returncode == 2
    assert cli("exmple").returncode == 2
    assert cli("example", "rm1", "--rows", 0, "--out", tmp_path / "m").returncode == 2
    wrong = cli("example", "rm1", "--locality", 1.5, "--out", tmp_path / "m")
    assert wrong.returncode == 2
    assert "between 0 and 1" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("exmple", "-o", "json"), "No such command"),
        (("predict", "--nope", "--output", "json"), "No such option"),
        (("simulate", "-ojson"), "Missing option"),
        (("logs", "--follow", "--output=json"), "leave out -o json"),
    ],
)
def test_wrong_usage_is_one_document_too(cli: Cli, words: tuple[str, ...], says: str) -> None:
    run = cli(*words)
    assert run.returncode == 2
    error = json.loads(run.stdout)["error"]
    assert error["type"] == "UsageError"
    assert says in error["message"]
    assert error["try"].startswith(
        ("`python -m erless --help`", "`erless predict ", "`erless simulate ", "`erless logs ")
    )
    assert says in " ".join(run.stderr.replace("│", "").split())


def test_an_erless_error_is_short_and_says_what_to_try(cli: Cli, tmp_path: Path) -> None:
    run = cli("predict", "--monolith", tmp_path / "none", tmp_path / "q")
    assert run.returncode == 1
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("try: ")
    assert len(lines) == 2
    run = cli("bundle", "show", tmp_path / "none", "-o", "json")
    assert run.returncode == 1
    error = json.loads(run.stdout)["error"]
    assert error["type"] == "ArtifactError"
    assert "no such directory" in error["message"]
    assert f"try: {error['try']}" == run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("config", "check"), "`erless init` writes"),
        (("config", "check", "none.yaml"), "`erless init` writes"),
        (("doctor", "--kubeconfig", "none"), "pass --kubeconfig"),
        (("status", "--target", "knative"), "set KUBECONFIG"),
        (("status", "--target", "mars"), "`erless status --watch`"),
        (("image", "push"), "`erless image push --registry "),
        (("profile", "--log", "l", "--every", "2"), "--every 2 --engine spark`"),
        (("image", "push", "--registry", "r.example/x"), "`erless image build"),
        (("pack",), "`erless import`, or `erless example rm1 --out m` to try"),
        (("releases", "list"), "erless pack --store STORE makes one"),
        (("profile", "--model", "m", "--log", "l"), "`erless import` makes m"),
        (("rollback",), "`erless deploy` first"),
    ],
)
def test_the_hint_helps_with_the_very_error(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    run = cli(*words, cwd=tmp_path)
    assert run.returncode == 1
    assert says in run.stderr.splitlines()[-1]
    assert "--overwrite" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_way_of_a_new_user(cli: Cli, tmp_path: Path) -> None:
    """Each output is one JSON document, whatever goes to stderr."""
    made = cli("example", "rm3", "--rows", 500, "--out", "m", "-o", "json", cwd=tmp_path)
    assert json.loads(made.stdout)["tables"] == 10, made.stderr
    again = cli("example", "rm3", "--rows", 500, "--out", "m", cwd=tmp_path)
    assert again.returncode == 1
    assert "m exists already" in again.stderr
    assert "--overwrite" in again.stderr
    shown = json.loads(cli("bundle", "show", "m", "-o", "json", cwd=tmp_path).stdout)
    assert shown["model"]["tables"][9]["rows"] == 500
    verified = json.loads(cli("bundle", "verify", "m", "-o", "json", cwd=tmp_path).stdout)
    assert verified["digest"] == shown["digest"]
    predicted = cli("predict", "--monolith", "m", "m/queries.safetensors", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stderr.splitlines()[-1] == "next: erless bundle show m"
    other = cli("predict", "--monolith", "m", "m/access.parquet", cwd=tmp_path)
    assert "--column dense=COLUMN names another" in other.stderr
    nothing = cli("profile", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "erless example rm1" in " ".join(nothing.stderr.replace("│", "").split())
    assert "ms of CPU per query" in predicted.stdout
    written = cli("init", "-o", "json", cwd=tmp_path)
    assert json.loads(written.stdout)["config"] == "erless.yaml"
    modeline = "# yaml-language-server: $schema=erless.schema.json"
    assert (tmp_path / "erless.yaml").read_text().splitlines()[0] == modeline
    assert cli("init", cwd=tmp_path).returncode == 1
    assert cli("config", "check", cwd=tmp_path).returncode == 0
    config = tmp_path / "erless.yaml"
    config.write_text(config.read_text().replace("  qps:", "  qpss:"))
    wrong = cli("config", "check", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "erless.yaml:14: traffic.qpss: unknown key; did you mean qps?" in wrong.stderr
    schema = json.loads(cli("config", "schema", "-o", "json", cwd=tmp_path).stdout)
    assert "traffic" in schema["properties"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "erless.schema.json",
        "erless.yaml",
        "m",
    ]


def test_movielens_end_to_end(cli: Cli, tmp_path: Path, shared_data: Path) -> None:
    run = cli("example", "movielens", "--data", shared_data, "--out", tmp_path / "m", "-o", "json")
    assert run.returncode == 0, run.stderr
    trained = json.loads(run.stdout)
    assert trained["auc"] > 0.70
    queries = tmp_path / "m" / "queries.safetensors"
    predicted = json.loads(cli("predict", "--monolith", tmp_path / "m", queries, "-ojson").stdout)
    assert predicted["auc"] == pytest.approx(trained["auc"], abs=1e-5)
    assert len(predicted["predictions"]) == 20_000


def test_a_full_disk_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk: the write itself fails, half-way."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    run = cli("example", "rm1", "--rows", 20_000, "--out", tmp_path / "m", preexec_fn=limit)
    assert run.returncode == 1
    assert "no space left" in run.stderr
    assert "table_0.safetensors" in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_stopping_an_import_half_way(cli: Cli, tmp_path: Path, number: int, code: int) -> None:
    arguments = ["example", "rm1", "--rows", "400000", "--out", str(tmp_path / "m")]
    process = subprocess.Popen(
        # nice: so that on a busy machine it does not end before we look
        ["nice", "-n", "15", sys.executable, "-m", "erless", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".m.tmp-*/tables/*")):
        assert time.monotonic() < deadline, "the example never began to write"
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert not (tmp_path / "m").exists()
    if number == signal.SIGINT:
        assert errors == "interrupted; nothing half-written was kept\n"
    if number == signal.SIGKILL:
        assert list(tmp_path.iterdir()) != []
        small = cli("example", "rm1", "--rows", 100, "--out", tmp_path / "m")
        assert small.returncode == 0, small.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
    else:
        assert list(tmp_path.iterdir()) == []


def test_output_into_a_closed_pipe(tmp_path: Path, cli: Cli) -> None:
    cli("example", "rm3", "--rows", 100, "--out", tmp_path / "m")
    program = f"{sys.executable} -m erless predict --monolith m m/queries.safetensors -o json"
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; PYTHONPATH={ROOT} {program} | head -c 1 >/dev/null"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in run.stderr


def test_the_wizard_writes_its_answers(cli: Cli, tmp_path: Path) -> None:
    answers = "m\nprofile\nreleases\n250\n16\n40\nknative\n"
    done = cli("init", "--ask", cwd=tmp_path, input=answers)
    assert done.returncode == 0, done.stderr
    assert "wrote erless.yaml" in done.stdout
    checked = json.loads(cli("config", "check", "-o", "json", cwd=tmp_path).stdout)["value"]
    assert checked["traffic"] == {"qps": 250.0, "batch": 16, "sla_p95_ms": 40.0}
    assert (checked["model"], checked["targets"]["default"]) == ("m", "knative")
    wrong = cli("init", "--ask", "--overwrite", cwd=tmp_path, input="m\n\n\n-1\n\n\n\n")
    assert wrong.returncode == 1 and "traffic.qps '-1'" in wrong.stderr


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from erless.cli.bars import _Lines

    with _Lines(0.01) as progress, progress.step("read log", 200, "rows") as step:
        step.advance(50)
        deadline = time.monotonic() + 10
        told = ""
        while "25% of 200 rows" not in told:
            assert time.monotonic() < deadline
            told += capsys.readouterr().err
    assert told.startswith("read log: 0 s")


def test_a_package_that_is_not_installed_is_named_with_its_extra(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another module of that name stands in for an environment without torch."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    program = (
        "import sys; sys.path.insert(0, '.'); from erless.cli.main import main\n"
        "sys.argv = ['erless', 'example', 'movielens', '--out', 'm']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: torch is not installed",
        "try: pip install 'erless[torch]'",
    ]
