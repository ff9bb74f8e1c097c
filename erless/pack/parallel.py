"""A pack in portions: processes or pods make the slices, this one the rest, the release last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from erless.errors import ArtifactError
from erless.pack.packer import Packed, Packer
from erless.pack.portions import PackStep, PortionRunner, Portions, PortionSizes
from erless.progress import Progress

__all__ = ["pack_in_portions"]


def pack_in_portions(
    packer: Packer, sizes: PortionSizes, runner: PortionRunner, progress: Progress
) -> Packed:
    """Let `runner` make what the store lacks, then write the release.

    Args:
        packer: of the release.
        sizes: of the portions.
        runner: makes portions.
        progress: counts bytes of source rows.

    Raises:
        WorkerError: a portion failed, again and again.
        StoreError: the store is being pruned.
        StorageError: the disk or bucket refused.
    """
    portions = Portions(packer.inputs, sizes)
    everything = [part.key for part in packer.inputs.slices] + portions.piece_keys()
    with packer.store.locked(exclusive=False), ThreadPoolExecutor(1, "beside") as pool:
        packer.keys.take_stock(everything)
        checks = {
            table: pool.submit(packer.inputs.check_table, table)
            for table in portions.cut_tables(packer.keys)
        }
        routing = pool.submit(packer.route)
        for step in PackStep:
            _run(step, packer, portions, runner, progress)
        for table, check in checks.items():
            try:
                check.result()
            except ArtifactError:
                packer.keys.forget(portions.keys_of(table))  # what was made of damage
                raise
        routing.result()
        packed = packer.complete()
        if packed.release is not None:
            packer.keys.forget(portions.piece_keys())
    return packed


def _run(
    step: PackStep, packer: Packer, portions: Portions, runner: PortionRunner, progress: Progress
) -> None:
    wanted = {
        number: portion
        for number, portion in enumerate(portions.of(step))
        if not portions.is_made(portion, packer.keys)
    }
    total = sum(portion.size_bytes for portion in wanted.values())
    if wanted:
        with progress.step(f"{step} tables", total, "bytes") as shown:
            largest_first = sorted(wanted, key=lambda number: -wanted[number].size_bytes)
            runner.run(step, largest_first, lambda number: shown.advance(wanted[number].size_bytes))
