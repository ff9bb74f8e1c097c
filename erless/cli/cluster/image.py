"""`erless image`: build and push the functions' images."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.hints import trying
from erless.cli.option_groups import grouped
from erless.cli.options import InfraOption, project
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.specs.functions import FunctionKind

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Images of the functions: `build`, `push`.",
    epilog="Example: `erless image build --out images`",
)

ARCHIVES = Path("images")


class Builder(StrEnum):
    """The container engine that builds the images."""

    AUTO = "auto"
    DOCKER = "docker"
    PODMAN = "podman"
    BUILDAH = "buildah"
    NONE = "none"


class ImageArchitecture(StrEnum):
    """The processors that images are for."""

    AMD64 = "amd64"
    ARM64 = "arm64"


class FunctionChoice(StrEnum):
    """The kinds of functions that have an image."""

    GATEWAY = "gateway"
    SPARSE = "sparse"
    DENSE = "dense"


KindOption = Annotated[
    list[FunctionChoice] | None,
    typer.Option(
        "--kind", help="gateway, sparse, dense; may be repeated [default: the first two]."
    ),
]
FolderOption = Annotated[Path, typer.Option("--out", help="Folder of the archives.")]


def _kinds(choices: list[FunctionChoice] | None) -> list[FunctionKind]:
    kinds: list[FunctionKind] = [
        choice.value for choice in choices or (FunctionChoice.GATEWAY, FunctionChoice.SPARSE)
    ]
    return kinds


@app.command()
@verb
def build(
    kind: KindOption = None,
    base: Annotated[
        str | None, typer.Option(help="Image to build on [default: the slim image of this Python].")
    ] = None,
    dependencies: Annotated[
        bool, typer.Option(help="Add what erless imports; off where the base has it.")
    ] = True,
    torch: Annotated[
        bool, typer.Option("--torch", help="torch in the gateway too (exported towers).")
    ] = False,
    wheels: Annotated[
        Path | None, typer.Option(help="Folder of wheels instead of the package index.")
    ] = None,
    arch: Annotated[
        list[ImageArchitecture] | None,
        typer.Option(help="amd64, arm64; may be repeated: one image for both [default: ours]."),
    ] = None,
    out: FolderOption = ARCHIVES,
    output: OutputOption = Output.TEXT,
) -> None:
    """Build images without a container engine: base, dependencies, erless → an OCI archive each.

    The same inputs give the same digest; a base by tag is another input when the tag moves.
    `erless image push` sends the archives to a registry.

    Example: `erless image build --base python:3.11.14-slim-bookworm --out images`
    """
    import tempfile

    from erless.deploy.image.build import build_archive, default_base

    rows = []
    with tempfile.TemporaryDirectory(prefix="erless-image-") as folder:
        for function in _kinds(kind):
            note(f"building {function}")
            image = build_archive(
                function,
                base or default_base(),
                out / f"{function}.tar",
                Path(folder),
                dependencies=dependencies,
                torch=torch or function == "dense",
                wheels=wheels,
                architectures=[each.value for each in arch or ()],
            )
            rows.append(
                {
                    "kind": function,
                    "archive": str(image.path),
                    "digest": image.digest,
                    "size_bytes": image.size,
                }
            )
    then = "erless image push --registry HOST/NAME"
    emit(output, {"images": rows}, lambda console: _draw(console, rows), then=then)


@dataclass(frozen=True)
class EngineOptions:
    """The engine that builds before the push, and its options."""

    engine: Annotated[
        Builder, typer.Option(help="Build functions/Dockerfile by this engine, then push.")
    ] = Builder.NONE
    base: Annotated[str | None, typer.Option(help="Base image for --engine.")] = None
    torch: Annotated[bool, typer.Option("--torch", help="torch in the gateway, for --engine.")] = (
        False
    )

    def program(self) -> str | None:
        """The engine to build with; None pushes archives.

        Raises:
            OptionError: an option of the build is given without an engine.
            ImageError: no engine answers.
        """
        from erless.deploy.image import engine as engines
        from erless.errors import ImageError, OptionError

        if self.engine is Builder.NONE:
            if self.base or self.torch:
                name = "--base" if self.base else "--torch"
                raise OptionError(f"{name} goes with --engine, or with `erless image build`")
            return None
        program = engines.find_engine() if self.engine is Builder.AUTO else self.engine.value
        if program is None:
            raise ImageError(f"no container engine answers here: {', '.join(engines.ENGINES)}")
        return program


@app.command()
@verb
@grouped
def push(
    build_by: EngineOptions,
    registry: Annotated[
        str | None, typer.Option(help="HOST[:PORT]/NAME [default: erless.yaml's].")
    ] = None,
    infra: InfraOption = None,
    tag: Annotated[str, typer.Option(help="Tag for people; deploys use the digest.")] = "latest",
    kind: KindOption = None,
    out: FolderOption = ARCHIVES,
    images: Annotated[
        Path | None, typer.Option(help="Write the digests here [default: images.json].")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Push images as REGISTRY/KIND and save their digests for `erless deploy`.

    They are the archives of `erless image build`; with --engine, docker, podman or buildah build
    `functions/Dockerfile` of a checkout first, and push that.

    Example: `erless image push --registry 127.0.0.1:5000/erless`
    """
    import json

    from erless.deploy.image import engine as engines
    from erless.storage.atomic import os_errors, staged_file

    options = project().targets.knative
    root = _registry(registry, infra, options.registry)
    program = build_by.program()
    pushed: dict[str, str] = {}
    for function in _kinds(kind):
        image = f"{root.rstrip('/')}/{function}:{tag}"
        if program is None:
            pushed[function] = _push_archive(out / f"{function}.tar", image)
        else:
            note(f"building and pushing {image}")
            engines.build(program, function, image, build_by.base, torch=build_by.torch)
            pushed[function] = engines.push(program, image)
    path = images or options.images_file
    document: dict[str, Any] = {"images": pushed}
    with staged_file(path) as stage, os_errors(stage):
        stage.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    emit(
        output,
        document | {"file": str(path)},
        lambda console: console.print("\n".join([*pushed.values(), f"wrote {path}"])),
        then="erless doctor",
    )


def _registry(option: str | None, infra: Path | None, configured: str | None) -> str:
    """Where images are pushed: `--registry`, else `--infra`'s, else erless.yaml's.

    Raises:
        OptionError: none of them names a registry.
    """
    from erless.deploy.infra import read_infra
    from erless.errors import OptionError

    registry = option or (read_infra(infra).registry_url if infra else configured)
    if registry is None:
        raise OptionError(
            "no registry: pass --registry or --infra, or set targets.knative.registry"
        )
    return registry


def _push_archive(archive: Path, image: str) -> str:
    """Push what `erless image build` wrote; returns the image by digest."""
    import tempfile

    from erless.deploy.image.oci import push_archive
    from erless.deploy.image.reference import parse_reference
    from erless.errors import ImageError

    if not archive.exists():
        with trying(f"`erless image build --out {archive.parent}`", ImageError):
            raise ImageError(f"{archive} is not built yet")
    note(f"pushing {image}")
    with tempfile.TemporaryDirectory(prefix="erless-image-") as folder:
        return push_archive(archive, parse_reference(image), Path(folder))


def _draw(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("function", "archive", "MB", "digest")
    for row in rows:
        table.add_row(row["kind"], row["archive"], f"{row['size_bytes'] / 1e6:,.1f}", row["digest"])
    console.print(table)
