"""The target engine itself: the original code's logits and hidden states, however the tokens arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graph_calls import PAIRS, ROWS, Target, prefill, session
from support import Golden

from cascade_trt.runtime.tree import get_tree


@pytest.fixture(scope="module")
def prefix(tiny_bundle: Path, golden: Golden) -> tuple[np.ndarray, np.ndarray]:
    """Prefix embeddings of the four rows, and their mask."""
    features, mask = np.tile(golden.values["caption_features"], (2, 1, 1)), golden.values["caption_mask"]
    uncond = np.array([False, False, True, True])
    embeds = session(tiny_bundle, "condition").run(None, {"features": features, "uncond": uncond})[0]
    return embeds, np.tile(mask.astype(bool), (2, 1))


def in_vocabulary_order(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Logits [P, N, V]; K is the whole vocabulary here."""
    logits = np.full_like(outputs["logits"], np.nan)
    np.put_along_axis(logits, outputs["ids"], outputs["logits"], axis=2)
    return logits


def chunks(tokens: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for begin in range(0, tokens.shape[1], size):
        yield begin, tokens[:, begin : begin + size]


@pytest.mark.parametrize(("prefix_chunk", "chunk"), [(120, 1), (50, 7), (1, 63)])
def test_golden_logits_and_states(
    tiny_bundle: Path, golden: Golden, prefix: tuple[np.ndarray, np.ndarray], prefix_chunk: int, chunk: int
) -> None:
    """Step 0 is the prefix's last slot, step s the slot of image token s - 1."""
    embeds, mask = prefix
    target = Target(tiny_bundle, mask)
    outputs = prefill(target, embeds, mask, prefix_chunk)
    logits, hidden = [in_vocabulary_order(outputs)[:, -1:]], [outputs["hidden"][:, -1:]]
    tokens = np.tile(golden.values["greedy_tokens"], (2, 1))[:, :-1]
    for begin, part in chunks(tokens, chunk):
        outputs = target(target.embed(part), embeds.shape[1] + begin)
        logits.append(in_vocabulary_order(outputs))
        hidden.append(outputs["hidden"])
    steps = golden.values["logit_steps"]
    assert len(steps) > 3
    np.testing.assert_allclose(
        np.concatenate(logits, axis=1)[:, steps], golden.values["cond_uncond_logits"], rtol=0, atol=2e-4
    )
    np.testing.assert_allclose(np.concatenate(hidden, axis=1)[:, steps], golden.values["hidden"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["mc_sim_7b_63", "naive_extend_57", "small_9"])
def test_a_tree_node_is_its_path(tiny_bundle: Path, prefix: tuple[np.ndarray, np.ndarray], name: str) -> None:
    """Each node of a tree gives the states and logits of its path read one token after another."""
    embeds, mask = prefix
    target, tree, length = Target(tiny_bundle, mask), get_tree(name), embeds.shape[1]
    prefill(target, embeds, mask, length)
    after_prefix = target.cache
    tokens = np.random.default_rng(0).integers(0, 512, (ROWS, tree.size))
    outputs = target(target.embed(tokens), length, tree.ancestors, tree.depths)
    leaves = [node for node in range(tree.size) if not tree.children[node]]
    for leaf in leaves[:: max(1, len(leaves) // 8)]:
        path = np.flatnonzero(tree.ancestors[leaf])
        target.cache = after_prefix
        alone = target(target.embed(tokens[:, path]), length)
        np.testing.assert_allclose(outputs["hidden"][:, path], alone["hidden"], rtol=0, atol=2e-5)
        np.testing.assert_allclose(
            in_vocabulary_order(outputs)[:, path], in_vocabulary_order(alone), rtol=0, atol=2e-5
        )


def test_what_the_head_returns(tiny_bundle: Path, prefix: tuple[np.ndarray, np.ndarray]) -> None:
    """Guidance mixes the rows; states are the mixed ones, similarity their cosines; a greedy draw is the first id."""
    embeds, mask = prefix
    own = prefill(Target(tiny_bundle, mask), embeds, mask, 120)
    mixed = prefill(Target(tiny_bundle, mask, PAIRS, (3.0, -2.0)), embeds, mask, 120)
    rows = in_vocabulary_order(own)
    np.testing.assert_allclose(in_vocabulary_order(mixed), rows[2:] + 3 * (rows[:2] - rows[2:]), rtol=0, atol=1e-4)
    assert (np.diff(mixed["logits"]) <= 0).all()
    np.testing.assert_array_equal(mixed["drawn"], mixed["ids"][..., 0])
    np.testing.assert_array_equal(mixed["runner_up"], mixed["drawn"])  # the sampler keeps one token
    state = own["hidden"][2:] + 3 * (own["hidden"][:2] - own["hidden"][2:])
    np.testing.assert_allclose(mixed["states"], state, rtol=0, atol=1e-5)
    unit = state / np.linalg.norm(state, axis=-1, keepdims=True)
    np.testing.assert_allclose(mixed["similarity"], unit @ unit.transpose(0, 2, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("top_k", [512, 20, 2])
def test_the_runner_up_comes_second_in_the_draw(
    tiny_bundle: Path, prefix: tuple[np.ndarray, np.ndarray], top_k: int
) -> None:
    """The largest two of logits + noise, each node with the noise of its depth."""
    embeds, mask = prefix
    target, tree, rng = Target(tiny_bundle, mask, PAIRS, (3.0, -2.0)), get_tree("small_9"), np.random.default_rng(0)
    prefill(target, embeds, mask, 120)
    noise, depths = rng.gumbel(size=(2, 4, 512)).astype(np.float32), rng.integers(0, 4, (2, tree.size))
    embedded = target.embed(rng.integers(0, 512, (ROWS, tree.size)))
    sampler = {"noise": noise, "top_k": np.full(2, top_k), "temperature": np.full(2, 0.7, np.float32)}
    got = target(embedded, 120, tree.ancestors, tree.depths, rows=depths, **sampler)
    for slot, node in np.ndindex(depths.shape):
        race = got["logits"][slot, node, :top_k] + noise[slot, depths[slot, node], got["ids"][slot, node, :top_k]]
        wanted = got["ids"][slot, node, np.argsort(-race)[:2]].tolist()
        assert [got["drawn"][slot, node], got["runner_up"][slot, node]] == wanted


def test_masked_and_later_slots_have_no_say(tiny_bundle: Path, prefix: tuple[np.ndarray, np.ndarray]) -> None:
    """Whatever an earlier image left in padded slots, or behind the newest token, changes nothing."""
    embeds, mask = prefix
    results = []
    for leftover in (0.0, 50.0):
        target = Target(tiny_bundle, mask)
        prefill(target, embeds, mask, 120)
        for array in target.cache.values():
            array[:, :, 125:] = leftover
            array[np.broadcast_to(~np.pad(mask, ((0, 0), (0, array.shape[2] - 120)), constant_values=True)[:, None],
                                  array.shape[:3])] = leftover  # fmt: skip
        results.append(target(target.embed(np.full((ROWS, 5), 7)), 120)["logits"])
    np.testing.assert_array_equal(results[0], results[1])
