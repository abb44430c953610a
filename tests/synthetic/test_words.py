"""A model that reads prompts as token ids: what becomes of them, what it draws, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cascade_trt.cli import cli
from cascade_trt.runtime.bundle import PromptForm, TextInfo, read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.images import to_images
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.prompts import PromptEncoder, rows_of
from cascade_trt.runtime.schema import build, plain, printable
from synthetic import model as m
from synthetic.words import LENGTH, OWN_ROW, PAD, PADDED_ROW, WORDS, WordsTarget, build_words, tokenizer

PROMPTS = ["a red apple", "cat", " an old house on a green cat "]
CUT = "an old house on a green cat on a red apple"  # eleven words, and twelve slots
SCALE = 2.5


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    return make_encoder(tmp_path_factory.mktemp("words"), OWN_ROW)


def make_encoder(folder: Path, form: PromptForm) -> PromptEncoder:
    (folder / "tokenizer.json").write_bytes(tokenizer())
    return PromptEncoder(folder, TextInfo("tokenizer.json", LENGTH, PAD, False, form))


def ids(*words: str) -> list[int]:
    return [WORDS.index(word) for word in words]


def test_a_prompt_stands_in_its_form(encoder: PromptEncoder) -> None:
    """Special tokens come from the form alone, and the template is tokenised with the prompt."""
    encoded = encoder.encode(PROMPTS[:2])
    wanted = [ids("<s>", "draw", ":", "a", "red", "apple", "!", "</s>"), ids("<s>", "draw", ":", "cat", "!", "</s>")]
    for row, tokens in enumerate(wanted):
        assert encoded.ids[row].tolist() == [PAD] * (LENGTH - len(tokens)) + tokens
        assert encoded.mask[row].tolist() == [False] * (LENGTH - len(tokens)) + [True] * len(tokens)
    assert encoded.warnings == [(), ()]


def test_a_long_prompt_loses_its_own_last_words(encoder: PromptEncoder) -> None:
    encoded = encoder.encode([CUT])
    wanted = ids("<s>", "draw", ":", "<unk>", "old", "house", "on", "a", "green", "cat", "!", "</s>")
    assert encoded.ids[0].tolist() == wanted and encoded.mask.all()
    assert encoded.warnings == [
        ("prompt 1: the model does not know 'an', so the image cannot show it.",
         "prompt 1 has 11 tokens, the model reads 7: the rest was cut.")
    ]  # fmt: skip


def test_a_letter_of_many_bytes_is_not_cut_in_two(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({byte: i for i, byte in enumerate(["<pad>", *alphabet])}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    form = PromptForm([], "<", ">", [], uncond_pad=0)
    for length in range(4, 12):
        found = PromptEncoder(tmp_path, TextInfo("tokenizer.json", length, 0, False, form))
        said = found.encode(["a猫é家z"])
        text = made.decode(said.ids[0][said.mask[0]].tolist(), skip_special_tokens=False)
        assert text.startswith("<a") and text.endswith(">") and "\ufffd" not in text
        assert (text == "<a猫é家z>") == (length >= 12) == (not said.warnings[0])


def test_the_unconditional_row(encoder: PromptEncoder) -> None:
    """Its own ids at the end; or those of the prompt, all but the first and the last replaced."""
    encoded = encoder.encode(["a red cat"])
    (tokens,), (mask,) = encoded.ids, encoded.mask
    own = rows_of(TextInfo("", LENGTH, PAD, False, OWN_ROW), tokens, mask)
    assert own[0].tolist() == tokens.tolist() and own[1].tolist() == [PAD] * 9 + OWN_ROW.uncond
    other = rows_of(TextInfo("", LENGTH, 0, False, replace(PADDED_ROW, uncond_pad=5)), tokens, mask)
    assert other[1].tolist() == [0] * 4 + [2] + [5] * 6 + [3]


@pytest.mark.parametrize(
    ("form", "length", "prompt", "said"),
    [
        (OWN_ROW, LENGTH, "\u200b \n", "the model has no tokens for"),
        (OWN_ROW, 5, "a cat", "a larger --prompt-length"),
        (OWN_ROW, 3, "a cat", "a larger --prompt-length"),
        (replace(OWN_ROW, strip=False), LENGTH, "\n", "the model has no tokens for"),
    ],
)
def test_a_prompt_of_which_nothing_is_left(
    tmp_path: Path, form: PromptForm, length: int, prompt: str, said: str
) -> None:
    found = make_encoder(tmp_path, form)
    found._info = replace(found._info, max_length=length)
    found._tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("\u200b", "")
    with pytest.raises(CascadeError, match=f"nothing of prompt 1 is left: .*{said}"):
        found.encode([prompt])


def test_an_empty_prompt_is_the_template_alone(tmp_path: Path) -> None:
    """Or what the form has for it."""
    for form, prompt, wanted in (
        (OWN_ROW, "", ids("<s>", "draw", ":", "!", "</s>")), (OWN_ROW, " \n", ids("<s>", "draw", ":", "!", "</s>")),
        (replace(OWN_ROW, empty="draw a cat"), "", ids("<s>", "draw", "a", "cat", "</s>")),
    ):  # fmt: skip
        encoded = make_encoder(tmp_path, form).encode([prompt])
        assert encoded.ids[0][encoded.mask[0]].tolist() == wanted and encoded.warnings == [()]


def test_ids_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match=r"no token 77 to frame prompts with"):
        make_encoder(tmp_path, replace(OWN_ROW, end=[77]))


def test_a_form_has_one_kind_of_unconditional_row() -> None:
    for changes in ({"uncond": []}, {"uncond_pad": 0}):
        with pytest.raises(CascadeError, match="either ids of its own"):
            replace(OWN_ROW, **changes)


@given(before=st.text(), after=st.text())
def test_a_form_comes_back_from_its_file(before: str, after: str) -> None:
    """Whatever its texts hold: line breaks, quotes, backslashes, control characters. What lies in the file can all be
    printed."""
    form = PromptForm([1], before, after, [], uncond_pad=0)
    text = json.dumps(plain(form))
    assert printable(json.loads(text)["before"]) and printable(json.loads(text)["after"])
    assert build(PromptForm, json.loads(text), "form") == form


@pytest.mark.parametrize("text", ['"', "\\", "a\nb", '", "', "\\x", "\\u12"])
def test_a_text_that_is_not_escaped(text: str) -> None:
    content = plain(OWN_ROW) | {"before": text}
    with pytest.raises(CascadeError, match="form.before is no text with escaped line breaks"):
        build(PromptForm, content, "form")


def greedy(folder: Path, form: PromptForm, prompt: str) -> list[int]:
    """The image by the plain PyTorch model in float64: no padding but the form's, no cache, rows one by one."""
    tensors = load_file(folder.parent / "checkpoints" / "target.safetensors")
    model = WordsTarget({name: tensor.double() for name, tensor in tensors.items()})
    words = [2, *ids("draw", ":", *prompt.split(), "!"), 3]
    other = form.uncond or [words[0], *[PAD] * (len(words) - 2), words[-1]]
    rows = [model.prefix(torch.tensor(row), torch.tensor(False)) for row in (words, other)]
    sequence = [m.BEGIN]
    for _ in range(m.ROWS):
        for _ in range(m.COLUMNS):
            states = []
            for prefix in rows:
                x = torch.cat([prefix, model.embed(torch.tensor(sequence))])[None]
                count = x.shape[1]
                visible = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
                states.append(model.features(model.hidden(x, torch.arange(count)[None], visible))[0, -1])
            sequence.append(int(model.logits(states[1] + SCALE * (states[0] - states[1])).argmax()))
        sequence.append(m.ROW_END)
    return [token for token in sequence if token < m.CODES]


@pytest.fixture(scope="module", params=["own", "padded"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, PromptForm]:
    form = {"own": OWN_ROW, "padded": PADDED_ROW}[request.param]
    folder, _ = build_words(tmp_path_factory.mktemp(request.param), form, ("small_9", "chain_1"))
    return Pipeline.load(folder, threads=1), form


def test_greedy_images_are_those_of_the_plain_model(drawn: tuple[Pipeline, PromptForm]) -> None:
    """Prompts of several lengths side by side: positions count slots here, which no attention can tell."""
    pipe, form = drawn
    prompts = ["a red apple", "cat", "old house on a green cat"]
    wanted = [greedy(pipe.folder, form, prompt) for prompt in prompts]
    assert len({tuple(codes) for codes in wanted}) == 3
    for rule, tree in (("ar", None), ("exact", "small_9"), ("exact", "jacobi_8"), ("exact", "mixed_8")):
        output = pipe.generate(prompts, rule=rule, tree=tree, temperature=0, guidance_scale=SCALE)
        assert output.codes.tolist() == wanted, (rule, tree)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_exact_draws_the_images_of_plain_decoding(drawn: tuple[Pipeline, PromptForm], scale: float) -> None:
    pipe, prompts = drawn[0], ["a red apple", "cat", "old house on a green cat"]
    plain = pipe.generate(prompts, seed=3, rule="ar", guidance_scale=scale)
    for tree in ("small_9", "jacobi_8", "mixed_8"):
        output = pipe.generate(prompts, seed=3, rule="exact", tree=tree, guidance_scale=scale)
        np.testing.assert_array_equal(output.codes, plain.codes)


def test_other_conditions_are_refused_by_name(drawn: tuple[Pipeline, PromptForm]) -> None:
    pipe = drawn[0]
    with pytest.raises(CascadeError, match="reads prompts as token ids: give prompts, not features"):
        pipe.generate(features=np.zeros((1, LENGTH, 4), np.float32))
    with pytest.raises(CascadeError, match="draws from text: give prompts, not class_ids"):
        pipe.generate(class_ids=[1])


def test_what_is_said_of_the_bundle(drawn: tuple[Pipeline, PromptForm]) -> None:
    pipe, form = drawn
    result = CliRunner().invoke(cli, ["info", str(pipe.folder)])
    assert result.exit_code == 0 and f"text, {LENGTH} slots of token ids below {len(WORDS)}" in result.output
    text = read_manifest(pipe.folder).text
    assert text is not None and text.form == form and "\n" in form.after  # line breaks come back from the file


def test_numbers_are_rounded_as_the_manifest_says(drawn: tuple[Pipeline, PromptForm]) -> None:
    steps = np.linspace(-1.1, 1.1, 3 * 8 * 10, dtype=np.float32).reshape(1, 3, 8, 10)
    nearest, down = (np.asarray(to_images(steps, how)[0]).astype(int) for how in ("nearest", "down"))
    exact = np.clip((steps[0].transpose(1, 2, 0) + 1) / 2 * 255, 0, 255)
    np.testing.assert_array_equal(down, np.floor(exact))
    assert set(np.unique(nearest - down)) == {0, 1}
    pipe = drawn[0]
    output = pipe.generate(["cat"], seed=1)
    session = onnxruntime.InferenceSession(pipe.folder / "decode.onnx")
    (pixels,) = session.run(["image"], {"codes": output.codes.astype(np.int64)})
    wanted = np.floor(np.clip((pixels[0].transpose(1, 2, 0).astype(np.float64) + 1) / 2 * 255, 0, 255))
    assert np.abs(np.asarray(output.images[0]) - wanted).max() <= 1
    assert (np.asarray(output.images[0]) == wanted).mean() > 0.99  # the nearest ones would agree in half of the pixels


def test_half_precision_twins_are_compared(tmp_path: Path) -> None:
    """bfloat16 is compared through a second bundle, which needs the tokenizer as well."""
    _, manifest = build_words(tmp_path, PADDED_ROW, precision="bf16")
    assert manifest.parity["condition"]["outputs"]["prefix"]["relative"] < 1e-6
