"""A YAML file that a person writes, read in bounded time and memory, with the line of each key.

The file is hostile until it is read: its size, depth and number of values are limited before
anything is built, references (`*name`) count as often as they are used, and a key that is there
twice is an error instead of the last one winning.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from erless.errors import ConfigError
from erless.storage.atomic import os_errors

__all__ = ["Keys", "YamlDocument", "read_yaml"]

MOST_BYTES = 256 << 10
MOST_DEPTH = 32
MOST_VALUES = 20_000
MERGE_TAG = "tag:yaml.org,2002:merge"
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")
}

Keys = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that leaves dates as text, as JSON has none, and reads 1e9 as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    "-+0123456789",
)


class YamlDocument(NamedTuple):
    """The keys and values of a file, and the line of each."""

    values: dict[str, Any]
    lines: dict[Keys, int]


def read_yaml(path: Path) -> YamlDocument:
    """Read the file at `path`.

    Raises:
        ConfigError: there is no such file; it is not UTF-8 or not YAML, has a key twice, or is
            larger or deeper than such a file can be: names file, line and key.
        StorageError: it cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    text = _text(path)
    try:
        _check_depth(path, text)
        tree = yaml.compose(text, Loader=_Loader)
        lines = _Lines(path).of(tree)
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    except (ValueError, OverflowError) as error:  # such as a number of 9,000 digits
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found a {type(values).__name__}")
    strange = next((key for key in values if not isinstance(key, str)), None)
    if strange is not None:
        raise ConfigError(f"{path}: key {strange!r} is not a word")
    return YamlDocument(values, lines)


def _text(path: Path) -> str:
    with os_errors(path, "read"), path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: more than {MOST_BYTES:,} bytes: not a file that a person wrote")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from error


def _check_depth(path: Path, text: str) -> None:
    """Refuse a text that is nested too deep, or has too many values, to be built."""
    depth = 0
    for values, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        line = event.start_mark.line + 1 if event.start_mark else 0
        if depth > MOST_DEPTH:
            raise ConfigError(f"{path}:{line}: nested deeper than {MOST_DEPTH} levels")
        if values > MOST_VALUES:
            raise ConfigError(f"{path}:{line}: more than {MOST_VALUES:,} values")


class _Lines:
    """Collects the line of every key of a tree; a node referred to twice is visited twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[Keys, int] = {}
        self._open: list[yaml.Node] = []
        self._values = 0

    def of(self, tree: yaml.Node | None) -> dict[Keys, int]:
        if tree is not None:
            self._visit(tree, ())
        return self._lines

    def _visit(self, node: yaml.Node, keys: Keys) -> None:
        line = node.start_mark.line + 1
        self._values += 1
        if any(node is outer for outer in self._open):
            raise ConfigError(f"{self._path}:{line}: {'.'.join(keys)}: refers to itself")
        if self._values > MOST_VALUES:
            raise ConfigError(f"{self._path}:{line}: more than {MOST_VALUES:,} values")
        if node.tag not in PLAIN_TAGS:
            raise ConfigError(
                f"{self._path}:{line}: {'.'.join(keys)}: {node.tag} is no plain value"
            )
        self._open.append(node)
        if isinstance(node, yaml.MappingNode):
            self._visit_keys(node, keys)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                place = (*keys, str(index))
                self._lines[place] = value.start_mark.line + 1
                self._visit(value, place)
        self._open.pop()

    def _visit_keys(self, node: yaml.MappingNode, keys: Keys) -> None:
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            place = (*keys, str(key.value)[:100])
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE_TAG:
                raise ConfigError(f"{self._path}:{line}: {'.'.join(place)}: a key must be a word")
            if key.value in first:
                raise ConfigError(
                    f"{self._path}:{line}: {'.'.join(place)}: given twice, first in line "
                    f"{first[key.value]}"
                )
            first[key.value] = line
            self._lines[place] = line
            self._visit(value, place)
