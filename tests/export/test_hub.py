"""Published models by their names: files that lie here, files from the hub (a stand-in of it), and what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import SHA, Hub, serve
from hub_stand_in import build_by_name as build
from support import FIXTURE

from cascade_trt.export.families import get_family, published_of
from cascade_trt.export.families.llamagen.presets import PRESETS
from cascade_trt.runtime.bundle import read_manifest

TEXT, CLASS = "peizesun/llamagen_t2i", "FoundationVision/LlamaGen"
DRAFTER, T5 = "jadohu/llamagen_drafter", "google/flan-t5-xl"
MODEL = "llamagen-t2i-xl-stage1"


def published_files(folder: Path) -> dict[str, dict[str, Path]]:
    """The fixture under the names of the published files."""
    folder.mkdir(parents=True)
    config = folder / "config.json"
    config.write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return {
        TEXT: {"t2i_XL_stage1_256.pt": FIXTURE / "gpt_t2i.pt", "vq_ds16_t2i.pt": FIXTURE / "vq.pt",
               "README.md": config},
        DRAFTER: {"config.json": config, "pytorch_model.bin": FIXTURE / "drafter.pt"},
    }  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(Hub(published_files(tmp_path / "published"))) as one:
        yield one


SMALL = ("--grid", 8, "--text", "none", "--config", FIXTURE / "config.json", "--tree", "small_6")


def test_a_model_by_its_name_alone(hub: Hub, tmp_path: Path) -> None:
    """Everything is said before it is fetched; a second build fetches nothing; the manifest has the revisions."""
    said = build(tmp_path / "here", "llamagen", *SMALL, url=hub.url)
    assert f"{TEXT}: 1 file, " in said and f"{DRAFTER}: 2 files" in said
    assert "licence mit, revision 0123456789ab" in said
    manifest = read_manifest(tmp_path / "here" / "build" / "llamagen")
    assert {part: (entry["repository"], entry["revision"]) for part, entry in manifest.provenance.items()} == {
        "target": (TEXT, SHA), "vq": (TEXT, SHA), "drafter": (DRAFTER, SHA),
    }  # fmt: skip
    assert "README.md from 0" not in hub.asked
    asked = len(hub.asked)
    build(tmp_path / "here", MODEL, *SMALL, url=hub.url)
    assert len(hub.asked) == asked
    assert "taking what was fetched before" in build(tmp_path / "here", MODEL, *SMALL, HF_HUB_OFFLINE="1")


def test_a_connection_that_broke_off_is_made_again(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub goes on behind what it has written, in pieces of 10 MB; these files are smaller."""
    hub.cut["t2i_XL_stage1_256.pt"] = [1 << 16]
    build(tmp_path / "here", MODEL, *SMALL, url=hub.url)
    assert len([asked for asked in hub.asked if asked.startswith("t2i_XL_stage1_256.pt")]) == 2


def test_files_that_lie_here_are_taken(tmp_path: Path) -> None:
    """Without the hub; the folder has the model's name."""
    folder = tmp_path / "here" / "checkpoints" / MODEL
    (folder / "llamagen_drafter").mkdir(parents=True)
    for repo, files in published_files(tmp_path / "published").items():
        for name, source in files.items():
            place = folder / ("llamagen_drafter" if repo == DRAFTER else "") / name
            place.write_bytes(source.read_bytes())
    said = build(tmp_path / "here", "llamagen", *SMALL)
    assert f"checkpoint: checkpoints/{MODEL}/t2i_XL_stage1_256.pt" in said
    assert "repository" not in read_manifest(tmp_path / "here" / "build" / "llamagen").provenance["target"]


def test_without_the_hub_a_sentence_names_files_and_folder(tmp_path: Path) -> None:
    said = build(tmp_path / "here", "llamagen", code=2)
    wanted = (
        f"put these files into checkpoints/{MODEL}/: t2i_XL_stage1_256.pt, vq_ds16_t2i.pt (of {TEXT}); "
        f"llamagen_drafter/config.json, llamagen_drafter/pytorch_model.bin (of {DRAFTER}); flan-t5-xl/config.json, "
        "flan-t5-xl/tokenizer.json, flan-t5-xl/*.safetensors, flan-t5-xl/*.safetensors.index.json "
        f"(of {T5})"
    )
    assert said.startswith("Error: the hub cannot be reached (") and wanted in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "here" / "build").exists()


def test_what_the_hub_refuses_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.gated = frozenset({DRAFTER})
    said = build(tmp_path / "here", MODEL, *SMALL, url=hub.url, code=2)
    assert "asks you to accept its licence" in said and "hf auth login" in said
    hub.gated = frozenset()
    said = build(tmp_path / "here", "llamagen-c2i-b-256", *SMALL, url=hub.url, code=2)
    assert "the hub does not have what is needed" in said and f"c2i_B_256.pt, vq_ds16_c2i.pt (of {CLASS})" in said
    del hub.repos[TEXT]["vq_ds16_t2i.pt"]
    assert f"{TEXT} on the hub has no vq_ds16_t2i.pt" in build(tmp_path / "here", MODEL, *SMALL, url=hub.url, code=2)


def test_a_model_that_nobody_published(tmp_path: Path) -> None:
    said = build(tmp_path / "here", "llamagen-t2i-b", code=2)
    assert "no published files of 'llamagen-t2i-b' are known" in said and "--dummy-weights" in said


def test_a_preset_with_files_of_ones_own(tmp_path: Path) -> None:
    """Its settings hold where none are given, and nothing is fetched."""
    given = ("--checkpoint", FIXTURE / "gpt_t2i.pt", "--vq", FIXTURE / "vq.pt", "--tree", "jacobi_4")
    for name, grid, options in (("theirs", 16, ()), ("mine", 8, ("--grid", 8))):
        build(tmp_path / name, MODEL, *given, *options)
        assert read_manifest(tmp_path / name / "build" / MODEL).model.plan.rows == grid


def test_repositories_in_folders(tmp_path: Path) -> None:
    """Anole's has Meta's layout, and lies whole in checkpoints/<model>/; a drafter is a folder in there."""
    _, _, published = published_of("anole")
    files, drafter = published.parts["checkpoint"], published.parts["drafter"]
    place = tmp_path / "checkpoints" / "anole-7b"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert files.local("anole-7b", True) is None
        for name in ("models/7b/consolidated.pth", "models/7b/params.json", "anole_drafter/pytorch_model.bin"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).touch()
        assert files.local("anole-7b", True) == Path("checkpoints/anole-7b")
        assert drafter.local("anole-7b", False) == Path("checkpoints/anole-7b/anole_drafter")


VQGAN = (
    "tokenizer/vqgan.ckpt", "vqgan.ckpt", "Lumina-mGPT-7B-768/tokenizer/vqgan.ckpt", "Lumina-mGPT-7B-768/vqgan.ckpt",
)  # fmt: skip


@pytest.mark.parametrize("place", VQGAN)
def test_a_vqgan_that_lies_here_is_found(place: str, tmp_path: Path) -> None:
    """Under the name that the hub has, or without its folder; beside the model's folder, or in there. Where nothing
    but that is here, the sentence says for each other file where it goes."""
    folder = tmp_path / "checkpoints" / "lumina-mgpt-7b-768"
    (folder / place).parent.mkdir(parents=True)
    (folder / place).touch()
    said = build(tmp_path, "lumina-mgpt", code=2)
    assert f"vq: checkpoints/lumina-mgpt-7b-768/{place}" in said
    assert (
        "put these files into checkpoints/lumina-mgpt-7b-768/: Lumina-mGPT-7B-768/*.json, "
        "Lumina-mGPT-7B-768/*.safetensors (of Alpha-VLLM/Lumina-mGPT-7B-768); LANTERN-Lumina-mGPT-7B-768/config.json"
    ) in said
    assert "(of GAIR" not in said


@pytest.mark.parametrize("model", ["janus-pro", "janus-pro-7b", "anole", "lumina-mgpt"])
def test_other_families_are_built_by_name(tmp_path: Path, model: str) -> None:
    said = build(tmp_path / "here", model, code=2)
    assert said.startswith("Error: the hub cannot be reached (") and "into checkpoints/" in said


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if preset.published is not None])
def test_every_published_preset_has_what_a_build_needs(preset: str) -> None:
    name, family, published = published_of(preset)
    assert (name, family) == (preset, get_family("llamagen"))
    assert {"checkpoint", "vq"} <= published.parts.keys() and published.settings["grid"] == PRESETS[preset].grid
