"""Every artifact with one field changed is read rightly or refused by name, never half-read.

The wire is another matter: what Terraform prints and what a supervisor keeps are read by
`FromElsewhere`, which ignores fields that it does not know.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erless.errors import ArtifactError, ConfigError, ErlessError
from erless.plan.planner import POLICIES, Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import profile_tables, workload_tables
from erless.specs.artifact import Artifact, FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.config import Config, load_config
from erless.specs.plan import Plan
from erless.specs.profile import MANIFEST, Profile
from erless.specs.release import ReleaseManifest, ShardManifest
from erless.specs.template import config_template
from erless.storage.digests import digest_json
from erless.storage.tensors import write_tensors
from tests.releases import Made, make_release

Keys = tuple[str | int, ...]
KINDS: dict[str, type[Artifact]] = {
    "plan": Plan,
    "demanded plan": Plan,
    "profile": Profile,
    "bundle": BundleManifest,
    "release": ReleaseManifest,
    "shard": ShardManifest,
}
ODD: list[Any] = [None, True, -1, 0, 0.5, 10**30, "", "x", "../../x", "1", [], {}, [[]], {"a": 1}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(tmp_path_factory.mktemp("readers"))


@pytest.fixture(scope="module")
def documents(made: Made) -> dict[str, dict[str, Any]]:
    model, tables = workload_tables("rm3", 0.9, 32)
    request = PlanRequest(shards=3, frozen_share=0.01, dense="function", objective="dollars")
    plan = plan_document(Planner(model, tables, request).outcome(POLICIES), "0" * 64, "1" * 64)
    store = Path(made.store)
    shard = made.release.shard("hot").digest
    files = {
        "plan": made.plan,
        "profile": made.profile / MANIFEST,
        "bundle": made.bundle / "model.json",
        "release": store / f"releases/{made.release.digest}.json",
        "shard": store / f"shards/{shard}.json",
    }
    found = {name: json.loads(path.read_bytes()) for name, path in files.items()}
    return found | {"demanded plan": plan.model_dump(mode="json")}


def places(document: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Where each field and entry lies, from the outside in."""
    parts: Any = ()
    if isinstance(document, dict):
        parts = document.items()
    elif isinstance(document, list):
        parts = enumerate(document)
    for key, value in parts:
        yield (*keys, key)
        yield from places(value, (*keys, key))


def at(document: Any, keys: Keys) -> Any:
    for key in keys:
        document = document[key]
    return document


def changed(draw: st.DataObject, document: Any) -> tuple[Any, str, Keys]:
    """The document with one change, what was done, and where."""
    document = copy.deepcopy(document)
    keys = draw.draw(st.sampled_from(sorted(places(document), key=str)))
    parent, last = at(document, keys[:-1]), keys[-1]
    what = draw.draw(st.sampled_from(["rename", "add", "retype", "reorder", "remove"]))
    if what == "rename" and isinstance(parent, dict):
        parent[f"{last}x"] = parent.pop(last)
    elif what == "add" and isinstance(parent, dict):
        parent["colour"] = draw.draw(st.sampled_from(ODD))
        keys = (*keys[:-1], "colour")
    elif what == "reorder" and isinstance(parent[last], list):
        parent[last] = parent[last][::-1]
    elif what == "reorder" and isinstance(parent, dict):
        items = list(parent.items())[::-1]
        parent.clear()
        parent.update(items)
    elif what == "remove":
        del parent[last]
    else:
        what = "retype"
        parent[last] = draw.draw(st.sampled_from(ODD))
    return document, what, keys


def consumed(written: Any, read: Any) -> bool:
    """Whether all that was written is what was read; defaults may have come on top."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(
            key in read and consumed(value, read[key]) for key, value in written.items()
        )
    if isinstance(written, list):
        return (
            isinstance(read, list)
            and len(read) == len(written)
            and all(map(consumed, written, read))
        )
    if isinstance(written, int) and isinstance(read, float):
        return float(written) == read and not isinstance(written, bool)
    return written == read and isinstance(written, bool) == isinstance(read, bool)


@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(draw=st.data())
def test_an_artifact_with_one_change_is_read_rightly_or_refused_by_name(
    documents: dict[str, dict[str, Any]], name: str, draw: st.DataObject
) -> None:
    document, what, keys = changed(draw, documents[name])
    if "digest" in document and keys[0] != "digest":
        content = {key: value for key, value in document.items() if key != "digest"}
        document["digest"] = digest_json(content)
    try:
        read = KINDS[name].parse(json.dumps(document).encode(), "here")
    except ArtifactError as error:
        message = str(error)
        assert message.startswith("here: ")
        if what in {"rename", "add"} and keys[0] not in {"kind", "digest", "schema_version"}:
            expected = [f"{keys[-1]}x", str(keys[-1])] if what == "rename" else ["colour"]
            assert any(word in message for word in expected), message
        return
    assert consumed(document, read.model_dump(mode="json")), (what, keys)


def test_the_unchanged_documents_are_read(documents: dict[str, dict[str, Any]]) -> None:
    for name, document in documents.items():
        read = KINDS[name].parse(json.dumps(document).encode(), "here")
        assert read.model_dump(mode="json") == document


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(draw=st.data())
def test_a_config_with_one_change_is_read_rightly_or_refused_by_name(
    tmp_path: Path, draw: st.DataObject
) -> None:
    document, what, keys = changed(draw, yaml.safe_load(config_template()))
    path = tmp_path / "erless.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    try:
        read = load_config(path)
    except ConfigError as error:
        assert "erless.yaml" in str(error)
        if what in {"rename", "add"}:
            assert ("colour" if what == "add" else f"{keys[-1]}") in str(error)
        return
    shown = Config.model_validate(read.model_dump()).model_dump(mode="json")
    assert consumed(relative(document), relative(shown, str(tmp_path) + "/")), (what, keys)


def relative(value: Any, folder: str = "") -> Any:
    """The same with paths below `folder` as a person writes them."""
    if isinstance(value, dict):
        return {key: relative(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [relative(each, folder) for each in value]
    return value.removeprefix(folder) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"kind": "erless plan", "qps": NaN}', "NaN is not a number"),
        (b'{"kind": "erless plan", "qps": -Infinity}', "-Infinity is not a number"),
        (b'{"kind": "erless plan", "qps": 1e999}', "1e999 is beyond what a number holds"),
        (b'{"kind": "erless plan", "kind": "erless plan"}', "'kind' is given twice"),
        (b'{"kind": "erless plan", "batch": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b'{"kind": "erless plan\xff"}', "not UTF-8: byte 0xff at offset 21"),
        (b'{"kind": "erless plan", "schema_version": true}', "schema True"),
        (b'{"kind": "erless plan", "schema_version": 0}', "schema 0"),
        (b" " * (65 << 20), "67,108,864"),
    ],
)
def test_a_hostile_artifact_is_refused_in_one_sentence(text: bytes, words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        Plan.parse(text, "here")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "path", ["../x", "a/../x", "/etc/passwd", "a//b", ".hidden", "a/.b", "a\\b", "a\n", "", "a/"]
)
def test_a_path_in_a_manifest_never_leads_out(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        FileEntry(path=path, size_bytes=1, sha256="0" * 64)


def test_parts_of_an_artifact_that_contradict_each_other_are_refused(
    documents: dict[str, dict[str, Any]],
) -> None:
    plan, bundle, release = (copy.deepcopy(documents[n]) for n in ("plan", "bundle", "release"))
    plan["shards"][1]["name"] = plan["shards"][0]["name"]
    refused(Plan, plan, "two shards called resident")
    bundle["tables"].reverse()
    refused(BundleManifest, bundle, "table user cannot lie in tables/shop.safetensors")
    release["shards"][0]["rows"] += 1
    refused(ReleaseManifest, release, r"the shards answer for 4,\d+ rows, the model has 4,\d+")
    empty = {"table": "user", "start": 5, "stop": 5}
    plan = copy.deepcopy(documents["plan"])
    plan["shards"][0]["slices"][0] = empty
    refused(Plan, plan, "ranks 5 … 5 of user are none")


def refused(kind: type[Artifact], document: dict[str, Any], words: str) -> None:
    content = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(content | {"digest": digest_json(content)})
    with pytest.raises(ArtifactError, match=words):
        kind.parse(text.encode(), "here")


def counts_of(**arrays: Any) -> dict[str, np.ndarray]:
    plain = {"ids": np.array([5, 3, 1], np.int64), "counts": np.array([9, 4, 1], np.int64)}
    return {
        name: np.asarray(value) for name, value in (plain | arrays).items() if value is not None
    }


WRONG_COUNTS = {
    "renamed": (counts_of(counts=None, count=np.ones(3, np.int64)), "counts"),
    "added": (counts_of(weights=np.ones(3, np.int64)), "weights"),
    "retyped": (counts_of(counts=np.ones(3, np.float32)), "counts"),
    "narrower": (counts_of(ids=np.ones(3, np.int32)), "ids"),
    "reordered": (counts_of(counts=np.array([1, 4, 9], np.int64)), "counts"),
    "negative": (counts_of(counts=np.array([9, 4, -1], np.int64)), "counts"),
    "zero": (counts_of(counts=np.array([9, 4, 0], np.int64)), "counts"),
    "shorter": (counts_of(ids=np.ones(2, np.int64)), "ids"),
    "fewer": (counts_of(ids=np.ones(2, np.int64), counts=np.ones(2, np.int64)), "touched"),
    "other sum": (counts_of(counts=np.array([9, 4, 2], np.int64)), "accesses"),
    "deeper": (counts_of(counts=np.ones((3, 1), np.int64)), "counts"),
}


@pytest.mark.parametrize("name", WRONG_COUNTS)
def test_counts_with_one_change_are_refused_by_name(made: Made, tmp_path: Path, name: str) -> None:
    arrays, word = WRONG_COUNTS[name]
    bundle = BundleManifest.open(made.bundle)
    (tmp_path / "counts").mkdir()
    table = bundle.model.tables[0]
    path = f"counts/{table.name}.safetensors"
    entry = FileEntry(path=path, **write_tensors(tmp_path / path, arrays)._asdict())
    profile = Profile.load(made.profile / MANIFEST)
    access = profile.tables[0].model_copy(
        update={"counts": entry, "touched": 3, "accesses": 14, "samples": 10}
    )
    profile.amended(tables=(access,)).save(tmp_path / MANIFEST)
    with pytest.raises(ErlessError, match=word):
        profile_tables(bundle, tmp_path, 32)
