"""The container: a zip file read record by record, without inflating or unpickling anything.

torch writes every record of an archive stored, never compressed. Only such records are read here,
so nothing can grow on the way from disk to memory: a record's size is known, and lies inside the
file, before a byte of it is read. Names are compared exactly and must stand in a closed list.
Format: APPNOTE.TXT 6.3.10 (zip), torch.export.pt2_archive.constants (names).
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError
from erless.storage.atomic import os_errors
from erless.storage.ranged import LazyBytes

__all__ = ["ArchiveRecords", "Bytes", "Record", "StoredZip"]

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_CRC_OFFSET = 16  # of an entry
_UNKNOWN32 = 0xFFFFFFFF
_ALLOWED_FLAGS = 0x0808  # sizes follow the data; names are UTF-8

MAX_RECORDS = 20_000
MAX_NAME_BYTES = 300
MAX_JSON_BYTES = 32 << 20

# What torch.export.save writes for one program, with the most bytes that each may have.
_RECORDS = {
    "archive_format": 16,
    "archive_version": 16,
    "byteorder": 16,
    ".data/version": 64,
    ".data/serialization_id": 128,
    "models/model.json": MAX_JSON_BYTES,
    "data/weights/model_weights_config.json": MAX_JSON_BYTES,
    "data/constants/model_constants_config.json": MAX_JSON_BYTES,
    "data/sample_inputs/model.pt": 1 << 30,
}
Bytes = NDArray[np.uint8] | LazyBytes
_PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_(0|[1-9][0-9]{0,5})")
_PICKLED = re.compile(r"data/(weights|constants)/[^/]*\.pt|data/constants/\w+_obj_.*")


class Record(NamedTuple):
    """Where the bytes of one record lie in the file, and the checksum they must have.

    crc_begin: where that checksum stands in the file's directory, four bytes.
    """

    begin: int
    size: int
    crc: int
    crc_begin: int


class StoredZip:
    """The records of a zip file in which nothing is compressed, encrypted, repeated or overlapping.

    Args:
        data: the bytes of the file: a memory map, or read by ranges.
        where: how errors name the file.
        format_name: what the file should be, for errors.

    Raises:
        ArtifactError: it is no such file.
    """

    def __init__(self, data: Bytes, where: str, format_name: str = "torch.export archive") -> None:
        self._data, self._where, self._format_name = data, where, format_name
        self.records = self._read_directory()

    def read(self, name: str) -> bytes:
        """The bytes of the record `name`.

        Raises:
            ArtifactError: there is no such record, or its checksum differs.
        """
        data = self._place(name).tobytes()
        self._check(name, data)
        return data

    def view(self, name: str) -> Bytes:
        """The bytes of the record `name`, (size,), where they lie.

        Of a file that is read by ranges nothing is read yet, so its checksum is not compared.

        Raises:
            ArtifactError: there is no such record, or its checksum differs.
        """
        view = self._place(name)
        if isinstance(view, np.ndarray):
            self._check(name, view.data)
        return view

    def _place(self, name: str) -> Bytes:
        record = self.records.get(name)
        if record is None:
            raise ArtifactError(f"{self._where}: there is no record {name}")
        return self._data[record.begin : record.begin + record.size]

    def _check(self, name: str, data: bytes | memoryview) -> None:
        if zlib.crc32(data) != self.records[name].crc:
            raise ArtifactError(f"{self._where}: {name} is damaged (checksum)")

    def _unpack(self, layout: struct.Struct, offset: int, signature: bytes) -> tuple[int, ...]:
        if not 0 <= offset <= len(self._data) - layout.size:
            raise self._damaged("its directory points outside of the file")
        fields = layout.unpack(self._data[offset : offset + layout.size].tobytes())
        if fields[0] != signature:
            raise self._damaged("its directory is damaged")
        return fields[1:]

    def _damaged(self, reason: str) -> ArtifactError:
        return ArtifactError(f"{self._where}: truncated or not a {self._format_name} ({reason})")

    def _directory_place(self) -> tuple[int, int, int]:
        """(offset, bytes, entries) of the central directory."""
        end = len(self._data) - _END.size
        if end < 0:
            raise self._damaged("the file is too short")
        fields = self._unpack(_END, end, b"PK\x05\x06")
        count, size, offset = fields[3], fields[4], fields[5]
        locator = end - _LOCATOR64.size
        if locator >= 0 and self._data[locator : locator + 4].tobytes() == b"PK\x06\x07":
            place = self._unpack(_LOCATOR64, locator, b"PK\x06\x07")[1]
            fields = self._unpack(_END64, place, b"PK\x06\x06")
            count, size, offset = fields[6], fields[7], fields[8]
        if count > MAX_RECORDS:
            raise ArtifactError(f"{self._where}: {count:,} records, at most {MAX_RECORDS:,}")
        if offset + size > len(self._data):
            raise self._damaged("its directory points outside of the file")
        return offset, size, count

    def _read_directory(self) -> dict[str, Record]:
        offset, size, count = self._directory_place()
        records: dict[str, Record] = {}
        place, end = offset, offset + size
        for _ in range(count):
            name, record, place = self._read_entry(place, offset)
            if place > end:
                raise self._damaged("its directory is longer than it says")
            if name in records:
                raise ArtifactError(f"{self._where}: {name} is in the archive twice")
            records[name] = record
        last = 0
        for name, record in sorted(records.items(), key=lambda item: item[1].begin):
            if record.begin < last:
                raise ArtifactError(f"{self._where}: {name} overlaps another record")
            last = record.begin + record.size
        return records

    def _read_entry(self, place: int, directory: int) -> tuple[str, Record, int]:
        fields = self._unpack(_ENTRY, place, b"PK\x01\x02")
        flags, method, crc, packed, size = fields[2], fields[3], fields[6], fields[7], fields[8]
        name_bytes, extra_bytes, comment_bytes, local = *fields[9:12], fields[15]
        if name_bytes > MAX_NAME_BYTES:
            raise ArtifactError(f"{self._where}: a record's name has {name_bytes:,} bytes")
        begin = place + _ENTRY.size
        name = self._decode(begin, name_bytes)
        extra = self._data[begin + name_bytes : begin + name_bytes + extra_bytes].tobytes()
        if _UNKNOWN32 in (size, packed, local):
            size, packed, local = self._long_sizes(name, extra, (size, packed, local))
        if flags & ~_ALLOWED_FLAGS:
            raise ArtifactError(f"{self._where}: {name} is encrypted or patched")
        if method != 0 or packed != size:
            raise ArtifactError(f"{self._where}: {name} is compressed; torch stores records plain")
        data = self._data_begin(name, local)
        if data + size > directory:
            raise ArtifactError(f"{self._where}: {name} reaches past the end of the records")
        return (
            name,
            Record(data, size, crc, place + _CRC_OFFSET),
            begin + name_bytes + extra_bytes + comment_bytes,
        )

    def _long_sizes(
        self, name: str, extra: bytes, values: tuple[int, int, int]
    ) -> tuple[int, int, int]:
        """Replace sizes that need 64 bits by those of the zip64 field among the `extra` fields."""
        place = 0
        while place + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, place)
            place += 4
            if kind == 1 and place + length <= len(extra):
                longs = iter(struct.unpack_from(f"<{length // 8}Q", extra, place))
                size, packed, local = (
                    next(longs, value) if value == _UNKNOWN32 else value for value in values
                )
                return size, packed, local
            place += length
        raise ArtifactError(f"{self._where}: the size of {name} is missing")

    def _data_begin(self, name: str, local: int) -> int:
        fields = self._unpack(_LOCAL, local, b"PK\x03\x04")
        name_bytes, extra_bytes = fields[8], fields[9]
        if self._decode(local + _LOCAL.size, name_bytes) != name:
            raise ArtifactError(f"{self._where}: {name} has another name in its own header")
        return local + _LOCAL.size + name_bytes + extra_bytes

    def _decode(self, place: int, length: int) -> str:
        try:
            name = self._data[place : place + length].tobytes().decode("ascii")
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{self._where}: a record's name is not ASCII") from error
        if not name.isprintable():
            raise ArtifactError(f"{self._where}: a record's name holds control characters")
        return name


class ArchiveRecords:
    """The records of the archive at `path`, by their names without the leading folder.

    Args:
        path: of the archive, or what errors call it.
        data: its bytes; without, the file is mapped.

    Raises:
        ArtifactError: it is not an archive of one exported program, or holds any other record.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: Path | str, data: Bytes | None = None) -> None:
        self.where = str(path)
        self._zip = StoredZip(_map_file(Path(path)) if data is None else data, self.where)
        if not self._zip.records:
            raise ArtifactError(f"{path}: not a torch.export archive (it is empty)")
        self._root = next(iter(self._zip.records)).partition("/")[0]
        self.names = frozenset(map(self._inner_name, self._zip.records))
        self._check_format()
        for name in sorted(self.names):
            self._check_name(name)

    def size(self, name: str) -> int:
        """Bytes of a record. Raises as `place`."""
        return self.place(name).size

    def place(self, name: str) -> Record:
        """Where a record lies.

        Raises:
            ArtifactError: there is no such record.
        """
        if name not in self.names:
            raise ArtifactError(f"{self.where}: there is no record {name}")
        return self._zip.records[f"{self._root}/{name}"]

    def read(self, name: str) -> bytes:
        """The bytes of a record. Raises as `view`."""
        return self.view(name).tobytes()

    def view(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a record, (size,): in a private mapping of the file, or read now.

        Raises:
            ArtifactError: there is no such record, or its checksum differs.
        """
        self.size(name)
        return np.asarray(self._zip.view(f"{self._root}/{name}"))

    def _inner_name(self, name: str) -> str:
        root, slash, inner = name.partition("/")
        if root != self._root or not slash:
            raise ArtifactError(f"{self.where}: {name} lies outside of the folder {self._root}/")
        return inner

    def _check_format(self) -> None:
        expected = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
        for name, content in expected.items():
            limit = _RECORDS[name]
            if name not in self.names or self.size(name) > limit or self.read(name) != content:
                raise ArtifactError(
                    f"{self.where}: not a torch.export archive of PyTorch 2.9 or later "
                    f"({name} is not {content.decode()!r})"
                )
        if "models/model.json" not in self.names:
            raise ArtifactError(f"{self.where}: not a torch.export archive: it holds no program")

    def _check_name(self, name: str) -> None:
        if _PAYLOAD.fullmatch(name):
            return
        if name in _RECORDS:
            if self.size(name) > _RECORDS[name]:
                raise ArtifactError(
                    f"{self.where}: {name} has {self.size(name):,} bytes, at most "
                    f"{_RECORDS[name]:,}"
                )
            return
        if _PICKLED.fullmatch(name):
            raise ArtifactError(
                f"{self.where}: {name} is a pickled object; only raw tensors load "
                "(torch.export.save of PyTorch 2.9 or later writes them)"
            )
        if name.startswith("data/aotinductor/"):
            raise ArtifactError(
                f"{self.where}: {name} holds compiled code; torch.export.save writes none"
            )
        if name.startswith("models/"):
            raise ArtifactError(f"{self.where}: {name} is a second program; one is read, model")
        raise ArtifactError(f"{self.where}: {name} is no record of an archive of one program")


def _map_file(path: Path) -> NDArray[np.uint8]:
    with os_errors(path, "read"):
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path}: not a torch.export archive (it is no file)")
        if path.stat().st_size == 0:
            raise ArtifactError(f"{path}: not a torch.export archive (it is empty)")
        return np.memmap(path, np.uint8, "c")  # pages of our own if anything ever wrote
