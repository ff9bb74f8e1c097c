"""The commented `erless.yaml` that `erless init` writes, drawn from the model's own fields."""

from __future__ import annotations

from enum import Enum
from typing import Any

import yaml
from pydantic import BaseModel

from erless.specs.config import Config

__all__ = ["config_template"]

_HEAD = """\
# yaml-language-server: $schema=erless.schema.json
# erless.yaml: what to serve, for which traffic, within which limits.
# Every key is here; delete what you do not change. Check with `erless config check`.
"""


def config_template(config: Config | None = None) -> str:
    """Every key with its value in `config`, or its default, and its meaning as a comment.

    The first line tells editors where the schema is: beside the file, as `erless init` puts it.
    """
    return _HEAD + "\n".join(_section(config or Config(), 0)) + "\n"


def _section(section: BaseModel, indent: int) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        pad = "  " * indent
        if isinstance(value, BaseModel):
            lines += ["", f"{pad}# {(type(value).__doc__ or '').splitlines()[0]}"]
            lines += [f"{pad}{name}:", *_section(value, indent + 1)]
            continue
        if field.description:
            lines.append(f"{pad}# {field.description}")
        lines.append(f"{pad}{name}: {_scalar(value)}")
    return lines


def _scalar(value: Any) -> str:
    plain = value
    if isinstance(value, tuple):
        plain = [item.value if isinstance(item, Enum) else item for item in value]
    elif value is not None and not isinstance(value, bool | int | float | dict):
        plain = str(value)
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
