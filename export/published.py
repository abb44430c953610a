"""Where the files of published models lie on the hub, and here. Importable without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

    def local(self, model: str, is_checkpoint: bool) -> Path | None:
        """Where it lies for a model already, None where it does not. A checkpoint that is a folder may be the model's
        own."""
        folder = CHECKPOINTS / model
        places = [folder / self.name]
        if is_checkpoint and self.file is None:
            places.append(folder)
        return next((place for place in places if self._lies_in(place)), None)

    def _lies_in(self, place: Path) -> bool:
        """Whether this is the file, or a folder with weights in it."""
        if self.file is not None:
            return place.is_file()
        weights = (pattern for pattern in self.patterns if not pattern.endswith(".json"))
        return any(found.is_file() for pattern in weights for found in place.glob(pattern))


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
