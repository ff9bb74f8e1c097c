"""JSON from a file, read within bounds: no number that JSON does not have, no key twice."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from erless.errors import ArtifactError

__all__ = ["MOST_BYTES", "read_json"]

MOST_BYTES = 64 << 20  # a plan of 1,000 tables cut into 254 shards has 25 MB
LONGEST = 40  # characters of a number that are shown


def read_json(text: bytes, where: str) -> Any:
    """What `text`, read from `where`, says.

    Raises:
        ArtifactError: it is larger than any file of ours, not UTF-8, not JSON, nested too deep,
            has a key twice or a number that is not finite.
    """
    if len(text) > MOST_BYTES:
        raise ArtifactError(f"{where}: {len(text):,} bytes, allowed are {MOST_BYTES:,}")
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_refuse,
        )
    except UnicodeDecodeError as error:
        byte = text[error.start]
        raise ArtifactError(
            f"{where}: not UTF-8: byte 0x{byte:02x} at offset {error.start:,}"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{where}: not JSON ({error})") from error
    except RecursionError as error:
        raise ArtifactError(f"{where}: not JSON of ours: nested too deep") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in document if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return document


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:LONGEST]} is beyond what a number holds")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
