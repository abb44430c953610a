"""Writes the trained parts as a user would get them: LlamaGen, LANTERN and transformers formats, in float16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from ...export.families.llamagen.drafter import Drafter
from ...export.models.vq import VQModel
from ...runtime.bundle import STATES
from ...runtime.rules.states import StateTable
from .config import Recipe
from .model import TextToImage


def ship(
    recipe: Recipe, model: TextToImage, vq: VQModel, drafter: Drafter | None, tokenizer: Tokenizer, folder: Path,
    states: StateTable | None = None,
) -> None:
    """Fills `folder`: target, vq and drafter .safetensors, config.json, drafter_config.json, states.npz, text/."""
    text = folder / "text"
    text.mkdir(parents=True, exist_ok=True)
    _save(model.target, folder / "target.safetensors")
    _save(vq, folder / "vq.safetensors")
    if states is not None:
        states.save(folder / STATES)
    _save(model.text, text / "model.safetensors")
    tokenizer.save(str(text / "tokenizer.json"))
    t5 = model.text.config
    _json(text / "config.json", {
        "architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu",
        "vocab_size": t5.vocab_size, "d_model": t5.d_model, "d_kv": t5.d_kv, "d_ff": t5.d_ff,
        "num_layers": t5.num_layers, "num_heads": t5.num_heads, "pad_token_id": t5.pad_token_id,
        "eos_token_id": 1, "layer_norm_epsilon": t5.layer_norm_epsilon,
        "relative_attention_num_buckets": t5.relative_attention_num_buckets,
        "relative_attention_max_distance": t5.relative_attention_max_distance,
    })  # fmt: skip
    config = model.target.config
    _json(folder / "config.json", {
        "dim": config.dim, "n_layer": config.n_layer, "n_head": config.n_head, "vocab_size": config.vocab_size,
        "grid": config.grid, "cls_token_num": config.prefix_len, "caption_dim": config.caption_dim,
        "vq_ch_mult": list(recipe.vq_ch_mult), "vq_z_channels": recipe.vq_z_channels, "vq_codebook_dim": 8,
        "cfg_scale": recipe.guidance_scale, "top_k": recipe.top_k,
        "temperature": recipe.temperature, "rules": dict(recipe.rules),
        **({} if states is None else {"states": STATES}),
    })  # fmt: skip
    if drafter is not None:
        _save(drafter, folder / "drafter.safetensors")
        _json(folder / "drafter_config.json", {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": config.dim, "intermediate_size": drafter.config.ffn_dim, "num_hidden_layers": 1,
            "num_attention_heads": drafter.config.n_head, "num_key_value_heads": drafter.config.n_head,
            "rms_norm_eps": drafter.config.norm_eps, "vocab_size": config.vocab_size, "caption_dim": config.caption_dim,
            "tie_word_embeddings": False, "torch_dtype": "float16", "block_size": config.grid**2,
            "cls_token_num": config.prefix_len,
        })  # fmt: skip


def _save(module: nn.Module, file: Path) -> None:
    save_file({name: tensor.detach().half().contiguous().cpu() for name, tensor in module.state_dict().items()}, file)


def _json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")


def load_average(recipe: Recipe, vocab_size: int, out: Path) -> TextToImage:
    """The averaged target of a run in `out`, finished or not."""
    model = TextToImage(recipe, vocab_size)
    model.load_state_dict(torch.load(out / "target" / "state.pt", weights_only=True)["average"])
    return model.eval().to(recipe.device)
