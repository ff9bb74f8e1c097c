"""What pyarrow raises while it reads a file, as our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from erless.errors import ErlessError

__all__ = ["translate_arrow_errors"]


@contextmanager
def translate_arrow_errors(path: Path, kind: type[ErlessError]) -> Iterator[None]:
    """Translate what pyarrow raises while it reads `path` to an error of `kind`.

    Raises:
        ErlessError: of that kind: truncated, damaged, or not what the format says.
    """
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise kind(f"{path}: cannot be read: {_first_line(error)}") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise kind(f"{path}: cannot be read: {error.strerror or _first_line(error)}") from error
    except OSError as error:  # parquet pages that do not decode
        raise kind(f"{path}: damaged: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
