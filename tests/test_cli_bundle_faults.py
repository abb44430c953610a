"""Bundles that were damaged, or made to harm: one sentence, exit code 2, and nothing is drawn."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

from cascade_trt.cli import cli
from cascade_trt.runtime.bundle import MANIFEST, STATES, describe_file, read_manifest
from cascade_trt.runtime.rules.states import StateTable

Content = dict[str, Any]


@pytest.fixture
def copy(text_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_bundle, tmp_path / "bundle"))


def generate(bundle: Path, *arguments: str) -> Result:
    out = str(bundle.parent / "images")
    return CliRunner().invoke(cli, ["generate", "a red apple", "--bundle", str(bundle), "--out", out, *arguments])


def refused(bundle: Path, *words: str) -> None:
    result = generate(bundle)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
    assert all(word in result.stderr for word in words), result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert not list(bundle.parent.rglob("*.png"))


def rewrite(bundle: Path, change: Callable[[Content], object]) -> None:
    content = json.loads((bundle / MANIFEST).read_text())
    change(content)
    (bundle / MANIFEST).write_text(json.dumps(content))


def put(value: object, *place: str) -> Callable[[Content], object]:
    def change(content: Content) -> None:
        for name in place[:-1]:
            content = content[name]
        content[place[-1]] = value

    return change


def rehash(bundle: Path, name: str) -> None:
    """As if the bundle had been built so."""
    described = dataclasses.asdict(describe_file(bundle / name))
    rewrite(bundle, lambda content: content["files"].update({name: described}))


# the manifest ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(5, "trees"), ["trees must be a list, not 5"]),
        (put(0, "batch"), ["batch must lie between 1 and 1024"]),
        (put(10**12, "target", "slots"), ["slots must lie between"]),
        (put(10**6, "model", "plan", "rows"), ["rows must be a whole number from 1 to 128"]),
        (put(96, "target", "slots"), ["target.onnx is not the graph", "cache_mask"]),
        (put(20, "target", "slots"), ["too few for a prefix"]),
        (put(34, "target", "most_nodes"), ["34 nodes of an image, not 2 to 33"]),
        (put(40, "drafter", "slots"), ["the drafter", "too few"]),
        (put(10**9, "model", "plan", "codes"), ["more than"]),
        (put(64, "model", "plan", "codes"), ["returns 32 logits"]),
        (put(12, "model", "plan", "rows"), ["too few"]),
        (put(3, "model", "n_layer"), ["target.onnx is not the graph", "past_key.2"]),
        (put(64, "drafter", "head_dim"), ["draft.pair_4.onnx is not the graph", "past_key.0"]),
        (put(64, "model", "pixels"), ["decode.onnx is not the graph", "image"]),
        (put(100, "model", "condition", "width"), ["condition.onnx is not the graph", "features"]),
        (put([36], "model", "plan", "begin"), ["must follow its 32 codes"]),
        (put([32], "model", "plan", "begin"), ["target.onnx is not the graph", "it has no forced"]),
        (put(9, "text", "max_length"), ["gives 9 features"]),
        (put(1000, "text", "pad_id"), ["no token 1000"]),
        (put(float("nan"), "sampling", "temperature"), ["default settings", "temperature must be"]),
        (put(-1.0, "sampling", "guidance_scale"), ["default settings", "guidance_scale must be"]),
        (put(True, "batch"), ["batch must be int, not True"]),
        (lambda c: c["engines"].pop("target"), ["lacks the engine target"]),
        (lambda c: c["engines"].pop("draft.pair_4"), ["is no engine that drafts"]),
        (put(None, "drafter"), ["draft.pair_4", "no drafter"]),
        (put(None, "text"), ["a text engine without a tokenizer"]),
        (put("fp16", "engines", "decode", "precision"), ["precision 'fp16'"]),
        (put([-1, 0], "trees", 0, "parents"), ["a name that means another"]),  # type: ignore[arg-type]
        (put({"a\x1b[2J": 1}, "provenance"), ["cannot be printed"]),
    ],
)  # fmt: skip
def test_values_that_cannot_be(copy: Path, change: Callable[[Content], object], words: list[str]) -> None:
    rewrite(copy, change)
    refused(copy, *words)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": 4, "schema": 4}', " " * (5 << 20), "\ud800", "", "4"])
def test_what_is_no_manifest(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_bytes(text.encode(errors="surrogatepass"))
    refused(copy, MANIFEST)


def test_a_pipe_is_not_waited_for(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    os.mkfifo(copy / MANIFEST)
    refused(copy, "no regular file")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"exact": "lantern:delta=0.5"}, ["is of another rule"]), ({"exact": "exact"}, ["has no settings"]),
        ({"exact": "exact:guard=0"}, ["has no settings"]), ({"strict": "cool:delta=3"}, ["is of another rule"]),
        ({"ar": "exact"}, ["is of another rule"]), ({"ar": "ar:x=1"}, ["cannot be used"]),
        ({"cascade": "cool"}, ["is of another rule"]), ({"cascade": "cascade:speed=3"}, ["'speed=3'"]),
        ({"lantern": "lantern:delta=nan"}, ["delta"]), ({"oak": "oak"}, ["unknown rule 'oak'"]),
    ],
)  # fmt: skip
def test_a_name_keeps_its_rule(copy: Path, rules: dict[str, str], words: list[str]) -> None:
    rewrite(copy, put(rules, "rules"))
    refused(copy, "the operating point", *words)


def test_an_operating_point_may_set_a_rules_own_settings(copy: Path) -> None:
    rewrite(copy, put({"lantern": "lantern:delta=0.5"}, "rules"))
    result = generate(copy, "--rule", "lantern")
    assert result.exit_code == 0 and "lantern:delta=0.5" in result.stderr


# files ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "words"),
    [("../{}", "may lie outside"), ("/etc/{}", "may lie outside"), ("x/../{}", "may lie outside"), ("./{}", "outside")],
)
@pytest.mark.parametrize("engine", [True, False])
def test_files_outside_of_the_bundle(copy: Path, name: str, words: str, engine: bool) -> None:
    """Named by an engine, or among the files."""
    named = name.format("target.onnx")
    (copy.parent / "target.onnx").write_bytes((copy / "target.onnx").read_bytes())

    def change(content: Content) -> None:
        content["files"][named] = content["files"].pop("target.onnx")
        content["engines"]["target"]["file"] = named if engine else "target.data"

    rewrite(copy, change)
    refused(copy, words)


@pytest.mark.parametrize("name", ["target.onnx", "target.data", "tokenizer.json", "neighbours.npy", MANIFEST])
def test_links_that_leave_the_bundle(copy: Path, name: str) -> None:
    (copy / name).rename(copy.parent / "elsewhere")
    (copy / name).symlink_to(copy.parent / "elsewhere")
    refused(copy, name, "a link that leaves it")


def test_links_inside_of_the_bundle(copy: Path) -> None:
    (copy / "target.data").rename(copy / "weights")
    (copy / "target.data").symlink_to("weights")
    (copy.parent / "link").symlink_to(copy)
    assert generate(copy.parent / "link").exit_code == 0


@pytest.mark.parametrize("name", ["target.data", "decode.onnx", "tokenizer.json", "neighbours.npy"])
def test_files_that_are_not_listed(copy: Path, name: str) -> None:
    """Nobody would see that they have changed."""
    rewrite(copy, lambda content: content["files"].pop(name))
    refused(copy, name, "none of its files")
    rewrite(copy, put({}, "files"))
    refused(copy, "files must have 1 to")


@pytest.mark.parametrize("location", ["../target.data", "condition.data", "/etc/hostname"])
def test_weights_that_a_graph_takes_from_elsewhere(copy: Path, location: str) -> None:
    graph = onnx.load(copy / "target.onnx", load_external_data=False)
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    (copy / "target.onnx").write_bytes(graph.SerializeToString())
    rehash(copy, "target.onnx")
    refused(copy, "target.onnx", f"reads weights from {location}")


def test_a_graph_that_is_another(copy: Path) -> None:
    for content, words in ((b"", "no ONNX graph"), (b"\xff" * 100, "no ONNX graph"), (None, "is not the graph")):
        (copy / "target.onnx").write_bytes((copy / "embed.onnx").read_bytes() if content is None else content)
        rehash(copy, "target.onnx")
        refused(copy, "target.onnx", words)


def test_a_plan_that_is_written_elsewhere(copy: Path) -> None:
    """A rebuild takes plans over: it would write where the manifest says."""
    plan = {
        "engine": "target", "target": "tensorrt", "file": "../../x.plan", "report": "x.json", "key": "", "backend": "",
        "backend_version": "", "compute_capability": "", "platform": "", "precision": "", "options": {},
        "profiles": [{"P": 1}], "network": {}, "bytes": 0, "sha256": "", "seconds": 0.0, "peak_memory": 0,
    }  # fmt: skip
    rewrite(copy, put([plan], "plans"))
    refused(copy, "../../x.plan", "may lie outside")


# tables ---------------------------------------------------------------------------------------------------------
class Trap:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


TABLE = np.tile(np.arange(31, dtype=np.uint16), (32, 1))


@pytest.mark.parametrize(
    "table",
    [np.full((32, 8), 10**9), -np.ones((32, 8), np.int64), TABLE.astype(np.float32), TABLE[:16], TABLE[0], TABLE + 2],
)
def test_neighbours_that_do_not_fit(copy: Path, table: np.ndarray) -> None:
    np.save(copy / "neighbours.npy", table)
    rehash(copy, "neighbours.npy")
    refused(copy, "neighbour table")


def test_neighbours_that_are_no_table(copy: Path) -> None:
    trace, path = copy.parent / "trace", copy / "neighbours.npy"
    np.save(path, np.array([[Trap(trace)]], dtype=object), allow_pickle=True)
    contents = [path.read_bytes(), pickle.dumps(Trap(trace)), b"", b"\x93NUMPY", (copy / STATES).name.encode()]
    for content in contents:
        path.write_bytes(content)
        rehash(copy, path.name)
        refused(copy, "neighbour table", "cannot be read")
    assert not trace.exists()


def with_states(bundle: Path, **arrays: np.ndarray) -> None:
    np.savez(bundle / STATES, **arrays)
    rehash(bundle, STATES)
    rewrite(bundle, put(STATES, "states"))


def test_states_that_do_not_fit(copy: Path) -> None:
    width = read_manifest(copy).model.features
    rows, usage, trace = np.zeros((32, width), np.float16), np.ones(32, np.float32), copy.parent / "trace"
    with_states(copy, rows=rows, usage=usage)
    assert generate(copy).exit_code == 0
    shutil.rmtree(copy.parent / "images")
    trap = np.full((32, width), Trap(trace), dtype=object)
    for others in (
        {"rows": rows[:16], "usage": usage[:16]}, {"rows": rows[:, :8], "usage": usage}, {"rows": rows},
        {"rows": rows, "usage": usage[:16]}, {"rows": rows, "usage": usage * np.nan}, {"rows": rows, "usage": -usage},
        {"rows": rows.astype(np.float32), "usage": usage}, {"rows": rows + np.inf, "usage": usage},
        {"rows": trap, "usage": usage},
    ):  # fmt: skip
        with_states(copy, **others)
        refused(copy, "table of states")
    assert not trace.exists()


def test_states_that_say_they_are_larger_than_they_are(copy: Path) -> None:
    """There is no memory for a header's word."""
    width = read_manifest(copy).model.features
    StateTable(np.zeros((32, width), np.float16), np.ones(32, np.float32)).save(copy / STATES)
    content = (copy / STATES).read_bytes()
    told = f"(32, {width}), ".encode()
    assert told in content
    for larger in (b"(1<<40,),", b"(99999999", b"(9999, 9)", b"(-9, -9),"):
        (copy / STATES).write_bytes(content.replace(told, larger.ljust(len(told))))
        rehash(copy, STATES)
        rewrite(copy, put(STATES, "states"))
        refused(copy, "table of states", "cannot be read")


# ONNX Runtime ---------------------------------------------------------------------------------------------------
def test_an_onnx_runtime_that_is_too_old(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.0")
    refused(copy, "ONNX Runtime 1.22.0 is too old, 1.25 is needed", "pip install 'cascade-trt[cpu]'")
    assert "--precision" not in generate(copy).stderr
    result = CliRunner().invoke(cli, ["doctor", str(copy)])
    assert result.exit_code == 1 and "ort-cpu: rebuild: ONNX Runtime 1.22.0 is too old, 1.25 is needed" in result.output
    for version in ("1.25.0", "1.33.0.dev20270101", "2.0", "nightly"):
        monkeypatch.setattr(onnxruntime, "__version__", version)
        assert generate(copy).exit_code == 0
