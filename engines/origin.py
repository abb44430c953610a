"""What a bundle says of where its weights and settings came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..runtime.bundle import Manifest

DIGEST = "sha256"  # of a part's weights as they were read, whatever the bundle's precision and trees
BROUGHT = "brought"  # rules, and digests of tables, that came with the checkpoint
STATES, NEIGHBOURS = "states", "neighbours"  # tables, by the manifest's entries
POINTS = "operating_points"  # rules as they were judged, by their names, and with how many images


def origin(manifest: Manifest, part: str = "target") -> dict[str, Any]:
    """What the manifest notes of a part; empty where it has no such part."""
    entry = manifest.provenance.get(part)
    return entry if isinstance(entry, dict) else {}


def noted(manifest: Manifest, digests: Mapping[str, str]) -> Manifest:
    """The manifest of a new bundle with the digests of its parts' weights, and what came with the checkpoint."""
    tables = {kind: getattr(manifest, kind) for kind in (STATES, NEIGHBOURS)}
    brought = {"rules": dict(manifest.rules)} | {
        kind: None if file is None else manifest.files[file].sha256 for kind, file in tables.items()
    }
    notes = {part: origin(manifest, part) | {DIGEST: digest} for part, digest in digests.items()}
    notes["target"] |= {BROUGHT: brought}
    return replace(manifest, provenance=manifest.provenance | notes)


def with_point(manifest: Manifest, rule: str, images: int) -> Manifest:
    """The manifest with `rule` as the operating point of its kind, and a note of how many images it was judged with."""
    kind = rule.partition(":")[0]
    notes = _points(manifest) | {kind: {"rule": rule, "images": images}}
    target = origin(manifest) | {POINTS: notes}
    return replace(
        manifest, rules={**manifest.rules, kind: rule}, provenance={**manifest.provenance, "target": target}
    )


def point_images(manifest: Manifest, kind: str) -> int:
    """Images that the bundle's operating point of a rule was judged with; 0 where nobody noted that."""
    noted = _points(manifest).get(kind)
    if not isinstance(noted, dict) or noted.get("rule") != manifest.rules.get(kind):
        return 0
    images = noted.get("images")
    return images if isinstance(images, int) else 0


def _points(manifest: Manifest) -> dict[str, Any]:
    noted = origin(manifest).get(POINTS)
    return noted if isinstance(noted, dict) else {}


def same_target(first: Manifest, second: Manifest) -> bool:
    """Whether two bundles draw with the same target: the same weights and sizes, in whatever precision."""
    return first.model == second.model and same_part(first, second, "target")


def same_part(first: Manifest, second: Manifest, part: str) -> bool:
    """Whether a part has the same weights, or is in neither. Bundles of older versions know only the digest of the
    file in the bundle, which is another with other trees."""
    digests = [origin(manifest, part).get(DIGEST) for manifest in (first, second)]
    if None in digests:
        files = [manifest.files.get(f"{part}.data") for manifest in (first, second)]
        digests = [None if file is None else file.sha256 for file in files]
    return digests[0] == digests[1]
