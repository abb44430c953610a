"""The draft engine itself: the original drafter's states, and the distributions of every node of a tree."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_calls import Draft
from support import FIXTURE

from cascade_trt.export.families.llamagen.drafter import Drafter, DrafterConfig
from cascade_trt.runtime.backends.ort import OrtBackend
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.tree import TREE_NAMES, DynamicTree, Tree, get_tree

PREFIX, DIM, VOCAB, SCALE = 120, 128, 512, 3.0
ROUNDING = 20 * np.finfo(np.float32).eps  # of a distribution, relative to its scale, for each level that it rests on


@pytest.fixture(scope="module")
def reference() -> Drafter:
    """PyTorch's drafter with the fixture's weights; its rotary grid is that of a 256 pixel image (16)."""
    drafter = Drafter(DrafterConfig(DIM, 4, 256, VOCAB, 16, PREFIX))
    weights = torch.load(FIXTURE / "drafter.pt", weights_only=True)
    config = drafter.config
    ffn = weights["layers.0.mlp.gate_proj.weight"].shape[0]
    if ffn != config.ffn_dim:
        drafter = Drafter(DrafterConfig(DIM, 4, ffn, VOCAB, 16, PREFIX))
    drafter.load_state_dict({name: weights[name] for name in drafter.state_dict()})
    return drafter.eval()


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return torch.load(FIXTURE / "gpt_t2i.pt", weights_only=True)["model"]["output.weight"].float().numpy()


@pytest.fixture(scope="module")
def golden_drafter() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURE / "golden_drafter.npz"))


@pytest.mark.parametrize("cuts", [[129], [120, 129], [3, 50, 120, 124, 129]])
def test_golden_states(tiny_bundle: Path, golden_drafter: dict[str, np.ndarray], cuts: list[int]) -> None:
    """The original drafter's states, in one call or over several with padding behind the valid pairs."""
    draft = Draft(tiny_bundle, get_tree("chain"), 2, np.eye(2, dtype=np.float32))
    hidden, ids = golden_drafter["hidden_in"], golden_drafter["ids"].astype(np.int64)
    features, begin = [], 0
    for end in cuts:
        rows, padding = np.arange(begin, end), [begin] * (3 if len(cuts) > 1 else 0)
        path = np.tile(np.concatenate([rows, padding]).astype(np.int64), (2, 1))
        tokens = np.take_along_axis(ids, path, axis=1)
        got = draft(hidden, path, tokens, np.full(2, end - begin), begin)
        np.testing.assert_array_equal(got["tree_tokens"][:, 0], ids[:, end - 1])
        features.append(got["features"][:, : end - begin])
        begin = end
    np.testing.assert_allclose(np.concatenate(features, axis=1), golden_drafter["hidden_out"], rtol=0, atol=2e-4)


def guided(states: np.ndarray) -> np.ndarray:
    return states[1] + SCALE * (states[0] - states[1])


@pytest.mark.parametrize("name", TREE_NAMES)
def test_laws_of_every_node(
    tiny_bundle: Path, reference: Drafter, head: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a catch-up with padding on a cache of an earlier call: each node's distribution is that of its path alone.

    The reference runs in float64 (its "float()" is "double()"), so what is judged is the engine's rounding alone:
    by the distribution's scale and the node's depth, since rounding adds up from level to level.
    """
    tree, rng = get_tree(name), np.random.default_rng(1)
    # full noise hides the distributions, and a dynamic tree would end at its first level
    noise_scale = 0.3 if isinstance(tree, DynamicTree) else 1.0
    draft = Draft(tiny_bundle, tree, 2, np.array([[SCALE, 1 - SCALE]], np.float32))
    hidden = rng.normal(size=(2, PREFIX, DIM)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (1, PREFIX))
    draft(hidden, np.arange(PREFIX)[None], tokens, np.array([PREFIX]), 0)

    pairs, count = tree.depth + 1, 2
    verified = rng.normal(size=(2, tree.size, DIM)).astype(np.float32)  # the target's states of the tree before
    path, newest = np.full((1, pairs), 1), rng.integers(0, VOCAB, (1, pairs))
    path[0, :count] = [0, tree.size - 1]
    noise = noise_scale * rng.gumbel(size=(1, tree.depth + 1, VOCAB)).astype(np.float32)
    got = draft(verified, path, newest, np.array([count]), PREFIX, noise)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    reference = deepcopy(reference).double()
    if isinstance(tree, DynamicTree):
        tree = Tree(name, tuple(got["parents"][0].tolist()))
        row_of = {node: got["sources"][0, tree.children[node][0]] for node in tree.internal}
        np.testing.assert_array_equal(got["depths"][0], tree.depths)
        np.testing.assert_array_equal(got["ancestors"][0], tree.ancestors)
        assert tree.depth > 1
    else:
        row_of = {node: row for row, node in enumerate(tree.internal)}

    states: dict[int, np.ndarray] = {}  # states read so far [2, n, D], the predicted one of each ancestor included
    read = np.concatenate([hidden, verified[:, path[0, :count]]], axis=1)
    ids = np.concatenate([tokens[0], newest[0, :count]])
    sequences: dict[int, tuple[np.ndarray, np.ndarray]] = {0: (read, ids)}
    for node in tree.internal:
        at = row_of[node]
        if node:
            before, names = sequences[tree.parents[node]]
            sequences[node] = (
                np.concatenate([before, states[tree.parents[node]][:, None]], axis=1),
                np.append(names, got["tree_tokens"][0, node]),
            )
        given, names = sequences[node]
        with torch.inference_mode():
            out = reference(torch.from_numpy(given).double(), torch.from_numpy(np.tile(names, (2, 1)))).numpy()
        states[node] = out[:, -1]
        logits = head @ guided(states[node])
        distribution = logits - np.logaddexp.reduce(logits)
        rounding = ROUNDING * (1 + tree.depths[node]) * np.abs(distribution).max()
        np.testing.assert_allclose(got["log_q"][0, at], distribution, rtol=0, atol=rounding)
        children = list(tree.children[node])
        order = np.argsort(-(got["log_q"][0, at] + noise[0, tree.depths[node]]), kind="stable")
        assert got["tree_tokens"][0, children].tolist() == order[: len(children)].tolist()
    assert got["tree_tokens"][0, 0] == newest[0, count - 1]


@pytest.mark.parametrize("name", ["small_9", "eagle2_60"])
def test_temperature_divides_the_law_and_not_the_noise(tiny_bundle: Path, name: str) -> None:
    """Children of the root are the top-k of log q + noise, log q being that of the logits over the temperature."""
    tree, rng = get_tree(name), np.random.default_rng(4)
    draft = Draft(tiny_bundle, tree, 2, np.array([[SCALE, 1 - SCALE]], np.float32))
    hidden = rng.normal(size=(2, PREFIX, DIM)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (1, PREFIX))
    noise = 5 * rng.gumbel(size=(1, tree.depth + 1, VOCAB)).astype(np.float32)
    given = draft.inputs(hidden, np.arange(PREFIX)[None], tokens, np.array([PREFIX]), 0, noise)
    plain = draft.run(given)
    hot = draft.run(given | {"temperature": np.full(1, 2.5, np.float32)})
    distribution = plain["log_q"][0, 0] / 2.5
    np.testing.assert_allclose(hot["log_q"][0, 0], distribution - np.logaddexp.reduce(distribution), rtol=0, atol=2e-4)
    order = np.argsort(-(hot["log_q"][0, 0] + given["noise"][0, 0]))
    parents = hot["parents"][0].tolist() if isinstance(tree, DynamicTree) else list(tree.parents)
    children = hot["tree_tokens"][0, [n for n, parent in enumerate(parents) if parent == 0]]
    assert children.tolist() == order[: len(children)].tolist()
    assert hot["tree_tokens"].tolist() != plain["tree_tokens"].tolist()


def test_embeddings_are_the_targets(tiny_bundle: Path) -> None:
    """What the target will read are its own embeddings, not the drafter's, for every row of a prompt."""
    tree = get_tree("small_9")
    draft = Draft(tiny_bundle, tree, 4, np.tile(np.eye(2, dtype=np.float32), 2) / 2)
    hidden = np.random.default_rng(2).normal(size=(4, 5, DIM)).astype(np.float32)
    got = draft(hidden, np.tile(np.arange(5), (2, 1)), np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]]),
                np.array([5, 3]), 0)  # fmt: skip
    table = torch.load(FIXTURE / "gpt_t2i.pt", weights_only=True)["model"]["tok_embeddings.weight"].float().numpy()
    np.testing.assert_array_equal(got["tree_tokens"][:, 0], [5, 7])
    np.testing.assert_array_equal(got["embeds"], table[np.tile(got["tree_tokens"], (2, 1))])


@pytest.mark.parametrize("name", ["small_9", "eagle2_60"])
def test_steps_may_share_the_caches_memory(tiny_bundle: Path, name: str) -> None:
    """Bound to one memory, as the runtime does, or each to its own, as in `session.run`: the same to the last bit."""
    tree, pairs = get_tree(name), get_tree(name).depth + 1
    draft = Draft(tiny_bundle, tree, 2, np.array([[SCALE, 1 - SCALE]], np.float32))
    rng = np.random.default_rng(3)
    draft(rng.normal(size=(2, PREFIX, DIM)).astype(np.float32), np.arange(PREFIX)[None],
          rng.integers(0, VOCAB, (1, PREFIX)), np.array([PREFIX]), 0)  # fmt: skip
    cache = [array.copy() for array in draft.cache]
    given = (rng.normal(size=(2, tree.size, DIM)).astype(np.float32), np.arange(pairs)[None] % 2,
             rng.integers(0, VOCAB, (1, pairs)), np.array([2]), PREFIX)  # fmt: skip
    apart = draft(*given)

    backend = OrtBackend(1)
    shared = backend.cache(1, 2, cache[0].shape[1], *cache[0].shape[2:], "float32")
    past, present = shared.bindings(0, 2, tree.depth)
    memory = [past[f"past_{kind}.0"].host for kind in ("key", "value")]
    for mine, array in zip(memory, cache, strict=True):
        mine[:] = array
    inputs = {key: backend.buffer(array.shape, str(array.dtype), "in") for key, array in draft.inputs(*given).items()}
    for key, array in draft.inputs(*given).items():
        inputs[key].host[:] = array
    outputs = {key: backend.buffer(array.shape, str(array.dtype), "out")
               for key, array in apart.items() if not key.startswith("present_")}  # fmt: skip
    call = backend.load(tiny_bundle / f"draft.{name}.onnx").bind({**inputs, **past}, {**outputs, **present})
    call.run(fetch=tuple(outputs))
    last = tree.depth - 1
    for key, buffer in outputs.items():
        np.testing.assert_array_equal(buffer.host, apart[key], key)
    np.testing.assert_array_equal(memory[0], apart[f"present_key.{last}"])
    np.testing.assert_array_equal(memory[1], apart[f"present_value.{last}"])
    committed = PREFIX + 2
    np.testing.assert_array_equal(apart["present_key.0"][:, :, :committed], memory[0][:, :, :committed])


@pytest.mark.parametrize("name", ["chain", "small_9", "eagle2_60"])
def test_padding_up_to_the_largest_call_changes_nothing(tiny_bundle: Path, name: str) -> None:
    """The newest pairs come in any number: behind the longest sequence the cache still has room for those of the
    largest target call and the drafted nodes, and nothing is read of the padding."""
    manifest, tree, rng = read_manifest(tiny_bundle), get_tree(name), np.random.default_rng(5)
    assert manifest.drafter is not None
    draft = Draft(tiny_bundle, tree, 2, np.array([[SCALE, 1 - SCALE]], np.float32))
    end = PREFIX - 1 + manifest.model.plan.length  # what a drafter has read of the longest sequence
    draft(rng.normal(size=(2, PREFIX, DIM)).astype(np.float32), np.arange(PREFIX)[None],
          rng.integers(0, VOCAB, (1, PREFIX)), np.array([PREFIX]), 0)  # fmt: skip
    hidden = rng.normal(size=(2, 3, DIM)).astype(np.float32)
    most = manifest.most_nodes
    path, tokens = np.array([[2, *[0] * (most - 1)]]), rng.integers(0, VOCAB, (1, most))
    noise = rng.gumbel(size=(1, tree.depth + 1, VOCAB)).astype(np.float32)
    alone, padded = (
        draft.run(draft.inputs(hidden, path[:, :pairs], tokens[:, :pairs], np.array([1]), end - 1, noise))
        for pairs in (1, most)
    )
    np.testing.assert_array_equal(padded["tree_tokens"], alone["tree_tokens"])
    limit = ROUNDING * (1 + tree.depth) * np.abs(alone["log_q"]).max()
    np.testing.assert_allclose(padded["log_q"], alone["log_q"], rtol=0, atol=limit)
    last = f"present_key.{tree.depth - 1}"
    assert not alone[last][:, :, end + tree.distributions - 1 :].any() and padded[last][:, :, end:].any()
