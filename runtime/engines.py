"""The engines of a bundle by name; each is loaded when it is first asked for, with those that it is merged with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .backends import Backend, Engine
from .bundle import Manifest
from .errors import CascadeError

TEXT = "text"
_OF_ORT = ("ort-cpu", "ort-cuda")  # the backends that are ONNX Runtime


class Engines(Mapping[str, Engine]):
    """Engines by their names in the manifest: target, embed, condition, decode, text and draft.<tree>."""

    def __init__(self, backend: Backend, folder: Path, manifest: Manifest) -> None:
        ort = backend.identity.backend in _OF_ORT
        self._files = {
            name: folder / (info.read_by_ort if ort else info.file) for name, info in manifest.engines.items()
        }
        self._backend, self._folder, self._merged = backend, folder, manifest.merged
        self._loaded: dict[str, Engine] = {}
        self._of_merged: Mapping[str, Engine] = {}  # in memory together; `_loaded` holds those that were asked for
        self._wrap: Callable[[str, Engine], Engine] | None = None
        self._open = True

    def __getitem__(self, name: str) -> Engine:
        """Raises CascadeError when the backend refuses the graph, KeyError when the bundle has none of this name."""
        self.check_open()
        if name not in self._loaded:
            engine = self._load(name)
            self._loaded[name] = engine if self._wrap is None else self._wrap(name, engine)
        return self._loaded[name]

    def _load(self, name: str) -> Engine:
        if self._merged is None or name not in self._merged.engines:
            return self._backend.load(self._files[name])
        if not self._of_merged:
            files = {engine: self._files[engine] for engine in self._merged.engines}
            self._of_merged = self._backend.load_merged(self._folder / self._merged.file, files)
        return self._of_merged[name]

    def check_open(self) -> None:
        """Raises CascadeError after `close`."""
        if not self._open:
            raise CascadeError("this pipeline is closed: load the bundle again.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def loaded(self) -> list[str]:
        """Names of the engines that are in memory."""
        return list({**self._loaded, **self._of_merged})

    def release(self, name: str) -> None:
        """Frees an engine's memory, and with a merged one that of all of them; it is loaded again when it is next
        asked for."""
        if name in self._of_merged:
            self._loaded = {other: engine for other, engine in self._loaded.items() if other not in self._of_merged}
            self._of_merged = {}
        self._loaded.pop(name, None)

    def replace(self, wrap: Callable[[str, Engine], Engine] | None) -> None:
        """From now on `wrap(name, engine)` stands for each engine; None: the engines themselves again."""
        self._forget()
        self._wrap = wrap

    def close(self) -> None:
        self._forget()
        self._open = False

    def _forget(self) -> None:
        self._loaded.clear()
        self._of_merged = {}
