"""The OpenAPI document against the functions: schemathesis finds no 5xx, nothing undocumented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.functions import Fleet, Function

EXAMPLES = 15


def check(function: Function, folder: Path) -> None:
    command = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            str(command),
            "run",
            f"{function.url}/openapi.json",
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            str(EXAMPLES),
            "--seed",
            "1",
            "--no-color",
            "--header",
            "erless-deadline-ms: 30000",  # others make a 504 right
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,"
            "response_schema_conformance,unsupported_method",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_gateway(fleet: Fleet, tmp_path: Path) -> None:
    check(fleet.gateway, tmp_path)


def test_sparse(fleet: Fleet, tmp_path: Path) -> None:
    check(fleet.shards["hot"], tmp_path)


def test_dense(fleet_with_dense: Fleet, tmp_path: Path) -> None:
    assert fleet_with_dense.dense is not None
    check(fleet_with_dense.dense, tmp_path)


@pytest.mark.parametrize("kind", ["gateway", "hot"])
def test_every_documented_path_is_there(fleet: Fleet, kind: str) -> None:
    function = fleet.gateway if kind == "gateway" else fleet.shards[kind]
    document = json.loads(function.get("/openapi.json")[1])
    for path, operations in document["paths"].items():
        for method in operations:
            status = function.get(path, method.upper())[0]
            assert status == (200 if method == "get" else 400), path
