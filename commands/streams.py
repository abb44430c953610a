"""Standard output and error that never stop a command: closed pipes, full disks, letters that cannot be printed."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any, TextIO

_ESCAPED = "cascade-escaped"  # of what the stream's encoding lacks


def open_streams() -> None:
    """Puts streams in the place of `sys.stdout` and `sys.stderr` that take everything.

    What cannot be encoded is escaped; bytes of file names are printed as they are. What cannot be written, since nobody
    reads it any more or a disk is full, is dropped, and `lost` says so.
    """
    codecs.register_error(_ESCAPED, _escape)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # None: it was closed before we started
            continue
        if stream.isatty():
            stream.reconfigure(errors=_ESCAPED)
            continue
        stream.flush()
        raw = _Lenient(stream.fileno(), "w", closefd=False)
        buffer = raw if stream.write_through else io.BufferedWriter(raw)
        lines, through = stream.line_buffering, stream.write_through
        setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, _ESCAPED, None, lines, through))  # type: ignore[arg-type]


def lost(stream: TextIO | None) -> str | None:
    """Why some of what was printed is lost, said once; None where nothing is, or nobody wants it (a closed pipe)."""
    if stream is None:
        return None
    stream.flush()
    raw = getattr(stream, "buffer", None)
    raw = getattr(raw, "raw", raw)
    if not isinstance(raw, _Lenient) or raw.error is None or raw.told:
        return None
    raw.told = True
    return None if raw.error.errno == errno.EPIPE else os.strerror(raw.error.errno or errno.EIO)


class _Lenient(io.FileIO):
    """A file that takes everything: behind the first error what it is given is dropped."""

    error: OSError | None = None
    told = False

    def write(self, data: Any, /) -> int | None:  # bytes or a view of them
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler: bytes of file names (PEP 383) as they are, other letters as in Python's source."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    escaped = b"".join(
        os.fsencode(one) if "\udc80" <= one <= "\udcff" else one.encode("ascii", "backslashreplace") for one in letters
    )
    return escaped, error.end
