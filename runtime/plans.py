"""TensorRT engines (plans) of a bundle, and which of them this machine can run.

A plan belongs to the GPU, the version of TensorRT and the platform that it was compiled for. `fit` judges that, for
backends, for the choice between them and for `doctor`.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundle import Manifest, PlanInfo
from .errors import CascadeError

RTX, CLASSIC = "tensorrt-rtx", "tensorrt"
BACKENDS = RTX, CLASSIC  # in the order in which they are tried
EXTRAS = {RTX: "rtx", CLASSIC: "tensorrt"}  # of this package
RTX_CAPABILITIES = ("8.6", "8.9", "12.0", "12.1")  # that TensorRT-RTX compiles for
USABLE, REBUILD, UNKNOWN = "usable", "rebuild", "cannot tell"
_HASHED = 256 << 20  # bytes of a plan: less than half a second
_DISTRIBUTIONS = {RTX: ("tensorrt-rtx", "tensorrt_rtx"), CLASSIC: ("tensorrt", "tensorrt-cu13")}


def this_platform() -> str:
    """Operating system and architecture, "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine().lower()}"


def installed_version(backend: str) -> str | None:
    """The installed version by its package's metadata, without importing it; None when it is missing."""
    from importlib import metadata  # not needed to draw, and a tenth of the time that importing the runtime takes

    for name in _DISTRIBUTIONS[backend]:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def version_numbers(version: str) -> tuple[int, ...]:
    """"1.7.1.116" -> (1, 7, 1, 116); stops at the first part that is not a number."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def capability_text(capability: tuple[int, int]) -> str:
    """As manifests have it: "8.9"."""
    return ".".join(map(str, capability))


@dataclass(frozen=True)
class Here:
    """What plans depend on: `versions` maps backends to their installed versions, `gpu` is (name, capability)."""

    platform: str
    versions: Mapping[str, str | None]
    gpu: tuple[str, tuple[int, int]] | None

    @classmethod
    def look(cls, gpu: tuple[str, tuple[int, int]] | None) -> Here:
        return cls(this_platform(), {backend: installed_version(backend) for backend in BACKENDS}, gpu)


@dataclass(frozen=True)
class Fit:
    """Whether a plan runs: `verdict` is USABLE, REBUILD or UNKNOWN (there is no GPU to ask), `sentence` says why."""

    verdict: str
    sentence: str


def fit(plan: PlanInfo, here: Here, again: str) -> Fit:
    """Whether an unharmed plan runs here; `again` is the sentence that says how to compile it anew."""
    if not _same_platform(plan, here):
        return Fit(REBUILD, f"built for {plan.platform}, this machine is {here.platform}: {again}")
    version = here.versions.get(plan.backend)
    if version is None:
        needs = f"needs {plan.backend} {plan.backend_version}, which is not installed"
        return Fit(REBUILD, f"{needs}: run `pip install 'cascade-trt[{EXTRAS[plan.backend]}]'`.")
    if version_numbers(version) != version_numbers(plan.backend_version):
        built = f"built with {plan.backend} {plan.backend_version}, this machine has {version}"
        return Fit(REBUILD, f"{built}: {again}")
    if here.gpu is None:
        return Fit(UNKNOWN, "the file is whole and the version fits, but there is no GPU here to tell whether it runs.")
    name, capability = here.gpu
    if capability_text(capability) != plan.compute_capability:
        built = f"built for compute capability {plan.compute_capability}, this GPU ({name}) has "
        command = again if plan.target == CLASSIC else again.replace(plan.target, target_for(capability))
        return Fit(REBUILD, f"{built}{capability_text(capability)}: {command}")
    return Fit(USABLE, f"built with {plan.backend} {plan.backend_version} for this GPU.")


def _same_platform(plan: PlanInfo, here: Here) -> bool:
    """TensorRT-RTX's plans go between Linux and Windows on one architecture; TensorRT's do not."""
    if plan.backend == RTX:
        return plan.platform.rpartition("-")[2] == here.platform.rpartition("-")[2]
    return plan.platform == here.platform


def target_for(capability: tuple[int, int]) -> str:
    """What to compile for on such a GPU: "rtx:sm89", or "tensorrt" where TensorRT-RTX does not go."""
    known = capability_text(capability) in RTX_CAPABILITIES
    return f"rtx:sm{capability[0]}{capability[1]}" if known else CLASSIC


@dataclass(frozen=True)
class Plans:
    """The plans of the bundle in `folder`. `graphs` maps engines to the files of their graphs; a target call of the
    bundle has at most `most_nodes`."""

    folder: Path
    graphs: Mapping[str, str]
    entries: Sequence[PlanInfo]
    most_nodes: int

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Plans:
        graphs = {name: info.file for name, info in manifest.engines.items()}
        return cls(folder, graphs, manifest.plans, manifest.most_nodes)

    def has(self, backend: str) -> bool:
        """Whether there are any for this backend."""
        return any(plan.backend == backend for plan in self.entries)

    def again(self, target: str) -> str:
        """How to compile anew."""
        return f"run `cascade-trt compile {self.folder} --target {target}`."

    def read(self, plan: PlanInfo) -> bytes:
        """The plan's file. Raises CascadeError when it is not the one that was compiled; of large ones the size is
        compared alone."""
        file, again = self.folder / plan.file, self.again(plan.target)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise CascadeError(f"{file} cannot be read ({error.strerror}): {again}") from None
        if len(data) != plan.bytes:
            raise CascadeError(f"{file} has {len(data)} bytes instead of {plan.bytes}: {again}")
        if len(data) <= _HASHED and hashlib.sha256(data).hexdigest() != plan.sha256:
            raise CascadeError(f"{file} has changed since it was compiled: {again}")
        return data

    def fitting(self, backend: str, here: Here, target: str | None = None) -> dict[str, PlanInfo]:
        """The plans of one target (None: whichever fits) that run here, by the file name of their graphs.

        Raises CascadeError with the reason, and what to do, where none does.
        """
        groups: dict[str, dict[str, PlanInfo]] = {}
        for plan in self.entries:
            if plan.backend == backend and target in (None, plan.target):
                groups.setdefault(plan.target, {})[plan.engine] = plan
        reasons: list[tuple[bool, str]] = []  # whether it is for this GPU, and what is wrong with it all the same
        for name, plans in groups.items():
            if (problem := self._problem(plans, here, self.again(name))) is None:
                return {self.graphs[engine]: plan for engine, plan in plans.items() if engine in self.graphs}
            built_for = next(iter(plans.values())).compute_capability
            mine = here.gpu is not None and built_for == capability_text(here.gpu[1])
            reasons.append((mine, f"{name} cannot be used here: {problem}"))
        if reasons:
            raise CascadeError(next((reason for mine, reason in reasons if mine), reasons[0][1]))
        wanted = target or (CLASSIC if here.gpu is None or backend == CLASSIC else target_for(here.gpu[1]))
        raise CascadeError(f"{self.folder} holds no engines for {target or backend}: {self.again(wanted)}")

    def _problem(self, plans: Mapping[str, PlanInfo], here: Here, again: str) -> str | None:
        if missing := [engine for engine in self.graphs if engine not in plans]:
            return f"it lacks the engine {missing[0]}: {again}"
        return next((found.sentence for plan in plans.values() if (found := fit(plan, here, again)).verdict != USABLE),
                    None)  # fmt: skip
