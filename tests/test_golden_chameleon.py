"""The fixtures of Anole and Lumina-mGPT: what the original code computed, engine by engine and through the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from apart import ApartBackend
from graph_calls import Target, prefill, session
from support import FIXTURE, build

from cascade_trt.export.checkpoints.source import open_source
from cascade_trt.export.open import open_parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.batch import Batch
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.prompts import PromptEncoder, rows_of
from cascade_trt.runtime.request import Request

SCALE, CODES, FIRST_CODE, ROW_END = 3.0, 8192, 4, 8803
DRAFTED = ("small_6", "chain_7", "dynamic_59x5x10", "chain_1", "chain_2")
TREES = (*DRAFTED[:3], "mixed_16", "mixed_12x8", "jacobi_16", "jacobi_12x8")
OPTIONS = {"anole": ("--grid", 8), "lumina-mgpt": ("--size", "96x96")}


@dataclass(frozen=True)
class Model:
    """One fixture: its folder, the bundle that was built of it, what the original code computed."""

    name: str
    fixture: Path
    bundle: Path
    pipe: Pipeline
    golden: dict[str, np.ndarray]

    @property
    def prompts(self) -> list[str]:
        return [str(prompt) for prompt in self.golden["prompts"]]

    def rows(self, prompt: int) -> tuple[np.ndarray, np.ndarray]:
        """The original ids of both rows of a prompt, without padding."""
        if self.name == "anole":
            cond, uncond = self.golden[f"input_ids_{prompt}"]
            return cond, uncond[uncond != 1]
        return self.golden[f"cond_ids_{prompt}"], self.golden[f"uncond_ids_{prompt}"]

    def own(self, ids: np.ndarray) -> np.ndarray:
        """The bundle's ids of codes and row ends."""
        return np.where(ids == ROW_END, CODES, ids - FIRST_CODE).astype(np.int64)

    def own_of_drafter(self, ids: np.ndarray) -> np.ndarray:
        """The bundle's ids of anything, in the drafter's table: prompts are behind the sequence's tokens."""
        tokens = self.pipe.manifest.model.plan.tokens
        is_code = (ids >= FIRST_CODE) & (ids < FIRST_CODE + CODES)
        is_end = (ids == ROW_END) & (self.name != "anole")
        return np.where(is_code | is_end, self.own(ids), tokens + ids).astype(np.int64)


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name = request.param
    fixture, out = FIXTURE.parent / f"{name.partition('-')[0]}-tiny", tmp_path_factory.mktemp("chameleon") / name
    trees = (part for tree in DRAFTED for part in ("--tree", tree))
    build(name, "--checkpoint", fixture, "--drafter", fixture / "drafter", *OPTIONS[name], "--batch", 3,
          *trees, "--out", out)  # fmt: skip
    return Model(name, fixture, out, Pipeline.load(out, threads=1), dict(np.load(fixture / "golden.npz")))


def encoded(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Ids [4, T] and mask [4, T]: both prompts, then the unconditional row of each."""
    text, condition = model.pipe.manifest.text, model.pipe.manifest.model.condition
    assert text is not None and condition.uncond_length is not None
    found = PromptEncoder(model.bundle, text).encode(model.prompts)
    rows = np.stack([rows_of(text, *one) for one in zip(found.ids, found.mask, strict=True)], axis=1)  # [2, P, T]
    own = np.arange(condition.length) >= condition.length - condition.uncond_length
    return rows.reshape(4, -1), np.concatenate([found.mask, np.tile(own, (2, 1))])


def test_ids_of_both_rows(model: Model) -> None:
    ids, mask = encoded(model)
    for prompt in range(2):
        for row, wanted in enumerate(model.rows(prompt)):
            found = 2 * row + prompt
            assert ids[found][mask[found]].tolist() == wanted.tolist()


def test_logits_and_states(model: Model) -> None:
    """Of every listed step, from the prompt's ids on. Step 0 is the last slot of the prefix."""
    golden, (ids, mask) = model.golden, encoded(model)
    target = Target(model.bundle, mask)
    plan, length = model.pipe.manifest.model.plan, mask.shape[1]
    forced = {"forced": np.full((4, 1), -1)} if plan.has_forced else {}
    embeds = session(model.bundle, "condition").run(None, {"ids": ids})[0]
    call: Callable = target
    if forced:
        call = lambda *given, **more: target(*given, **forced, **more)  # noqa: E731
    first = prefill(call, embeds, mask, length)
    tokens = model.own(golden["greedy_tokens"][:, : int(golden["logit_steps"].max())])
    rest = call(target.embed(np.tile(tokens, (2, 1))), length)
    for i, step in enumerate(golden["logit_steps"]):
        outputs, at = (first, -1) if step == 0 else (rest, step - 1)
        assert np.abs(outputs["hidden"][:, at] - golden["hidden"][:, i]).max() <= 2e-4
        wanted = golden["cond_uncond_logits"][:, i, FIRST_CODE : FIRST_CODE + CODES]
        found, ids = outputs["logits"][:, at], outputs["ids"][:, at]
        assert np.abs(found - np.take_along_axis(wanted, ids, axis=1)).max() <= 2e-4
        assert np.abs(found - -np.sort(-wanted, axis=1)[:, : found.shape[1]]).max() <= 2e-4  # none is left out


@pytest.mark.parametrize("tree", [None, *TREES])
def test_greedy_tokens(model: Model, tree: str | None) -> None:
    """Together in any order, and alone, whatever the tree."""
    how = {"temperature": 0, "guidance_scale": SCALE, "rule": "ar" if tree is None else "exact", "tree": tree}
    wanted, prompts = model.golden["greedy_codes"], model.prompts
    for order in ([1, 0, 1, 0], [1]):
        output = model.pipe.generate([prompts[i] for i in order], **how)
        np.testing.assert_array_equal(output.codes, wanted[order])
        if tree in DRAFTED:
            assert output.stats.tau > 2  # the fixture's drafter is right about the first guess


def test_forced_tokens_are_those_of_the_original(model: Model) -> None:
    plan = model.pipe.manifest.model.plan
    forced = np.flatnonzero(plan.forced >= 0).tolist()
    assert forced == [step for step in model.golden.get("forced_steps", []) if step < plan.length]
    tokens = model.own(model.golden["greedy_tokens"])
    assert (tokens[:, forced] == CODES).all()
    np.testing.assert_array_equal(tokens[:, plan.code_positions], model.golden["greedy_codes"])


def test_images(model: Model) -> None:
    output = model.pipe.generate(model.prompts, temperature=0, guidance_scale=SCALE, rule="ar")
    pixels = (np.clip(model.golden["image"], -1, 1) + 1) / 2 * 255
    for image, wanted in zip(output.images, pixels.astype(np.uint8).transpose(0, 2, 3, 1), strict=True):
        differences = np.abs(np.asarray(image).astype(int) - wanted)
        assert differences.max() <= 1 and differences.mean() <= 0.01  # cut, not rounded: half of all would differ


# the drafter ----------------------------------------------------------------------------------------------------
def test_the_drafter(model: Model) -> None:
    """LANTERN's states of the pairs of prompt 0 and its image, by the engine and by PyTorch."""
    golden = dict(np.load(model.fixture / "golden_drafter.npz"))
    ids, shown, pairs = golden["ids"], golden["attention_mask"], golden["ids"].shape[1]
    assert ((ids[0] == ids[1]) | ~shown[1]).all()  # so one row of tokens does for both
    drafter = model.pipe.manifest.drafter
    assert drafter is not None
    mask = np.ones((2, drafter.slots), bool)
    mask[:, :pairs] = shown
    tokens = model.own_of_drafter(ids[:1])
    engine = session(model.bundle, "draft.chain_1")
    plan = model.pipe.manifest.model.plan
    inputs = {
        "hidden": golden["hidden_in"], "path": np.arange(pairs)[None], "tokens": tokens, "count": np.array([pairs - 2]),
        "positions": np.tile(np.arange(pairs), (2, 1)), "write_index": np.zeros(2, np.int64), "cache_mask": mask,
        "prompt_of_row": np.zeros(2, np.int64), "rows_of_prompt": np.array([[0, 1]]),
        "noise": np.zeros((1, 2, plan.codes), np.float32), "guidance": np.array([[SCALE, 1 - SCALE]], np.float32),
        "temperature": np.ones(1, np.float32),
    }  # fmt: skip
    inputs |= {"forced": np.full((1, 2), -1)} if plan.has_forced else {}
    past = np.zeros((2, drafter.n_kv_head, drafter.slots, drafter.head_dim), np.float32)
    (features,) = engine.run(["features"], inputs | {"past_key.0": past, "past_value.0": past})
    assert np.abs(features - golden["hidden_out"])[shown].max() <= 2e-4
    opened = parts_of(model).drafter
    assert opened is not None
    visible = np.tri(pairs, dtype=bool) & shown[:, None] | np.eye(pairs, dtype=bool)
    with torch.inference_mode():
        states = opened.reference(opened.checkpoint).states(
            *(torch.from_numpy(x) for x in (golden["hidden_in"], np.repeat(tokens, 2, axis=0))),
            torch.arange(pairs).repeat(2, 1), torch.from_numpy(visible[:, None]),
        )  # fmt: skip
    assert np.abs(states.numpy() - golden["hidden_out"])[shown].max() <= 2e-4


def parts_of(model: Model):
    options = {"anole": {"grid": 8}, "lumina-mgpt": {"size": "96x96"}}[model.name]
    return open_parts(
        BuildRequest(model.name, checkpoint=model.fixture, drafter=model.fixture / "drafter", **options)
    )[0]


def test_the_drafter_reads_the_prompt(model: Model) -> None:
    """Its first call has LANTERN's ids and masks of the prompt's slots."""
    golden = dict(np.load(model.fixture / "golden_drafter.npz"))
    batch: Batch = model.pipe.batch(1, tree="small_6")
    batch.submit(Request(prompt=model.prompts[0]))
    batch.step()
    workspace, count = batch.lane.workspace, len(model.rows(0)[0])
    shown = golden["attention_mask"][:, :count]
    length = workspace.prefix_len
    np.testing.assert_array_equal(workspace.pair_mask[:2, length - count : length], shown)
    assert not workspace.pair_mask[:2, : length - count].any()
    wanted = model.own_of_drafter(golden["ids"][0, : count - 1])
    assert workspace.scratch.tokens[0, length - count : -1].tolist() == wanted.tolist()


def test_the_drafter_is_worth_what_it_is_to_lantern(model: Model) -> None:
    """LANTERN's tree of 59 nodes and as many levels brings Anole's fixture 5.1 and 4.6 tokens a call."""
    output = model.pipe.generate(
        model.prompts, temperature=0, guidance_scale=SCALE, rule="exact", tree="dynamic_59x5x10"
    )
    assert output.stats.tau > {"anole": 4.5, "lumina-mgpt": 3.2}[model.name]  # of codes: what is forced comes free


def test_a_manifest_whose_drafter_reads_other_prompts_is_refused(model: Model) -> None:
    """Both rows of an image have one row of ids for the drafter: so they have to end alike."""
    manifest = model.pipe.manifest
    drafter, text = manifest.drafter, manifest.text
    assert drafter is not None and text is not None and text.form is not None
    uncond = text.form.uncond
    changes: list[dict[str, Any]] = [
        {"drafter": replace(drafter, prompt_ids=drafter.prompt_ids - 1)},
        {"text": replace(text, form=replace(text.form, uncond=[uncond[0], *(token + 1 for token in uncond[1:])]))},
        {"text": replace(text, form=replace(text.form, end=[*text.form.end, 5]))},
    ]
    for change in changes:
        with pytest.raises(CascadeError, match="reads prompts that are not what the model reads, or whose rows end"):
            replace(manifest, **change)


def test_on_memory_of_its_own(model: Model, spoilt: None) -> None:
    """What the drafter reads of a prompt is sent like every other input."""
    del spoilt
    pipe = Pipeline.load(model.bundle, backend=ApartBackend())
    output = pipe.generate(model.prompts[1:], temperature=0, guidance_scale=SCALE, rule="exact", tree="small_6")
    np.testing.assert_array_equal(output.codes, model.golden["greedy_codes"][1:])
    assert output.stats.tau > 2


def test_neighbours_are_lanterns(model: Model) -> None:
    """By the codes of the VQGAN as they are, and by the codebook's own ids."""
    table = np.load(model.bundle / "neighbours.npy")
    codes = open_source(model.fixture / "tokenizer" / "vqgan.ckpt", "VQ").load("quantize.embedding.weight").double()
    rows = [0, 1, 4000, 8191]
    distances = torch.cdist(codes[rows], codes)
    distances[range(len(rows)), rows] = torch.inf
    wanted = distances.sort(dim=1).indices[:, : table.shape[1]]
    assert table.shape == (CODES, 1024)
    assert (table[rows] == wanted.numpy()).mean() > 0.999  # but for distances that are equal to the last digits


def test_relaxed_rules_draw_codes(model: Model) -> None:
    for rule in ("lantern:k=100,delta=0.5", "cool:delta=3"):
        output = model.pipe.generate(model.prompts, rule=rule, tree="small_6")
        assert output.codes.min() >= 0 and output.codes.max() < CODES
