"""What a bundle says of where its weights and settings came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..runtime.bundle import Manifest

DIGEST = "sha256"  # of a part's weights as they were read, whatever the bundle's precision and trees
BROUGHT = "brought"  # rules, and digests of tables, that came with the checkpoint
STATES, NEIGHBOURS = "states", "neighbours"  # tables, by the manifest's entries
POINT = "operating_point"  # what `cascade` means and the images that it was judged with


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
    """The manifest with a note of how many images `rule`, what `cascade` means in it, was judged with."""
    target = origin(manifest) | {POINT: {"rule": rule, "images": images}}
    return replace(manifest, provenance={**manifest.provenance, "target": target})


def point_images(manifest: Manifest) -> int:
    """Images that the bundle's operating point of `cascade` was judged with; 0 where nobody noted that."""
    noted = origin(manifest).get(POINT)
    if not isinstance(noted, dict) or noted.get("rule") != manifest.rules.get("cascade"):
        return 0
    images = noted.get("images")
    return images if isinstance(images, int) else 0


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
