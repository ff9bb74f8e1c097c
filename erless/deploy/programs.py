"""Other people's programs: run with a deadline, their output as text."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from erless.errors import ErlessError, first_line

__all__ = ["run_program"]


def run_program(
    command: Sequence[str], timeout_s: float, refused: type[ErlessError], given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program without a shell; what it prints is kept, whatever bytes it is.

    Args:
        command: the program and its words.
        timeout_s: it is killed behind this.
        refused: the kind of error where it does not end, or cannot be started.
        given: what it reads from its standard input.

    Raises:
        refused: names the program and why.
    """
    try:
        return subprocess.run(
            command,
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise refused(f"{command[0]} did not finish within {timeout_s:g} s") from error
    except OSError as error:
        raise refused(f"cannot start {command[0]}: {first_line(error)}") from error
