"""What a bundle learned on this machine, kept when it is built again; what cannot be kept is told by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..runtime.backends.kernels.info import SUFFIX
from ..runtime.bundle import MANIFEST, CostInfo, Manifest, read_manifest
from ..runtime.engine_info import PLAN_SUFFIX, REPORT_SUFFIX
from ..runtime.errors import CascadeError
from ..runtime.files import describe_file
from ..runtime.rulebook import Rulebook
from .origin import BROUGHT, NEIGHBOURS, STATES, origin, point_images, same_part, same_target, with_point
from .publish import files_below, link
from .taken import dropped, take_over, told

_WRITTEN = (".onnx", ".data", ".npy", ".npz", PLAN_SUFFIX, REPORT_SUFFIX, SUFFIX)  # by builds, beside the names below
_NAMED = (MANIFEST, "tokenizer.json")


@dataclass
class Carried:
    """The new manifest, and in words what was kept of the old bundle and what was not, with the reason."""

    manifest: Manifest
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    before: Manifest | None = None  # of the old bundle

    def sentences(self) -> Iterator[str]:
        if self.kept:
            yield f"kept of the bundle before: {', '.join(self.kept)}"
        yield from told(self.dropped)

    def engines_dropped(self, manifest: Manifest, out: Path) -> list[str]:
        """Sentences on engines and kernels of the old bundle, which is still in `out`, that the new one has not: what
        was not taken over may have been compiled anew by then."""
        if self.before is None:
            return []
        return told(dropped(manifest, out, self.before))


def carry_over(stage: Path, manifest: Manifest, out: Path) -> Carried:
    """Takes over into `stage`, whose manifest is given, what commands and users added to the bundle in `out`.

    Rules, tables and costs that `calibrate` wrote stay as long as the target is the same, and win over those that come
    with the checkpoint; what was compiled stays where it fits; files that are none of the bundle's stay always. Nothing
    is taken where there is no bundle.
    """
    carried = Carried(manifest)
    if not (out / MANIFEST).is_file():
        return carried
    try:
        old = read_manifest(out)
    except CascadeError:
        _files(carried, stage, out, None)
        carried.dropped.append("what was calibrated, if anything, for its manifest cannot be read")
        return carried
    carried.before, same = old, same_target(old, manifest)
    for kind in (STATES, NEIGHBOURS):
        _table(carried, stage, out, old, same, kind)
    _rules(carried, stage, old, same)
    _costs(carried, old, same)
    carried.manifest = take_over(stage, carried.manifest, out, old)
    _files(carried, stage, out, old)
    return carried


_OTHER = "it belongs to another target"


def _brought(manifest: Manifest) -> dict[str, Any] | None:
    """What came with the checkpoint; None in a bundle of a version that did not note it."""
    brought = origin(manifest).get(BROUGHT)
    return brought if isinstance(brought, dict) else None


def _table(carried: Carried, stage: Path, out: Path, old: Manifest, same: bool, kind: str) -> None:
    """A table that the manifest names under `kind`, where it is not the one that a build wrote."""
    new, brought, name = carried.manifest, _brought(old), getattr(old, kind)
    if name is None or (info := old.files.get(name)) is None:
        return
    theirs = getattr(new, kind)
    if theirs is not None and new.files[theirs].sha256 == info.sha256:
        return
    if (kind == NEIGHBOURS) if brought is None else (brought.get(kind) == info.sha256):
        return  # it came with the checkpoint, which now brings another, or none
    what, reason = f"the table of {kind}", None if same else _OTHER
    if same and not ((out / name).is_file() and describe_file(out / name) == info):
        reason = "its file is damaged"
    if reason is not None:
        again = ": run `cascade-trt calibrate states` again" if kind == STATES else ""
        carried.dropped.append(f"{what} ({reason}{again})")
        return
    (stage / name).unlink(missing_ok=True)
    link(out / name, stage / name)
    carried.manifest = replace(new, **{kind: name}, files={**new.files, name: info})
    carried.kept.append(what)


def _rules(carried: Carried, stage: Path, old: Manifest, same: bool) -> None:
    brought = _brought(old)
    theirs = {} if brought is None else brought.get("rules") or {}
    for name, rule in old.rules.items():
        new = carried.manifest
        if rule in (new.rules.get(name), theirs.get(name)):
            continue  # nothing to keep, or it came with the checkpoint
        again = f": run `cascade-trt calibrate thresholds --rule {name}` again" if name in ("cascade", "swap") else ""
        if not same:
            carried.dropped.append(f"rule `{name}` as {rule} ({_OTHER}{again})")
            continue
        try:
            kept = replace(new, rules={**new.rules, name: rule})
            Rulebook(stage, kept).rule(name)
        except CascadeError as error:
            carried.dropped.append(f"rule `{name}` as {rule} ({str(error).rstrip('.')})")
            continue
        images = point_images(old, name)
        carried.manifest = with_point(kept, rule, images) if images else kept
        carried.kept.append(f"rule `{name}` as {rule}")


def _costs(carried: Carried, old: Manifest, same: bool) -> None:
    new, again = carried.manifest, "run `cascade-trt calibrate costs` again"
    reason = None if same else _OTHER
    if same and not same_part(old, new, "drafter"):
        reason = "it was measured with another drafter"
    if same and old.engines["target"].precision != new.engines["target"].precision:
        reason = "it was measured in another precision"
    for info in old.costs:
        if reason is not None or info.problem() is not None:
            carried.dropped.append(f"{_costs_of(info)} ({reason or info.problem()}: {again})")
            continue
        carried.manifest = replace(carried.manifest, costs=[*carried.manifest.costs, info])
        missing = [name for name in new.engines if name.startswith("draft.") and name not in info.draft]
        more = f" (without {', '.join(missing)}: {again} to cover it)" if missing else ""
        carried.kept.append(_costs_of(info) + more)


def _costs_of(info: CostInfo) -> str:
    return f"costs on {info.machine} with {info.threads} thread{'s' * (info.threads != 1)}"


def _files(carried: Carried, stage: Path, out: Path, old: Manifest | None) -> None:
    """Files that no build wrote. Those of a manifest that cannot be read are told by their names."""
    own: set[str] | None = None
    if old is not None:
        own = {*_NAMED, *old.files, *(info.file for info in old.kernels)}
        own |= {file for plan in old.plans for file in plan.files}
    for path in sorted(files_below(out)):
        name = path.relative_to(out)
        ours = path.name in _NAMED or path.name.endswith(_WRITTEN) if own is None else str(name) in own
        if ours:
            continue
        if os.path.lexists(stage / name):
            carried.dropped.append(f"{name} (the new bundle has a file of that name)")
            continue
        link(path, stage / name)
        carried.kept.append(str(name))
