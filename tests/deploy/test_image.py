"""Images without an engine: the same digest twice, and a registry that takes and gives them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, cast

import pytest

from erless.deploy.image import engine
from erless.deploy.image.build import build_archive, default_base
from erless.deploy.image.content import application_items
from erless.deploy.image.layer import Item, write_layer
from erless.deploy.image.oci import Base, append, push_archive, write_archive
from erless.deploy.image.processors import own_processor
from erless.deploy.image.reference import parse_reference
from erless.deploy.image.registry import Registry, resolve_digest
from erless.deploy.kubernetes.cluster_settings import read_images, resolve_settings
from erless.errors import ConfigError, ImageError
from erless.specs.config import Config
from erless.specs.functions import FunctionKind
from erless.specs.planning import ARCHITECTURES, Architecture
from tests.conftest import Cli

CROSS = "aarch64-linux-gnu-gcc"


class _Registry(BaseHTTPRequestHandler):
    """The part of the OCI distribution API that pulling and pushing take."""

    guarded: ClassVar[bool] = False  # whether a token is asked for
    elsewhere: ClassVar[str] = ""  # where blobs lie instead, as with a registry before a CDN
    leaked: ClassVar[list[str]] = []  # credentials that came to where blobs lie
    blobs: ClassVar[dict[str, bytes]] = {}
    manifests: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, code: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _blob(self) -> None:
        digest = self.path.rpartition("/")[2]
        if digest not in self.blobs:
            return self._answer(404)
        return self._answer(200, self.blobs[digest], Docker_Content_Digest=digest)

    def _is_allowed(self) -> bool:
        """Ask for a token, which Docker's credentials are good for."""
        if not self.guarded or self.headers.get("Authorization") == "Bearer good":
            return True
        realm = f'Bearer realm="http://{self.headers["Host"]}/token",service="registry"'
        self._body()
        self._answer(401, WWW_Authenticate=realm)
        return False

    def do_GET(self) -> None:
        if self.path.startswith("/token?"):
            pair = base64.b64encode(b"me:secret").decode()
            good = self.headers.get("Authorization") == f"Basic {pair}"
            return self._answer(200 if good else 401, b'{"token": "good"}')
        if self.path.startswith("/cdn/"):
            self.leaked.extend(filter(None, [self.headers.get("Authorization")]))
            return self._answer(200, self.blobs[self.path.rpartition("/")[2]])
        if not self._is_allowed():
            return None
        if "/blobs/" in self.path and self.elsewhere and self.command == "GET":
            digest = self.path.rpartition("/")[2]
            return self._answer(307, Location=f"{self.elsewhere}/cdn/{digest}")
        if "/blobs/" in self.path:
            return self._blob()
        version = self.path.rpartition("/")[2]
        if version not in self.manifests:
            return self._answer(404, b"{}")
        data = self.manifests[version]
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return self._answer(200, data, Docker_Content_Digest=digest)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        self._body()
        host = self.headers["Host"]
        self._answer(202, Location=f"http://{host}{self.path}1")

    def do_PUT(self) -> None:
        if not self._is_allowed():
            return None
        data = self._body()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if "/manifests/" in self.path:
            self.manifests[digest] = self.manifests[self.path.rpartition("/")[2]] = data
            return self._answer(201)
        asked = re.search(r"digest=(sha256(?::|%3A)[0-9a-f]+)", self.path)
        if asked is None or asked[1].replace("%3A", ":") != digest:
            return self._answer(400)
        self.blobs[digest] = data
        return self._answer(201)


@pytest.fixture
def registry() -> Iterator[str]:
    _Registry.blobs, _Registry.manifests = {}, {}
    _Registry.guarded, _Registry.elsewhere, _Registry.leaked = False, "", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def push_base(
    registry: str,
    folder: Path,
    python: str = "3.11.14",
    architectures: Sequence[Architecture] = ("amd64",),
) -> str:
    """A base image with one file, as another tool would have pushed it."""
    layer = write_layer([Item("usr/bin/python3", b"#!", executable=True)], folder / "base.tar.gz")
    environment = {"PYTHON_VERSION": python, "PATH": "/usr/bin"}
    images = []
    for architecture in architectures:
        rootfs = {"type": "layers", "diff_ids": []}
        config = {"architecture": architecture, "rootfs": rootfs, "config": {}}
        nothing = Base("scratch", (), config, {})
        images.append(append(nothing, [layer], {"Cmd": ["python3"]}, environment))
    archive = write_archive(images, folder / "base.tar")
    reference = parse_reference(f"{registry}/python:slim")
    push_archive(archive.path, reference, folder)
    return f"{registry}/python:slim"


def test_a_layer_is_its_files_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"content")
    items = [Item("app/b", source), Item("app/a", b"x", executable=True)]
    first = write_layer(items, tmp_path / "one")
    os.utime(source, (1, 1))
    source.chmod(0o600)
    second = write_layer(reversed(items), tmp_path / "two")
    assert (first.digest, first.diff_id) == (second.digest, second.diff_id)
    assert first.digest == f"sha256:{hashlib.sha256((tmp_path / 'one').read_bytes()).hexdigest()}"
    with tarfile.open(tmp_path / "one") as archive:
        found = {each.name: (each.mode, each.uid, each.mtime) for each in archive}
    assert found == {"app": (0o755, 0, 0), "app/a": (0o755, 0, 0), "app/b": (0o644, 0, 0)}


def test_the_application_brings_code_bytecode_and_kernels(tmp_path: Path) -> None:
    paths = {item.path for item in application_items(own_processor(), tmp_path)}
    assert "app/erless/serve/__main__.py" in paths
    assert "app/erless/serve/functions/sparse.py" in paths
    assert any(
        re.fullmatch(r"app/erless/serve/functions/__pycache__/sparse\.cpython-.*\.pyc", each)
        for each in paths
    )
    assert any(re.fullmatch(r"app/erless/dlrm/_kernels\..*\.so", each) for each in paths)
    assert not any("/tests/" in each for each in paths)


def test_built_twice_is_one_digest_and_the_registry_gives_back_what_it_took(
    tmp_path: Path, registry: str
) -> None:
    base = push_base(registry, tmp_path)
    digests = []
    for name in ("one", "two"):
        scratch = tmp_path / name
        scratch.mkdir()
        image = build_archive("sparse", base, scratch / "sparse.tar", scratch, dependencies=False)
        digests.append(image.digest)
    assert digests[0] == digests[1]
    reference = parse_reference(f"{registry}/erless/sparse:1")
    pushed = push_archive(tmp_path / "one" / "sparse.tar", reference, tmp_path)
    assert pushed == f"{registry}/erless/sparse@{digests[0]}"
    assert resolve_digest(reference) == pushed
    found, manifest = Registry(reference).manifest(digests[0])
    assert found == digests[0]
    Registry(reference).pull(manifest["config"]["digest"], tmp_path / "config")
    config = json.loads((tmp_path / "config").read_text())
    assert config["config"]["Entrypoint"] == ["python3", "-m", "erless.serve", "sparse"]
    assert config["config"]["User"] == "65532:65532"
    assert "PATH=/usr/bin" in config["config"]["Env"]
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) == 2
    for layer in manifest["layers"]:
        Registry(reference).pull(layer["digest"], tmp_path / "layer")


@pytest.mark.skipif(shutil.which(CROSS) is None, reason=f"there is no {CROSS}")
def test_one_image_is_for_two_processors(tmp_path: Path, registry: str) -> None:
    base = push_base(registry, tmp_path, architectures=ARCHITECTURES)
    file = tmp_path / "sparse.tar"
    built = build_archive(
        "sparse", base, file, tmp_path, architectures=ARCHITECTURES, dependencies=False
    )
    reference = parse_reference(f"{registry}/erless/sparse:1")
    assert push_archive(file, reference, tmp_path) == reference.at(built.digest)
    assert resolve_digest(reference) == reference.at(built.digest)
    opened = Registry(reference)
    for architecture, machine in (("amd64", 62), ("arm64", 183)):  # ELF's numbers
        _, manifest = opened.manifest("1", cast(Architecture, architecture))
        opened.pull(manifest["config"]["digest"], tmp_path / "config")
        assert json.loads((tmp_path / "config").read_text())["architecture"] == architecture
        opened.pull(manifest["layers"][-1]["digest"], tmp_path / "layer")
        with tarfile.open(tmp_path / "layer") as layer:
            kernels = [each for each in layer if each.name.endswith(".so")]
            assert len(kernels) == 1
            content = layer.extractfile(kernels[0])
            assert content is not None
            assert int.from_bytes(content.read(20)[18:], "little") == machine


def test_a_processor_that_cannot_be_built_for_is_named(
    tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = next(name for name in ARCHITECTURES if name != own_processor().name)
    ours = push_base(registry, tmp_path, architectures=[own_processor().name])
    with pytest.raises(ImageError, match=f"python is for {own_processor().name}, not {other}"):
        build_archive("sparse", ours, tmp_path / "x", tmp_path, architectures=[other])
    both = push_base(registry, tmp_path, architectures=ARCHITECTURES)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match=r"there is no .*-linux-gnu-gcc .*: gcc-"):
        build_archive(
            "sparse", both, tmp_path / "x", tmp_path, architectures=[other], dependencies=False
        )


def test_a_registry_that_asks_gets_dockers_credentials_and_nobody_else_does(
    tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = {"auths": {registry: {"auth": base64.b64encode(b"me:secret").decode()}}}
    (tmp_path / "config.json").write_text(json.dumps(docker))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    _Registry.guarded = True
    _Registry.elsewhere = f"http://localhost:{registry.rpartition(':')[2]}"  # another host's name
    reference = parse_reference(push_base(registry, tmp_path))
    digest, manifest = Registry(reference).manifest("slim")
    assert resolve_digest(reference) == reference.at(digest)
    Registry(reference).pull(manifest["layers"][0]["digest"], tmp_path / "layer")
    assert _Registry.leaked == []
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    with pytest.raises(ImageError, match=r"not permitted \(401\)"):
        resolve_digest(reference)


def test_a_base_with_another_python_is_refused(tmp_path: Path, registry: str) -> None:
    base = push_base(registry, tmp_path, python="3.9.1")
    with pytest.raises(ImageError, match=r"has Python 3\.9\.1"):
        build_archive("sparse", base, tmp_path / "x.tar", tmp_path, dependencies=False)


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_the_base_follows_the_python_that_runs(tmp_path: Path, registry: str, minor: int) -> None:
    """Kernels and bytecode are for one minor version, so the default base has that one."""
    assert default_base((3, minor)) == f"python:3.{minor}-slim-bookworm"
    here = sys.version_info.minor
    base = push_base(registry, tmp_path, python=f"3.{minor}.1")
    if minor == here:
        build_archive("sparse", base, tmp_path / "x.tar", tmp_path, dependencies=False)
    else:
        with pytest.raises(ImageError, match=rf"has Python 3\.{minor}\.1; .* for 3\.{here} here"):
            build_archive("sparse", base, tmp_path / "x.tar", tmp_path, dependencies=False)


def test_a_build_without_network_says_what_to_do(tmp_path: Path, registry: str, cli: Cli) -> None:
    lost = cli("image", "build", "--base", "127.0.0.1:1/python:3", cwd=tmp_path)
    assert lost.returncode == 1
    assert "cannot read 3 of 127.0.0.1:1/python" in lost.stderr
    assert "try: --base names one that is reached from here" in lost.stderr
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    base = push_base(registry, tmp_path)
    bare = cli("image", "build", "--base", base, "--wheels", "wheels", cwd=tmp_path)
    assert bare.returncode == 1
    assert "the folder wheels does not give what a gateway imports" in bare.stderr
    assert "pip download --only-binary=:all: -d wheels -c pins.txt" in bare.stderr
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("option", [("--torch",), ("--base", "python:3.12")])
def test_an_option_of_a_build_is_refused_where_nothing_is_built(
    tmp_path: Path, cli: Cli, option: tuple[str, ...]
) -> None:
    done = cli("image", "push", "--registry", "127.0.0.1:1/erless", *option, cwd=tmp_path)
    assert done.returncode == 1
    assert f"{option[0]} goes with --engine" in done.stderr


def test_what_is_altered_or_absent_is_said(tmp_path: Path, registry: str) -> None:
    reference = parse_reference(f"{registry}/erless/none:1")
    with pytest.raises(ImageError, match=r"not there \(404\)"):
        resolve_digest(reference)
    digest = f"sha256:{'0' * 64}"
    _Registry.blobs[digest] = b"something else"
    with pytest.raises(ImageError, match="expected digest sha256:0000"):
        Registry(reference).pull(digest, tmp_path / "blob")
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"no archive")
    with pytest.raises(ImageError, match="not an OCI archive"):
        push_archive(bad, reference, tmp_path)
    with pytest.raises(ImageError, match="no image reference|not an image reference"):
        parse_reference("Not A Reference")
    with pytest.raises(ImageError, match="cannot read 1 of 127.0.0.1:1/x"):
        resolve_digest(parse_reference("127.0.0.1:1/x:1"))


@pytest.mark.parametrize(
    ("kind", "torch", "target"),
    [
        ("sparse", False, "sparse"),
        ("gateway", False, "gateway"),
        ("gateway", True, "gateway-torch"),
        ("dense", True, "dense"),
    ],
)
def test_an_engine_builds_a_target_that_is_there(
    tmp_path: Path, kind: FunctionKind, torch: bool, target: str
) -> None:
    """No engine runs here: a script stands in for it, and writes down how it was called."""
    script, called = tmp_path / "engine", tmp_path / "called"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {called}\n')
    script.chmod(0o755)
    engine.build(str(script), kind, "r/x:1", "base:1", torch=torch)
    words = called.read_text().split()
    options = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
    assert options["--target"] == target
    assert options["--build-arg"] == "BASE=base:1"
    lines = (engine.source_root() / options["--file"]).read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", lines, re.MULTILINE)
    assert target in stages

    def stage(name: str) -> str:
        return lines.split(f" AS {name}\n")[1].split("\nFROM ")[0]

    assert ("--from=torch" in stage(target)) == torch
    entry = "gateway" if target == "gateway-torch" else target
    assert f'"erless.serve", "{entry}"' in stage(entry)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", lines, re.MULTILINE)
    for each in " ".join(copied).split():
        assert (engine.source_root() / each).exists(), each


def test_push_saves_digests_that_deploy_reads(tmp_path: Path, registry: str, cli: Cli) -> None:
    base = push_base(registry, tmp_path)
    built = cli("image", "build", "--base", base, "--no-dependencies", "-o", "json", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    pushed = cli("image", "push", "--registry", f"{registry}/erless", "-o", "json", cwd=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    images = read_images(tmp_path / "images.json")
    assert images == json.loads(pushed.stdout)["images"]
    by_kind = {each["kind"]: each["digest"] for each in json.loads(built.stdout)["images"]}
    assert images == {
        kind: f"{registry}/erless/{kind}@{digest}" for kind, digest in by_kind.items()
    }
    # a tag is resolved once, and what is deployed is the digest
    site = resolve_settings(Config(), images={"sparse": f"{registry}/erless/sparse:latest"})
    assert site.image("sparse") == images["sparse"]
    (tmp_path / "images.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a file of `erless image push`"):
        read_images(tmp_path / "images.json")
