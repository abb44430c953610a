"""Drawing from the command line, as a user would: files, settings inside them, and every refusal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import Golden, build, save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.commands.inputs import choose
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.staging import write_new_file


def generate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["generate", *map(str, arguments)])


def refused(result: Result, *parts: str) -> None:
    """One sentence on stderr, exit code 2, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["info", "nowhere"], 2, "Error: there is no bundle in nowhere"),
        (["info", "--what"], 2, "Error: No such option"),
        (["models"], 0, ""),
    ],
)
def test_exit_codes_of_the_real_process(arguments: list[str], code: int, said: str) -> None:
    """What a shell sees; the click runner of the other tests does not go through `main`."""
    command = [sys.executable, "-m", "cascade_trt", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert said in result.stderr


def test_a_image_with_its_settings(text_bundle: Path, tmp_path: Path) -> None:
    result = generate("A Red apple", "--bundle", text_bundle, "--out", tmp_path, "--seed", 3, "--top-k", 20)
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    assert path == tmp_path / "a-red-apple-3.png"
    image = Image.open(path)
    assert image.size == (12, 12)
    written = {name: str(value) for name, value in image.text.items()}  # type: ignore[attr-defined]
    assert written["prompt"] == "A Red apple"
    assert written["seed"] == "3"
    assert (written["rule"], written["tree"], written["top_k"]) == ("exact", "auto", "20")
    assert written["guidance_scale"] == "2.0"
    pipe = Pipeline.load(text_bundle)
    again = pipe.generate(["A Red apple"], seed=3, top_k=20).images[0]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(again))


def test_several_images_a_sheet_and_json(text_bundle: Path, tmp_path: Path) -> None:
    result = generate("red", "apple", "--bundle", text_bundle, "--num-images", 2, "--grid", "--json", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    names = [Path(file).name for file in report["files"]]
    assert names == ["red-0.png", "red-1.png", "apple-2.png", "apple-3.png", "grid.png"]
    assert all((tmp_path / name).is_file() for name in names)
    assert report["stats"]["images"] == 4
    assert report["stats"]["tau"] >= 1
    assert Image.open(tmp_path / "grid.png").size == (28, 28)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    pipe = Pipeline.load(text_bundle)  # whatever the order in which they were done, each is under its own name
    for name, prompt, seed in zip(names, ("red", "red", "apple", "apple"), range(4), strict=False):
        expected = pipe.generate([prompt], seed=seed).images[0]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(expected))
    assert report["seeds"] == [0, 1, 2, 3]


def test_one_png_by_name(text_bundle: Path, tmp_path: Path) -> None:
    result = generate("red", "--bundle", text_bundle, "--out", tmp_path / "new" / "apple.png", "--rule", "ar")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "apple.png").is_file()


def test_word_order_and_case(text_bundle: Path) -> None:
    pipe = Pipeline.load(text_bundle)
    codes = [pipe.generate([text], seed=1).codes for text in ("red apple", "  RED   apple ", "apple red")]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])


def test_a_long_prompt_is_cut_with_a_warning(text_bundle: Path, tmp_path: Path) -> None:
    result = generate("red apple " * 20, "--bundle", text_bundle, "--out", tmp_path)
    assert result.exit_code == 0
    assert "Warning: prompt 1 has 41 tokens, the model reads 6" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([""], ["prompt 1 is empty"]),
        (["   "], ["prompt 1 is empty"]),
        ([], ["say what to draw"]),
        (["red", "--seed", "-1"], ["a seed must lie between"]),
        (["red", "--top-k", "1001"], ["top_k 1001", "1000", "--max-top-k 1001"]),
        (["red", "--top-k", "-1"], ["top_k must be"]),
        (["red", "--top-p", "0"], ["top_p must"]),
        (["red", "--temperature", "-1"], ["temperature must"]),
        (["red", "--temperature", "nan"], ["temperature must"]),
        (["red", "--guidance-scale", "-0.5"], ["guidance_scale must"]),
        (["red", "--timeout", "0"], ["timeout must be"]),
        (["red", "--timeout", "1e-9"], ["not done within its timeout of 1e-09 s"]),
        (["red", "--rule", "magic"], ["unknown rule 'magic'", "exact"]),
        (["red", "--tree", "chain"], ["pair_4", "--tree chain"]),
        (["red", "--tree", "jacobi_3", "--tree", "jacobi_4"], ["--tree is given 2 times"]),
        (["red", "--rule", "exact", "--rule", "ar"], ["--rule is given 2 times"]),
        (["red", "--num-images", "0"], ["--num-images"]),
        (["red", "--num-images", "1000000000"], ["--num-images must be at most 100000"]),
        (["red", "--num-images", "1000000000000"], ["--num-images must be at most 100000"]),
        (["red", "apple", "--num-images", "60000"], ["120000 images, more than 100000"]),
        (["--class-id", "1", "--class-id", "2", "--num-images", "60000"], ["120000 images, more than 100000"]),
        (["red", "--class-id", "1"], ["not both"]),
        (["--class-id", "1"], ["draws from text"]),
    ],
)
def test_refusals(text_bundle: Path, tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    refused(generate("--bundle", text_bundle, "--out", tmp_path / "out", "--", *arguments)
            if arguments and not arguments[0].startswith("--") and len(arguments) == 1
            else generate(*arguments, "--bundle", text_bundle, "--out", tmp_path / "out"), *parts)  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_unwritable_output(text_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "sub"
    refused(generate("red", "--bundle", text_bundle, "--out", out), "cannot write", "choose another place")


def test_missing_bundle(tmp_path: Path) -> None:
    refused(generate("red", "--bundle", tmp_path / "none"), "there is no bundle", "cascade-trt build")


@pytest.mark.parametrize("name", ["target.data", "draft.pair_4.onnx", "tokenizer.json"])
def test_changed_files(text_bundle: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(text_bundle, tmp_path / "bundle")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    refused(generate("red", "--bundle", copy), name, "has changed")
    (copy / name).unlink()
    refused(generate("red", "--bundle", copy), name, "lacks")


def test_other_schema_and_damaged_manifest(text_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(text_bundle, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    refused(generate("red", "--bundle", copy), "schema version 99", "build the bundle again")
    del manifest["model"]["plan"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(generate("red", "--bundle", copy), "plan")
    (copy / "manifest.json").write_text("{")
    refused(generate("red", "--bundle", copy), "cannot be read")


def test_ctrl_c_keeps_finished_images(text_bundle: Path, tmp_path: Path) -> None:
    """400 images would take minutes; the first ones are on disk and whole, and no partial file is left."""
    command = [sys.executable, "-m", "cascade_trt", "generate", "red", "--num-images", "400", "--bundle",
               str(text_bundle), "--out", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    files = sorted(tmp_path.iterdir())
    assert 3 <= len(files) < 400
    assert all(file.suffix == ".png" for file in files)
    for file in files:
        Image.open(file).load()
    assert {Path(line) for line in stdout.split()} == set(files)
    assert "Traceback" not in stderr


def test_class_conditional(tmp_path: Path) -> None:
    arguments = save_checkpoints(tmp_path / "checkpoints", vocab=16, grid=4, condition="class")
    build(*arguments, "--tree", "chain_2", "--out", tmp_path / "bundle")
    result = generate("--class-id", 3, "--class-id", 9, "--bundle", tmp_path / "bundle", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.stdout.split()] == ["3-0.png", "9-1.png"]
    pipe = Pipeline.load(tmp_path / "bundle")
    exact = pipe.generate(class_ids=[3, 3, 4], seed=[1, 1, 1])
    np.testing.assert_array_equal(exact.codes, pipe.generate(class_ids=[3, 3, 4], seed=[1, 1, 1], rule="ar").codes)
    np.testing.assert_array_equal(exact.codes[0], exact.codes[1])
    assert not np.array_equal(exact.codes[0], exact.codes[2])
    refused(generate("--class-id", 10, "--bundle", tmp_path / "bundle"), "between 0 and 9")
    refused(generate("red", "--bundle", tmp_path / "bundle"), "draws classes")


def test_without_a_drafter(tmp_path: Path) -> None:
    """The default is `exact` by guesses of the round before, and it says so; what needs a drafter is a sentence."""
    arguments = save_checkpoints(tmp_path / "checkpoints", vocab=16, grid=6, condition="class")
    drafter = arguments.index("--drafter")
    bundle = tmp_path / "bundle"
    build(*arguments[:drafter], *arguments[drafter + 2 :], "--batch", 2, "--out", bundle)
    result = generate("--class-id", 3, "--class-id", 9, "--json", "--bundle", bundle, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    stats = json.loads(result.stdout)["stats"]
    assert (stats["rule"], stats["tree"]) == ("exact", "auto") and stats["why"]
    assert all(tree == "none" or tree.startswith("jacobi_") for tree in stats["trees"])
    assert stats["origins"]["eagle"] == 0
    result = generate("--class-id", 3, "--bundle", bundle, "--out", tmp_path / "out", "--tree", "jacobi_8")
    assert result.exit_code == 0, result.output
    assert "rule exact" in result.stderr and "% of the tokens from the round before" in result.stderr
    pipe = Pipeline.load(bundle)
    plain = pipe.generate(class_ids=[3, 9, 4], seed=2, rule="ar")
    for tree in (None, "jacobi_16", "jacobi_8x8"):
        output = pipe.generate(class_ids=[3, 9, 4], seed=2, tree=tree)
        np.testing.assert_array_equal(output.codes, plain.codes)
        assert output.stats.rule == "exact" and (tree is None or output.stats.tau > 1.2)
    for more, said in (
        (("--tree", "mixed_8"), "build it again with --drafter and --tree mixed_8"),
        (("--tree", "chain"), "build it again with --drafter and --tree chain"),
        (("--rule", "strict"), "rule strict tests nodes against the drafter's distribution"),
    ):  # fmt: skip
        refused(generate("--class-id", 3, "--bundle", bundle, "--out", tmp_path / "out", *more), said)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["яблоко"], ["собака"], ["собака-0.png", "яблоко-0.png"]),
        (["red"], ["red", "--rule", "ar"], ["red-0-2.png", "red-0.png"]),
        (["red"], ["Red!", "--temperature", "0"], ["red-0-2.png", "red-0.png"]),
        (["red"], ["red", "--seed", "1"], ["red-0.png", "red-1.png"]),
        (["🍎"], ["🍌"], ["image-0-2.png", "image-0.png"]),
        (["red", "cat", "--grid"], ["red", "cat", "--grid"],
         ["cat-1-2.png", "cat-1.png", "grid-2.png", "grid.png", "red-0-2.png", "red-0.png"]),
    ],
)  # fmt: skip
def test_no_image_is_written_over(
    text_bundle: Path, tmp_path: Path, first: list[str], second: list[str], expected: list[str]
) -> None:
    out = tmp_path / "out"
    printed = generate(*first, "--bundle", text_bundle, "--out", out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert printed.exit_code == 0 and {Path(line) for line in printed.stdout.splitlines()} == set(before)
    printed = generate(*second, "--bundle", text_bundle, "--out", out)
    assert printed.exit_code == 0, printed.output
    assert names(out) == sorted(expected)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert {Path(line) for line in printed.stdout.splitlines()} == set(out.iterdir()) - set(before)
    asked = set(second) | {"red"}
    new = [Image.open(line).info.get("prompt") for line in printed.stdout.splitlines()]
    assert all(prompt in asked or "; " in prompt for prompt in new)


def test_a_named_file_that_is_there_stays(text_bundle: Path, tmp_path: Path) -> None:
    """One image, and several with their seeds in the name."""
    for taken, more in (("a.png", []), ("b-1.png", ["--num-images", "2"]), ("c-grid.png", ["cat", "--grid"])):
        (tmp_path / taken).write_bytes(b"mine")
        out = tmp_path / f"{taken[0]}.png"
        result = generate("red", *more, "--bundle", text_bundle, "--out", out)
        refused(result, taken, "is there already", "choose another --out")
    assert names(tmp_path) == ["a.png", "b-1.png", "c-grid.png"]
    assert all(path.read_bytes() == b"mine" for path in tmp_path.iterdir())


@pytest.mark.parametrize("out", ["a.jpg", "a.JPEG", "new/a.webp", "a.gif", "a.txt", "a.tiff"])
def test_other_kinds_of_files_are_refused(text_bundle: Path, tmp_path: Path, out: str) -> None:
    refused(generate("red", "--bundle", text_bundle, "--out", tmp_path / out), "called like a file", ".png")
    assert names(tmp_path) == []


@pytest.mark.parametrize("out", ["v1.5", "a.old/b", "taken.jpg"])
def test_folders_with_dots(text_bundle: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "taken.jpg").mkdir()
    result = generate("red", "--rule", "ar", "--bundle", text_bundle, "--out", tmp_path / out)
    assert result.exit_code == 0, result.output
    assert (tmp_path / out / "red-0.png").is_file()


@pytest.mark.parametrize(
    ("out", "said"),
    [("x" * 300, "name too long"), (f"{'x' * 300}.png", "name too long"), ("loop/a.png", "symbolic links"),
     ("loop", "symbolic links"), ("file/a.png", "Not a directory"), ("/dev/full", "Not a directory"),
     ("folder.png", "is a folder"), ("pipe.png", "no ordinary file")],
)  # fmt: skip
def test_outputs_that_cannot_be(tmp_path: Path, out: str, said: str) -> None:
    """Told before the bundle is even loaded: there is none here."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.png")
    before = names(tmp_path)
    result = generate("red", "--bundle", tmp_path / "none", "--out", tmp_path / out)
    assert result.exit_code == 2 and said.lower() in result.stderr.lower(), result.output
    assert names(tmp_path) == before


@pytest.mark.parametrize("more", [["--rule", "magic"], ["--seed", "-1"], ["--top-k", "1001"], ["--num-images", "0"],
                                  ["--bundle", "nowhere"], ["--class-id", "1"], ["--tree", "oak"]])  # fmt: skip
def test_a_refusal_makes_nothing(text_bundle: Path, tmp_path: Path, more: list[str]) -> None:
    result = generate("red", "--bundle", text_bundle, "--out", tmp_path / "new" / "folder", *more)
    assert result.exit_code == 2
    assert names(tmp_path) == []


@settings(max_examples=200)
@given(st.text(max_size=300))
def test_any_prompt_makes_a_name(prompt: str) -> None:
    name = f"{choose([prompt or 'x'], (), None, 1).slugs[0]}-{2**63 - 1}-99.png"
    assert 0 < len(os.fsencode(name)) <= 143 and name == Path(name).name and not name.startswith((".", "-"))


def test_features_from_a_file(tiny_bundle: Path, golden: Golden, tmp_path: Path) -> None:
    features, mask = golden.given["features"], golden.given["features_mask"]
    np.savez(tmp_path / "both.npz", features=features, mask=mask)
    np.savez_compressed(tmp_path / "my features.npz", features=features[1].astype(np.float16), mask=mask[1])
    np.savez(tmp_path / "all.npz", features=features[0])
    pipe = Pipeline.load(tiny_bundle)
    expected = pipe.generate(**golden.given, seed=[4, 5], rule="ar").images
    result = generate("--features", tmp_path / "both.npz", "--seed", 4, "--bundle", tiny_bundle, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.stdout.splitlines()] == ["both-0-4.png", "both-1-5.png"]
    for line, image in zip(result.stdout.splitlines(), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(line)), np.asarray(image))
    result = generate("--features", tmp_path / "my features.npz", "--num-images", 2, "--bundle", tiny_bundle, "--out",
                      tmp_path, "--seed", 4)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.stdout.splitlines()] == ["my-features-4.png", "my-features-5.png"]
    assert Image.open(tmp_path / "my-features-4.png").info["features"] == "my features"
    assert generate("--features", tmp_path / "all.npz", "--bundle", tiny_bundle, "--out", tmp_path).exit_code == 0


def test_features_that_cannot_be_drawn(tiny_bundle: Path, tmp_path: Path) -> None:
    good, out = np.zeros((120, 32), np.float32), tmp_path / "out"
    files: dict[str, dict[str, Any]] = {
        "list": {"features": np.array([{}], object)}, "none": {}, "other": {"feature": good},
        "more": {"features": good, "seed": np.array(1)}, "flat": {"features": good[0]},
        "mask": {"features": good, "mask": np.ones(5, bool)}, "text": {"features": np.array(["a"])},
    }  # fmt: skip
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    np.save(tmp_path / "npy.npz", good, allow_pickle=False)
    (tmp_path / "npy.npz.npy").rename(tmp_path / "npy.npz")
    np.savez(tmp_path / "cut.npz", features=good)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:900])
    os.mkfifo(tmp_path / "pipe.npz")
    for name in (*files, "npy", "cut", "pipe", "nowhere"):
        result = generate("--features", tmp_path / f"{name}.npz", "--bundle", "none", "--out", out)
        refused(result, f"{name}.npz", "give")
    for name, arrays, said in (
        ("wide", {"features": np.zeros((120, 33), np.float32)}, "features must have the shape"),
        ("short", {"features": good[:7]}, "[P, 120, 32], not [1, 7, 32]: a prefix has 120 slots, so pad shorter"),
        ("nan", {"features": np.full((120, 32), np.nan, np.float32)}, "NaN"),
        ("hidden", {"features": good, "mask": np.zeros(120, bool)}, "hides every slot"),
    ):  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **arrays)
        refused(generate("--features", tmp_path / f"{name}.npz", "--bundle", tiny_bundle, "--out", out), said)
    refused(generate("red", "--features", tmp_path / "wide.npz", "--bundle", tiny_bundle, "--out", out), "not both")
    assert not out.exists()


def test_features_of_more_images_than_memory_holds(tmp_path: Path) -> None:
    """They are one array, a row for each image."""
    np.savez(tmp_path / "features.npz", features=np.zeros((1, 120, 2048), np.float32))
    out = tmp_path / "out"
    refused(generate("--features", tmp_path / "features.npz", "--num-images", 50_000, "--out", out), "more than 4 GiB")
    assert not out.exists()


def test_an_array_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """numpy gives one of both, and nobody says which."""
    np.savez(tmp_path / "features.npz", features=np.zeros((1, 6, 16), np.float32))
    with zipfile.ZipFile(tmp_path / "features.npz", "a") as archive:
        archive.writestr("features", archive.read("features.npy"))
    refused(generate("--features", tmp_path / "features.npz", "--out", tmp_path / "out"), "names an array twice")


def test_a_disk_that_fills_up(text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn before is named; the sentence says what went wrong."""
    written = []

    def write(path: Path, data: bytes) -> Path:
        if len(written) == 2:
            raise CascadeError(f"cannot write {path} (No space left on device): choose another place.")
        written.append(write_new_file(path, data))
        return written[-1]

    monkeypatch.setattr("cascade_trt.commands.generate.write_new_file", write)
    result = generate("red", "--num-images", 5, "--grid", "--bundle", text_bundle, "--out", tmp_path)
    assert result.exit_code == 2 and "No space left on device" in result.stderr
    assert sorted(map(Path, result.stdout.splitlines())) == sorted(written) and len(written) == 2
