"""Which encoding a text file has. UTF-8 is read as it is, a byte order mark is believed, anything else is asked for."""

from __future__ import annotations

import codecs

from feature_repo.contracts.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark starts with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 4096


def to_utf8(content: bytes, source: str, encoding: str | None = None) -> bytes:
    """The content as UTF-8 without a mark.

    Without `encoding`: a mark decides; else UTF-8, where single damaged lines stay as they are (the reader refuses
    them), but a file with several such lines, most of those with other than ASCII, is refused whole. `encoding="utf-8"`
    keeps it and refuses its lines.
    Raises DataError naming the encoding that the bytes look like and how to give it.
    """
    if encoding is None:
        for mark, name in _MARKS:
            if content.startswith(mark):
                encoding = name
                break
    if encoding is not None and codecs.lookup(encoding).name != "utf-8":
        try:
            return content.decode(encoding).removeprefix("\ufeff").encode("utf-8")
        except UnicodeDecodeError as error:
            detail = f"{error.reason} at byte {error.start}"
            raise DataError(f"{source} is not valid {encoding}: {detail}", field="encoding") from error
    content = content.removeprefix(codecs.BOM_UTF8)
    if encoding is None:
        _refuse_other(content, source)
    return content


def _refuse_other(content: bytes, source: str) -> None:
    if (wide := _looks_wide(content)) is not None:
        raise DataError(f"{source} looks like {wide}; give it with --encoding {wide}", field="encoding")
    if content.isascii():
        return
    try:
        content.decode("utf-8")
        return
    except UnicodeDecodeError:
        pass
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if not line.isascii()]
    broken = [(number, line) for number, line in lines if not _is_utf8(line)]
    if len(broken) > 1 and 2 * len(broken) > len(lines):
        number, line = broken[0]
        near = max(0, next(n for n, byte in enumerate(line) if byte >= 0x80) - 12)
        words = line[near : near + 30].decode("cp1252", "replace").strip()
        raise DataError(
            f"{source} is no UTF-8: {len(broken):,} of {len(lines):,} lines with other than ASCII letters are not; it "
            f"looks like cp1252 (latin-1), in which line {number} reads {words!r}. Give it with --encoding cp1252, or "
            "--encoding utf-8 to refuse just those lines",
            field="encoding",
        )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _looks_wide(content: bytes) -> str | None:
    """UTF-16 without a mark: in Western text every other byte is zero."""
    sample = content[:_SAMPLE_BYTES]
    if len(sample) < 4:
        return None
    for name, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[0::2])):
        if zeros.count(0) > 0.4 * len(zeros) and sample.count(0) < 0.6 * len(sample):
            return name
    return None
