"""What a file of text is by its first bytes, and its bytes without compression. No file is trusted by its name."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from saefast.errors import InputError, check

CHUNK = 1 << 20  # bytes read at a time
HEAD = 512  # the first bytes, by which a file is known; the mark of a tar archive is at 257

COMPRESSIONS = {  # by their first bytes
    b"\x1f\x8b": "gzip",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    **{b"BZh%d\x17rE8P\x90" % level: "bzip2" for level in range(1, 10)},  # of nothing
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{bytes([0x50 + i]) + b"\x2a\x4d\x18": "zstd" for i in range(16)},  # a frame that is skipped
}
TABLES = {  # what pyarrow reads
    b"PAR1": "parquet",
    b"ARROW1\0\0": "arrow file",
    b"\xff\xff\xff\xff": "arrow stream",
}
OTHERS = {  # refused by name: (offset, first bytes)
    (
        0,
        b"PK\x03\x04",
    ): "a zip archive (a Word or Excel document, .npz and .pt files are zip archives as well)",
    (0, b"PK\x05\x06"): "an empty zip archive",
    (257, b"ustar"): "a tar archive",
    (0, b"7z\xbc\xaf\x27\x1c"): "a 7z archive",
    (0, b"Rar!\x1a\x07"): "a rar archive",
    (0, b"\x04\x22\x4d\x18"): "an lz4 file",
    (0, b"\xff\x06\0\0sNaPpY"): "a snappy file",
    (0, b"\x1f\x9d"): "a file of compress (.Z)",
    (0, b"LZIP"): "an lzip file",
    (0, b"\x5d\0\0"): "an lzma file of the old format (.lzma)",
    (0, b"%PDF-"): "a PDF document",
    (0, b"{\\rtf"): "an RTF document",
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"): "an old Office document (.doc, .xls)",
    **{(0, b"\x80" + bytes([i])): "a Python pickle" for i in range(2, 6)},
    (0, b"\x93NUMPY"): "a NumPy array (.npy)",
    (
        8,
        b'{"',
    ): "a safetensors file",  # after eight bytes with the length of the header, of which some are zero
    (0, b"SQLite format 3\0"): "an SQLite database",
    (0, b"\x89HDF\r\n"): "an HDF5 file",
    (0, b"GGUF"): "a GGUF file",
    (0, b"FEA1"): "a Feather file of version 1, which pyarrow writes no more",
    (0, b"PARE"): "an encrypted Parquet file",
    (0, b"Obj\x01"): "an Avro file",
    (0, b"ORC"): "an ORC file",
    (0, b"\x89PNG\r\n"): "a PNG image",
    (0, b"\xff\xd8\xff"): "a JPEG image",
    (0, b"GIF8"): "a GIF image",
    (0, b"II*\0"): "a TIFF image",
    (0, b"MM\0*"): "a TIFF image",
    (0, b"RIFF"): "a RIFF file (WAV, AVI, WebP)",
    (4, b"ftyp"): "an MP4 video",
    (0, b"OggS"): "an Ogg file",
    (0, b"fLaC"): "a FLAC file",
    (0, b"ID3"): "an MP3 file",
    (0, b"\x7fELF"): "a program (ELF)",
    (0, b"MZ"): "a program of Windows",
    (0, b"\xca\xfe\xba\xbe"): "a Java class, or a program of macOS",
    (0, b"\0asm"): "a WebAssembly module",
    (
        0,
        b"version https://git-lfs.github.com/spec/",
    ): "a pointer of git-lfs, not the file itself (run `git lfs pull`)",
}
# A text may begin with these too: they count only where there are control characters as well.
WORDS = (
    b"MZ",
    b"ID3",
    b"ORC",
    b"GGUF",
    b"RIFF",
    b"OggS",
    b"LZIP",
    b"GIF8",
    b"ftyp",
    b'{"',
    b"ustar",
    b"fLaC",
)
CONTROLS = frozenset({*range(9), *range(14, 27), *range(28, 32)})


def known(head: bytes) -> str | None:
    """What begins with `head`: a compression, a table, a name for something else, or None for what may be text."""
    for magic, name in (COMPRESSIONS | TABLES).items():
        if head.startswith(magic):
            return name
    is_binary = not CONTROLS.isdisjoint(head)
    for (offset, magic), name in OTHERS.items():
        if head.startswith(magic, offset) and (is_binary or magic not in WORDS):
            return name
    return None


def opened(path: Path) -> tuple[str, Iterator[bytes]]:
    """What `path` holds, "text" or one of TABLES, and its bytes, decompressed if it is compressed. Tables are not read.

    Raises:
        InputError: it is not text (the message says what it is), it is damaged, or a package is missing.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    kind = known(head)
    if kind not in COMPRESSIONS.values():
        check(kind is None or kind in TABLES.values(), f"text: {path} is {kind}, expected text")
        return kind or "text", _read(path)
    chunks = _decompressed(path, str(kind))
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD:
            break
    inside = known(head[:HEAD])
    is_text = inside is None
    check(is_text, f"text: {path} is {inside} inside of {kind}: decompress it first" if inside else "")
    return "text", _after(head, chunks)


def _after(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(CHUNK), b"")


@contextmanager
def damage(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns the errors of a library that reads `path` into one line. Those of the system (a full disk) pass."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, EOFError, ValueError, MemoryError, *errors)):
            raise
        if isinstance(error, OSError) and error.errno:
            raise
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"text: {path}: damaged {kind} ({line})") from None


def _decompressed(path: Path, kind: str) -> Iterator[bytes]:
    errors: list[type[Exception]] = [zlib.error, lzma.LZMAError]
    new: Callable[[], Any] = bz2.BZ2Decompressor if kind == "bzip2" else lzma.LZMADecompressor
    if kind == "zstd":
        try:
            import zstandard
        except ImportError:
            raise InputError(f"text: {path} is compressed with zstd: `pip install saefast[text]`") from None
        errors.append(zstandard.ZstdError)
        # windows of 2 GiB are those of `zstd --long=31`, in which large dumps are published
        new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
    with damage(path, kind, *errors), path.open("rb") as file:
        if kind == "gzip":
            with gzip.GzipFile(fileobj=file) as stream:
                yield from iter(lambda: stream.read(CHUNK), b"")
        elif kind == "zstd":
            yield from _frames(file, new, lambda decoder, data: decoder.decompress(data), 1 << 10)
        else:
            yield from _frames(file, new, _bounded, CHUNK)


def _bounded(decoder: Any, data: bytes) -> bytes:
    return decoder.decompress(data, CHUNK)


def _frames(
    file: BinaryIO, new: Callable[[], Any], step: Callable[[Any, bytes], bytes], size: int
) -> Iterator[bytes]:
    """The contents of one compressed stream after another. One that ends early, or what is none, raises.

    `size` bytes go in at a time. A decoder of zstd gives all that comes of them, at most 33,000 times as many bytes;
    the others keep what is above CHUNK for the next call.
    """
    decoder = new()
    data = file.read(size)
    while data:
        yield step(decoder, data)
        while not decoder.eof and not getattr(decoder, "needs_input", True):
            yield step(decoder, b"")
        if decoder.eof:
            data = (decoder.unused_data or file.read(size)).lstrip(b"\0")  # xz may be padded with zeros
            while not data and (data := file.read(size)):
                data = data.lstrip(b"\0")
            if not data:
                return
            decoder = new()
        else:
            data = file.read(size)
    raise EOFError("it ends in the middle")
