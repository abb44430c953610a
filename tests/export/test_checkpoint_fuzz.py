"""Hundreds of deterministic changes of good checkpoints: each opens to what the good one holds, or is one sentence.

Bytes that are flipped or cut off, tensors that are renamed, removed, added, of another dtype or shape, values of
configs: no traceback, no wrong weights without a word, little time and memory.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support import save_checkpoints, save_text_encoder

from cascade_trt.cli import cli
from cascade_trt.export.checkpoints.source import TensorSource
from cascade_trt.export.checkpoints.t5 import open_t5
from cascade_trt.export.checkpoints.vq import open_vq
from cascade_trt.export.families.llamagen.reader import open_drafter, open_llamagen
from cascade_trt.runtime.errors import CascadeError

Weights = dict[str, torch.Tensor]
SETTINGS = {"grid": 2, "n_head": 2, "num_classes": 10}
PARTS = ("target", "classes", "drafter", "vq", "text")
FORMS = ("pt", "legacy", "safetensors")
FLIPS, CUTS = 24, 8  # of each part in each form


@dataclass(frozen=True)
class Part:
    """One good part: its weights, and how a file of it is opened (a config beside it is named `config.json`)."""

    weights: Weights
    open: Callable[[Path], tuple[TensorSource, Any]]
    config: dict[str, Any]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Part]:
    folder = tmp_path_factory.mktemp("good")
    for name, condition in (("text", "text"), ("class", "class")):
        save_checkpoints(folder / name, vocab=8, grid=2, dim=16, layers=2, condition=condition, prefix_len=3)
    encoder = save_text_encoder(folder / "t5", width=16)
    good = {name: torch.load(folder / "text" / f"{name}.pt") for name in ("target", "drafter", "vq")}
    good["classes"] = torch.load(folder / "class" / "target.pt")
    _, target = open_llamagen(folder / "text" / "target.pt", SETTINGS)

    def text(file: Path) -> tuple[TensorSource, Any]:
        """The file as the weights of a folder."""
        shutil.copy(encoder / "tokenizer.json", file.parent)
        shutil.copy(file, file.parent / "model.safetensors")
        return open_t5(file.parent)[:2]

    own = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-6}
    t5 = json.loads((encoder / "config.json").read_text())
    return {
        "target": Part(good["target"]["model"], lambda file: open_llamagen(file, SETTINGS), {}),
        "classes": Part(good["classes"]["model"], lambda file: open_llamagen(file, SETTINGS), {}),
        "drafter": Part(good["drafter"], lambda file: open_drafter(file, target), own),
        "vq": Part(good["vq"]["model"], lambda file: open_vq(file, {}), {}),
        "text": Part(load_file(encoder / "model.safetensors"), text, t5),
    }


def write(weights: Weights, form: str, folder: Path) -> Path:
    file = folder / f"c.{form}"
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    if form == "safetensors":
        save_file(weights, file)
    else:
        torch.save({"model": weights}, file, _use_new_zipfile_serialization=form == "pt")
    return file


def outcome(part: Part, file: Path) -> str | tuple[Any, Weights]:
    """The sentence, or what was opened and read. Anything else than a CascadeError fails the test."""
    try:
        source, config = part.open(file)
        return config, {name: source.load(name).clone() for name in source.names()}
    except CascadeError as error:
        said = str(error)
        assert said.isprintable() and said.endswith(".") and len(said) < 1000, said
        return said


def same(found: tuple[Any, Weights], good: tuple[Any, Weights], tolerance: float = 0.0) -> bool:
    if found[0] != good[0] or set(found[1]) != set(good[1]):
        return False
    return all(torch.allclose(found[1][name].double(), x.double(), tolerance, tolerance) for name, x in good[1].items())


@pytest.fixture
def check(parts: dict[str, Part], tmp_path: Path) -> Callable[[str, Path, str], bool]:
    """check(part, file, what was changed) -> whether it was refused; it must open to the good part otherwise."""
    good: dict[str, tuple[Any, Weights]] = {}

    def checked(name: str, file: Path, change: str) -> bool:
        part = parts[name]
        if part.config and not (file.parent / "config.json").exists():
            (file.parent / "config.json").write_text(json.dumps(part.config))
        if name not in good:
            folder = tmp_path / f"good-{name}"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(part.config))
            opened = outcome(part, write(part.weights, "pt", folder))
            assert not isinstance(opened, str), opened
            good[name] = opened
        found = outcome(part, file)
        assert isinstance(found, str) or same(found, good[name], 0.01 if "float16" in change else 0.0), (name, change)
        return isinstance(found, str)

    return checked


# Bytes


def head(file: Path) -> int:
    """Bytes of a safetensors file that say something: no checksum guards the others."""
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PARTS)
def test_bytes(parts: dict[str, Part], check: Callable[..., bool], tmp_path: Path, name: str, form: str) -> None:
    file, rng = write(parts[name].weights, form, tmp_path), random.Random(f"{name} {form}")
    whole = file.read_bytes()
    # A zip archive has checksums; what the others say of their tensors lies at the front.
    places = len(whole) if form == "pt" else head(file) if form == "safetensors" else 1500
    refused = 0
    for number in range(FLIPS):
        damaged = bytearray(whole)
        for _ in range(1 + number % 4):
            damaged[rng.randrange(places)] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        if form == "legacy":  # no checksum: a number in its pickle may have become another
            refused += isinstance(outcome(parts[name], file), str)
        else:
            refused += check(name, file, f"flip {number}")
    assert refused > FLIPS // 3
    for number in range(CUTS):
        file.write_bytes(whole[: rng.randrange(len(whole))] if number else b"")
        assert check(name, file, f"cut {number}")


# Tensors


def renamed(weights: Weights, rng: random.Random) -> Iterator[tuple[str, Weights]]:
    for kind in ("suffix", "prefix", "letter", "case", "number", "enormous number", "control"):
        old = rng.choice([name for name in weights if "number" not in kind or ".0." in name] or list(weights))
        new = {
            "suffix": f"{old}_", "prefix": f"x.{old}", "letter": old[:-1] + "q", "case": old.upper(),
            "number": old.replace(".0.", ".7."), "enormous number": old.replace(".0.", f".{'9' * 5000}."),
            "control": f"{old}\n\x1b[31m\ud800" if kind == "control" else "",
        }[kind]  # fmt: skip
        yield f"{kind} of {old}", {new if name == old else name: x for name, x in weights.items()}


def reshaped(weights: Weights, rng: random.Random) -> Iterator[tuple[str, Weights]]:
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "one dimension more": lambda x: x[None], "flat": lambda x: x.reshape(-1) if x.ndim > 1 else x[None],
        "one value": lambda x: x.reshape(-1)[0], "no values": lambda x: x[:0], "wider": lambda x: torch.cat([x, x], -1),
        "turned": lambda x: x.flip(0).mT if x.ndim == 2 and x.shape[0] != x.shape[1] else x[..., :-1],
    }  # fmt: skip
    # Another number of these is another model, not a mistake.
    counted = ("uncond_embedding", "embedding_table.weight")
    for kind, change in changes.items():
        name = rng.choice([name for name in weights if not name.endswith(counted)])
        yield f"{kind}: {name}", weights | {name: change(weights[name])}


KINDS = (torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
         torch.int32, torch.uint16)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PARTS)
def test_tensors(parts: dict[str, Part], check: Callable[..., bool], tmp_path: Path, name: str, form: str) -> None:
    weights, rng = parts[name].weights, random.Random(f"{name} {form}")
    without = [key for key in weights if key != "fc.bias"]  # a drafter may have none
    for key in rng.sample(without, 3):
        assert check(name, write({k: x for k, x in weights.items() if k != key}, form, tmp_path), f"without {key}")
    for key in ("layers.9.x.weight", "lora.weight", "a" * 300, "layers.3000000.x"):
        assert check(name, write(weights | {key: torch.ones(2, 2)}, form, tmp_path), f"with {key}")
    for change, changed in [*renamed(weights, rng), *reshaped(weights, rng)]:
        if "\ud800" in "".join(changed) and form == "safetensors":
            continue  # it cannot be written
        assert check(name, write(changed, form, tmp_path), change)
    for kind in KINDS:
        key = rng.choice(list(weights))
        assert check(name, write(weights | {key: weights[key].to(kind)}, form, tmp_path), f"{kind} {key}")
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        cast = {key: x.to(kind) for key, x in weights.items()}
        assert not check(name, write(cast, form, tmp_path), f"{kind} in place of float16 or 32")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PARTS)
def test_other_names_for_the_same(
    parts: dict[str, Part], check: Callable[..., bool], tmp_path: Path, name: str, form: str
) -> None:
    """What trainers put into names, leftovers, counters: they open to the good part."""
    weights = parts[name].weights
    inner = {".".join(["_orig_mod", *key.split(".", 1)]).replace(".", ".module.", 2): x for key, x in weights.items()}
    same = {
        "prefix": {f"gpt.{key}": x for key, x in weights.items()},
        "two prefixes": {f"module.model.{key}": x for key, x in weights.items()},
        "inside": inner,
        "leftovers": weights | {"freqs_cis": torch.ones(3), "a.kv_cache.k": torch.ones(2), "updates": torch.tensor(3)},
        "average alone": {f"model_ema.{key}": x for key, x in weights.items()},
        "average beside": weights | {f"ema.{key}": x * 2 for key, x in weights.items()},
    }  # fmt: skip
    for change, changed in same.items():
        assert not check(name, write(changed, form, tmp_path), change)


# Configs

VALUES = (None, True, "2", [2], {}, -1, 0, 2.5, 1e400, 10**400, float("nan"), "", [[[]]])


def test_configs(parts: dict[str, Part], check: Callable[..., bool], tmp_path: Path) -> None:
    for name in ("drafter", "text"):
        part = parts[name]
        file = write(part.weights, "pt", tmp_path)
        for key in [*part.config, "relative_attention_num_buckets", "relative_attention_max_distance", "input_type",
                    "layer_norm_epsilon", "block_size", "architectures", "dense_act_fn"]:  # fmt: skip
            for value in VALUES:
                (tmp_path / "config.json").write_text(json.dumps(part.config | {key: value}))
                found = outcome(part, file)
                if value is None and not isinstance(found, str):  # the default
                    assert check(name, file, f"{key} {value}") is False
        for content in ("", "[" * 100_000, "5", '{"a": 1e', b"\xff\xfe{".decode("latin1"), "{}", '{"hidden_size": 1'):
            (tmp_path / "config.json").write_text(content)
            outcome(part, file)


def test_settings_of_a_build(parts: dict[str, Part], tmp_path: Path) -> None:
    file = write(parts["target"].weights, "pt", tmp_path)
    for key in ("dim", "n_layer", "n_head", "vocab_size", "grid", "block_size", "cls_token_num", "caption_dim",
                "norm_eps", "rope_base"):  # fmt: skip
        for value in VALUES:
            found = outcome(Part({}, lambda f, k=key, v=value: open_llamagen(f, SETTINGS | {k: v}), {}), file)
            assert isinstance(found, str) or value is None or (key, value) == ("rope_base", 2.5), (key, value)


# Whole builds


@pytest.fixture
def model(tmp_path: Path) -> tuple[list[str], dict[str, Path]]:
    """The arguments of a build, and its files by option."""
    arguments = [str(part) for part in save_checkpoints(tmp_path / "ck", vocab=8, grid=2, dim=16, layers=1)]
    arguments += ["--text", str(save_text_encoder(tmp_path / "t5", width=16)), "--tree", "pair_4"]
    files = {arguments[at][2:]: Path(arguments[at + 1]) for at in range(1, len(arguments), 2)}
    return [*arguments, "--out", str(tmp_path / "out")], files


def change(file: Path, changed: Callable[[Any], Any]) -> None:
    torch.save(changed(torch.load(file)), file)


def test_builds_that_are_refused(model: tuple[list[str], dict[str, Path]], tmp_path: Path) -> None:
    arguments, files = model
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    t5 = files["text"] / "model.safetensors", files["text"] / "config.json"
    cases: list[tuple[Path, Callable[[Path], object], str]] = [
        (files["drafter"], lambda f: change(f, lambda d: {k: x.char() for k, x in d.items()}), "holds int8 (quanti"),
        (files["vq"], lambda f: change(f, lambda d: d["model"] | {"decoder.extra": torch.ones(1)}), "decoder.extra"),
        (files["checkpoint"], lambda f: f.write_bytes(f.read_bytes()[:5000]), "truncated"),
        (t5[0], lambda f: f.write_text(pointer), "is a Git LFS pointer: fetch the file itself"),
        (t5[1], lambda f: f.write_text(f.read_text().replace('"t5"', '"umt5"')), "umt5"),
    ]
    for file, damage, said in cases:
        whole = file.read_bytes()
        damage(file)
        result = CliRunner().invoke(cli, ["build", *arguments])
        file.write_bytes(whole)
        assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1, result.output
        assert not (tmp_path / "out").exists()


def test_a_build_says_which_weights_it_took(model: tuple[list[str], dict[str, Path]], tmp_path: Path) -> None:
    """And takes those: the bundle is that of the weights alone."""
    arguments, files = model
    assert CliRunner().invoke(cli, ["build", *arguments]).exit_code == 0
    plain = (tmp_path / "out" / "decode.data").read_bytes()
    change(files["vq"], lambda d: {"ema": {k: x * 2 for k, x in d["model"].items()}, **d})
    result = CliRunner().invoke(cli, ["build", *arguments])
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Note: ") and "model was taken, not ema" in result.stderr
    assert (tmp_path / "out" / "decode.data").read_bytes() == plain
