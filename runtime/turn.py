"""Who draws with a pipeline: one at a time, and a stream that is open may be driven by one thread after another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import CascadeError

_LOOK = 0.5  # seconds between two looks at whether what is waited for can still end


class Turn:
    """A lock that knows the thread which drives what holds it: not always the one that took it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._driver: threading.Thread | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for the turn. Raises CascadeError where that would be for ever, as the caller drives what holds it."""
        if not self._acquired():
            raise CascadeError(
                "this pipeline is drawing: finish or close its open stream first, and draw with a second pipeline or "
                "`Pipeline.batch` inside a callback."
            )
        with self._until_released():
            yield

    @contextmanager
    def taken_or_own(self) -> Iterator[None]:
        """Waits for the turn, but not for what the caller drives."""
        if not self._acquired():
            yield
            return
        with self._until_released():
            yield

    def goes_on(self) -> None:
        """What holds the turn is driven by the calling thread from now on."""
        self._driver = threading.current_thread()

    def _acquired(self) -> bool:
        """Waits for the lock; False, without it, where the caller is what it would wait for."""
        while not self._is_mine():
            if self._lock.acquire(timeout=_LOOK):
                return True
        return False

    def _is_mine(self) -> bool:
        """Whether nobody but the caller could end what holds the turn: it drives it, or its driver is no more."""
        driver = self._driver
        return driver is not None and (driver is threading.current_thread() or not driver.is_alive())

    @contextmanager
    def _until_released(self) -> Iterator[None]:
        """With the lock held."""
        self._driver = threading.current_thread()
        try:
            yield
        finally:
            self._driver = None
            self._lock.release()
