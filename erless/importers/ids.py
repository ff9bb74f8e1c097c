"""Say how the ids of a bundle's features become rows, and what an unknown one does.

The bundle is written anew: tables, archives and features stay what they were.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from erless.dlrm.vocabulary import write_vocabulary
from erless.errors import ModelError, OptionError
from erless.importers.bundle import BundleWriter, new_bundle, row_chunks
from erless.importers.vocabularies import KnownIds, read_vocabulary
from erless.progress import Progress
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.specs.features import (
    ExactIds,
    FeatureSpec,
    HashedIds,
    IdRule,
    ModuloIds,
    NamedTensor,
    Unknown,
    VocabularyIds,
)
from erless.specs.model import GraphTower, ModelSpec, TableSpec
from erless.storage.atomic import os_errors
from erless.storage.tensors import TensorFile

__all__ = ["IdOptions", "set_ids"]

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class IdOptions:
    """Rules and unknown ids, by the name of a feature, or of a table for all its features.

    Args:
        rules: `exact`, `modulo`, `hash:xxh64:SEED`, `hash:splitmix64:SEED` or `vocabulary:SOURCE`
            (`read_vocabulary`).
        unknown: `reject`, `zero`, `default` or a row.
    """

    rules: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, rules: Sequence[str], unknown: Sequence[str]) -> IdOptions:
        """From options like `user=hash:xxh64:7`.

        >>> IdOptions.parse(["user=modulo"], ["user=zero"]).unknown
        {'user': 'zero'}

        Raises:
            OptionError: not of that form, or a name stands twice.
        """
        return cls(_pairs("rule", rules), _pairs("unknown", unknown))


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise OptionError(f"{option} {word!r}: must be NAME=VALUE")
        if name in pairs:
            raise OptionError(f"{option} names {name} twice")
        pairs[name] = value
    return pairs


def set_ids(
    bundle: Path,
    out: Path,
    options: IdOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BundleManifest:
    """Write the bundle at `bundle` with other rules to `out`.

    An unknown id that is to be `default` stands for a row behind the table's last: the mean of its
    rows, which is the table's default vector.

    Raises:
        ArtifactError: the bundle is damaged, or `out` exists and may not be replaced.
        ModelError: a rule does not fit the model, or the model is none that takes rules.
        OptionError: a name is no feature and no table, or a rule is none.
        CheckpointError: a vocabulary cannot be read.
    """
    manifest = BundleManifest.open(bundle)
    manifest.verify(bundle, progress)
    model = manifest.model
    if not isinstance(model.tower, GraphTower):
        raise ModelError(
            f"model {model.name} takes a KeyedJaggedTensor, whose ids are rows: rules go with "
            "models that erless.export or erless import torch brought in"
        )
    rules, unknown = _of_features(model, options.rules), _of_features(model, options.unknown)
    averaged = {f.table for f in model.features if unknown.get(f.name) == DEFAULT}
    known = {
        name: read_vocabulary(rule.removeprefix("vocabulary:"))
        for name, rule in rules.items()
        if rule.startswith("vocabulary:")
    }
    tables = tuple(
        table.model_copy(update={"rows": table.rows + 1}) if table.name in averaged else table
        for table in model.tables
    )
    spec = model.model_copy(update={"tables": tables})
    with new_bundle(out, spec, overwrite=overwrite, progress=progress) as writer:
        features = tuple(
            _changed(writer, model, each, rules.get(each.name), unknown.get(each.name), known)
            if each.table in averaged or each.name in rules or each.name in unknown
            else each
            for each in model.features
        )
        writer.model = _checked(spec, features)
        for old, table in zip(model.tables, tables, strict=True):
            rows = TensorFile(manifest.table_file(bundle, old)).map(TABLE_TENSOR)
            writer.add_table(table, _rows(rows, old, mean=table.rows > old.rows))
        for entry in (manifest.front, manifest.request_front, manifest.tower):
            if entry is not None:
                with os_errors(bundle / entry.path, "read"):
                    shutil.copyfile(bundle / entry.path, writer.folder / entry.path)
                writer.add_archive(entry.path)
        for rule in (f.rule for f in model.features if f in features):
            if isinstance(rule, VocabularyIds):
                target = writer.folder / rule.file.path
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(bundle / rule.file.path, target)
        return writer.finish()


def _of_features(model: ModelSpec, named: Mapping[str, str]) -> dict[str, str]:
    """What is said of each feature: of itself, or else of its table."""
    names = {feature.name for feature in model.features}
    tables = {table.name for table in model.tables}
    for name in named:
        if name not in names | tables:
            raise OptionError(
                f"{name} is neither a feature nor a table; features are {', '.join(sorted(names))}"
            )
    found = {f.name: named.get(f.name, named.get(f.table)) for f in model.features}
    return {name: value for name, value in found.items() if value is not None}


def _changed(
    writer: BundleWriter,
    model: ModelSpec,
    feature: FeatureSpec,
    rule: str | None,
    unknown: str | None,
    known: Mapping[str, KnownIds],
) -> FeatureSpec:
    """`feature` with another rule, and another word for unknown ids."""
    rows = model.table(feature.table).rows
    own = known.get(feature.name)
    made: IdRule = feature.rule
    if own is not None:
        largest = int(own.rows.max(initial=-1))
        if largest >= rows:
            raise ModelError(
                f"the vocabulary of feature {feature.name} has row {largest:,}, table "
                f"{feature.table} has {rows:,}"
            )
        made = write_vocabulary(writer.folder, feature.name, own.ids, own.rows)
    elif rule is not None:
        made = _rule(feature.name, rule, rows)
    if isinstance(made, ExactIds) and made.rows is None:
        grows = writer.model.table(feature.table).rows > rows
        made = ExactIds(rows=rows) if grows else made
    stands: Unknown = feature.unknown
    if unknown is not None:
        stands = _unknown(feature.name, unknown, rows)
    elif own is not None and own.unknown is not None:
        stands = own.unknown
    return feature.model_copy(update={"rule": made, "unknown": stands})


def _rule(name: str, text: str, rows: int) -> IdRule:
    kind, _, rest = text.partition(":")
    if text == "exact":
        return ExactIds()
    if text == "modulo":
        return ModuloIds(rows=rows)
    function, _, seed = rest.partition(":")
    plain = re.fullmatch(r"[0-9]{1,19}", seed or "0", re.ASCII)
    if kind == "hash" and function in ("", "xxh64", "splitmix64") and plain:
        return HashedIds.model_validate(
            {"function": function or "xxh64", "seed": int(seed or 0), "rows": rows}
        )
    raise OptionError(
        f"rule {name}={text}: must be exact, modulo, hash:xxh64:SEED, hash:splitmix64:SEED or "
        "vocabulary:FILE"
    )


def _unknown(name: str, text: str, rows: int) -> Unknown:
    words: dict[str, Unknown] = {"reject": "reject", "zero": "zero", DEFAULT: rows}
    if text in words:
        return words[text]
    if re.fullmatch(r"[0-9]{1,12}", text, re.ASCII) and int(text) < rows:
        return int(text)
    raise OptionError(
        f"unknown {name}={text}: must be reject, zero, default or a row, 0 … {rows - 1}"
    )


def _checked(model: ModelSpec, features: tuple[FeatureSpec, ...]) -> ModelSpec:
    """`model` with `features`; inputs of strings are BYTES."""
    strings = {
        feature.ids
        for feature in features
        if isinstance(feature.rule, VocabularyIds) and feature.rule.keys == "string"
    }
    tower = model.tower
    names = {tensor.name for tensor in model.inputs}
    for feature in features:
        mixed = feature.ids in strings and not _takes_strings(feature)
        taken = isinstance(tower, GraphTower) and feature.ids in {
            *tower.takes,
            *tower.front_takes,
            *tower.request_front_takes,
        }
        if feature.ids in strings and (mixed or taken or feature.ids not in names):
            raise ModelError(
                f"feature {feature.name}: its ids cannot be strings: the model computes with "
                f"{feature.ids}, or another feature takes it as numbers"
            )
    inputs = tuple(
        NamedTensor.model_validate(tensor.model_dump() | {"datatype": "BYTES"})
        if tensor.name in strings
        else tensor
        for tensor in model.inputs
    )
    try:
        return ModelSpec.model_validate(
            model.model_dump()
            | {
                "features": [feature.model_dump() for feature in features],
                "inputs": [tensor.model_dump() for tensor in inputs],
            }
        )
    except ValidationError as error:
        raise ModelError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error


def _takes_strings(feature: FeatureSpec) -> bool:
    rule = feature.rule
    if isinstance(rule, VocabularyIds):
        return rule.keys == "string"
    return isinstance(rule, HashedIds) and rule.function == "xxh64"


def _rows(
    rows: NDArray[np.float32], table: TableSpec, *, mean: bool
) -> Iterator[NDArray[np.float32]]:
    """The rows of a table in chunks, and behind them their mean."""
    total = np.zeros(table.dim, np.float64)
    for chunk in row_chunks(rows, table.row_bytes):
        total += chunk.sum(axis=0, dtype=np.float64)
        yield chunk
    if mean:
        yield (total / table.rows).astype(np.float32)[None]
