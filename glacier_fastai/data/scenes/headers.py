"""How the bytes of a raster begin: what of them GDAL would read for ever, or dies of, is found before it sees them.

TIFF 6.0 and BigTIFF: chains of directories (https://www.awaresystems.be/imaging/tiff/bigtiff.html). Classic netCDF:
lists of names (https://docs.unidata.ucar.edu/netcdf-c/current/file_format_specifications.html).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

__all__ = ["Read", "check_netcdf", "check_tiff"]

DIRECTORIES, TAGS = 1000, 1000  # most of a TIFF, and most tags of one of them
DESCRIBED = 2**26  # most bytes of all tags but those that count or place its strips and tiles
STRIPS = (273, 279, 324, 325)  # StripOffsets, StripByteCounts, TileOffsets, TileByteCounts
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
NAME, NUMBERS = 256, 100_000  # longest name of netCDF, bytes (NC_MAX_NAME), and most numbers in its header
VALUES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}

Read = Callable[[int, int], bytes]  # of the bytes from one place up to another; fewer where the file ends


def check_tiff(
    read: Read,
) -> None:
    r"""Raise `ValueError` for a TIFF of more directories or tags than any scene has, or that leads in a circle.

    >>> check_tiff(lambda start, stop: (b"II*\0\x08\0\0\0" + bytes(8))[start:stop])
    >>> check_tiff(lambda start, stop: (b"II*\0\x08\0\0\0" + bytes(2) + b"\x08" + bytes(5))[start:stop])
    Traceback (most recent call last):
    ValueError: its directories lead in a circle
    """
    if len(start := read(0, 16)) < 16:
        return  # cut short: GDAL says so
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", start, 2)[0] == 43
    forms = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    count, entry, link = (struct.Struct(order + form) for form in forms)
    (place,) = link.unpack_from(start, 8 if big else 4)
    seen: set[int] = set()
    described = 0
    while place:
        if place in seen:
            raise ValueError("its directories lead in a circle")
        seen.add(place)
        head = read(place, place + count.size)
        if len(head) < count.size:
            return
        (n,) = count.unpack(head)
        if n > TAGS or len(seen) > DIRECTORIES:
            raise ValueError(f"more than {DIRECTORIES:,} directories, or {TAGS:,} tags in one")
        first = place + count.size
        entries = read(first, first + n * entry.size + link.size)
        if len(entries) < n * entry.size + link.size:
            return
        for k in range(n):
            tag, kind, values, _ = entry.unpack_from(entries, k * entry.size)
            described += 0 if tag in STRIPS else values * SIZES.get(kind, 8)
        if described > DESCRIBED:
            raise ValueError(f"more than {DESCRIBED:,} bytes beside its pixels")
        (place,) = link.unpack_from(entries, n * entry.size)


def check_netcdf(
    read: Read,
) -> None:
    r"""Raise `ValueError` for a classic netCDF file with a name longer than netCDF itself allows.

    >>> check_netcdf(lambda start, stop: (b"CDF\1" + bytes(4) + b"\0\0\0\n\0\0\0\1\0\0\1\x2c")[start:stop])
    Traceback (most recent call last):
    ValueError: a name of 300 bytes
    """
    version = read(0, 4)[3]
    size, begin = (8 if version == 5 else 4), (4 if version == 1 else 8)
    at, left = 4 + size, NUMBERS

    def number(width: int = size) -> int:
        nonlocal at, left
        at, left = at + width, left - 1
        if not left:
            raise ValueError(f"a header of more than {NUMBERS:,} numbers")
        found = read(at - width, at)
        if len(found) < width:
            raise EOFError
        return int.from_bytes(found, "big")

    def name() -> None:
        nonlocal at
        if (length := number()) > NAME:
            raise ValueError(f"a name of {length:,} bytes")
        at += -(-length // 4) * 4

    def attributes() -> None:
        nonlocal at
        number(4)
        for _ in range(number()):
            name()
            width, count = VALUES.get(number(4), 8), number()
            at += -(-count * width // 4) * 4

    try:
        number(4)
        for _ in range(number()):
            name()
            number()
        attributes()
        number(4)
        for _ in range(number()):
            name()
            for _ in range(number()):
                number()
            attributes()
            at += 4 + size + begin
    except EOFError:  # cut short: GDAL says so
        return
