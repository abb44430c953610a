"""From a file's dicts and names to those of a model: wrappers, averages, prefixes, and nothing left unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cascade_trt.export.checkpoints.source import check_all_read, open_source
from cascade_trt.runtime.errors import CascadeError

A, B = torch.arange(3.0), torch.ones(2, 2)
PLAIN, AVERAGE = {"a.weight": A, "b.c.weight": B}, {"a.weight": A + 1, "b.c.weight": B + 1}


def opened(content: Any, folder: Path, anchors: tuple[str, ...] = ("a.weight",)) -> Any:
    torch.save(content, folder / "c.pt")
    return open_source(folder / "c.pt", "checkpoint", anchors)


def prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "content",
    [
        {"ema": PLAIN}, {"ema": PLAIN, "steps": 5}, {"model_ema": {"module": PLAIN}}, {"ema_state_dict": PLAIN},
        {"state_dict_ema": PLAIN}, {"EMA": PLAIN}, {"model_state_dict": PLAIN}, {"params": {"lr": 1}, "ema": PLAIN},
        prefixed("ema.", PLAIN), prefixed("model.", PLAIN), prefixed("gpt.", PLAIN), prefixed("a.b.c.", PLAIN),
        {"model": prefixed("module.model.", PLAIN)},
        *({"a.weight": A, f"b.{mark}.c.weight": B} for mark in (
            "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")),
        {"_orig_mod.a.weight": A, "b.module._orig_mod.c.module.weight": B},
        {"model": PLAIN, "optimizer": {"state": {0: {"exp_avg": A}}}, "discriminator": PLAIN, "optim_states": PLAIN,
         "rng": {"cpu": A}, "epoch": 3, "loss": A, "scheduler": {"last": A}},
        PLAIN | {"num_updates": torch.tensor(3), "layers.0.kv_cache.k": A, "x.rotary_emb.inv_freq": A},
    ],
)  # fmt: skip
def test_one_set_of_weights_is_read_without_a_word(tmp_path: Path, content: Any) -> None:
    source = opened(content, tmp_path)
    assert sorted(source.names()) == sorted(PLAIN) and source.notes == ()
    assert all(torch.equal(source.load(name), tensor) for name, tensor in PLAIN.items())


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        ({"ema": AVERAGE, "model": PLAIN}, "model was taken, not ema;"),
        ({"state_dict": PLAIN, "ema_model": {"module": AVERAGE}}, "state_dict was taken, not ema_model;"),
        ({"model": {"module": PLAIN, "ema": AVERAGE}}, "module was taken, not ema;"),
        (PLAIN | prefixed("ema.", AVERAGE), "the plain weights was taken, not ema;"),
        (prefixed("model.", PLAIN) | prefixed("model_ema.", AVERAGE), "model was taken, not model_ema;"),
        (prefixed("ema_model.", AVERAGE) | prefixed("online_model.", PLAIN), "online_model was taken, not ema_model;"),
    ],
)
def test_where_an_average_is_there_too_a_note_says_which_was_taken(tmp_path: Path, content: Any, taken: str) -> None:
    source = opened(content, tmp_path)
    assert all(torch.equal(source.load(name), tensor) for name, tensor in PLAIN.items())
    assert sorted(source.names()) == sorted(PLAIN)
    (note,) = source.notes
    assert taken.replace("weights was", "weights were") in note and "c.pt" in note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": PLAIN, "lora": AVERAGE}, "holds lora beside model, which would be left unread"),
        ({"model": PLAIN, "adapter": {"x": {"y": A}}}, "holds adapter beside model"),
        ({"model": PLAIN, "bias": A}, "holds bias beside model"),
        ({"a.weight": A, "module.a.weight": B}, r"holds the tensor a\.weight twice"),
        (prefixed("gpt.", PLAIN) | {"a.weight.x": A, "b.c.weight": B}, r"holds the tensor b\.c\.weight twice"),
        ({"a.weight": A, "b\n\x1b": B.char()}, r"tensor 'b\\n\\x1b' of the checkpoint .* holds int8 \(quantised\)"),
    ],
)  # fmt: skip
def test_what_would_be_left_unread_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(CascadeError, match=said):
        opened(content, tmp_path)


def test_every_tensor_is_used_or_refused_by_name(tmp_path: Path) -> None:
    source = opened(PLAIN | {"z.bias": A}, tmp_path)
    check_all_read(source, dict.fromkeys(source.names(), (1,)), "drafter")
    with pytest.raises(CascadeError, match=r"the drafter .*c\.pt holds z\.bias, which would be left unread"):
        check_all_read(source, dict.fromkeys(PLAIN, (1,)), "drafter")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    for part in "12":
        save_file(PLAIN, tmp_path / f"{part}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a.weight": "1.safetensors", "b.c.weight": "2.safetensors"}}'
    )
    with pytest.raises(CascadeError, match=r"holds the tensor a\.weight in two files"):
        open_source(tmp_path, "checkpoint")
