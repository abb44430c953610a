"""Helpers of many tests: the fixture's values, random checkpoints, builds as a user runs them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from cascade_trt.cli import cli
from cascade_trt.export.families.llamagen.drafter import Drafter, DrafterConfig
from cascade_trt.export.families.llamagen.model import LlamaGen, LlamaGenConfig
from cascade_trt.export.models.t5 import T5Config, T5Encoder
from cascade_trt.export.models.vq import VQConfig, VQModel
from cascade_trt.runtime.bundle import MANIFEST
from cascade_trt.runtime.pipeline import Pipeline

FIXTURE = Path(__file__).parent / "fixtures" / "llamagen-tiny"


@dataclass(frozen=True)
class Golden:
    """What the original code computed for the fixture's prompts."""

    values: dict[str, np.ndarray]

    @property
    def given(self) -> dict[str, np.ndarray]:
        """The two prompts, as `Pipeline.generate` takes them."""
        return {"features": self.values["caption_features"], "features_mask": self.values["caption_mask"]}


def build(*arguments: object) -> str:
    """Runs `cascade-trt build` as a user would; returns what it printed."""
    result = CliRunner().invoke(cli, ["build", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fixture_arguments(out: Path) -> list[object]:
    return ["llamagen", "--checkpoint", FIXTURE / "gpt_t2i.pt", "--vq", FIXTURE / "vq.pt", "--drafter",
            FIXTURE / "drafter.pt", "--config", FIXTURE / "config.json", "--text", "none", "--out", out]  # fmt: skip


def save_checkpoints(
    folder: Path, *, vocab: int = 64, grid: int = 4, dim: int = 64, layers: int = 2, heads: int = 2,
    condition: str = "text", prefix_len: int = 6, seed: int = 0, scale: float = 1.0,
) -> list[object]:  # fmt: skip
    """Random checkpoints in the original formats; returns the arguments that build them.

    `scale` multiplies the head, so that larger values give peakier distributions.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    length = 1 if condition == "class" else prefix_len
    config = LlamaGenConfig(dim, layers, heads, 2 * dim, vocab, grid, length, condition, caption_dim=16, num_classes=10)
    target = LlamaGen(config)
    torch.nn.init.normal_(target.output.weight, std=scale * dim**-0.5)
    drafter = Drafter(DrafterConfig(dim, heads, 2 * dim, vocab, grid, length))
    vq = VQModel(VQConfig(vocab, 8, 32, 32, (1, 1), 1), with_encoder=False)
    torch.save({"model": target.state_dict()}, folder / "target.pt")
    torch.save(drafter.state_dict(), folder / "drafter.pt")
    torch.save({"model": vq.state_dict()}, folder / "vq.pt")
    (folder / "model.json").write_text(json.dumps({"grid": grid, "n_head": heads, "cfg_scale": 2.0}))
    return ["llamagen", "--checkpoint", folder / "target.pt", "--vq", folder / "vq.pt", "--drafter",
            folder / "drafter.pt", "--config", folder / "model.json"]  # fmt: skip


def standard_graphs_only(bundle: Path) -> Path:
    """Takes the graphs out of a bundle that ONNX Runtime alone reads: it is as before there were any."""
    content = json.loads((bundle / MANIFEST).read_text())
    for info in content["engines"].values():
        if (file := info.pop("fused")) is not None:
            (bundle / file).unlink()
            del content["files"][file]
    (bundle / MANIFEST).write_text(json.dumps(content))
    return bundle


def random_features(pipe: Pipeline, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Text features for a bundle without a text engine; the prompts differ in length."""
    condition, rng = pipe.manifest.model.condition, np.random.default_rng(seed)
    features = rng.normal(size=(count, condition.length, condition.width)).astype(np.float32)
    hidden = np.arange(count) % (condition.length - 1)
    return {"features": features, "features_mask": np.arange(condition.length)[None] >= hidden[:, None]}


def save_text_encoder(folder: Path, width: int, words: tuple[str, ...] = ("a", "red", "apple", "cat")) -> Path:
    """A random T5 encoder with a word-level tokenizer, as a transformers folder."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True)
    torch.manual_seed(1)
    config = {"vocab_size": 16, "d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
              "feed_forward_proj": "gated-gelu", "pad_token_id": 0, "model_type": "t5"}  # fmt: skip
    save_file(T5Encoder(T5Config.from_dict(config)).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: i for i, word in enumerate(words, start=3)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
