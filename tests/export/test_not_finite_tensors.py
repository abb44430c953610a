"""A tensor of a checkpoint that is not finite: the sentence names it, and its file, as the file does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from janus import copy
from safetensors.torch import load_file, save_file
from support import FIXTURE

from cascade_trt.cli import cli
from cascade_trt.export.checkpoints.source import open_source
from cascade_trt.export.open import open_parts
from cascade_trt.export.parts import Parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.errors import CascadeError

ANOLE = FIXTURE.parent / "anole-tiny"


def said(parts: Parts) -> str:
    """What is said when everything of the target is read, as a build does."""
    weights = parts.counted(lambda *_: None).target.weights
    with pytest.raises(CascadeError) as caught:
        [weights.load(name) for name in weights.names()]
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.weight", "model.layers.2.self_attn.k_norm.bias", "model.embed_tokens.weight",
     "lm_head.weight"],
)  # fmt: skip
def test_of_a_sharded_folder(tmp_path: Path, name: str) -> None:
    """Ours are one tensor for queries, keys and values, and rows of the tables."""
    folder = tmp_path / "anole"
    shutil.copytree(ANOLE, folder)
    file = next(one for one in sorted(folder.glob("model-*.safetensors")) if name in load_file(one))
    tensors = load_file(file)
    tensors[name].view(-1)[-1 if "norm" in name else 4 * 40] = torch.inf  # of a row that the bundle has
    save_file(tensors, file)
    result = CliRunner().invoke(cli, ["build", "anole", "--checkpoint", str(folder), "--grid", "8", "--tree",
                                      "jacobi_4", "--out", str(tmp_path / "bundle")])  # fmt: skip
    assert result.exit_code == 2 and not (tmp_path / "bundle").exists()
    assert result.stderr.splitlines()[-1] == (
        f"Error: tensor {name} of {file} holds NaN or infinite values: the file is damaged, so download it again."
    )


def test_of_metas_layout(tmp_path: Path) -> None:
    """Under Meta's own name, not transformers'."""
    place = tmp_path / "models" / "7b"
    place.mkdir(parents=True)
    shutil.copytree(ANOLE / "tokenizer", tmp_path / "tokenizer")
    source = open_source(ANOLE, "checkpoint")
    ends = {"self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
            "self_attn.o_proj": "attention.wo", "self_attn.q_norm": "attention.q_normalization",
            "self_attn.k_norm": "attention.k_normalization", "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "tok_embeddings", "model.norm": "norm",
            "lm_head": "output", "model.layers": "layers"}  # fmt: skip
    tensors = {}
    for name in source.names():
        if not name.startswith("model.vqmodel."):
            own = name
            for theirs, meta in ends.items():
                own = own.replace(theirs, meta)
            tensors[own] = source.load(name).clone()
    tensors["layers.1.attention.wk.weight"][3, 3] = torch.nan
    torch.save(tensors, place / "consolidated.pth")
    (place / "params.json").write_text("{}")
    parts, _ = open_parts(BuildRequest("anole", checkpoint=tmp_path, grid=8))
    assert said(parts).startswith(f"tensor layers.1.attention.wk.weight of {place / 'consolidated.pth'} holds NaN")


def test_of_what_is_computed_from_several(tmp_path: Path) -> None:
    """Janus-Pro's table of codes is made of five tensors; a wide range of finite ones is told apart."""
    for value, wanted in ((torch.nan, "tensor gen_aligner.layers.2.bias of "), (None, "what is computed from gen_")):
        def change(tensors: dict[str, torch.Tensor], value: float | None = value) -> dict[str, torch.Tensor]:
            if value is not None:
                tensors["gen_aligner.layers.2.bias"][5] = value
            else:
                for name in ("gen_embed.weight", "gen_aligner.layers.0.weight", "gen_aligner.layers.2.weight"):
                    tensors[name] = torch.full_like(tensors[name], 1e30)
            return tensors

        folder = copy(tmp_path / wanted[:6], change)
        assert said(open_parts(BuildRequest("janus-pro", checkpoint=folder))[0]).startswith(wanted)



def test_of_a_file_with_names_of_a_trainer(tmp_path: Path) -> None:
    tensors = torch.load(FIXTURE / "gpt_t2i.pt", weights_only=False)["model"]
    tensors = {f"module.{name}": x for name, x in tensors.items()}
    tensors["module.layers.1.attention.wqkv.weight"][0, 0] = -torch.inf
    torch.save({"model": tensors}, tmp_path / "gpt.pt")
    request = BuildRequest("llamagen", checkpoint=tmp_path / "gpt.pt", vq=FIXTURE / "vq.pt",
                           config=FIXTURE / "config.json")  # fmt: skip
    wanted = f"tensor module.layers.1.attention.wqkv.weight of {tmp_path / 'gpt.pt'} holds NaN"
    assert said(open_parts(request)[0]).startswith(wanted)
