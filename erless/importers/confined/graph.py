"""Run a whole model of an archive, and what was made of it, in a process that can do nothing else.

`TriedModel` starts the process, `python -m erless.importers.confined.graph`, which imports torch,
gives up its rights (`kernel`), limits itself (`limits`), and only then opens the archive. It is
asked twice, a line of JSON each: to run the model on a made-up example, and to compare the bundle
that was cut from it. Tables that the archive lacks are then those of the bundle.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from erless.errors import ArtifactError, ErlessError, ModelError, StorageError
from erless.importers.confined.kernel import drop_rights
from erless.importers.confined.limits import Limits, set_limits
from erless.importers.confined.tower import environment
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.storage.tensors import TensorFile

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from erless.importers.graph.program import Example

__all__ = ["TriedModel"]

DEADLINE_S = 120  # for each answer, and 1 s for each 50 MB
CPU_S = 60  # likewise
MEMORY_BYTES = 2 << 30  # beyond torch's own and six times the archive, which is mapped
OPEN_FILES = 1 << 14  # a table each
_BYTES_PER_S = 50 << 20
_ERRORS: dict[str, type[ErlessError]] = {
    kind.__name__: kind for kind in (ArtifactError, ModelError, StorageError)
}


class _Question(BaseModel):
    """A bundle to compare; `tables`: weight of the module → table, where the archive has zeros."""

    model_config = ConfigDict(extra="forbid")

    bundle: Path | None = None
    tables: dict[str, str] = {}


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    error: Literal["", "ArtifactError", "ModelError", "StorageError"] = ""
    message: str = ""
    batch_min: int = 1
    enforced: tuple[str, ...] = ()


class TriedModel:
    """The model in the archive at `path`, running in a process of its own.

    Raises:
        ArtifactError: it is no archive, or holds what is not on erless' lists.
        ModelError: it does not take the made-up example, or needs more than the limits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size if path.is_file() else 0
        self._deadline_s = DEADLINE_S + size // _BYTES_PER_S
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, path.absolute()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=environment(),
        )
        try:
            self.enforced = self._ask(_Question()).enforced
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def smallest_batch(self, bundle: Path, tables: Mapping[str, str] | None = None) -> int:
        """Compare the bundle with the model. See `erless.importers.graph.check.smallest_batch`.

        Args:
            bundle: its folder.
            tables: weights that the archive lacks, by the names that the rebuilt module gives
                them, and the tables of the bundle that they are.

        Raises:
            ModelError: they predict otherwise.
        """
        question = _Question(bundle=bundle.absolute(), tables=dict(tables or {}))
        return self._ask(question).batch_min

    def _ask(self, question: _Question) -> _Answer:
        """Send a line, and take the answer."""
        process = self._process
        to_it, from_it = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        watch = threading.Timer(self._deadline_s, process.kill)
        watch.start()
        try:
            to_it.write(question.model_dump_json() + "\n")
            to_it.flush()
            text = from_it.readline()
        except BrokenPipeError:
            text = ""
        finally:
            watch.cancel()
        try:
            answer = _Answer.model_validate_json(text)
        except ValidationError as error:
            process.kill()
            _, said = process.communicate()
            last = (said.strip().splitlines() or ["no output"])[-1][:300]
            raise ModelError(
                f"{self._path}: running the model ended with status {process.returncode}, at most "
                f"{self._deadline_s} s and {MEMORY_BYTES >> 30} GiB of memory: {last}"
            ) from error
        if answer.error:
            raise _ERRORS[answer.error](answer.message)
        return answer


def main() -> None:
    """Be the process: give up all rights, run the model, then compare bundles with it."""
    import torch

    import erless.dlrm.whole_graph  # everything is imported before rights are gone
    import erless.importers.graph.check
    import erless.importers.graph.made_up

    path = Path(sys.argv[1])
    torch.set_num_threads(1)
    size = path.stat().st_size if path.is_file() else 0
    cpu_s = CPU_S + size // _BYTES_PER_S
    set_limits(Limits(cpu_s, MEMORY_BYTES + 6 * size, OPEN_FILES))
    enforced = ("limits", *drop_rights())
    model = None
    for line in sys.stdin:
        try:
            if model is None:
                model = erless.importers.graph.made_up.run_model(path)
                answer = _Answer(enforced=enforced)
            else:
                question = _Question.model_validate_json(line)
                answer = _Answer(batch_min=_compare(question, *model))
        except (ArtifactError, ModelError, StorageError) as error:
            answer = _Answer.model_validate({"error": type(error).__name__, "message": str(error)})
        print(answer.model_dump_json(), flush=True)


def _compare(question: _Question, module: GraphModule, example: Example) -> int:
    from erless.dlrm.graph_archives import from_numpy
    from erless.dlrm.whole_graph import WholeGraph
    from erless.importers.graph.check import smallest_batch

    assert question.bundle is not None  # noqa: S101 - the first question is answered
    bundle = question.bundle
    manifest = BundleManifest.open(bundle)
    specs = {table.name: table for table in manifest.model.tables}
    for weight, table in question.tables.items():
        rows = TensorFile(manifest.table_file(bundle, specs[table])).map(TABLE_TENSOR)
        setattr(module, weight, from_numpy(rows))
    return smallest_batch(WholeGraph(bundle, verify=False), module, example)


if __name__ == "__main__":
    main()
