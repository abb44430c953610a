"""PyTorch's pickles give the tensors that were saved, and nothing in them can run, or take much time or memory."""

from __future__ import annotations

import argparse
import collections
import datetime
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cascade_trt.export.checkpoints.files import Stored, read_file
from cascade_trt.export.checkpoints.source import open_source
from cascade_trt.runtime.errors import CascadeError


def saved(content: Any, folder: Path, zipped: bool = True, protocol: int = 2) -> Path:
    file = folder / "c.pt"
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return file


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """Tensors that lie in their storage in any way: parts, turned, repeated, with gaps."""
    kind = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    base = torch.arange(draw(st.integers(0, 40)), dtype=torch.float32).to(kind)
    start = draw(st.integers(0, len(base)))
    view = base[start :: draw(st.integers(1, 3))]
    if len(view) % 2 == 0 and draw(st.booleans()):
        view = view.view(2, -1).T
    return view[:, None].expand(-1, 3) if view.ndim == 1 and draw(st.booleans()) else view


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(views(), min_size=1, max_size=4), st.booleans(), st.integers(2, 5))
def test_tensors_are_those_that_were_saved(
    tmp_path: Path, tensors: list[torch.Tensor], zipped: bool, protocol: int
) -> None:
    names = {f"w{i}": x for i, x in enumerate([*tensors, tensors[0][:1]])}  # the last shares a storage
    source = open_source(saved({"model": names}, tmp_path, zipped, protocol), "checkpoint")
    assert source.names() == list(names)
    for name, tensor in names.items():
        found = source.load(name)
        assert found.dtype == tensor.dtype and source.shape(name) == tuple(tensor.shape)
        assert torch.equal(found, tensor)


def marked() -> torch.Tensor:
    tensor = torch.ones(3)
    tensor.note = "an attribute"  # type: ignore[attr-defined]
    return tensor


BESIDE: dict[str, Any] = {
    "namespace": argparse.Namespace(a=1, p=Path("x")), "scalar": np.float64(3), "array": np.ones(3), "set": {1, 2},
    "dtype": torch.half, "counter": collections.Counter("aab"), "more": collections.defaultdict(list, {"a": [1]}),
    "time": datetime.datetime(2026, 1, 1), "size": torch.Size([1, 2]), "device": torch.device("cpu"), "bytes": b"abc",
    "number": 1 << 70, "complex": 1j, "rng_state": torch.get_rng_state(), "np": np.dtype("float32"), "list": [[{1}]],
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_training_saves_beside_the_weights(tmp_path: Path, protocol: int, zipped: bool) -> None:
    module = torch.nn.Linear(3, 4)
    weights = {**module.state_dict(), "parameter": module.weight, "marked": marked()}
    file = saved({"model": weights, **BESIDE}, tmp_path, zipped, protocol)
    source = open_source(file, "checkpoint")
    assert source.names() == list(weights)
    assert all(torch.equal(source.load(name), tensor) for name, tensor in weights.items())


def quantised() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # PyTorch will not make such any more; old files hold them
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse"), (torch.ones(3, device="meta"), "meta"),
        (torch.ones(3, dtype=torch.complex64), "complex64"), (torch.ones(3, dtype=torch.uint16), "uint16 (quantised)"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, "lazily negated"),
        (torch.ones(3).to(torch.float8_e5m2), "float8_e5m2 (quantised)"), (torch.ones(3).char(), "int8 (quantised)"),
        (quantised(), "qint8 (quantised)"),
    ],
)  # fmt: skip
def test_tensors_that_hold_no_plain_floats(tmp_path: Path, tensor: torch.Tensor, kind: str) -> None:
    file = saved({"model": {"a": torch.ones(2), "b.weight": tensor}}, tmp_path)
    with pytest.raises(CascadeError) as caught:
        open_source(file, "drafter")
    said = f"tensor b.weight of the drafter {file} holds {kind} weights: give fp32, fp16 or bf16."
    assert str(caught.value) == said


# Pickles that mean harm: each is small, and would take gigabytes or minutes, or run something


def call(function: str, *arguments: bytes) -> bytes:
    return b"c" + function.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


EIGHT_GB = b"\x8a\x05" + (8 * 10**9).to_bytes(5, "little")
DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 200  # tuples of tuples: 2^200 leaves, if anybody hashes or shows them
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + EIGHT_GB + b"tQ"
PAIRS = b"((" + (text("a") + b"N\x86") * 50_000 + b"lq\x00"
HOSTILE = {
    "bytearray": call("builtins bytearray", EIGHT_GB),
    "numpy scalar": call("numpy._core.multiarray scalar", call("numpy dtype", text("V8000000000"))),
    "hash of a tuple": b"}" + DOUBLED + b"K\x01s",
    "a set of tuples": call("builtins set", b"](" + DOUBLED + b"e"),
    "memo far out": b"Nr\xff\xff\xff\xff",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "wrappers in wrappers": (b"}" + text("model")) * 30_000 + b"}" + b"s" * 30_000,
    "one list copied": b"(" + b"K\x00" * 100_000 + b"lq\x00" + call("torch Size", b"h\x00") * 50_000,
    "pairs copied": PAIRS + call("collections OrderedDict", b"h\x00") * 50_000,
    "storage of 8 GB": call("torch._utils _rebuild_tensor_v2", STORAGE, b"K\x00", b"K\x02\x85", b"K\x01\x85"),
    "text of 4 GB": b"X\xff\xff\xff\xffabc",
    "bytes of 2^63": b"\x8e" + b"\xff" * 7 + b"\x7fabc",
    "huge number": b"\x8b\xff\xff\xff\x7f1",
    "system": call("posix system", text("touch owned")),
    "getattr": call("builtins getattr", text("a"), text("b")),
    "unprintable name": b"\x8c\x02a\n\x8c\x03b\x1b[\x93",
    "nothing": b"",
    "junk": b"0000",
    "unknown opcode": b"\xff",
    "marks": b"(" * 1000,
}


class Peak:
    """The most memory that the process had since it was started, in MiB."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def grown(self) -> int:
        return (self._read("VmHWM") - self._before) >> 10

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def refused(file: Path) -> str:
    with pytest.raises(CascadeError) as caught:
        open_source(file, "checkpoint")
    said = str(caught.value)
    assert said.isprintable() and said.endswith(".") and len(said) < 600
    return said


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_that_mean_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = b"\x80\x02" + HOSTILE[name] + b"."
    (tmp_path / "plain.pt").write_bytes(pickled)
    for form, compression in (("zip", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / f"{form}.pt", "w", compression) as archive:
            archive.writestr("a/data.pkl", pickled)
    for form in ("zip", "packed", "plain"):
        start, peak = time.perf_counter(), Peak()
        refused(tmp_path / f"{form}.pt")
        assert time.perf_counter() - start < 10 and peak.grown() < 256
    assert not (tmp_path / "owned").exists()


def test_a_pickle_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    packed = zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED)
    with packed as archive, archive.open("a/data.pkl", "w") as record:
        for _ in range(128):
            record.write(bytes(1 << 20))
    peak = Peak()
    assert "compressed" in refused(tmp_path / "c.pt") and peak.grown() < 64


def test_dicts_that_hold_themselves(tmp_path: Path) -> None:
    alone: dict[str, Any] = {}
    alone["model"] = alone
    pair: dict[str, Any] = {"module": {"state_dict": {}}}
    pair["module"]["state_dict"]["model"] = pair
    for content in (alone, pair):
        assert "holds no tensors" in refused(saved(content, tmp_path))
    weights: dict[str, Any] = {"a": torch.ones(2)}
    weights["self"] = weights
    assert open_source(saved(weights, tmp_path), "checkpoint").names() == ["a"]


def test_one_dict_under_many_names_is_looked_through_once(tmp_path: Path) -> None:
    notes = {str(i): i for i in range(30_000)}
    content = {"model": {"a": torch.ones(2)}, **{f"k{i}": notes for i in range(30_000)}}
    start = time.perf_counter()
    assert open_source(saved(content, tmp_path), "checkpoint").names() == ["a"]
    assert time.perf_counter() - start < 5


def test_tensors_that_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    """A thousand values from one are fine; a million million are not."""
    source = open_source(saved({"a": torch.ones(1).expand(1000)}, tmp_path), "checkpoint")
    assert torch.equal(source.load("a"), torch.ones(1000))
    assert "claim more values" in refused(saved({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path))


# Archives whose records are not what they say


def repacked(file: Path, name: str, change: Any) -> Path:
    """A copy of an archive with one record changed, or left out where `change` gives None."""
    copy = file.with_name("copy.pt")
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as new:
        for info in archive.infolist():
            data = archive.read(info)
            data = change(data) if info.filename.endswith(name) else data
            if data is not None:
                new.writestr(info.filename, data)
    return copy


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("data/1", lambda _: b"", "storage 1 has 0 bytes in the file, not 24"),
        ("data/1", lambda data: data[:-4], "storage 1 has 20 bytes in the file, not 24"),
        ("data/1", lambda _: None, "storage 1 has 0 bytes"),
        ("byteorder", lambda _: b"big", "byte order is big"),
        ("data.pkl", lambda _: None, "without a data.pkl"),
    ],
)
def test_archives_that_lack_something(tmp_path: Path, name: str, change: Any, said: str) -> None:
    file = saved({"a": torch.ones(3), "b": torch.arange(6.0)}, tmp_path)
    found = open_source(repacked(file, "nothing", None), "checkpoint")
    assert torch.equal(found.load("b"), torch.arange(6.0))
    sentence = refused(repacked(file, name, change))
    assert said in sentence and "damaged" in sentence and "download it again" in sentence


def test_changed_values_are_told(tmp_path: Path) -> None:
    """By the archive's checksum; PyTorch may be told to write none."""
    file = saved({"a": torch.arange(1000.0)}, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(np.float32(500).tobytes() + np.float32(501).tobytes(), bytes(8)))
    source = open_source(file, "checkpoint")
    with pytest.raises(CascadeError, match=r"c\.pt is damaged \(bytes of storage 0 changed\)"):
        source.load("a")
    try:
        torch.serialization.set_crc32_options(False)
        assert torch.equal(open_source(saved({"a": torch.ones(9)}, tmp_path), "checkpoint").load("a"), torch.ones(9))
    finally:
        torch.serialization.set_crc32_options(True)


def test_a_tensor_at_the_top_is_no_state_dict(tmp_path: Path) -> None:
    for content in (torch.ones(3), [torch.ones(3)], argparse.Namespace(a=1), {}, {"a": {"b": {"c": torch.ones(1)}}}):
        assert "holds no" in refused(saved(content, tmp_path))
    tree = read_file(saved({"a": torch.ones(3), 5: torch.ones(2)}, tmp_path), "checkpoint").tree
    assert isinstance(tree["a"], Stored) and tree["a"].kind == "float32"
