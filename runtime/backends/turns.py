"""Whose turn it is with CUDA, where threads draw at the same time, and the end of what lies on the GPU.

While a call is captured as a CUDA graph, all that any thread queues on its stream becomes part of the graph. ONNX
Runtime is stricter: while it captures, no thread of the process may allocate or free, and a session takes one caller at
a time. So whoever queues, allocates or frees holds `TURN.lock`, and a capture holds it from begin to end.

There is one lock for the process, not one for a device: ONNX Runtime's captures forbid other threads to allocate
whatever they work on, and two pipelines on one GPU have two `CudaDevice`s in one context. Nobody holds it for long, for
to queue takes microseconds. Nobody holds it while waiting for an event, so that one thread queues while another waits.
The exceptions are rare: to capture, to load an engine, and to free.

Memory is freed by finalisers, and those run in any thread at any instant: in the middle of a capture, or while another
thread has its turn. So a finaliser only says what is to be freed, and frees it if nobody has a turn that forbids it. If
somebody has, the next that allocates, captures, waits or finalises does so.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turn:
    """`lock` is re-entrant. It is C's own, taken by `with TURN.lock`: Ctrl-C cannot come between it and its owner."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._capturing = False
        self._dead: deque[Callable[[], object]] = deque()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Nobody else queues anything inside, and nobody frees anything. Python does not look for garbage, either:
        other libraries' objects are in it, which free what is theirs."""
        with self.lock:
            collects = gc.isenabled()
            try:
                self._capturing = True
                gc.disable()
                yield
            finally:
                self._capturing = False
                if collects:
                    gc.enable()
        self.empty()

    def bury(self, free: Callable[[], object]) -> None:
        """Calls `free` now, or when it may be called. Never waits for another thread."""
        self._dead.append(free)
        self.empty()

    def empty(self) -> None:
        """Frees what nobody needs any more, unless another thread has its turn, or something is captured."""
        while self._dead and self.lock.acquire(blocking=False):
            try:
                if self._capturing:
                    return
                while self._dead:
                    self._dead.popleft()()
            finally:
                self.lock.release()


TURN = Turn()
