"""Compares every exported engine, as ONNX Runtime runs it, with the PyTorch modules.

The PyTorch side reads the checkpoint itself, one layer at a time and in float32, so a 7B model is compared
without ever being in memory whole. Inputs have real shapes: a prefix, then a tree at the start of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.bundle import Manifest
from ..runtime.errors import CascadeError
from ..runtime.prompts import PromptEncoder
from ..runtime.tree import AnyTree, DynamicTree, Tree
from .checkpoints.source import TensorSource
from .models.drafter import Drafter
from .models.llamagen import Block, LlamaGenConfig, RMSNorm, condition_embedder, prefix_causal_mask, rope_2d
from .models.t5 import T5Encoder
from .models.vq import VQModel
from .overflow import ActivationScan
from .parts import Parts

# Largest difference from PyTorch's float32, relative to the output's largest value, per precision. Measured
# worst cases (fixtures and full-size random weights): fp32 2e-5; fp16 and bf16 follow from their mantissas
# over the depth of the model.
_LIMITS = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
_PROMPT = "a photo of a red apple on a wooden table"
Module = TypeVar("Module", bound=nn.Module)
Runner = Callable[[str, Mapping[str, np.ndarray], list[str]], dict[str, np.ndarray]]


def check_parity(parts: Parts, options: Any, folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Runs every engine of the bundle in `folder`; returns a report for each engine.

    A report holds, for each output, the largest absolute difference and the same relative to the output's
    largest value, and for the engine the largest activation of PyTorch's float32 run. bfloat16 has no CPU
    kernels, so there an fp32 twin with the rounded weights is compared. Raises CascadeError when an output is not
    finite or too far off.
    """
    if options.precision == "bf16":
        return _compare_twin(parts, options, manifest)
    return _compare(parts, folder, manifest, options.precision)


def _compare_twin(parts: Parts, options: Any, manifest: Manifest) -> dict[str, Any]:
    from .build import Stage, write_graphs

    with TemporaryDirectory(dir=options.out.absolute().parent, prefix=".twin.") as folder:
        stage = Stage(Path(folder), "fp32")
        write_graphs(parts.rounded(torch.bfloat16), options, stage)
        report = _compare(parts.rounded(torch.bfloat16), Path(folder), manifest, "fp32")
    return {name: entry | {"compared": "an fp32 twin with bf16 weights"} for name, entry in report.items()}


def _compare(parts: Parts, folder: Path, manifest: Manifest, precision: str) -> dict[str, Any]:
    run = _ort_runner(folder, manifest)
    rng = np.random.default_rng(0)
    report: dict[str, Any] = {}
    scan = ActivationScan()
    given: tuple[np.ndarray, np.ndarray] | None = None
    with torch.inference_mode():
        if "text" in manifest.engines:
            with scan.watch("text"):
                outputs, given = _text(parts, manifest, run, rng)
            report["text"] = _judge("text", precision, outputs)
        with scan.watch("condition"):
            report["condition"], prefix, mask = _condition(parts, run, rng, precision, given)
        report["embed"] = _judge("embed", precision, _embed(parts, run, rng))
        with scan.watch("target"):
            report["target"], hidden = _target(parts, manifest, run, rng, prefix, mask, precision)
        for tree in manifest.trees:
            with scan.watch(tree.engine):
                outputs = _draft(parts, manifest, run, rng, tree.tree(), tree.engine, hidden)
            report[tree.engine] = _judge(tree.engine, precision, outputs)
        with scan.watch("decode"):
            outputs = _decode(parts, run, rng)
        report["decode"] = _judge("decode", precision, outputs)
    return {engine: entry | scan.entry(engine) for engine, entry in report.items()}


def _ort_runner(folder: Path, manifest: Manifest) -> Runner:
    """Runs one engine once; its session is gone afterwards, so engines are never in memory together."""
    import onnxruntime

    def run(engine: str, inputs: Mapping[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        file = folder / manifest.engines[engine].file
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        half = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
        given = {name: x.astype(np.float16) if name in half else x for name, x in inputs.items()}
        for value in session.get_inputs():
            if value.name.startswith("past_"):
                shape = [len(given["positions"]), *value.shape[1:]]
                given[value.name] = np.zeros(shape, np.float16 if value.name in half else np.float32)
        return dict(zip(outputs, (np.asarray(x) for x in session.run(outputs, given)), strict=True))

    return run


def _judge(engine: str, precision: str, pairs: Mapping[str, tuple[np.ndarray, Tensor]]) -> dict[str, Any]:
    """The report of one engine from (engine's, PyTorch's) outputs."""
    report: dict[str, Any] = {}
    for name, (got, wanted) in pairs.items():
        expected = wanted.float().numpy()
        if not np.isfinite(got).all():
            raise CascadeError(
                f"output {name} of the engine {engine} holds NaN or infinite values: "
                "build with --precision bf16 or fp32."
            )
        absolute = float(np.abs(got.astype(np.float32) - expected).max())
        relative = absolute / max(1e-6, float(np.abs(expected).max()))
        report[name] = {"absolute": absolute, "relative": relative}
        if relative > _LIMITS[precision]:
            raise CascadeError(
                f"output {name} of the engine {engine} differs from PyTorch by {relative:.1e} of its scale "
                f"(limit {_LIMITS[precision]:.0e}): build with a wider --precision, or report this checkpoint."
            )
    return {"outputs": report, "limit": _LIMITS[precision]}


def _load(module: Module, source: TensorSource, prefix: str = "") -> Module:
    """Fills a module from the source in float32, by name."""
    state = {name: source.load(prefix + name).float() for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def _text(
    parts: Parts, manifest: Manifest, run: Runner, rng: np.random.Generator
) -> tuple[dict[str, tuple[np.ndarray, Tensor]], tuple[np.ndarray, np.ndarray]]:
    """The outputs of a real prompt and of random ids; and PyTorch's features with their mask, for `_condition`."""
    assert parts.text is not None and parts.text_config is not None  # the caller asks for `text` only then
    length = parts.config.prefix_len
    ids = rng.integers(1, parts.text_config.vocab_size, (2, length))
    mask = np.arange(length)[None] >= np.array([[0], [length // 2]])
    if parts.tokenizer is not None and manifest.text is not None:
        encoder = PromptEncoder(parts.tokenizer.parent, replace(manifest.text, tokenizer=parts.tokenizer.name))
        ids[1:], mask[1:], _ = encoder.encode([_PROMPT])
    module = _load(T5Encoder(parts.text_config), parts.text)
    wanted = module(torch.from_numpy(ids), torch.from_numpy(mask))
    got = run("text", {"ids": ids, "mask": mask}, ["features"])["features"]
    return {"features": (got, wanted)}, (wanted.float().numpy(), mask)


def _condition(
    parts: Parts, run: Runner, rng: np.random.Generator, precision: str,
    given: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:  # fmt: skip
    """Report, prefix embeddings float32 [2, T, D] of a conditional and an unconditional row, and their mask.

    `given` are features [2, T, C] and their mask [2, T] of the text encoder, where the bundle has one: the last
    row is a prompt's, and both rows take it.
    """
    config = parts.config
    uncond = np.array([False, True])
    mask = np.ones((2, config.prefix_len), bool)
    if config.condition == "text" and given is not None:
        mask = given[1][[1, 1]]
        inputs = {"features": given[0][[1, 1]] * mask[..., None], "uncond": uncond}
    elif config.condition == "text":
        mask[:, : config.prefix_len // 2] = False
        features = rng.normal(size=(2, config.prefix_len, config.caption_dim)).astype(np.float32) * mask[..., None]
        inputs = {"features": features, "uncond": uncond}
    else:
        inputs = {"class_ids": rng.integers(0, config.num_classes, 2), "uncond": uncond}
    module = _load(condition_embedder(config), parts.target, "cls_embedding.")
    wanted = module(*(torch.from_numpy(x) for x in inputs.values()))
    got = run("condition", inputs, ["prefix"])["prefix"]
    return _judge("condition", precision, {"prefix": (got, wanted)}), wanted.numpy(), mask


def _embed(parts: Parts, run: Runner, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, Tensor]]:
    ids = rng.integers(0, parts.config.vocab_size, (2, 3))
    wanted = parts.target.load("tok_embeddings.weight")[torch.from_numpy(ids)]
    return {"embeds": (run("embed", {"ids": ids}, ["embeds"])["embeds"], wanted)}


def _target(
    parts: Parts, manifest: Manifest, run: Runner, rng: np.random.Generator, prefix: np.ndarray,
    mask: np.ndarray, precision: str,
) -> tuple[dict[str, Any], np.ndarray]:  # fmt: skip
    """The end of the prefix and a tree behind it, in one call, against a whole forward.

    Returns the report and PyTorch's hidden states of the whole prefix, for the drafter.
    """
    config, window = parts.config, manifest.target.window
    static = [tree for info in manifest.trees if isinstance(tree := info.tree(), Tree)]
    tree = static[0] if static else Tree("root", (-1,))
    kept = min(config.prefix_len, max(1, window - tree.size))  # prefix slots that fit beside the tree
    tree = Tree(tree.name, tree.parents[: min(tree.size, window - kept)])
    ids = rng.integers(0, config.vocab_size, (1, tree.size)).repeat(2, axis=0)
    embeds = parts.target.load("tok_embeddings.weight")[torch.from_numpy(ids)].float()
    length = config.prefix_len
    whole = prefix_causal_mask(torch.from_numpy(mask), length)
    states = reference_hidden(parts.target, config, torch.from_numpy(prefix), torch.arange(length), whole)
    x = torch.cat([torch.from_numpy(prefix)[:, -kept:], embeds], dim=1)  # [2, kept + N, D]
    positions = np.concatenate([np.arange(length - kept, length), length + tree.depths])
    visible = prefix_causal_mask(torch.from_numpy(mask[:, -kept:]), len(positions))
    visible[:, :, kept:, kept:] = torch.from_numpy(tree.ancestors)
    wanted = reference_hidden(parts.target, config, x, torch.from_numpy(positions), visible)
    got = _run_target(manifest, run, x.numpy(), positions, visible.numpy()[:, 0])
    scale = manifest.sampling.guidance_scale
    state = wanted[1:] + scale * (wanted[:1] - wanted[1:])
    logits = state @ parts.target.load("output.weight").float().T  # [1, T + N, V]
    unit = state / state.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    pairs = {
        "hidden": (got["hidden"], wanted),
        "logits": (got["logits"], torch.gather(logits, 2, torch.from_numpy(got["ids"]))),
        "log_sum_exp": (got["log_sum_exp"], logits.logsumexp(-1)),
        "similarity": (got["similarity"], unit @ unit.transpose(1, 2)),
    }
    return _judge("target", precision, pairs), states.numpy()


def _run_target(
    manifest: Manifest, run: Runner, x: np.ndarray, positions: np.ndarray, visible: np.ndarray
) -> dict[str, np.ndarray]:
    """The engine on x [2, N, D] from an empty cache; visible is bool [2, N, N]."""
    target, nodes = manifest.target, x.shape[1]
    tree_mask = np.zeros((2, nodes, target.window + 1), bool)
    tree_mask[:, :, :nodes] = visible
    scale = manifest.sampling.guidance_scale
    inputs = {
        "embeds": x,
        "positions": np.tile(positions, (2, 1)),
        "write_index": np.zeros(2, np.int64),
        "tree_mask": tree_mask,
        "cache_mask": np.ones((2, target.slots), bool),
        "guidance": np.array([[scale, 1 - scale]], np.float32),
        "temperature": np.ones(1, np.float32),
    }
    return run("target", inputs, ["hidden", "logits", "ids", "log_sum_exp", "similarity"])


def reference_hidden(
    source: TensorSource, config: LlamaGenConfig, x: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    """Normed hidden states [R, N, D] of embeddings x, layer by layer: one layer's weights in memory at a time."""
    rope = rope_2d(config.grid, config.head_dim, config.prefix_len, tail=len(positions), base=config.rope_base)
    for i in range(config.n_layer):
        with torch.device("meta"):
            block = Block(config)
        x = _load(block, source, f"layers.{i}.")(x, rope[positions][None], visible, None)
    norm = RMSNorm(config.dim, config.norm_eps)
    return _load(norm, source, "norm.")(x)


def _draft(
    parts: Parts, manifest: Manifest, run: Runner, rng: np.random.Generator, tree: AnyTree, engine: str,
    hidden: np.ndarray,
) -> dict[str, tuple[np.ndarray, Tensor]]:  # fmt: skip
    """Catch-up over the prefix, then the law at the root and along each node's first children."""
    assert parts.drafter is not None and parts.drafter_config is not None and manifest.drafter is not None
    config, scale = parts.drafter_config, manifest.sampling.guidance_scale
    pairs = config.prefix_len
    states = np.ascontiguousarray(hidden[:, :pairs])
    tokens = np.zeros((1, pairs), np.int64)
    tokens[0, -1] = rng.integers(0, config.vocab_size)
    inputs = {
        "hidden": states,
        "path": np.arange(pairs)[None],
        "tokens": tokens,
        "count": np.array([pairs]),
        "positions": np.tile(np.arange(pairs), (2, 1)),
        "write_index": np.zeros(2, np.int64),
        "cache_mask": np.ones((2, manifest.drafter.slots), bool),
        "prompt_of_row": np.zeros(2, np.int64),
        "noise": np.zeros((1, tree.depth + 1, config.vocab_size), np.float32),
        "guidance": np.array([[scale, 1 - scale]], np.float32),
        "temperature": np.ones(1, np.float32),
    }
    chosen = ["parents", "sources"] if isinstance(tree, DynamicTree) else []
    got = run(engine, inputs, ["features", "log_q", "tree_tokens", *chosen])
    drafted = Tree(tree.name, tuple(got["parents"][0].tolist())) if isinstance(tree, DynamicTree) else tree
    with torch.device("meta"):
        module = Drafter(replace(config))
    module.rope = rope_2d(config.grid, config.head_dim, config.prefix_len - 1, tail=20, base=config.rope_base)
    module = _load(module, parts.drafter)
    head = parts.target.load("output.weight").float().T
    states_now, tokens_now = torch.from_numpy(states), torch.from_numpy(tokens).repeat(2, 1)
    features = module(states_now, tokens_now)
    wanted, spine = [], _first_child_spine(drafted)
    last = features
    for node in spine:
        if node:
            token = int(got["tree_tokens"][0, node])
            states_now = torch.cat([states_now, last[:, -1:]], dim=1)
            tokens_now = torch.cat([tokens_now, torch.full((2, 1), token)], dim=1)
            last = module(states_now, tokens_now)
        state = last[1, -1] + scale * (last[0, -1] - last[1, -1])
        wanted.append((state @ head).log_softmax(-1))
    if isinstance(tree, DynamicTree):
        at = [int(got["sources"][0, drafted.children[node][0]]) for node in spine]
    else:
        at = [tree.internal.index(node) for node in spine]
    return {"features": (got["features"], features), "log_q": (got["log_q"][0, at], torch.stack(wanted))}


def _first_child_spine(tree: Tree) -> list[int]:
    """Internal nodes from the root along first children."""
    spine = [0]
    while True:
        first = tree.children[spine[-1]][0]
        if not tree.children[first]:
            return spine
        spine.append(first)


def _decode(parts: Parts, run: Runner, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, Tensor]]:
    codes = rng.integers(0, parts.config.vocab_size, (1, parts.config.image_tokens))
    module = _load(VQModel(parts.vq_config, with_encoder=False), parts.vq)
    wanted = module.decode_codes(torch.from_numpy(codes))
    return {"image": (run("decode", {"codes": codes}, ["image"])["image"], wanted)}
