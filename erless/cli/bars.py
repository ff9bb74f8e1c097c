"""Progress bars on stderr, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from erless.progress import Progress, Silent, Step, Unit

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["bars"]


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


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress for the stages called inside the block: bars with rate and time left.

    Silent where stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield Silent()
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
