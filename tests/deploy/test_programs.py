"""Programs of others end in time, or the error names them."""

from __future__ import annotations

import sys

import pytest

from erless.deploy.programs import run_program
from erless.errors import InfraError


def test_what_a_program_prints_is_text_whatever_bytes_it_is() -> None:
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read() + b'\\xff'); sys.exit(3)"
    done = run_program([sys.executable, "-c", code], 60, InfraError, "asked ")
    assert (done.returncode, done.stdout) == (3, "asked \N{REPLACEMENT CHARACTER}")


def test_a_program_that_does_not_end_or_is_not_there_is_named() -> None:
    with pytest.raises(InfraError, match=r"sleep did not finish within 0\.2 s"):
        run_program(["sleep", "60"], 0.2, InfraError)
    with pytest.raises(InfraError, match="cannot start ./absent"):
        run_program(["./absent"], 5, InfraError)
