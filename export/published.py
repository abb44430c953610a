"""Where the files of published models lie on the hub, and here. Importable without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

_SAFE = ("model.safetensors", "model.safetensors.index.json")  # what a folder of safetensors is read by
CHECKPOINTS = Path("checkpoints")  # where files that lie here already are looked for, by model


@dataclass(frozen=True)
class HubFiles:
    """Files of a repository: one `file`, or its folder, of which `patterns` are needed."""

    repo: str
    file: str | None = None
    patterns: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names or patterns of what is needed."""
        return self.patterns if self.file is None else (self.file,)

    @property
    def name(self) -> str:
        """What it is called here: the file, or a folder with the repository's own name."""
        return self.file or self.repo.rpartition("/")[2]

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Which files of a repository are needed, of all that it has. A pattern's * does not reach into folders. Where
        a folder has its weights as safetensors, which are read before pickles, it needs no pickles of them."""
        found = [name for name in names if any(_matches(name, wanted) for wanted in self.wanted)]
        if self.file is not None:
            return found
        safe = {PurePosixPath(name).parent for name in found if PurePosixPath(name).name in _SAFE}
        return [name for name in found if not (PurePosixPath(name).parent in safe and _is_pickle(name))]

    def local(self, model: str, is_checkpoint: bool, checkpoint: HubFiles | None = None) -> Path | None:
        """Where it lies for a model already, None where it does not. A checkpoint that is a folder may be the model's
        own; a file may lie in there or in the folder of the model's `checkpoint`, without the folders of its name."""
        folder = CHECKPOINTS / model
        places = [folder / self.name]
        if self.file is not None:
            inside = [folder / checkpoint.name] if checkpoint is not None and checkpoint.file is None else []
            names = dict.fromkeys((self.file, PurePosixPath(self.file).name))
            places = [place / name for place in (folder, *inside) for name in names]
        elif is_checkpoint:
            places.append(folder)
        return next((place for place in places if self._lies_in(place)), None)

    @property
    def places(self) -> list[str]:
        """Where each of the files is looked for in the model's folder here, as text."""
        return [name if self.file is not None else f"{self.name}/{name}" for name in self.wanted]

    def _lies_in(self, place: Path) -> bool:
        """Whether this is the file, or a folder with weights in it."""
        if self.file is not None:
            return place.is_file()
        weights = (pattern for pattern in self.patterns if not pattern.endswith(".json"))
        return any(found.is_file() for pattern in weights for found in place.glob(pattern))


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _is_pickle(name: str) -> bool:
    """Whether it is of a folder's weights in PyTorch's own form, their index among them."""
    return fnmatchcase(PurePosixPath(name).name, "pytorch_model*.bin") or name.endswith("pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Published:
    """A published model: `parts` are options of a build that name files (`checkpoint`, `vq`, `drafter`, `text`), with
    what they name; `settings` are its other options."""

    parts: Mapping[str, HubFiles]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The repositories with their files, for a table."""
        by_repo: dict[str, list[str]] = {}
        for files in self.parts.values():
            by_repo.setdefault(files.repo, []).extend([] if files.file is None else [files.file])
        return "; ".join(f"{repo}: {', '.join(names)}" if names else repo for repo, names in by_repo.items())
