"""Tensors from JSON that the tests of whole servers, whose queries are numbers, do not send."""

from __future__ import annotations

import pytest

from erless.errors import QueryError
from erless.serve.protocol.tensors import TensorSpec, read_tensors

WORDS = TensorSpec("words", ("BYTES",), (-1,))


def entry(*words: str) -> dict[str, object]:
    return {"name": "words", "datatype": "BYTES", "shape": [len(words)], "data": list(words)}


def test_strings_are_read_as_utf8() -> None:
    arrays = read_tensors([entry("a", "ö")], memoryview(b""), [WORDS])
    assert arrays["words"].tolist() == [b"a", "ö".encode()]


def test_a_lone_surrogate_is_refused_as_text() -> None:
    with pytest.raises(QueryError, match="input words: a string is not Unicode text"):
        read_tensors([entry("a", "\ud800")], memoryview(b""), [WORDS])
