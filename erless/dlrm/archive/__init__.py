"""`torch.export` archives, taken apart without torch's loader and rebuilt from checked parts.

torch's own loader unpickles what an archive asks it to and evaluates the strings that describe
sizes. Here an archive is data: records of known names and sizes (`container`), JSON of bounded
size (`document`) that fits torch's schema (`schema`, `tensor_schema`), expressions by a grammar
(`expressions`), inputs and outputs (`signature`), weights as raw bytes (`payload`), operators of a
closed list (`operators`, `arguments`, `arithmetic`), and a graph rebuilt from that (`graph`).
"""

from __future__ import annotations

from erless.dlrm.archive.graph import (
    Archive,
    build_module,
    move_module,
    read_archive,
    take_expanded,
)
from erless.dlrm.archive.once import compute_once
from erless.dlrm.archive.signature import Range
from erless.dlrm.archive.tower import TowerShape, load_exported, tower_module, tower_shape

__all__ = [
    "Archive",
    "Range",
    "TowerShape",
    "build_module",
    "compute_once",
    "load_exported",
    "move_module",
    "read_archive",
    "take_expanded",
    "tower_module",
    "tower_shape",
]
