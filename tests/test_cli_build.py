"""Building from the command line: every refusal is a sentence, and an older bundle survives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support import FIXTURE, build, fixture_arguments, random_features, save_checkpoints, save_text_encoder

from cascade_trt.cli import cli
from cascade_trt.commands.hints import program
from cascade_trt.engines.publish import amend_bundle
from cascade_trt.export.families import get_family, names
from cascade_trt.export.families.llamagen import family, presets
from cascade_trt.runtime.bundle import CostInfo, read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.rules.states import StateTable

Change = Callable[[dict[str, torch.Tensor]], None]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["build", *map(str, arguments)])


def refused(result: Result, out: Path, *parts: str) -> None:
    """One sentence, exit code 2, nothing half-written."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    for part in parts:
        assert part in result.stderr
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))


def changed(folder: Path, name: str, change: Change) -> Path:
    """A copy of a fixture checkpoint with its state_dict changed."""
    content = torch.load(FIXTURE / name, weights_only=True)
    change(content.get("model", content))
    torch.save(content, folder / name)
    return folder / name


def arguments(out: Path, **replaced: object) -> list[object]:
    given = fixture_arguments(out)
    for option, value in replaced.items():
        place = given.index(f"--{option}") + 1
        if value is None:
            del given[place - 1 : place + 1]
        else:
            given[place] = value
    return given


def test_manifest_and_parity(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert manifest.model.parameters == 1205120
    assert (manifest.target.top_k, manifest.batch, manifest.sampling.guidance_scale) == (512, 3, 3.0)
    assert not manifest.dummy_weights
    assert set(manifest.parity) == set(manifest.engines)
    for engine, report in manifest.parity.items():
        for output, difference in report["outputs"].items():
            assert difference["relative"] < 2e-5, (engine, output)
    target = manifest.parity["target"]
    assert set(target["outputs"]) == {"hidden", "logits", "similarity", "states"}
    drawn = target["drawn"]
    assert 0 < drawn["nodes"] == drawn["equal"] + drawn["ties"] and drawn["ties"] <= 1


def test_info(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(cli, ["info", str(tiny_bundle), "--verify"])
    assert result.exit_code == 0, result.output
    for part in ("4 layers x 128", "8 x 8 tokens of 512", "naive_extend_57: 58 nodes", "ort-cpu: usable"):
        assert part in result.output
    assert "ort-cuda: takes these graphs\n" in result.output
    assert "tensorrt-rtx: takes these graphs\n" in result.output
    printed = CliRunner().invoke(cli, ["info", str(tiny_bundle), "--json"])
    assert json.loads(printed.output)["model"]["dim"] == 128


def test_info_tells_what_auto_chooses_by(tiny_bundle: Path, tmp_path: Path) -> None:
    """The command to run, or a line for each machine."""
    shown = " ".join(CliRunner().invoke(cli, ["info", str(tiny_bundle)]).output.split())
    assert f"costs none measured: run {program()} calibrate costs --bundle" in shown
    own = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, own)
    here = CostInfo("ort-cpu", "1.32.0", "AMD EPYC", 2, [1, 2, 4], [1], [[1.0]] * 3, {}, 0.1, 0.0, {}, 4)
    there = replace(here, machine="a laptop", threads=1, slots=[1], target=[[1.0]], images=1)
    amend_bundle(own, lambda _, manifest: replace(manifest, costs=[here, there]))
    shown = " ".join(CliRunner().invoke(cli, ["info", str(own)]).output.split())
    machine = "ort-cpu 1.32.0 on AMD EPYC, 2 threads: 1, 2, 4 images at a time, accepted lengths of 4 images"
    other = "ort-cpu 1.32.0 on a laptop, 1 thread: 1 image at a time, accepted lengths of 1 image"
    assert f"costs {machine} {other}" in shown


def test_models() -> None:
    result = CliRunner().invoke(cli, ["models"])
    assert result.exit_code == 0
    assert "llamagen-t2i-xl-stage1" in result.output
    assert "janus-pro-1b" in result.output and "anole-7b" in result.output and "lumina-mgpt-7b-768" in result.output
    listed = {row["name"] for row in json.loads(CliRunner().invoke(cli, ["models", "--json"]).output)}
    assert listed == {preset for name in names() for preset in get_family(name).presets}


@pytest.mark.parametrize("option", ["checkpoint", "vq", "drafter", "config"])
def test_missing_files(tmp_path: Path, option: str) -> None:
    out = tmp_path / "out"
    refused(run(*arguments(out, **{option: tmp_path / "none.pt"})), out, "none.pt")


@pytest.mark.parametrize(("option", "name"), [("checkpoint", "gpt_t2i.pt"), ("vq", "vq.pt"), ("drafter", "drafter.pt")])
def test_truncated_files(tmp_path: Path, option: str, name: str) -> None:
    content = (FIXTURE / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    refused(run(*arguments(out, **{option: tmp_path / name})), out, name, "truncated")


def narrower(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor[..., :64].clone() if tensor.ndim > 1 else tensor


CHANGES: list[tuple[str, str, Change, list[str]]] = [
    ("checkpoint", "gpt_t2i.pt", lambda t: t.pop("layers.2.attention.wo.weight"), ["layers.2.attention.wo.weight"]),  # type: ignore[list-item]
    ("checkpoint", "gpt_t2i.pt", lambda t: t.update({"layers.1.ffn_norm.weight": torch.ones(7)}),
     ["layers.1.ffn_norm.weight", "[7]", "[128]"]),
    ("vq", "vq.pt", lambda t: t.pop("decoder.conv_out.bias"), ["decoder.conv_out.bias"]),  # type: ignore[list-item]
    ("drafter", "drafter.pt", narrower, ["drafter", "64 wide", "128 wide"]),
    ("checkpoint", "gpt_t2i.pt", lambda t: t["norm.weight"].fill_(torch.nan), ["norm.weight", "NaN"]),  # type: ignore[list-item]
]  # fmt: skip


@pytest.mark.parametrize(("option", "name", "change", "parts"), CHANGES)
def test_bad_tensors_are_named(tmp_path: Path, option: str, name: str, change: Change, parts: list[str]) -> None:
    out = tmp_path / "out"
    refused(run(*arguments(out, **{option: changed(tmp_path, name, change)})), out, *parts)


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        (["--grid", 0], ["grid"]),
        (["--grid", 256], ["from 1 to 128, not 256", "16 for 256 px"]),
        (["--n-head", 3], ["3 heads", "128"]),
        (["--tree", "oak"], ["unknown tree 'oak'", "chain"]),
        (["--tree", "chain", "--tree", "chain"], ["two trees"]),
        (["--precision", "int3"], ["unknown precision", "fp16"]),
        (["--batch", 0], ["--batch"]),
        (["--max-top-k", 0], ["--max-top-k"]),
        (["--text", "nowhere"], ["nowhere", "--text none"]),
    ],
)
def test_bad_options(tmp_path: Path, extra: list[object], parts: list[str]) -> None:
    out = tmp_path / "out"
    refused(run(*arguments(out), *extra), out, *parts)


def test_defaults_stay_within_the_kept_logits(tmp_path: Path) -> None:
    """A bundle that keeps five logits draws with them, and not with the model's usual top_k."""
    build(*save_checkpoints(tmp_path / "checkpoints"), "--max-top-k", 5, "--out", tmp_path / "bundle")
    pipe = Pipeline.load(tmp_path / "bundle", threads=1)
    assert pipe.manifest.sampling.top_k == 5
    assert len(pipe.generate(**random_features(pipe, 1)).images) == 1


def test_trees_without_a_drafter_are_left_out_with_a_warning(tmp_path: Path) -> None:
    result = run(*arguments(tmp_path / "out", drafter=None), "--tree", "chain")
    assert result.exit_code == 0
    assert result.stderr == "Warning: trees that draft need --drafter; left out: chain.\n"
    assert read_manifest(tmp_path / "out").trees == []


def test_without_config_the_grid_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(run(*arguments(out, config=None)), out, "--grid 16")


def test_a_tokenizer_of_another_codebook(tmp_path: Path) -> None:
    save_checkpoints(tmp_path / "other", vocab=16)
    (tmp_path / "config.json").write_text('{"grid": 8, "n_head": 4}')
    out, other = tmp_path / "out", tmp_path / "other" / "vq.pt"
    refused(run(*arguments(out, vq=other, config=tmp_path / "config.json")), out, "16 codes", "512 tokens")


def test_a_text_encoder_of_another_width(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = save_text_encoder(tmp_path / "t5", width=24)
    refused(run(*arguments(out, text=text)), out, "features of 24", "reads 32")
    (text / "tokenizer.json").unlink()
    refused(run(*arguments(out, text=text)), out, "tokenizer.json")


def test_swapped_options_say_where_the_file_belongs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(run(*arguments(out, checkpoint=FIXTURE / "vq.pt")), out, "--vq")
    refused(run(*arguments(out, checkpoint=FIXTURE / "drafter.pt")), out, "--drafter")


def test_a_failed_build_leaves_the_old_bundle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(*arguments(out, drafter=None))
    before = (out / "manifest.json").read_text()
    damaged = changed(tmp_path, "gpt_t2i.pt", lambda t: t["norm.weight"].fill_(torch.nan))  # type: ignore[arg-type,return-value]
    result = run(*arguments(out, checkpoint=damaged))
    assert result.exit_code == 2
    assert (out / "manifest.json").read_text() == before
    Pipeline.load(out, threads=1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_text("precious")
    result = run(*arguments(out))
    assert result.exit_code == 2
    assert "is not a bundle" in result.stderr
    assert (out / "holiday.jpg").read_text() == "precious"


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 129)])
def test_ctrl_c_leaves_the_old_bundle(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    """Interrupted while weights are written: no staging folder stays, the old bundle works."""
    out = tmp_path / "bundle"
    build(*arguments(out, drafter=None))
    before = (out / "manifest.json").read_text()
    command = [sys.executable, "-m", "cascade_trt", "build", *map(str, arguments(out)), "--tree", "naive_extend_57"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.*.part/target.data")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (out / "manifest.json").read_text() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"grid": 8, "cfg_scal": 2.0}', "cfg_scal (did you mean 'cfg_scale'?)"),
        ('{"grid": 8, "zz": 1}', "has the entry zz, which is not read"),
        ('{"grid": 8, "n_head": 4, "grid": 9}', "names an entry twice"),
        ('{"grid": 8, "rules": {"cool": "cool:", "cool": "cool:"}}', "names an entry twice"),
    ],
)
def test_a_config_that_says_what_nobody_reads(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.json").write_text(text)
    refused(run(*arguments(tmp_path / "out", config=tmp_path / "c.json")), tmp_path / "out", said, "c.json")


def test_a_config_of_another_program_may_say_more(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"model_type": "llama", "grid": 8, "n_head": 4, "attention_bias": false}')
    result = run(*arguments(tmp_path / "out", config=tmp_path / "c.json"), "--batch", 3)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("option", ["out", "text", "config", "drafter"])
def test_an_empty_path_is_refused(tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a rule a variable was not set, and the working directory is not what was meant."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments(tmp_path / "out"), f"--{option}", "")
    assert result.exit_code == 2 and f"--{option}" in result.stderr and "it is empty" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["doctor"], ["build", "emoji"], ["generate", "a cat"], ["info"]])
def test_a_working_directory_that_is_gone(command: list[str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r}); from cascade_trt.cli import main; main()"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=gone, capture_output=True, text=True, env=environment, check=False
    )
    said = "Error: the folder that this command runs in is gone: change to another one."
    assert (result.returncode, result.stderr.strip()) == (2, said)


UNBUILDABLE = {
    "--max-top-k must be from 1 to": ("--max-top-k", 10**20),
    "--max-top-k must be from 1": ("--max-top-k", 0),
    "--batch must be from 1 to 1024, not 1025": ("--batch", 1025),
    "--max-nodes must be from 2": ("--max-nodes", 1025),
    "--one-plan is for targets of TensorRT-RTX": ("--one-plan",),
}


@pytest.mark.parametrize("sentence", UNBUILDABLE)
def test_numbers_of_no_bundle_are_refused_before_the_work(
    tmp_path: Path, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "open_llamagen", lambda *_: pytest.fail("the checkpoint was opened"))
    refused(run(*arguments(tmp_path / "out"), *UNBUILDABLE[sentence]), tmp_path / "out", sentence)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "x\x1b[31m", os.fsdecode(b"\xff"), os.fsdecode(b"\xff") + "/b"])
def test_a_bundle_whose_name_could_not_be_read_back(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "open_llamagen", lambda *_: pytest.fail("the checkpoint was opened"))
    result = run(*arguments(tmp_path / name))
    assert result.exit_code == 2 and "Error: " in result.stderr and "choose" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [b"t\nx.pt", b"\xff.pt", b"\x1b[31m.pt"])
def test_a_checkpoint_of_any_name_makes_a_bundle_that_loads(tmp_path: Path, name: bytes) -> None:
    given = save_checkpoints(tmp_path / "checkpoints")
    odd = tmp_path / os.fsdecode(name)
    Path(str(given[2])).rename(odd)
    given[2] = odd
    assert run(*given, "--out", tmp_path / "out").exit_code == 0
    assert read_manifest(tmp_path / "out").provenance["target"]["file"].isprintable()


def test_a_tree_whose_name_could_not_be_read_back(tmp_path: Path) -> None:
    tree = tmp_path / "a\nb.json"
    tree.write_text("[[0], [1]]")
    result = run(*arguments(tmp_path / "out"), "--tree", tree)
    assert result.exit_code == 2 and "cannot be printed" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", [".", ".."])
def test_the_working_directory_is_no_place_for_a_bundle(
    tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "d" / "e"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    result = run(*arguments(Path(out)))
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert Path.cwd() == here and [path.name for path in tmp_path.rglob("*")] == ["d", "e"]


def test_a_bundle_moved_to_where_engines_cannot_be_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / os.fsdecode(b"\xfe")
    shutil.copytree(tiny_bundle, moved)
    with pytest.raises(CascadeError, match="is not UTF-8"):
        Pipeline.load(moved)


def test_only_one_build_at_a_time(tiny_bundle: Path, tmp_path: Path) -> None:
    from cascade_trt.engines.publish import staged_bundle

    out = tmp_path / "bundle"
    with staged_bundle(out) as stage:
        result = run(*arguments(out))
        assert result.exit_code == 2
        assert "another build" in result.stderr
        assert stage.is_dir()
        shutil.copytree(tiny_bundle, stage, dirs_exist_ok=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_out(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot write" in run(*arguments(tmp_path / "out")).stderr


def test_out_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(*arguments(tmp_path / "file" / "out"))
    assert result.exit_code == 2
    assert "cannot write" in result.stderr


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(tmp_path: Path, precision: str) -> None:
    """fp16 runs on the CPU and draws much the same; bf16 is for GPUs, which the bundle and the loader say."""
    out = tmp_path / "bundle"
    saved = save_checkpoints(tmp_path / "checkpoints", vocab=16, grid=4)
    build(*saved, "--precision", precision, "--tree", "small_6", "--out", out)
    manifest = read_manifest(out)
    assert {engine.precision for engine in manifest.engines.values()} == {precision}
    assert set(manifest.parity) == set(manifest.engines)
    if precision == "bf16":
        assert "bfloat16" in manifest.backends["ort-cpu"]
        with pytest.raises(CascadeError, match="--precision fp32"):
            Pipeline.load(out)
        return
    pipe = Pipeline.load(out, threads=1)
    given = random_features(pipe, 1)
    exact, plain = pipe.generate(**given, seed=2), pipe.generate(**given, seed=2, rule="ar")
    assert (exact.codes == plain.codes).mean() > 0.8  # near ties may fall differently in half precision


def test_dummy_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset at full size, here a small one; the bundle says that its weights are random."""
    small = presets.Preset("small", 64, 2, 1, 4, "text", 8, 2.0, 10, "nothing", vocab_size=32, caption_dim=16,
                           vq_ch_mult=(1, 1))  # fmt: skip
    monkeypatch.setitem(presets.PRESETS, "small", small)
    known = family.FAMILY.presets | {"small"}
    monkeypatch.setattr(family, "FAMILY", replace(family.FAMILY, presets=known))
    out = tmp_path / "small"
    printed = build("small", "--dummy-weights", "--tree", "chain_2", "--out", out)
    assert "5 engines" in printed
    assert read_manifest(out).dummy_weights
    assert "random (--dummy-weights)" in CliRunner().invoke(cli, ["info", str(out)]).output
    pipe = Pipeline.load(out, threads=1)
    np.testing.assert_array_equal(
        pipe.generate(**random_features(pipe, 1)).codes, pipe.generate(**random_features(pipe, 1), rule="ar").codes
    )


def test_presets_need_weights(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(run("llamagen-t2i-b", "--out", out), out, "--dummy-weights")
    refused(run("nonsense", "--dummy-weights", "--out", out), out, "cascade-trt models")
    refused(run("llamagen", "--out", out), out, "the hub cannot be reached", "into checkpoints/llamagen-t2i-xl-stage1/")


@pytest.mark.parametrize(
    ("model", "options"),
    [("emoji", ("--checkpoint", "nothere.pt")), ("emoji", ("--vq", "nothere.pt")), ("emoji", ("--drafter", "nothere")),
     ("emoji", ("--text", "flan")), ("emoji", ("--config", "nope.json")), ("emoji", ("--n-head", 7)),
     ("emoji", ("--grid", 24)), ("emoji", ("--dummy-weights",)),
     ("llamagen-t2i-b", ("--checkpoint", "x.pt", "--dummy-weights")),
     ("llamagen-t2i-b", ("--text", "flan", "--dummy-weights"))],
)  # fmt: skip
def test_options_that_a_model_has_no_use_for(tmp_path: Path, model: str, options: tuple[object, ...]) -> None:
    out = tmp_path / "out"
    refused(run(model, *options, "--out", out), out, f"{'--dummy-weights' if len(options) == 1 else options[0]}")


def test_rules_of_the_config(tmp_path: Path) -> None:
    """An operating point travels with the weights: the bare name means it, and a wrong one is a sentence."""
    arguments = save_checkpoints(tmp_path / "checkpoints", vocab=8, grid=4)
    config = tmp_path / "checkpoints" / "model.json"
    settings = json.loads(config.read_text())
    rule = "cascade:children=coupled,tau_pos=0.5,tau_seq=off"
    config.write_text(json.dumps(settings | {"rules": {"cascade": rule}}))
    build(*arguments, "--tree", "pair_4", "--out", tmp_path / "bundle")
    pipe = Pipeline.load(tmp_path / "bundle", threads=1)
    assert pipe.generate(**random_features(pipe, 1), rule="cascade").stats.rule == rule
    for rules, said in (
        ({"cascade": "cascade:tau_pos=7"}, "tau_pos must lie between 0 and 1"),
        ({"cascade": "lantern"}, "must be spelt cascade:setting=value"),
        ("cascade", "rules must map names"),
    ):
        config.write_text(json.dumps(settings | {"rules": rules}))
        result = CliRunner().invoke(cli, ["build", *map(str, arguments), "--out", str(tmp_path / "other")])
        assert result.exit_code == 2 and said in result.stderr, result.output


def test_a_table_of_states_travels_with_the_checkpoint(tmp_path: Path) -> None:
    """A config names its file; one of another model is refused."""
    arguments = save_checkpoints(tmp_path / "checkpoints", vocab=8, grid=4)
    config = tmp_path / "checkpoints" / "model.json"
    settings = json.loads(config.read_text())
    table = StateTable(np.eye(8, 64, dtype=np.float16), np.full(8, 1 / 8, np.float32))
    table.save(config.parent / "states.npz")
    rule = "swap:tau_draw=0.5"
    config.write_text(json.dumps(settings | {"states": "states.npz", "rules": {"swap": rule}}))
    build(*arguments, "--tree", "pair_4", "--out", tmp_path / "bundle")
    pipe = Pipeline.load(tmp_path / "bundle", threads=1)
    assert pipe.generate(**random_features(pipe, 1), rule="swap").stats.rule == rule
    StateTable(table.rows[1:], table.usage[1:]).save(config.parent / "states.npz")
    for name, said in (("states.npz", "belongs to another model"), ("nowhere.npz", "cannot be read")):
        config.write_text(json.dumps(settings | {"states": name}))
        refused(run(*arguments, "--out", tmp_path / "other"), tmp_path / "other", said)
