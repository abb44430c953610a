"""Signals that stop a command: each as Ctrl-C, so that nothing half-written stays."""

from __future__ import annotations

import os
import signal
import stat
from contextlib import suppress
from types import FrameType


class Stopped:
    """How a command is stopped: `code` is its exit code then."""

    def __init__(self) -> None:
        self.code = 130

    def catch(self) -> None:
        """`kill`, and the terminal that is closed, unless `nohup` has it ignored."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
            signal.signal(hangup, self._hang_up)

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        """What is still said goes nowhere where the terminal is gone: writing to it would fail."""
        self.code = 128 + number
        for descriptor in (1, 2):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        signal.default_int_handler(number, frame)
