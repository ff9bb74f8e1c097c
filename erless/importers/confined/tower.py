"""Try an imported tower on made-up inputs, in a process that can do nothing else.

`try_tower` starts the process, `python -m erless.importers.confined.tower`, which imports torch,
gives up its rights (`kernel`), limits itself (`limits`), and only then opens the archive. One JSON
document goes in and one comes out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from erless.errors import ArtifactError, ErlessError, ModelError, StorageError, first_line
from erless.importers.confined.kernel import drop_rights
from erless.importers.confined.limits import Limits, set_limits
from erless.specs.model import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from erless.dlrm.archive import Range, TowerShape
    from erless.dlrm.tower import ForeignTower

__all__ = ["TriedTower", "environment", "try_tower"]

DEADLINE_S = 120  # importing torch takes up to ten on a slow disk
CPU_S = 60
MEMORY_BYTES = 2 << 30  # beyond torch's own and four times the archive
TOLERANCE = 1e-4
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")  # no credentials
_ERRORS: dict[str, type[ErlessError]] = {
    kind.__name__: kind for kind in (ArtifactError, ModelError, StorageError)
}


class TriedTower(NamedTuple):
    """The batches that a tower takes, as trying it showed.

    Args:
        batch_min: the smallest batch that it takes.
        batch_max: the largest; None is any.
        enforced: the limits that the kernel enforced on the process.
    """

    batch_min: int
    batch_max: int | None
    enforced: tuple[str, ...]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    error: Literal["", "ArtifactError", "ModelError", "StorageError"] = ""
    message: str = ""
    batch_min: int = 1
    batch_max: int | None = None
    enforced: tuple[str, ...] = ()


def try_tower(path: Path, model: ModelSpec) -> TriedTower:
    """Load the archive at `path` and run it on several kinds of input, in a process of its own.

    Raises:
        ArtifactError: it is no archive, or holds what is not on erless' lists.
        ModelError: it does not take the tables of `model`, gives something else than one finite
            prediction per sample, mixes samples, or needs more than the limits.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, path.absolute()],
            input=model.model_dump_json(),
            capture_output=True,
            encoding="utf-8",
            timeout=DEADLINE_S,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{path}: trying the tower takes more than {DEADLINE_S} s") from error
    try:
        answer = _Answer.model_validate_json(done.stdout)
    except ValidationError as error:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1][:300]
        raise ModelError(
            f"{path}: trying the tower ended with status {done.returncode}, at most {CPU_S} s of "
            f"CPU and {MEMORY_BYTES >> 30} GiB of memory: {last}"
        ) from error
    if answer.error:
        raise _ERRORS[answer.error](answer.message)
    return TriedTower(answer.batch_min, answer.batch_max, answer.enforced)


def environment() -> dict[str, str]:
    """The variables of a confined process."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return passed | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}


def main() -> None:
    """Run as the process: read path and model, give up all rights, try the tower, answer."""
    path, model = Path(sys.argv[1]), ModelSpec.model_validate_json(sys.stdin.read())
    import torch

    import erless.dlrm.tower  # noqa: F401 - everything is imported before rights are gone

    torch.set_num_threads(1)
    size = path.stat().st_size if path.is_file() else 0
    set_limits(Limits(CPU_S, MEMORY_BYTES + 4 * size))
    enforced = ("limits", *drop_rights())
    try:
        batch = _try(path, model)
        least = max(1, batch.minimum)
        answer = _Answer(batch_min=least, batch_max=batch.maximum, enforced=enforced)
    except (ArtifactError, ModelError, StorageError) as error:
        answer = _Answer.model_validate(
            {"error": type(error).__name__, "message": str(error), "enforced": enforced}
        )
    sys.stdout.write(answer.model_dump_json())


def _try(path: Path, model: ModelSpec) -> Range:
    """Check shapes, then predictions. Returns the batches that the tower takes."""
    from erless.dlrm.archive import read_archive, tower_module, tower_shape
    from erless.dlrm.tower import ForeignTower

    archive = read_archive(path)
    shape = tower_shape(archive)
    _check_shape(model, shape, path)
    tower = ForeignTower(model, tower_module(archive))
    small = max(1, shape.batch.minimum)
    large = min(small + 2, shape.batch.maximum or small + 2)
    reasons = []
    for kind in ("normal", "positive", "zeros", "ones"):
        try:
            _try_inputs(tower, model, kind, small, large)
        except _BrokenTowerError as error:
            raise ModelError(f"{path}: {error}") from error
        except Exception as error:  # whatever torch raises, the inputs do not fit
            reasons.append(f"on {kind}: {first_line(error)[:300]}")
        else:
            return shape.batch
    widest = max(table.dim for table in model.tables)
    raise ModelError(
        f"{path}: the tower does not take dense {(small, model.dense_features)} and pooled "
        f"{(small, len(model.tables), widest)} to one prediction per sample: {reasons[0]}"
    )


def _check_shape(model: ModelSpec, shape: TowerShape, path: Path) -> None:
    """Compare what the tower was exported for with the tables and features of the model."""
    batch = shape.batch
    if batch.minimum == batch.maximum:
        raise ModelError(
            f"{path}: the tower was exported for a batch of {batch.minimum} and no other; a tower "
            "takes any batch (dynamic_shapes of torch.export.export)"
        )
    of_model = (model.dense_features, len(model.tables), max(table.dim for table in model.tables))
    of_tower = (shape.dense_features, shape.tables, shape.dim)
    if any(size not in (None, own) for size, own in zip(of_tower, of_model, strict=True)):
        features, tables, dim = ("any" if size is None else size for size in of_tower)
        raise ModelError(
            f"{path}: the tower takes dense (B, {features}) and pooled (B, {tables}, {dim}); the "
            f"model has dense (B, {of_model[0]}) and pooled (B, {of_model[1]}, {of_model[2]})"
        )


class _BrokenTowerError(Exception):
    """The tower runs, but its predictions cannot be served."""


def _try_inputs(tower: ForeignTower, model: ModelSpec, kind: str, small: int, large: int) -> None:
    """Predict a batch and the beginning of it; both must agree, since queries share batches."""
    import torch

    with torch.inference_mode():
        dense = _inputs(kind, large, model.dense_features, 0)
        pooled = [_inputs(kind, large, table.dim, 1 + n) for n, table in enumerate(model.tables)]
        whole = tower(dense, pooled)
        again = tower(dense, pooled)
        begin = tower(dense[:small], [vectors[:small] for vectors in pooled])
    if not whole.isfinite().all():
        raise ValueError("it predicts values that are not finite numbers")
    if not torch.equal(whole, again):
        raise _BrokenTowerError("the tower predicts differently each time: export it after .eval()")
    if not torch.allclose(whole[:small], begin, TOLERANCE, TOLERANCE):
        raise _BrokenTowerError(
            "a prediction depends on the other samples of its batch, and queries are batched: was "
            "it exported in training mode? Call .eval() before torch.export.export"
        )


def _inputs(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    """Inputs (rows, columns) of one kind, the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    match kind:
        case "normal":
            return torch.randn(rows, columns, generator=generator)
        case "positive":
            return torch.rand(rows, columns, generator=generator)
        case "zeros":
            return torch.zeros(rows, columns)
        case _:
            return torch.ones(rows, columns)


if __name__ == "__main__":
    main()
