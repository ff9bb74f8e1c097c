"""Generations: numbered sets of changed rows and dense weights on top of a release.

    STORE/generations/<release>/<number>.json   a `GenerationManifest`, written last
    STORE/states/<digest>.json                  a `ShardState`: one shard's changes, and before
    STORE/blobs/<sha256>.safetensors            a part: rows that a generation changes in a shard

A generation's number is taken by creating its manifest, which succeeds once: of two publishers that
end at the same moment, one has to begin anew on top of the other. Numbers have no gaps. A manifest
names the state of every shard that differs from the release, whichever generation made it, so the
newest manifest tells all; a state leads back to the ones before it. Going back to an earlier
generation makes a new one with that one's states.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from erless.errors import ArtifactError
from erless.specs.artifact import Artifact, FileEntry, Frozen
from erless.specs.stored import keep_by_digest, load_by_digest
from erless.storage.store import Store

__all__ = [
    "MOST_STATES",
    "GenerationManifest",
    "Kept",
    "ShardState",
    "TableChange",
    "find_tower",
    "generation_prefix",
    "generations",
    "kept_by_generations",
    "load_generation",
    "load_state",
    "newest_generation",
    "next_generation",
    "publish_generation",
    "publish_state",
    "state_chain",
]

MOST_STATES = 4096  # of one shard, one on top of the other: then a release is packed anew
_HEX = r"^[0-9a-f]{64}$"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"(\d{8,})\.json")


class TableChange(Frozen):
    """What a part has of one table: tensors `ids.<table>` int64 (n,), `rows.<table>` (n, width)."""

    table: str
    changed: int = Field(ge=0, description="rows in the part")
    rows: int = Field(gt=0, description="rows of the whole table from then on")


class ShardState(Artifact):
    """One shard with a generation's changes. Its digest is that of everything that led to it."""

    KIND: ClassVar[str] = "erless shard state"

    shard: str = Field(pattern=_HEX, description="digest of the ShardManifest below it all")
    previous: str | None = Field(pattern=_HEX, description="digest of the state before")
    depth: int = Field(ge=1, le=MOST_STATES, description="states up to this one")
    tables: tuple[TableChange, ...] = Field(min_length=1)
    part: FileEntry

    @model_validator(mode="after")
    def _depth_fits(self) -> Self:
        if (self.depth == 1) != (self.previous is None):
            raise ValueError("depth and previous contradict each other")
        return self


class GenerationManifest(Artifact):
    """One generation of a release."""

    KIND: ClassVar[str] = "erless generation"

    release: str = Field(pattern=_HEX)
    number: int = Field(ge=1)
    made_at_s: float = Field(ge=0, description="Unix time on the publisher's clock")
    states: dict[str, str] = Field(
        default_factory=dict, description="shard digest → state digest, of all that differ"
    )
    tables: dict[str, int] = Field(
        default_factory=dict, description="rows of each table that has more than in the release"
    )
    routing: FileEntry | None = Field(
        None, description="uint8 (added rows,) for each of `tables`: the shard of each added row"
    )
    tower: FileEntry | None = Field(None, description="dense weights in place of the release's")
    changed: int = Field(0, ge=0, description="rows that this generation changed")
    added: int = Field(0, ge=0)
    deleted: int = Field(0, ge=0)
    size_bytes: int = Field(0, ge=0, description="of its parts and tower")
    returns_to: int | None = Field(
        None, ge=0, description="the generation whose content this is once more; 0: the release"
    )


def generation_prefix(release: str) -> str:
    """What the names of a release's generations begin with.

    Raises:
        ArtifactError: not a digest.
    """
    if not _DIGEST.fullmatch(release):
        raise ArtifactError(f"{release!r} is not a digest: 64 hexadecimal digits are")
    return f"generations/{release}/"


def _name(release: str, number: int) -> str:
    return f"{generation_prefix(release)}{number:08d}.json"


def _state_name(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise ArtifactError(f"{digest!r} is not a digest: 64 hexadecimal digits are")
    return f"states/{digest}.json"


def generations(store: Store, release: str) -> tuple[int, ...]:
    """The numbers of a release's generations, rising.

    Raises:
        ArtifactError: there is a gap in the numbers.
    """
    prefix = generation_prefix(release)
    names = (_NUMBER.fullmatch(found.name.removeprefix(prefix)) for found in store.list(prefix))
    numbers = tuple(sorted(int(name.group(1)) for name in names if name))
    missing = next((n for n, number in enumerate(numbers, 1) if n != number), None)
    if missing is not None:
        raise ArtifactError(f"{store.url}: generation {missing} of {release[:12]} is missing")
    return numbers


def load_generation(store: Store, release: str, number: int) -> GenerationManifest:
    """Generation `number` of `release`.

    Raises:
        ArtifactError: missing, altered, of a newer schema, or of another release.
    """
    return _parse(store, store.read(_name(release, number)), release, number)


def _parse(store: Store, text: bytes, release: str, number: int) -> GenerationManifest:
    """The manifest that was read under the name of a generation. Errors as `load_generation`."""
    where = f"{store.url}/{_name(release, number)}"
    manifest = GenerationManifest.parse(text, where)
    if (manifest.release, manifest.number) != (release, number):
        raise ArtifactError(f"{where}: is generation {manifest.number} of {manifest.release[:12]}")
    return manifest


def newest_generation(store: Store, release: str) -> GenerationManifest | None:
    """The newest generation of `release`; None where there is none. Errors as `load_generation`."""
    numbers = generations(store, release)
    return load_generation(store, release, numbers[-1]) if numbers else None


def next_generation(store: Store, release: str, number: int) -> GenerationManifest | None:
    """The newest generation behind `number`, looked up one by one; None where there is none yet.

    It costs one read where nothing is new. Errors as `load_generation`.
    """
    newest = None
    while True:
        try:
            text = store.read(_name(release, number + 1))
        except ArtifactError:
            return newest
        number += 1
        newest = _parse(store, text, release, number)


def find_tower(store: Store, release: str, sha256: str) -> FileEntry:
    """The dense weights with digest `sha256` of one of a release's generations.

    Raises:
        ArtifactError: none has them; else as `load_generation`.
    """
    for number in reversed(generations(store, release)):
        entry = load_generation(store, release, number).tower
        if entry is not None and entry.sha256 == sha256:
            return entry
    raise ArtifactError(f"{store.url}: no generation of {release[:12]} has tower {sha256[:12]}")


def publish_generation(store: Store, manifest: GenerationManifest) -> None:
    """Make a generation visible, in one step.

    Raises:
        StoreError: another publisher took its number.
    """
    store.create(_name(manifest.release, manifest.number), _text(manifest))


def load_state(store: Store, digest: str) -> ShardState:
    """The shard state with `digest`.

    Raises:
        ArtifactError: missing, altered or of a newer schema.
    """
    return load_by_digest(store, _state_name(digest), ShardState, digest)


def state_chain(
    store: Store, digest: str, shard: str, known: Container[str] = ()
) -> tuple[list[ShardState], str | None]:
    """The states that led to the one with `digest`, itself the first.

    Args:
        store: where they are.
        digest: of the newest state.
        shard: digest of the shard below it all.
        known: digests of states that need not be read: the way ends at the first of them.

    Returns:
        The states, and the known one that they lie on; None: they lie on the shard itself.

    Raises:
        ArtifactError: a state is missing, altered, or of another shard.
    """
    chain: list[ShardState] = []
    step: str | None = digest
    while step is not None and step not in known:
        state = load_state(store, step)
        if state.shard != shard:
            raise ArtifactError(
                f"state {step[:12]} is of shard {state.shard[:12]}, not of {shard[:12]}"
            )
        if chain and state.depth != chain[-1].depth - 1:
            raise ArtifactError(f"state {step[:12]} has depth {state.depth}: a step is missing")
        chain.append(state)
        step = state.previous
    return chain, step


def publish_state(store: Store, state: ShardState) -> None:
    """Keep a shard state, under its digest."""
    keep_by_digest(store, _state_name(state.digest), _text(state))


class Kept(NamedTuple):
    """What the generations of a release need: names of documents, and files."""

    names: frozenset[str]
    files: tuple[FileEntry, ...]


def kept_by_generations(store: Store, release: str) -> Kept:
    """All that the generations of `release` refer to. Errors as `load_generation`."""
    names: set[str] = set()
    files: dict[str, FileEntry] = {}
    for number in generations(store, release):
        manifest = load_generation(store, release, number)
        names.add(_name(release, number))
        for entry in (manifest.routing, manifest.tower):
            if entry is not None:
                files[entry.path] = entry
        for digest in manifest.states.values():
            step: str | None = digest
            while step is not None and _state_name(step) not in names:
                state = load_state(store, step)
                names.add(_state_name(step))
                files[state.part.path] = state.part
                step = state.previous
    return Kept(frozenset(names), tuple(files.values()))


def _text(artifact: Artifact) -> bytes:
    return (artifact.model_dump_json() + "\n").encode()
