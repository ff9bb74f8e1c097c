"""The JSON schema of `erless.yaml`, for editors. `python -m erless.specs.schema [--check]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from erless.specs.config import Config

__all__ = ["SCHEMA_FILE", "schema_text"]

SCHEMA_FILE = Path(__file__).with_name("erless.schema.json")


def schema_text() -> str:
    """The schema as text, as in the file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Config.model_json_schema(), indent=2) + "\n"


def main(arguments: list[str]) -> int:
    """Write the schema, or with `--check` compare; 1 where the file is stale."""
    if arguments != ["--check"]:
        SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
        return 0
    if SCHEMA_FILE.is_file() and SCHEMA_FILE.read_text(encoding="utf-8") == schema_text():
        return 0
    sys.stderr.write(f"{SCHEMA_FILE.name} is stale: run `make schema`\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
