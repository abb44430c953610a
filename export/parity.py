"""Compares every exported engine, as ONNX Runtime runs it, with the PyTorch modules.

The PyTorch side reads the checkpoint itself, one layer at a time and in float32, and ONNX Runtime runs a few layers at
a time (`parity_groups.py`), so a 7B model is compared without ever being in memory whole. Inputs have real shapes: a
prefix, then a tree at the start of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engines.draws import may_draw
from ..runtime.bundle import FEATURES, TOKENS, Manifest
from ..runtime.errors import CascadeError
from ..runtime.noise import Stream, gumbel
from ..runtime.prompts import PromptEncoder, rows_of
from ..runtime.sampling import Sampling, kept
from ..runtime.tree import AnyTree, DynamicTree, Tree
from .checkpoints.source import load_module
from .model import DrafterReference, TargetReference
from .models.t5 import T5Encoder
from .models.vq import VQModel
from .overflow import ActivationScan
from .parity_groups import Graph
from .parts import Parts

# Largest difference from PyTorch's float32, relative to the output's largest value, per precision. Measured
# worst cases (fixtures and full-size random weights): fp32 2e-5; fp16 follows from its mantissa over the depth of the
# model. In bf16 both sides compute in float32, but what the build computes (the VQ decoder's table of latents) is
# rounded behind that in the graph, and before it in PyTorch: 3e-3.
_LIMITS = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-2}
_PROMPT = "a photo of a red apple on a wooden table"
Runner = Callable[[str, Mapping[str, np.ndarray], list[str]], dict[str, np.ndarray]]


def check_parity(parts: Parts, options: Any, folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Runs every engine of the bundle in `folder`; returns a report for each engine.

    A report holds, for each output, the largest absolute difference and the same relative to the output's
    largest value, and for the engine the largest activation of PyTorch's float32 run. bfloat16 has no CPU
    kernels, so there what was written is computed in float32, and PyTorch gets the rounded weights. Raises
    CascadeError when an output is not finite or too far off.
    """
    twin = options.precision == "bf16"
    report = _compare(
        parts.rounded(torch.bfloat16) if twin else parts, folder, manifest, options.precision,
        lambda engine, inputs, outputs: Graph(folder / manifest.engines[engine].read_by_ort, twin).run(inputs, outputs),
    )  # fmt: skip
    compared = {"compared": "an fp32 twin with bf16 weights"} if twin else {}
    return {name: entry | compared for name, entry in report.items()}


def _compare(parts: Parts, folder: Path, manifest: Manifest, precision: str, run: Runner) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    report: dict[str, Any] = {}
    scan = ActivationScan()
    given: tuple[np.ndarray, np.ndarray] | None = None
    with torch.inference_mode():
        if "text" in manifest.engines:
            with scan.watch("text"):
                outputs, given = _text(parts, folder, manifest, run, rng)
            report["text"] = _judge("text", precision, outputs)
        with scan.watch("condition"):
            values, mask = _given(parts, folder, manifest, rng, given)
            report["condition"], prefix = _condition(parts, run, precision, values)
        report["embed"] = _judge("embed", precision, _embed(parts, run, rng))
        with scan.watch("target"):
            report["target"], hidden = _target(parts, manifest, run, rng, prefix, mask, precision)
        for engine in manifest.engines:
            if (drafted := manifest.tree_of(engine)) is None:
                continue
            with scan.watch(engine):
                outputs = _draft(parts, manifest, run, rng, drafted, engine, hidden)
            report[engine] = _judge(engine, precision, outputs)
        with scan.watch("decode"):
            outputs = _decode(parts, run, rng)
        report["decode"] = _judge("decode", precision, outputs)
    return {engine: entry | scan.entry(engine) for engine, entry in report.items()}


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


def _text(
    parts: Parts, folder: Path, manifest: Manifest, run: Runner, rng: np.random.Generator
) -> tuple[dict[str, tuple[np.ndarray, Tensor]], tuple[np.ndarray, np.ndarray]]:
    """The outputs of a real prompt and of random ids; and PyTorch's features with their mask, for `_condition`."""
    assert parts.text is not None and parts.text_config is not None  # the caller asks for `text` only then
    length = parts.target.prefix_len
    ids = rng.integers(1, parts.text_config.vocab_size, (2, length))
    mask = np.arange(length)[None] >= np.array([[0], [length // 2]])
    if manifest.text is not None:
        encoded = PromptEncoder(folder, manifest.text).encode([_PROMPT])
        ids[1:], mask[1:] = encoded.ids, encoded.mask
    wanted = load_module(T5Encoder(parts.text_config), parts.text)(torch.from_numpy(ids), torch.from_numpy(mask))
    got = run("text", {"ids": ids, "mask": mask}, ["features"])["features"]
    return {"features": (got, wanted)}, (wanted.float().numpy(), mask)


def _given(
    parts: Parts, folder: Path, manifest: Manifest, rng: np.random.Generator,
    encoded: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:  # fmt: skip
    """The `condition` engine's input for a conditional and an unconditional row, and their mask bool [2, T].

    `encoded` are features [2, T, C] and their mask [2, T] of the text encoder, where the bundle has one: the last
    row is a prompt's, and both rows take it.
    """
    info, mask = parts.target.conditioner.info, np.ones((2, parts.target.prefix_len), bool)
    if info.kind == TOKENS:
        assert manifest.text is not None  # the manifest was checked
        prompt = PromptEncoder(folder, manifest.text).encode([_PROMPT])
        mask = prompt.mask.repeat(2, axis=0)
        given = {"ids": rows_of(manifest.text, prompt.ids[0], prompt.mask[0])}
    elif info.kind != FEATURES:
        given = {"class_ids": rng.integers(0, info.classes, 2)}
    elif encoded is not None:
        mask = encoded[1][[1, 1]]
        given = {"features": encoded[0][[1, 1]] * mask[..., None]}
    else:
        mask[:, : info.length // 2] = False
        features = rng.normal(size=(2, info.length, info.width)).astype(np.float32)
        given = {"features": features * mask[..., None]}
    if info.uncond_length is not None:
        mask[1] = np.arange(info.length) >= info.length - info.uncond_length
    return given, mask


def _condition(
    parts: Parts, run: Runner, precision: str, given: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    """Report, and prefix embeddings float32 [2, T, D] of a conditional and an unconditional row."""
    (values,), uncond = given.values(), np.array([False, True])
    wanted = _reference(parts).prefix(torch.from_numpy(values), torch.from_numpy(uncond))
    flags = {} if "ids" in given else {"uncond": uncond}
    got = run("condition", {**given, **flags}, ["prefix"])["prefix"]
    return _judge("condition", precision, {"prefix": (got, wanted)}), wanted.numpy()


def _reference(parts: Parts) -> TargetReference:
    return parts.target.reference(parts.target.checkpoint)


def _embed(parts: Parts, run: Runner, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, Tensor]]:
    ids = rng.integers(0, parts.target.plan.tokens, (2, 3))
    wanted = _reference(parts).embed(torch.from_numpy(ids))
    return {"embeds": (run("embed", {"ids": ids}, ["embeds"])["embeds"], wanted)}


def causal_mask(mask: np.ndarray, count: int) -> np.ndarray:
    """bool [R, 1, count, count]: what each of `count` slots sees, the first of them hidden where mask bool [R, T] says
    so; every slot sees itself."""
    seen = np.ones((len(mask), count), bool)
    seen[:, : mask.shape[1]] = mask
    return (np.tri(count, dtype=bool) & seen[:, None] | np.eye(count, dtype=bool))[:, None]


def _target(
    parts: Parts, manifest: Manifest, run: Runner, rng: np.random.Generator, prefix: np.ndarray,
    mask: np.ndarray, precision: str,
) -> tuple[dict[str, Any], np.ndarray]:  # fmt: skip
    """The end of the prefix and a tree behind it, in one call, against a whole forward.

    Returns the report and PyTorch's hidden states of the whole prefix, for the drafter.
    """
    reference, window, length = _reference(parts), manifest.target.window, parts.target.prefix_len
    trees = [info.tree() for info in manifest.trees] or [manifest.tree(None).tree()]
    tree = next((tree for tree in trees if isinstance(tree, Tree)), Tree("root", (-1,)))
    kept_slots = min(length, max(1, window - tree.size))  # prefix slots that fit beside the tree
    tree = Tree(tree.name, tree.parents[: min(tree.size, window - kept_slots)])
    ids = rng.integers(0, parts.target.plan.tokens, (1, tree.size)).repeat(2, axis=0)
    whole = torch.from_numpy(causal_mask(mask, length))
    slots = torch.arange(length).repeat(2, 1)
    states = reference.hidden(torch.from_numpy(prefix), slots, whole)
    x = torch.cat([torch.from_numpy(prefix)[:, -kept_slots:], reference.embed(torch.from_numpy(ids))], dim=1)
    positions = np.tile(np.concatenate([np.arange(length - kept_slots, length), length + tree.depths]), (2, 1))
    visible = causal_mask(mask[:, -kept_slots:], positions.shape[1])
    visible[:, :, kept_slots:, kept_slots:] = tree.ancestors
    wanted = reference.hidden(x, torch.from_numpy(positions), torch.from_numpy(visible))  # [2, kept + N, D]
    features, scale = reference.features(wanted), manifest.sampling.guidance_scale
    guided = features[1:] + scale * (features[:1] - features[1:])  # [1, kept + N, F]
    logits = reference.logits(guided)  # [1, kept + N, V]
    unit = guided / guided.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    inputs = _target_inputs(parts, manifest, x.numpy(), positions, visible[:, 0], rng)
    got = run("target", inputs, ["hidden", "states", "logits", "ids", "similarity", "drawn", "runner_up"])
    pairs = {
        "hidden": (got["hidden"], wanted),
        "states": (got["states"], guided),
        "logits": (got["logits"], torch.gather(logits, 2, torch.from_numpy(got["ids"]))),
        "similarity": (got["similarity"], unit @ unit.transpose(1, 2)),
    }
    report = _judge("target", precision, pairs)
    both = np.stack([got["drawn"][0], got["runner_up"][0]], axis=1)
    report["drawn"] = judge_drawn(both, logits[0].numpy(), inputs, _LIMITS[precision], manifest)
    return report, states.numpy()


def _target_inputs(
    parts: Parts, manifest: Manifest, x: np.ndarray, positions: np.ndarray, visible: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The engine's inputs for x [2, N, D] on an empty cache; visible is bool [2, N, N]. All draws are random."""
    target, plan, nodes = manifest.target, parts.target.plan, x.shape[1]
    tree_mask = np.zeros((2, nodes, target.window + 1), bool)
    tree_mask[:, :, :nodes] = visible
    scale, rows = manifest.sampling.guidance_scale, 4
    inputs = {
        "embeds": x,
        "positions": positions,
        "write_index": np.zeros(2, np.int64),
        "tree_mask": tree_mask,
        "cache_mask": np.ones((2, target.slots), bool),
        "rows_of_prompt": np.array([[0, 1]]),
        "guidance": np.array([[scale, 1 - scale]], np.float32),
        "temperature": np.ones(1, np.float32),
        "top_k": np.array([min(manifest.sampling.top_k, target.top_k)]),
        "top_p": np.array([0.9], np.float32),
        "noise": np.stack([gumbel(0, row, Stream.TOKEN, plan.codes) for row in range(rows)])[None],
        "depths": rng.integers(0, rows, (1, nodes)),
    }
    return inputs | ({"forced": np.full((1, rows), -1, np.int64)} if plan.has_forced else {})


def judge_drawn(
    drawn: np.ndarray, logits: np.ndarray, inputs: Mapping[str, np.ndarray], limit: float, manifest: Manifest
) -> dict[str, Any]:
    """The engine's draws int64 [N, 2], first and second, against those of runtime/sampling.py on PyTorch's logits
    [N, V], noise and all.

    Draws that PyTorch would not make are a tie when rounding of the allowed size would explain them. Raises
    CascadeError for any other.
    """
    sampling = Sampling(1.0, 1.0, int(inputs["top_k"][0]), float(inputs["top_p"][0]))
    slack, top_k = 2 * limit * float(np.abs(logits).max()), manifest.target.top_k
    equal = ties = 0
    for node, tokens in enumerate(drawn.tolist()):
        ids = np.argsort(-logits[node], kind="stable")
        ranked = logits[node, ids]
        race = ranked + inputs["noise"][0, inputs["depths"][0, node], ids]  # [V]
        order = np.argsort(-race[: kept(ranked[:top_k], sampling)], kind="stable")
        if tokens == ids[order[[0, min(1, len(order) - 1)]]].tolist():
            equal += 1
        else:
            ties += may_draw(tokens, ids, ranked, race, top_k, sampling, slack)
    if equal + ties < len(drawn):
        raise CascadeError(
            f"the engine target draws other tokens than PyTorch at {len(drawn) - equal - ties} of {len(drawn)} nodes: "
            "build with a wider --precision, or report this checkpoint."
        )
    return {"nodes": len(drawn), "equal": equal, "ties": ties}


def _draft(
    parts: Parts, manifest: Manifest, run: Runner, rng: np.random.Generator, tree: AnyTree, engine: str,
    hidden: np.ndarray,
) -> dict[str, tuple[np.ndarray, Tensor]]:  # fmt: skip
    """Catch-up over the prefix, then the distribution at the root and along each node's first children."""
    assert parts.drafter is not None and manifest.drafter is not None
    plan, scale = parts.target.plan, manifest.sampling.guidance_scale
    pairs = parts.target.prefix_len
    states = np.ascontiguousarray(hidden[:, :pairs])
    known = plan.tokens + parts.drafter.prompt_ids
    tokens = rng.integers(0, known, (1, pairs)) if parts.drafter.prompt_ids else np.zeros((1, pairs), np.int64)
    tokens[0, -1] = rng.integers(0, plan.codes)
    inputs = {
        "hidden": states,
        "path": np.arange(pairs)[None],
        "tokens": tokens,
        "count": np.array([pairs]),
        "positions": np.tile(np.arange(pairs), (2, 1)),
        "write_index": np.zeros(2, np.int64),
        "cache_mask": np.ones((2, manifest.drafter.slots), bool),
        "prompt_of_row": np.zeros(2, np.int64),
        "rows_of_prompt": np.array([[0, 1]]),
        "noise": np.zeros((1, tree.depth + 1, plan.codes), np.float32),
        "guidance": np.array([[scale, 1 - scale]], np.float32),
        "temperature": np.ones(1, np.float32),
    }
    if plan.has_forced:
        inputs["forced"] = np.full((1, tree.depth + 1), -1, np.int64)
    chosen = ["parents", "sources"] if isinstance(tree, DynamicTree) else []
    got = run(engine, inputs, ["features", "log_q", "tree_tokens", *chosen])
    drafted = Tree(tree.name, tuple(got["parents"][0].tolist())) if isinstance(tree, DynamicTree) else tree
    target, drafter = _reference(parts), parts.drafter.reference(parts.drafter.checkpoint)
    read, names = torch.from_numpy(states), torch.from_numpy(tokens).repeat(2, 1)
    wanted, spine = [], _first_child_spine(drafted)
    features = last = _drafter_states(drafter, read, names)
    for node in spine:
        if node:
            token = int(got["tree_tokens"][0, node])
            read = torch.cat([read, last[:, -1:]], dim=1)
            names = torch.cat([names, torch.full((2, 1), token)], dim=1)
            last = _drafter_states(drafter, read, names)
        seen = target.features(last[:, -1])  # [2, F]
        wanted.append(target.logits(seen[1] + scale * (seen[0] - seen[1])).log_softmax(-1))
    if isinstance(tree, DynamicTree):
        at = [int(got["sources"][0, drafted.children[node][0]]) for node in spine]
    else:
        at = [tree.internal.index(node) for node in spine]
    return {"features": (got["features"], features), "log_q": (got["log_q"][0, at], torch.stack(wanted))}


def _drafter_states(drafter: DrafterReference, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Predicted states [2, n, D], causal from slot 0 on, as the engine's inputs have it."""
    rows, count = tokens.shape
    visible = torch.ones(rows, 1, count, count, dtype=torch.bool).tril()
    return drafter.states(hidden, tokens, torch.arange(count).repeat(rows, 1), visible)


def _first_child_spine(tree: Tree) -> list[int]:
    """Internal nodes from the root along first children."""
    spine = [0]
    while True:
        first = tree.children[spine[-1]][0]
        if not tree.children[first]:
            return spine
        spine.append(first)


def _decode(parts: Parts, run: Runner, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, Tensor]]:
    plan = parts.target.plan
    codes = rng.integers(0, plan.codes, (1, plan.image_tokens))
    module = load_module(VQModel(parts.vq_config, with_encoder=False), parts.vq)
    wanted = module.decode_codes(torch.from_numpy(codes), plan.rows)
    return {"image": (run("decode", {"codes": codes}, ["image"])["image"], wanted)}
