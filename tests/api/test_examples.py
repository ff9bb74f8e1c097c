"""examples/: the script's cells from the model to its answers, and the clients of other kinds."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import erless
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Any]]:
    """What the names of the script stand for once its model is deployed; then its last cell."""
    script = (EXAMPLES / "recommender.py").read_text(encoding="utf-8")
    *cells, last = script.split("\n# %% ")[1:]
    names: dict[str, Any] = {"__name__": "example"}
    for cell in cells:
        exec(compile("# " + cell, "recommender.py", "exec"), names)  # noqa: S102
    try:
        yield names
    finally:
        exec(compile("# " + last, "recommender.py", "exec"), names)  # noqa: S102  compares, destroys
        shutil.rmtree(names["folder"])


def test_the_notebook_is_the_script() -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "notebook.py", "--check"], check=False)
    assert done.returncode == 0, "run python examples/notebook.py"


def test_queries_of_many_kinds_get_the_models_answers(served: dict[str, Any]) -> None:
    pandas = pytest.importorskip("pandas", reason="comes with erless[dev]")
    torch, model, url = served["torch"], served["model"], served["deployment"].url
    users, histories = [3, 17], [list(range(8)), list(range(8, 16))]
    with torch.inference_mode():
        expected = model(torch.tensor(users), torch.tensor(histories)).numpy()
    frame = pandas.DataFrame({"user": users, "history": histories})
    with erless.Client(url) as client:
        for query in ({"user": users, "history": histories}, frame):
            answer = client.predict(query)
            np.testing.assert_allclose(answer.scores, expected, rtol=1e-5)
            assert (len(answer.release), answer.generation, answer.degraded) == (64, 0, False)
            assert f"<td>{answer.scores[1]:.6g}</td>" in answer._repr_html_()
        for wrong, says in (
            ({"user": users}, "lacks history"),
            ({"user": users, "history": histories, "age": [1, 2]}, "no input 'age'"),
            ({"user": [0.5, 1], "history": histories}, "does not hold its values"),
            ([1, 2], "a mapping"),
        ):
            with pytest.raises(erless.errors.QueryError, match=says):
                client.predict(wrong)
        with pytest.raises(erless.ErlessError, match="outside 0") as refused:
            client.predict({"user": [10**9, 1], "history": histories})
        assert getattr(refused.value, "status", None) == 400
    with erless.Client(url, prepare=lambda rows: dict(zip(frame, zip(*rows)))) as client:  # noqa: B905
        answer = client.predict(list(zip(users, histories, strict=True)))
        np.testing.assert_allclose(answer.scores, expected, rtol=1e-5)

    async def at_once() -> list[Any]:
        async with erless.AsyncClient(url, connections=3) as clients:
            queries = [{"user": [user], "history": [histories[0]]} for user in range(12)]
            return list(await asyncio.gather(*map(clients.predict, queries)))

    with torch.inference_mode():
        each = model(torch.arange(12), torch.tensor([histories[0]] * 12)).numpy()
    scores = [answer.scores[0] for answer in asyncio.run(at_once())]
    np.testing.assert_allclose(scores, each, rtol=1e-5)


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ([sys.executable, "infer.py"], sys.executable),
        (["sh", "infer.sh"], "curl"),
        (["go", "run", "infer.go"], "go"),
        (["java", "Infer.java"], "javac"),
    ],
    ids=["python", "curl", "go", "java"],
)
def test_clients_of_other_kinds(served: dict[str, Any], command: list[str], needed: str) -> None:
    if shutil.which(needed) is None:
        pytest.skip(f"{needed} is not installed")
    done = subprocess.run(
        [*command, served["deployment"].url, "model"],
        cwd=EXAMPLES / "clients",
        capture_output=True,
        text=True,
        check=True,
        timeout=240,  # go compiles its library the first time
    )
    text = done.stdout  # the answer itself, or its numbers in brackets
    values = str(json.loads(text)["outputs"][0]["data"]) if text[0] == "{" else text.split("[")[1]
    torch, histories = served["torch"], [list(range(8)), list(range(8, 16))]
    with torch.inference_mode():
        expected = served["model"](torch.tensor([3, 17]), torch.tensor(histories)).numpy()
    numbers = [float(each) for each in values.strip(" []\n").replace(",", " ").split()]
    np.testing.assert_allclose(numbers, expected, rtol=1e-5)


def test_plans_are_shown_and_errors_are_exceptions(served: dict[str, Any]) -> None:
    planned = served["planned"]
    text = str(planned)
    assert planned.verdict in text.replace("\n", " ").replace("  ", " ")
    assert max(map(len, text.splitlines())) <= 80
    assert "<table>" in planned._repr_html_() and "gateway" in planned._repr_html_()
    assert "<td>1 of 1</td>" in served["project"].status()._repr_html_()
    with pytest.raises(erless.errors.PlanError, match="qps"):
        served["project"].plan(qps=-1)
    with pytest.raises(erless.errors.ConfigError, match="traffic.qps"):
        erless.Project(served["folder"], traffic={"qps": 0})
    assert "model=" in repr(served["project"])


def test_a_callback_is_told_of_progress(served: dict[str, Any]) -> None:
    told: list[tuple[str, int, int | None]] = []
    project = erless.Project(served["folder"], progress=lambda *step: told.append(step))
    report = project.profile(served["folder"] / "access.parquet", overwrite=True)
    assert f"<td>{report.tables[0].access.rows:,}</td>" in report._repr_html_()
    label, done, total = next(step for step in reversed(told) if step[0].startswith("read"))
    assert label == "read access.parquet" and done == total == 20_000


def test_importing_the_package_takes_nothing_with_it() -> None:
    program = (
        "import sys, erless; dir(erless); erless.ErlessError\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'pyarrow', 'boto3', 'kubernetes', 'urllib3'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "erless.Project, erless.Client, erless.plan_workload\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
