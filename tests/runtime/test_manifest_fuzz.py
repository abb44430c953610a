"""A manifest that nobody vouches for: hundreds of changes of a good one. Each is refused in one sentence, or the bundle
draws what it drew before."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support import build, save_checkpoints, save_text_encoder
from synthetic.words import OWN_ROW, PADDED_ROW, build_words

from cascade_trt.cli import cli
from cascade_trt.runtime import graph_check
from cascade_trt.runtime.bundle import MANIFEST, CostInfo, KernelInfo, Manifest, PlanInfo, describe_file
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.rules.states import StateTable

DEEP: Any = []
for _ in range(30):
    DEEP = [DEEP]
ODD = (
    None, True, -1, 0, 1, 3, 1 << 20, 1 << 40, 10**30, 0.5, -0.0, float("nan"), float("inf"), 1e-320, "", "x", "../x",
    "/etc/passwd", "target", "\x1b[31m", "\ud800", "[/x]", "y" * 5000, [], [-1], {}, {"x": 1}, DEEP,
)  # fmt: skip
EACH = 1  # so many of these take the place of each value, in turn
# What a caller of these tests does not say, and the image depends on.
DECIDES = (("model", "condition", "positions"), ("model", "condition", "uncond_length"))
SETTINGS: dict[str, Any] = {"guidance_scale": 2.0, "temperature": 1.0, "top_k": 16, "top_p": 1.0, "seed": 5}
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Change:
    """What became of the good manifest, where, and its text."""

    what: str
    place: Place
    text: str


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle that has everything that a manifest can name."""
    folder = tmp_path_factory.mktemp("fuzzed")
    arguments = save_checkpoints(folder / "checkpoints", vocab=16, grid=3)
    text = save_text_encoder(folder / "encoder", width=16)
    trees = ("pair_4", "mixed_4", "dynamic_6x2x3")
    named = (part for name in trees for part in ("--tree", name))
    out = folder / "bundle"
    build(*arguments, "--text", text, "--batch", 2, *named, "--max-nodes", 8, "--out", out)
    pipe = Pipeline.load(out, threads=1, warm=False)
    here, drafts = pipe.identity, [name for name in pipe.manifest.engines if name.startswith("draft.")]
    StateTable(np.zeros((16, pipe.manifest.model.features), np.float16), np.ones(16, np.float32)).save(out / "s.npz")
    costs = CostInfo(
        here.backend, here.version, here.machine, here.threads, [1, 2], [1, 8], [[1.0, 2.0], [1.5, 3.0]],
        {name: [0.5, 0.7] for name in drafts}, 0.1, 0.1, {"pair_4": 2.0}, 3, {"none": [1.0, 1.1]},
    )  # fmt: skip
    plan = PlanInfo(
        "target", "rtx:sm89", "tensorrt-rtx/sm89/target.plan", "tensorrt-rtx/sm89/target.layers.json", "key",
        "tensorrt-rtx", "1.7.1.116", "8.9", "linux-x86_64", "fp32", {"fixed_nodes": 8}, [{"P": 1, "N": 8}],
        {"attention": 2}, 100, "0" * 64, 1.0, 1000,
    )  # fmt: skip
    plans = [plan, replace(plan, target="rtx:sm120", compute_capability="12.0")]  # one file for both
    kernels = [KernelInfo(f"kernels/{sm}.cubin", sm, "nvrtc 13.5", "0" * 64, 9, "1" * 64) for sm in ("sm80", "sm90")]
    content = json.loads((out / MANIFEST).read_text()) | {
        "states": "s.npz", "costs": [asdict(costs)], "rules": {"lantern": "lantern:delta=0.2"},
        "plans": [asdict(info) for info in plans], "kernels": [asdict(info) for info in kernels],
    }  # fmt: skip
    content["files"]["s.npz"] = asdict(describe_file(out / "s.npz"))
    (out / MANIFEST).write_text(json.dumps(content))
    return out


def places(content: Any, here: Place = ()) -> Iterator[Place]:
    """Every value of a manifest, containers before what is in them."""
    if here:
        yield here
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, item in entries:
        yield from places(item, (*here, name))


def at(content: Any, place: Place) -> Any:
    for name in place:
        content = content[name]
    return content


def changes(good: Any, each: int = EACH) -> Iterator[Change]:
    turn = 0
    for place in places(good):
        value = at(good, place)

        def changed(what: str, new: Any, place: Place = place) -> Change:
            content = copy.deepcopy(good)
            at(content, place[:-1])[place[-1]] = new
            return Change(what, place, json.dumps(content))

        for _ in range(each):
            yield changed(f"is {str(ODD[turn % len(ODD)])[:20]!r}", ODD[turn % len(ODD)])
            turn += 1
        turn += 1 if each < len(ODD) else 0  # so that the values of neighbours differ from one container to the next
        if type(value) in (int, float):
            yield from (changed(f"is {new}", new) for new in (value + 1, -value - 1, value * 2 + 1, value // 2))
        elif isinstance(value, list) and value:
            yield from (changed("is shorter", value[:-1]), changed("is longer", [*value, value[0]]))
            yield changed("is turned", value[::-1])
        elif isinstance(value, dict) and value:
            yield changed("is longer", value | {"more": next(iter(value.values()))})
            first, *others = value
            yield changed("has its first entry last", {name: value[name] for name in (*others, first)})
        if isinstance(at(good, place[:-1]), dict):
            content = copy.deepcopy(good)
            del at(content, place[:-1])[place[-1]]
            yield Change("is missing", place, json.dumps(content))


def damaged(good: Any) -> Iterator[Change]:
    """Texts that are no manifest at all."""
    text = json.dumps(good)
    for what, new in {
        "is empty": "", "is cut off": text[: len(text) // 2], "is a list": "[]", "is a number": "4", "is null": "null",
        "is deep": "[" * 100_000, "is closed deep": "[" * 90_000 + "]" * 90_000, "has an entry twice":
        text.replace('"batch": 2', '"batch": 2, "batch": 2'), "is large": text + " " * (5 << 20), "is no Unicode":
        text.replace("bundle", "b\udcff"), "is long": text.replace('"batch": 2', f'"batch": {"2" * 5000}'),
    }.items():  # fmt: skip
        yield Change(what, (), new)


def outcome(folder: Path, change: Change) -> Pipeline | str:
    """What loading says, or what it loads."""
    (folder / MANIFEST).write_bytes(change.text.encode(errors="surrogateescape"))
    try:
        return Pipeline.load(folder, threads=1, warm=False)
    except CascadeError as error:
        return str(error)


def core(manifest: Manifest) -> Manifest:
    """What a drawing can depend on."""
    return replace(manifest, name="", tool="", provenance={}, parity={}, backends={}, request="", plans=[], kernels=[])


def draw(pipe: Pipeline) -> np.ndarray | str:
    """uint8 [H, W, 3], or why there is none."""
    try:
        return np.asarray(pipe.generate("a red apple", **SETTINGS).images[0])
    except CascadeError as error:
        return str(error)


def is_sentence(text: str) -> bool:
    return text.endswith(".") and "\n" not in text and len(text) < 1000 and text.isprintable()


@pytest.fixture(autouse=True)
def graphs_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only manifests change here, and most of the time would go into reading the same graphs."""
    monkeypatch.setattr(graph_check, "read_onnx", cache(graph_check.read_onnx))


def test_every_change_is_refused_or_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    """Figures of costs are no reason to refuse a bundle: `auto` says what is wrong with them, and `info` shows it."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    good = json.loads((bundle / MANIFEST).read_text())
    with Pipeline.load(bundle, threads=1) as pipe:
        expected, drawn = draw(pipe), [core(pipe.manifest)]
    count, accepted = 0, set[Place]()
    for change in (*changes(good), *damaged(good)):
        count += 1
        said = f"{change.place} {change.what}"
        found = outcome(folder, change)
        if isinstance(found, str):
            assert is_sentence(found), f"{said}: {found!r}"
            continue
        accepted.add(change.place)
        if core(found.manifest) in drawn or (change.place[:1] == ("costs",) and count % 4):  # these are many, and alike
            continue
        drawn.append(core(found.manifest))
        image = draw(found)
        if isinstance(image, str):
            assert is_sentence(image) and change.place[0] == "costs", f"{said}: {image}"
        else:
            assert change.place in DECIDES or np.array_equal(image, expected), said
    assert count > 500 and len(drawn) > 50
    for name in ("engine", "target", "file", "report", "backend", "backend_version", "compute_capability", "platform",
                 "precision", "sha256", "bytes"):  # fmt: skip
        assert not accepted & {("plans", 0, name), ("plans", 1, name)}, name  # both entries speak of one file


def test_every_change_of_a_form_is_refused_or_drawn_with(tmp_path: Path) -> None:
    """Of how a model takes prompts that it reads as token ids. Other ids are other prompts, whose image is another;
    what makes no row is refused."""
    for form in (OWN_ROW, PADDED_ROW):
        bundle, _ = build_words(tmp_path / ("own" if form.uncond else "padded"), form)
        folder = Path(shutil.copytree(bundle, bundle.parent / "changed"))
        good = json.loads((bundle / MANIFEST).read_text())
        part = {"text": good["text"], "model": good["model"]}
        drawn, refused = 0, []
        for change in changes(part, each=4):
            content = good | {name: value for name, value in json.loads(change.text).items() if name in part}
            found = outcome(folder, Change(change.what, change.place, json.dumps(content)))
            image = found if isinstance(found, str) else draw(found)
            if isinstance(image, str):
                assert is_sentence(image), f"{change.place} {change.what}: {image!r}"
                refused.append((change.place, change.what))
            else:
                drawn += 1
        assert drawn > 10 and len(refused) > 150
        places_refused = {place for place, _ in refused}
        assert {("text",), ("text", "form"), ("text", "max_length"), ("model", "condition", "vocabulary"),
                ("model", "rounding"), ("model", "condition", "kind")} <= places_refused  # fmt: skip


def test_what_is_shown_of_it(bundle: Path, tmp_path: Path) -> None:
    """By `info` and `doctor`, which print much of what no drawing reads."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    good = json.loads((bundle / MANIFEST).read_text())
    names = ("name", "provenance", "backends", "plans", "kernels", "costs", "rules", "sampling")
    shown = {name: good[name] for name in names}
    shown["parity"] = {name: good["parity"][name] for name in ("target", "embed")}
    for turn, change in enumerate(changes(good | shown, each=1)):
        if change.place[0] not in shown or turn % 19:
            continue
        (folder / MANIFEST).write_text(change.text)
        for command in (["info", str(folder)], ["doctor", str(folder)]):
            result = CliRunner().invoke(cli, command)
            assert result.exit_code in (0, 1, 2), f"{change.place} {change.what}: {result.exception!r}"
            assert result.exception is None or isinstance(result.exception, SystemExit), f"{change}"
