"""The zip file in a checkpoint, as torch writes it: stored members, a directory, nothing else.

The directory must account for every byte of the file, and each member must match its CRC.
The format is specified in PKWARE's APPNOTE.TXT.
"""

import re
import struct
import zlib

from .header import Refused

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")

MAX_MEMBERS = 32
MAX_DESCRIPTOR = 24
"""The most bytes between two members: a data descriptor with 64-bit sizes."""
MAX_PICKLE_BYTES = 8192
"""A state dict's pickle has about 500. The limit prevents C stack overflow by deep nesting."""
MAX_NOTE_BYTES = 1024
"""torch's own notes (version, byte order, …) have 1 to 40."""
NOTES = re.compile(r"version|byteorder|\.[\w./]+", re.ASCII)


def members(archive: memoryview) -> dict[str, memoryview]:
    """Every member's bytes by name, without the top-level directory of all names.

    Args:
        archive: The whole zip file.

    Raises:
        Refused: It is truncated, has bytes that its directory doesn't account for, or has a
            member that is compressed or doesn't match its CRC.
    """
    try:
        spans = _spans(archive)
    except struct.error:
        raise Refused("its archive is truncated") from None
    found = {}
    for name, (start, end, crc) in spans.items():
        data = archive[start:end]
        if zlib.crc32(data) != crc:
            raise Refused(f"damaged: {name} does not match its checksum")
        found[name] = data
    return found


def _spans(archive: memoryview) -> dict[str, tuple[int, int, int]]:
    """The start and end of each member's data and its CRC, from the directory."""
    n_members, cd_start, cd_end = _directory(archive)
    if not 0 < n_members <= MAX_MEMBERS:
        raise Refused(
            f"its archive has {n_members} members; torch writes 1 to {MAX_MEMBERS}"
        )
    spans: dict[str, tuple[int, int, int]] = {}
    root, at, last = None, cd_start, 0
    for _ in range(n_members):
        head = CENTRAL.unpack_from(archive, at)
        signature, _, _, flags, method = head[:5]
        crc, n_packed, n_bytes, n_name, n_extra, n_comment = head[7:13]
        start = head[16]
        at += CENTRAL.size
        full_name = _name(archive[at : at + n_name])
        extra = archive[at + n_name : at + n_name + n_extra]
        at += n_name + n_extra + n_comment
        if signature != b"PK\x01\x02" or n_comment or at > cd_end:
            raise Refused("its archive's directory is damaged")
        n_bytes, n_packed, start = _wide(extra, n_bytes, n_packed, start)
        if method != 0 or n_packed != n_bytes or flags & 1:
            raise Refused(f"{full_name} is compressed, which torch never does")
        member_root, _, name = full_name.partition("/")
        root = root or member_root
        if member_root != root or name in spans:
            raise Refused(f"its archive has {full_name} besides {root}/")
        _check_name_and_size(name, n_bytes)
        if not 0 <= start - last <= MAX_DESCRIPTOR or not (last or start == 0):
            raise Refused(f"there are bytes before {name} that belong to no member")
        local = LOCAL.unpack_from(archive, start)
        data = start + LOCAL.size + local[9] + local[10]
        local_name = archive[start + LOCAL.size : start + LOCAL.size + local[9]]
        if local[0] != b"PK\x03\x04" or local[3] != 0 or _name(local_name) != full_name:
            raise Refused(f"{name} is not where its archive's directory says")
        last = data + n_bytes
        if last > cd_start:
            raise Refused(f"{name} claims more bytes than its archive has")
        spans[name] = data, last, crc
    if at != cd_end or cd_start - last > MAX_DESCRIPTOR:
        raise Refused("there are bytes after the last member that belong to none")
    return spans


def _directory(archive: memoryview) -> tuple[int, int, int]:
    """The number of members in the directory, and where it starts and ends.

    torch always writes the 64-bit end record before the classic one. Here the classic one
    may be alone, but if there are two they must agree.
    """
    at = len(archive) - END.size
    if at < 0:
        raise Refused("truncated: no torch archive after the header")
    signature, *disks, n_members, n_bytes, start, n_comment = END.unpack_from(
        archive, at
    )
    if signature != b"PK\x05\x06" or n_comment:
        if bytes(archive[:4]) != b"PK\x03\x04":
            raise Refused(
                "what follows the header is not an archive of torch 1.6 or later"
            )
        raise Refused("truncated: its archive has no end record")
    n_members = n_members if n_members == disks[2] else -1
    at64 = at - LOCATOR64.size - END64.size
    if at64 >= 0 and bytes(archive[at64 : at64 + 4]) == b"PK\x06\x06":
        wide = END64.unpack_from(archive, at64)
        locator = LOCATOR64.unpack_from(archive, at64 + END64.size)
        for narrow, other, most in (
            (n_members, wide[7], 2**16 - 1),
            (n_bytes, wide[8], 2**32 - 1),
            (start, wide[9], 2**32 - 1),
        ):
            if narrow not in (other, most):
                raise Refused("its archive's two end records disagree")
        if locator[0] != b"PK\x06\x07" or locator[2] != at64:
            raise Refused("its archive's end record is damaged")
        (n_members, n_bytes, start), at = wide[7:10], at64
    if start + n_bytes != at:
        raise Refused("its archive's directory is not where its end record says")
    return n_members, start, at


def _wide(extra: memoryview, *values: int) -> tuple[int, ...]:
    """The values, with those that are all ones replaced from the 64-bit extra field."""
    narrow = 2**32 - 1
    if narrow not in values:
        return values
    found, at = list(values), 0
    while at < len(extra):
        tag, size = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            wide = iter(struct.unpack_from(f"<{size // 8}Q", extra, at + 4))
            found = [next(wide, v) if v == narrow else v for v in values]
        at += 4 + size
    return tuple(found)


def _name(raw: memoryview) -> str:
    try:
        name = bytes(raw).decode("ascii")
    except UnicodeDecodeError:
        name = ""
    if re.fullmatch(r"[\w.-]+/[\w./]+", name, re.ASCII) is None or ".." in name:
        raise Refused(f"its archive has a member named {bytes(raw)[:40]!r}")
    return name


def _check_name_and_size(name: str, n_bytes: int) -> None:
    if re.fullmatch(r"data/\d{1,4}", name):
        return
    if name == "data.pkl":
        limit = MAX_PICKLE_BYTES
    elif NOTES.fullmatch(name):
        limit = MAX_NOTE_BYTES
    else:
        raise Refused(f"its archive has {name}, which torch.save never writes")
    if n_bytes > limit:
        raise Refused(f"{name} has {n_bytes} bytes, over the limit of {limit}")
