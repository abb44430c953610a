"""The graphs of a model unlike LlamaGen against its plain PyTorch reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from eagle2 import choose
from safetensors.torch import load_file
from torch import Tensor

from cascade_trt.runtime.bundle import Manifest
from cascade_trt.runtime.noise import Stream, gumbel
from cascade_trt.runtime.sampling import Sampling, kept
from cascade_trt.runtime.tree import DynamicTree, Tree, get_tree
from synthetic import model as m
from synthetic.family import PLAN, build_synthetic

STATIC, DYNAMIC = ("small_9", "chain"), ("dynamic_9x4x3", "dynamic_40x3x5")
LENGTHS = (7, m.UNCOND, 4, m.UNCOND)  # of the prefixes of rows 0 ... 3: two slots, each conditional row first
ROWS, SLOTS, SCALE = len(LENGTHS), 2, 2.5
ROUNDING = 40 * np.finfo(np.float32).eps  # relative to the largest value
MASK = np.arange(m.PREFIX) >= m.PREFIX - np.array(LENGTHS)[:, None]  # bool [R, T]
Inputs = dict[str, np.ndarray]


def close(got: np.ndarray, wanted: np.ndarray, rounding: float = ROUNDING) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=rounding * np.abs(wanted).max())


class Bundle:
    """The built graphs, called directly, and the reference in float64."""

    def __init__(self, folder: Path) -> None:
        self.path, self.manifest = build_synthetic(folder, (*STATIC, *DYNAMIC))

        def tensors(name: str) -> dict[str, Tensor]:
            return {key: x.double() for key, x in load_file(folder / "checkpoints" / f"{name}.safetensors").items()}

        self.target, self.drafter = m.Target(tensors("target")), m.Drafter(tensors("drafter"))
        self._sessions: dict[str, ort.InferenceSession] = {}

    def run(self, engine: str, inputs: Inputs) -> Inputs:
        if engine not in self._sessions:
            file = self.path / self.manifest.engines[engine].file
            self._sessions[engine] = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        session = self._sessions[engine]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture(scope="module")
def prefix(bundle: Bundle) -> np.ndarray:
    """float32 [R, T, D] of two captions of different lengths and their unconditional rows, from the engine."""
    features = np.random.default_rng(0).normal(size=(SLOTS, m.PREFIX, m.CAPTION)).astype(np.float32).repeat(2, axis=0)
    uncond = np.arange(ROWS) % 2 == 1
    got = bundle.run("condition", {"features": features, "uncond": uncond})["prefix"]
    wanted = bundle.target.prefix(torch.from_numpy(features).double(), torch.from_numpy(uncond)).numpy()
    close(got, wanted)
    assert (got[1, -m.UNCOND :] == got[3, -m.UNCOND :]).all() and not got[1, : -m.UNCOND].any()
    return got


def target_inputs(manifest: Manifest, nodes: int) -> Inputs:
    """What all calls share: guided pairs of rows; nothing cut, no noise, nothing forced."""
    model, target = manifest.model, manifest.target
    shape = (ROWS, model.n_kv_head, target.slots, model.head_dim)
    cache_mask = np.ones((ROWS, target.slots), bool)
    cache_mask[:, : m.PREFIX] = MASK
    return {
        "cache_mask": cache_mask, "rows_of_prompt": np.arange(ROWS).reshape(SLOTS, 2),
        "guidance": np.tile(np.float32([SCALE, 1 - SCALE]), (SLOTS, 1)), "temperature": np.ones(SLOTS, np.float32),
        "top_k": np.full(SLOTS, m.CODES), "top_p": np.ones(SLOTS, np.float32),
        "noise": np.zeros((SLOTS, 1, m.CODES), np.float32), "depths": np.zeros((SLOTS, nodes), np.int64),
        "forced": np.full((SLOTS, 1), -1), "tree_mask": np.zeros((ROWS, nodes, target.window + 1), bool),
        **{f"past_{kind}.{i}": np.zeros(shape, np.float32) for i in range(model.n_layer) for kind in ("key", "value")},
    }  # fmt: skip


def prefilled(bundle: Bundle, prefix: np.ndarray) -> tuple[Inputs, Inputs]:
    """Outputs of the call on the prefix, and its caches as the next call's inputs."""
    inputs = target_inputs(bundle.manifest, m.PREFIX)
    first = m.PREFIX - np.array(LENGTHS)[:, None]
    inputs["tree_mask"][:, :, : m.PREFIX] = np.tri(m.PREFIX, dtype=bool) & MASK[:, None] | np.eye(m.PREFIX, dtype=bool)
    inputs |= {"embeds": prefix, "positions": np.maximum(np.arange(m.PREFIX) - first, 0),
               "write_index": np.zeros(ROWS, np.int64)}  # fmt: skip
    got = bundle.run("target", inputs)
    return got, {name.replace("present", "past"): x for name, x in got.items() if name.startswith("present")}


def alone(bundle: Bundle, prefix: np.ndarray, row: int, tokens: list[int]) -> np.ndarray:
    """float64 [length + n, D]: the row's own prefix and these tokens, without padding, cache or neighbours."""
    known = torch.from_numpy(prefix[row, m.PREFIX - LENGTHS[row] :]).double()
    x = torch.cat([known, bundle.target.embed(torch.tensor(tokens, dtype=torch.int64))])[None]
    count = x.shape[1]
    visible = torch.ones(1, 1, count, count, dtype=torch.bool).tril()
    return bundle.target.hidden(x, torch.arange(count)[None], visible)[0].numpy()


def guided_features(bundle: Bundle, hidden: np.ndarray) -> Tensor:
    """float64 [..., F] of hidden [2, ..., D], the conditional row's first."""
    features = bundle.target.features(torch.from_numpy(hidden))
    return features[1] + SCALE * (features[0] - features[1])


def test_the_prefix_of_every_row_is_its_own(bundle: Bundle, prefix: np.ndarray) -> None:
    got, _ = prefilled(bundle, prefix)
    wanted = [alone(bundle, prefix, row, []) for row in range(ROWS)]
    for row, hidden in enumerate(wanted):
        close(got["hidden"][row, m.PREFIX - LENGTHS[row] :], hidden)
    last = np.stack([hidden[-1] for hidden in wanted]).reshape(SLOTS, 2, -1)
    for slot in range(SLOTS):
        states = guided_features(bundle, last[slot])
        close(got["states"][slot, -1], states.numpy())
        logits = bundle.target.logits(states).numpy()
        close(got["logits"][slot, -1], np.sort(logits)[::-1])
        assert got["drawn"][slot, -1] == logits.argmax()


@pytest.mark.parametrize("name", STATIC)
def test_a_tree_behind_it(bundle: Bundle, prefix: np.ndarray, name: str) -> None:
    """Each node is its path alone; draws follow the noise of their depth, and what the plan forces."""
    tree, (_, past), rng = get_tree(name), prefilled(bundle, prefix), np.random.default_rng(1)
    assert isinstance(tree, Tree)
    tokens = rng.integers(0, m.TOKENS, (SLOTS, tree.size))
    tokens[:, 0] = m.BEGIN
    inputs = target_inputs(bundle.manifest, tree.size) | past
    inputs["tree_mask"][:, :, : tree.size] = tree.ancestors
    levels, done = tree.depth + 1, (1, 4)  # slot 1 is near the end of the first row
    forced = np.stack([PLAN.forced[d : d + levels] for d in done])
    assert (forced[1] == m.ROW_END).any()
    noise = np.stack([[gumbel(slot, d, Stream.TOKEN, m.CODES) for d in range(levels)] for slot in range(SLOTS)])
    sampling = Sampling(SCALE, 1.0, 20, 0.8)
    inputs |= {
        "embeds": bundle.run("embed", {"ids": tokens.repeat(2, axis=0)})["embeds"], "noise": noise, "forced": forced,
        "positions": np.array(LENGTHS)[:, None] + tree.depths, "write_index": np.full(ROWS, m.PREFIX),
        "depths": np.tile(tree.depths, (SLOTS, 1)), "top_k": np.full(SLOTS, 20),
        "top_p": np.full(SLOTS, 0.8, np.float32),
    }  # fmt: skip
    got = bundle.run("target", inputs)
    for slot in range(SLOTS):
        for node in range(tree.size):
            path = tokens[slot, np.flatnonzero(tree.ancestors[node])].tolist()
            hidden = np.stack([alone(bundle, prefix, 2 * slot + half, path)[-1] for half in range(2)])
            close(got["hidden"][2 * slot : 2 * slot + 2, node], hidden)
            states = guided_features(bundle, hidden)
            close(got["states"][slot, node], states.numpy())
            logits = bundle.target.logits(states).numpy()
            np.testing.assert_array_equal(np.sort(got["ids"][slot, node]), np.arange(m.CODES))
            close(got["logits"][slot, node], logits[got["ids"][slot, node]])
            depth = tree.depths[node]
            order = np.argsort(-logits)
            keep = order[: kept(logits[order], sampling)]
            best = keep[np.argsort(-(logits[keep] + noise[slot, depth][keep]))[[0, min(1, len(keep) - 1)]]]
            wanted = best.tolist() if forced[slot, depth] < 0 else [forced[slot, depth]] * 2
            assert [got["drawn"][slot, node], got["runner_up"][slot, node]] == wanted


class Drafting:
    """One call of a draft engine behind the prefix, with a forced level in each slot, and its reference."""

    def __init__(self, bundle: Bundle, tree: Tree | DynamicTree, seed: int) -> None:
        rng, manifest = np.random.default_rng(seed), bundle.manifest
        drafter = manifest.drafter
        assert drafter is not None and not drafter.sees_padding
        self.bundle, count, levels = bundle, m.PREFIX, tree.depth + 1
        self.hidden = rng.normal(size=(ROWS, count, m.SIZES.dim)).astype(np.float32)
        self.tokens = np.zeros((SLOTS, count), np.int64)
        self.tokens[:, -1] = rng.integers(0, m.TOKENS, SLOTS)
        self.noise = (0.3 * rng.gumbel(size=(SLOTS, levels, m.CODES))).astype(np.float32)
        self.forced = np.full((SLOTS, levels), -1)
        self.forced[0, 1], self.forced[1, 0] = m.ROW_END, m.BEGIN
        cache_mask = np.ones((ROWS, drafter.slots), bool)
        cache_mask[:, :count] = MASK
        cache = np.zeros((ROWS, drafter.n_kv_head, drafter.slots, drafter.head_dim), np.float32)
        self.got = bundle.run(f"draft.{tree.name}", {
            "hidden": self.hidden, "path": np.tile(np.arange(count), (SLOTS, 1)), "tokens": self.tokens,
            "count": np.full(SLOTS, count), "positions": np.tile(np.arange(count), (ROWS, 1)),
            "write_index": np.zeros(ROWS, np.int64), "cache_mask": cache_mask, "noise": self.noise,
            "prompt_of_row": np.arange(ROWS) // 2, "rows_of_prompt": np.arange(ROWS).reshape(SLOTS, 2),
            "guidance": np.tile(np.float32([SCALE, 1 - SCALE]), (SLOTS, 1)),
            "temperature": np.ones(SLOTS, np.float32), "forced": self.forced,
            **{f"past_{kind}.{step}": cache for step in range(tree.depth) for kind in ("key", "value")},
        })  # fmt: skip

    def distribution(self, slot: int, tree: Tree, node: int) -> np.ndarray:
        """float64 log q [V] behind a node: both rows read their pairs, then their own predictions along the path."""
        path = [n for n in np.flatnonzero(tree.ancestors[node]) if n]
        last = []
        for row in (2 * slot, 2 * slot + 1):
            hidden = torch.from_numpy(self.hidden[row, m.PREFIX - LENGTHS[row] :]).double()
            tokens = self.tokens[slot, m.PREFIX - LENGTHS[row] :].tolist()
            predicted = self._states(hidden, tokens)
            for n in path:
                hidden = torch.cat([hidden, predicted[-1:]])
                tokens.append(int(self.got["tree_tokens"][slot, n]))
                predicted = self._states(hidden, tokens)
            last.append(predicted[-1].numpy())
        return self.bundle.target.logits(guided_features(self.bundle, np.stack(last))).log_softmax(-1).numpy()

    def _states(self, hidden: Tensor, tokens: list[int]) -> Tensor:
        count = len(tokens)
        visible = torch.ones(1, 1, count, count, dtype=torch.bool).tril()
        ids, positions = torch.tensor([tokens]), torch.arange(count)[None]
        return self.bundle.drafter.states(hidden[None], ids, positions, visible)[0]


def check_laws(drafting: Drafting, slot: int, tree: Tree, row_of: Callable[[int], int]) -> None:
    for node in tree.internal:
        distribution = drafting.distribution(slot, tree, node)
        close(drafting.got["log_q"][slot, row_of(node)], distribution, ROUNDING * (1 + tree.depths[node]))


@pytest.mark.parametrize("name", STATIC)
def test_drafting_a_static_tree(bundle: Bundle, name: str) -> None:
    """Laws of all nodes; children are the top-k of log q + noise, or all of them the forced token."""
    tree = get_tree(name)
    assert isinstance(tree, Tree)
    drafting = Drafting(bundle, tree, 3)
    got = drafting.got
    for slot in range(SLOTS):
        check_laws(drafting, slot, tree, tree.internal.index)
        assert got["tree_tokens"][slot, 0] == drafting.tokens[slot, -1]
        for node in tree.internal:
            children, depth = list(tree.children[node]), tree.depths[node]
            order = np.argsort(-(got["log_q"][slot, tree.internal.index(node)] + drafting.noise[slot, depth]))
            token = drafting.forced[slot, depth]
            wanted = order[: len(children)].tolist() if token < 0 else [token] * len(children)
            assert got["tree_tokens"][slot, children].tolist() == wanted
    ids = got["tree_tokens"].repeat(2, axis=0)
    assert (ids >= m.CODES).any()
    np.testing.assert_array_equal(got["embeds"], bundle.run("embed", {"ids": ids})["embeds"])


@pytest.mark.parametrize("name", DYNAMIC)
def test_drafting_a_dynamic_tree(bundle: Bundle, name: str) -> None:
    tree = get_tree(name)
    assert isinstance(tree, DynamicTree)
    copies = 0
    for seed in range(4):
        drafting = Drafting(bundle, tree, seed)
        got = drafting.got
        for slot in range(SLOTS):
            forced = drafting.forced[slot]
            chosen = Tree(name, tuple(got["parents"][slot].tolist()))
            sources = got["sources"][slot]
            check_laws(drafting, slot, chosen, lambda n, c=chosen, s=sources: s[c.children[n][0]])
            wanted = choose(tree, got["log_q"][slot].astype(np.float64), drafting.noise[slot], forced)
            real = [kept for kept in wanted if kept[0] > -1e19]
            copies += len(wanted) - len(real)
            # which of the copies are kept is nobody's business; that they are fewest is
            tokens = list(zip(got["tree_tokens"][slot, 1:].tolist(), got["sources"][slot, 1:].tolist(),
                              got["depths"][slot, 1:].tolist(), strict=True))  # fmt: skip
            assert all(tokens.count((t, row, d)) >= 1 for _, t, row, d in real)
            for node in chosen.internal:
                token = forced[chosen.depths[node]]
                if token >= 0:
                    assert (got["tree_tokens"][slot, list(chosen.children[node])] == token).all()
                    if len(real) == len(wanted):
                        assert len(chosen.children[node]) == 1
            np.testing.assert_array_equal(got["ancestors"][slot], chosen.ancestors)
            assert all(0 <= up < n for n, up in enumerate(chosen.parents) if n)
    assert (copies > 0) == (name == "dynamic_40x3x5")  # 40 nodes need copies, 9 do not
