"""Files of published models, from the Hugging Face hub: what is needed, from where, under which licence, then fetched.

huggingface_hub does the work: its own cache, access tokens, downloads. One that breaks off goes on behind its last
whole piece of 10 MB. After one that was ended the next begins that file anew, as its part is thrown away (another
process might write it, too); files that are whole are kept. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are its settings.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..runtime.errors import CascadeError
from .published import CHECKPOINTS, HubFiles, Published
from .request import BuildRequest

Progress = Callable[[str, int, int], None]  # what is fetched, bytes so far, bytes in all


@dataclass(frozen=True)
class Listing:
    """What the hub has of `files`: their names and bytes, at one revision."""

    files: HubFiles
    revision: str
    licence: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Located:
    """A build's request with all of its files here. `origins` says where fetched ones came from, by part."""

    request: BuildRequest
    origins: Mapping[str, dict[str, str]]


def locate(
    request: BuildRequest, model: str, family: str, published: Published, say: Callable[[str], None],
    progress: Progress,
) -> Located:  # fmt: skip
    """The request with the files of a published model: those that were given, those in checkpoints/<model>/, and the
    others from the hub. What is fetched is said first.

    Raises CascadeError where files are missing and cannot be fetched; it names them, and where to put them.
    """
    settings = {name: value for name, value in published.settings.items() if getattr(request, name) is None}
    request = replace(request, model=family, **settings)
    if request.checkpoint is not None:
        return Located(request, {})  # who brings a checkpoint brings all
    found: dict[str, Path] = {}
    missing: dict[str, HubFiles] = {}
    for part, files in published.parts.items():
        if getattr(request, part) is None and not (part == "text" and request.without_text):
            place = files.local(model, part == "checkpoint", published.parts.get("checkpoint"))
            if place is None:
                missing[part] = files
            else:
                say(f"{part}: {place}")
                found[part] = place
    if not missing:
        return Located(replace(request, **found), {})
    fetched = _Hub(model, list(missing.values())).fetch(say, progress)
    origins = {}
    for part, files in missing.items():
        found[part], revision = fetched[files]
        origins[_PARTS.get(part, part)] = {"repository": files.repo, "revision": revision}
    return Located(replace(request, **found), origins)


_PARTS = {"checkpoint": "target"}  # as a manifest calls them


class _Hub:
    """The hub, for what is missing of one model."""

    def __init__(self, model: str, missing: list[HubFiles]) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.errors
        except ImportError:
            raise CascadeError(
                f"{self._advice(model, missing)}, or run `pip install 'cascade-trt[hub]'` to have them fetched."
            ) from None
        self._hub, self._model, self._missing = huggingface_hub, model, missing

    def fetch(self, say: Callable[[str], None], progress: Progress) -> dict[HubFiles, tuple[Path, str]]:
        """Where each lies now, and its revision."""
        with self._errors():
            try:
                listings = [self._list(files) for files in self._missing]
            except Exception as error:
                if not self._is_unreachable(error):
                    raise
                return self._from_cache(say, error)
            for listing in listings:
                files, size = len(listing.sizes), sum(listing.sizes.values())
                say(
                    f"{listing.files.repo}: {files} file{'s' * (files != 1)}, {_gigabytes(size)}, licence "
                    f"{listing.licence}, revision {listing.revision[:12]}"
                )
            self._check_room(listings)
            counter = _Counter(progress, sum(sum(listing.sizes.values()) for listing in listings))
            return {listing.files: (self._download(listing, counter), listing.revision) for listing in listings}

    def _list(self, files: HubFiles) -> Listing:
        info = self._hub.HfApi().model_info(files.repo, files_metadata=True)
        held = {one.rfilename: one.size or 0 for one in info.siblings or ()}
        sizes = {name: held[name] for name in files.chosen(held)}
        if absent := [name for name in files.wanted if "*" not in name and name not in sizes]:
            raise CascadeError(f"{files.repo} on the hub has no {' or '.join(absent)}: {self._put(files)}.")
        licence = getattr(info.card_data, "license", None) if info.card_data is not None else None
        if not info.sha:
            raise CascadeError(f"the hub does not say which revision of {files.repo} it has: try again later.")
        return Listing(files, info.sha, str(licence or "not stated"), sizes)

    def _check_room(self, listings: list[Listing]) -> None:
        cached = self._hub.try_to_load_from_cache
        needed = sum(
            size for one in listings for name, size in one.sizes.items()
            if not isinstance(cached(one.files.repo, name, revision=one.revision), str)
        )  # fmt: skip
        cache = Path(self._hub.constants.HF_HUB_CACHE)
        place = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
        if needed > (free := shutil.disk_usage(place).free):
            raise CascadeError(
                f"{_gigabytes(needed)} are to be fetched into {cache}, where {_gigabytes(free)} are free: make room, "
                "or set HF_HOME to another disk."
            )

    def _download(self, listing: Listing, counter: _Counter) -> Path:
        """All files of one listing; returns the file, or their folder."""
        places = []
        for name in listing.sizes:
            place = self._hub.hf_hub_download(
                listing.files.repo, name, revision=listing.revision, tqdm_class=counter.of(name)
            )
            counter.done(name, listing.sizes[name])
            places.append((name, Path(place)))
        if listing.files.file is not None:
            return places[0][1]
        name, place = places[0]
        return place.parents[name.count("/")]

    def _from_cache(self, say: Callable[[str], None], error: Exception) -> dict[HubFiles, tuple[Path, str]]:
        """What was fetched before, where the hub cannot be reached."""
        try:
            cached = {repo.repo_id: repo.revisions for repo in self._hub.scan_cache_dir().repos}
        except self._hub.errors.CacheNotFound:
            cached = {}
        found = {}
        for files in self._missing:
            needed = {name for name in files.wanted if "*" not in name}
            whole = [
                one for one in cached.get(files.repo, ()) if needed <= {file.file_name for file in one.files}
            ]  # fmt: skip
            if not whole:
                raise error
            newest = max(whole, key=lambda one: one.last_modified)
            folder = Path(newest.snapshot_path)
            found[files] = (folder if files.file is None else folder / files.file, newest.commit_hash)
        say(f"the hub cannot be reached ({_reason(error)}): taking what was fetched before.")
        return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the hub refuses as CascadeError."""
        errors = self._hub.errors
        try:
            yield
        except CascadeError:
            raise
        except errors.GatedRepoError as error:
            raise CascadeError(
                f"a repository asks you to accept its licence ({_reason(error)}): do that on its page, run `hf auth "
                "login`, then this command again."
            ) from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
            advice = self._advice(self._model, self._missing)
            raise CascadeError(f"the hub does not have what is needed ({_reason(error)}): {advice}.") from None
        except OSError as error:
            if self._is_unreachable(error):
                raise self._unreachable(error) from None
            reason = f"files could not be fetched ({_reason(error)})"
            raise CascadeError(f"{reason}: mend that, then run it again.") from None
        except Exception as error:  # httpx's errors, and those of the hub's own kinds
            raise self._unreachable(error) from None

    def _is_unreachable(self, error: Exception) -> bool:
        """Whether no answer came, rather than a refusal."""
        errors = self._hub.errors
        kinds = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
        return isinstance(error, kinds) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore")

    def _unreachable(self, error: Exception) -> CascadeError:
        return CascadeError(
            f"the hub cannot be reached ({_reason(error)}): {self._advice(self._model, self._missing)}, or run it "
            "again, which keeps the files that are whole."
        )

    def _advice(self, model: str, missing: list[HubFiles]) -> str:
        """Where each file that is missing may be put."""
        by_repo: dict[str, list[str]] = {}
        for files in missing:
            by_repo.setdefault(files.repo, []).extend(files.places)
        listed = "; ".join(f"{', '.join(places)} (of {repo})" for repo, places in by_repo.items())
        return f"put these files into {CHECKPOINTS / model}/: {listed}"

    def _put(self, files: HubFiles) -> str:
        return self._advice(self._model, [files])


class _Counter:
    """Bytes of all files together."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done, self._now = progress, total, 0, 0

    def of(self, name: str) -> type[Any]:
        """What huggingface_hub tells of a file: a bar of its own that shows nothing."""
        from huggingface_hub.utils import tqdm

        counter = self

        class Told(tqdm):
            def __init__(self, *args: Any, **given: Any) -> None:
                super().__init__(*args, **{**given, "disable": True})
                counter._tell(name, int(given.get("initial") or 0))

            def update(self, n: float | None = 1) -> bool | None:
                counter._tell(name, int(n or 0))
                return super().update(n)

        return Told

    def _tell(self, name: str, size: int) -> None:
        self._now += size
        self._progress(f"fetching {name}", min(self._done + self._now, self._total), self._total)

    def done(self, name: str, size: int) -> None:
        """A file is there, fetched or not."""
        self._done, self._now = self._done + size, 0
        self._tell(name, 0)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{(lines or [type(error).__name__])[0]:.200}".rstrip(".:")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
