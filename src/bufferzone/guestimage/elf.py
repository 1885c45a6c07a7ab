"""The little of ELF64 (little endian) that a builder needs: sections, notes, size. Loads nothing.

Source: elf(5). Every malformed or truncated input raises `ValueError`.
"""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_PT_NOTE = 4
_SHT_NOBITS = 8
_EM_X86_64 = 62


class Elf:
    """A parsed file: `sections` maps a name to (offset, size), `segments` are (type, offset, size)."""

    def __init__(self, data: bytes) -> None:
        try:
            self._parse(data)
        except (struct.error, IndexError) as error:
            raise ValueError("truncated ELF file") from error

    def _parse(self, data: bytes) -> None:
        fields = _HEADER.unpack_from(data, 0)
        if fields[0][:6] != b"\x7fELF\x02\x01" or fields[2] != _EM_X86_64:
            raise ValueError("not an ELF file for x86-64")
        phoff, shoff = fields[5], fields[6]
        phnum, shnum, strings_at = fields[10], fields[12], fields[13]
        self.data = data
        segments = [_SEGMENT.unpack_from(data, phoff + i * _SEGMENT.size) for i in range(phnum)]
        self.segments = [(s[0], s[2], s[5]) for s in segments]
        rows = [_SECTION.unpack_from(data, shoff + i * _SECTION.size) for i in range(shnum)]
        names = rows[strings_at][4] if rows else 0
        self.sections = {_c_string(data, names + row[0]): (row[4], row[5]) for row in rows}
        stored = [row[4] + row[5] for row in rows if row[1] != _SHT_NOBITS]
        ends = [offset + size for _, offset, size in self.segments]
        #: bytes of the file that the ELF headers account for; what follows was appended
        self.size = max([shoff + shnum * _SECTION.size, *stored, *ends])
        if self.size > len(data):
            raise ValueError("truncated ELF file")

    def section(self, name: str) -> bytes:
        """The bytes of a section, empty when there is none."""
        offset, size = self.sections.get(name, (0, 0))
        return self.data[offset : offset + size]

    def notes(self) -> list[tuple[str, int]]:
        """(owner, type) of every note in PT_NOTE segments."""
        found = []
        for kind, offset, size in self.segments:
            at, end = offset, offset + size
            while kind == _PT_NOTE and at + _NOTE.size <= end:
                name_size, content_size, note_type = _NOTE.unpack_from(self.data, at)
                name = self.data[at + _NOTE.size : at + _NOTE.size + name_size].rstrip(b"\0")
                found.append((name.decode("latin-1"), note_type))
                at += _NOTE.size + (name_size + 3 & ~3) + (content_size + 3 & ~3)
        return found


def _c_string(data: bytes, at: int) -> str:
    end = data.find(b"\0", at)
    if end < 0:
        raise ValueError("truncated ELF file")
    return data[at:end].decode("latin-1")
