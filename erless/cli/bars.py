"""Progress on stderr: bars on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from erless.progress import Progress, Step, Unit

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["bars"]

LINE_S = 10.0  # between two lines where there is no terminal


class _Bars:
    """Draws one bar per step."""

    def __init__(self, rich_progress: RichProgress) -> None:
        self._rich = rich_progress

    @contextmanager
    def step(self, label: str, total: int | None, unit: Unit) -> Iterator[Step]:
        task = self._rich.add_task(label, total=total, unit=unit)
        yield _Bar(self._rich, task)
        self._rich.remove_task(task)


class _Bar:
    def __init__(self, rich_progress: RichProgress, task: TaskID) -> None:
        self._rich, self._task = rich_progress, task

    def advance(self, amount: int) -> None:
        self._rich.advance(self._task, amount)


class _Lines:
    """Tells every `every_s` seconds how far the running steps are; nothing of short ones."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._running: list[_Counted] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def step(self, label: str, total: int | None, unit: Unit) -> Iterator[Step]:
        counted = _Counted(label, total, unit)
        self._running.append(counted)
        try:
            yield counted
        finally:
            self._running.remove(counted)

    def _tell(self) -> None:
        while not self._over.wait(self._every_s):
            for counted in list(self._running):
                print(counted.line(), file=sys.stderr, flush=True)


class _Counted:
    """One step, counted."""

    def __init__(self, label: str, total: int | None, unit: Unit) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._began = time.monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount

    def line(self) -> str:
        """How far it is."""
        told = f"{self._label}: {time.monotonic() - self._began:,.0f} s"
        if self._total:
            return f"{told}, {self._done / self._total:.0%} of {self._total:,} {self._unit}"
        return f"{told}, {self._done:,} {self._unit}" if self._done else told


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress for the stages called inside the block: bars with rate and time left.

    Where stderr is not a terminal, a line every ten seconds.
    """
    if not sys.stderr.isatty():
        with _Lines(LINE_S) as lines:
            yield lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            speed = task.speed or 0.0
            if task.fields.get("unit") == "bytes":
                return Text(f"{speed / 1e6:,.0f} MB/s")
            return Text(f"{speed:,.0f} {task.fields.get('unit', '')}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        Rate(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as rich_progress:
        yield _Bars(rich_progress)
