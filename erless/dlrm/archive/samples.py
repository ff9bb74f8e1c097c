"""The example inputs of an archive: looked through, never loaded.

torch keeps the inputs of the export as a pickle and loads it again with the program. erless needs
them for nothing. Who else opens the archive may load them, so one whose pickle names anything
beyond tensors is refused: the opcodes are listed (`pickletools.genops` executes none of them).
"""

from __future__ import annotations

import pickletools
import re

from erless.dlrm.archive.container import ArchiveRecords, StoredZip
from erless.errors import ArtifactError

__all__ = ["check_samples"]

RECORD = "data/sample_inputs/model.pt"
MAX_PICKLE_BYTES = 256 << 10

_NAMES = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|collections OrderedDict|torch Size"
    r"|torch\._tensor _rebuild_from_type_v2|torch Tensor|(__builtin__|builtins) set"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch (float|int|uint|bfloat)[0-9]+|torch bool|torch\.storage UntypedStorage"
)
_CALLS_BY_NAME = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


def check_samples(records: ArchiveRecords) -> None:
    """Refuse an archive whose example inputs hold anything but tensors and plain values.

    Raises:
        ArtifactError: they do, or are damaged.
    """
    if RECORD not in records.names or records.size(RECORD) == 0:
        return
    where = f"{records.where}: {RECORD}"
    inner = StoredZip(records.view(RECORD), where)
    pickles = [name for name in inner.records if name.endswith("/data.pkl")]
    if len(pickles) != 1 or inner.records[pickles[0]].size > MAX_PICKLE_BYTES:
        raise ArtifactError(f"{where}: its sample inputs are damaged")
    try:
        for opcode, argument, _ in pickletools.genops(inner.read(pickles[0])):
            named = opcode.name == "GLOBAL" and not _NAMES.fullmatch(str(argument))
            if named or opcode.name in _CALLS_BY_NAME:
                raise ArtifactError(
                    f"{where}: its sample inputs hold pickled objects ({str(argument)[:100]})"
                )
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ArtifactError(f"{where}: its sample inputs are damaged: {error}"[:300]) from error
