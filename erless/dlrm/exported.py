"""Load a `torch.export` archive without running anything that it brings along.

`torch.export.load` unpickles weights, constants and sample inputs where the archive asks for it,
and evaluates the strings that describe symbolic shapes. An archive from elsewhere is therefore
screened first: no pickled payload, no custom or compiled object, only ATen operators, only
arithmetic over names in its expressions. What passes is loaded; all else is refused by name.
Format: torch.export.pt2_archive, archive version of PyTorch 2.8 and later.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from erless.errors import ArtifactError, first_line
from erless.storage.atomic import os_errors

__all__ = ["load_exported"]

# Operators a tower may call: ATen and prims, Python arithmetic, sizes. `deserialize_operator`
# would look any other dotted name up in torch, `torch.load` included.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.[a-z_0-9]+(\.[A-Za-z_0-9]+)?"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|getitem|and_|or_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\.sym_(int|float|max|min|not|ite|sqrt)"
)
_SYMBOLS = {
    "Symbol",
    "Integer",
    "positive",
    "integer",
    "nonnegative",
    "Max",
    "Min",
    "Mod",
    "PythonMod",
    "FloorDiv",
    "CeilDiv",
    "CleanDiv",
    "IntTrueDiv",
    "Eq",
    "Ne",
    "Ge",
    "Gt",
    "Le",
    "Lt",
    "L",
}
_GRAMMAR = (
    ast.Expression,
    ast.Call,
    ast.keyword,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    ast.Compare,
    ast.cmpop,
    ast.BoolOp,
    ast.boolop,
    ast.Subscript,
    ast.Attribute,
)
_SYMBOL_NAME = re.compile(r"[su]\d+|\w*_?s\d+|dense|pooled")
_PLAIN = re.compile(r"[\w ]*")
_PYTREES = {"builtins.tuple", "builtins.list", "builtins.dict", None}


def load_exported(path: Path) -> torch.nn.Module:
    """The module of the archive at `path`: a callable (dense, pooled) → prediction.

    Raises:
        ArtifactError: not such an archive, damaged, or holding what could run code on loading.
    """
    with os_errors(path, "read"):
        data = path.read_bytes()
    _screen(path, data)
    from torch.export.pt2_archive._package import load_pt2

    try:
        contents = load_pt2(io.BytesIO(data))
        return contents.exported_programs["model"].module(check_guards=False)
    except (RuntimeError, ValueError, KeyError, AssertionError, TypeError) as error:
        reason = first_line(error)
        raise ArtifactError(
            f"{path}: torch {torch.__version__} cannot load it: {reason}"
        ) from error


def _screen(path: Path, data: bytes) -> None:
    """Refuse whatever could run code or is not the archive format at hand."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
            names = [name.partition("/")[2] for name in archive.namelist()]
            files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a torch.export archive ({error})") from error
    if damaged:
        raise ArtifactError(f"{path}: {damaged} is damaged (checksum)")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ArtifactError(f"{path}: {twice[0]} is in the archive twice")
    if "models/model.json" not in files or files.get("archive_format") != b"pt2":
        raise ArtifactError(f"{path}: not a torch.export archive of PyTorch 2.8 or later")
    if any(name.startswith("data/aotinductor") for name in names):
        raise ArtifactError(f"{path}: holds compiled code; save it with torch.export.save")
    for config in ("weights/model_weights_config", "constants/model_constants_config"):
        _screen_payloads(path, files.get(f"data/{config}.json", b"{}"))
    _screen_sample_inputs(path, files.get("data/sample_inputs/model.pt", b""))
    try:
        _screen_program(path, json.loads(files["models/model.json"]))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: models/model.json is damaged: {error}") from error


def _screen_payloads(path: Path, config: bytes) -> None:
    try:
        entries = json.loads(config).get("config", {}).items()
        for name, entry in entries:
            raw = str(entry["path_name"]).startswith(("weight_", "tensor_"))
            if entry["use_pickle"] or not raw:
                raise ArtifactError(f"{path}: {name} is a pickled object; only raw tensors load")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: a payload config is damaged: {error}") from error


def _screen_sample_inputs(path: Path, data: bytes) -> None:
    """torch tries `weights_only` first and falls back to unpickling: make sure the first passes."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise ArtifactError(f"{path}: its sample inputs hold pickled objects") from error


def _screen_program(path: Path, program: dict[str, Any]) -> None:
    for key, value in _strings(program):
        if key == "target" and not _OPERATOR.fullmatch(value):
            raise ArtifactError(f"{path}: operator {value} is not an ATen operator")
        if key in ("expr_str", "guards_code") and not _is_arithmetic(value):
            raise ArtifactError(f"{path}: expression {value!r} is not plain arithmetic")
        if key in ("in_spec", "out_spec") and value:
            _screen_pytree(path, json.loads(value)[1])


def _screen_pytree(path: Path, spec: dict[str, Any]) -> None:
    if spec["type"] not in _PYTREES:
        raise ArtifactError(f"{path}: takes a {spec['type']}; a tower takes two tensors")
    for child in spec["children_spec"]:
        _screen_pytree(path, child)


def _strings(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON document with the key it stands under."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _strings(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value, key)


def _is_arithmetic(text: str) -> bool:
    """Whether `text` is arithmetic over shape symbols, with no way out of it.

    >>> _is_arithmetic("Symbol('s12', positive=True, integer=True) + 1")
    True
    >>> _is_arithmetic("__import__('os').system('true')")
    False
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _SYMBOLS or _SYMBOL_NAME.fullmatch(name) is not None
        case ast.Attribute(attr=name):
            return name == "size"
        case ast.Constant(value=str(text)):
            return _PLAIN.fullmatch(text) is not None
        case _:
            return isinstance(node, _GRAMMAR)
