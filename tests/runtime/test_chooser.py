"""Which tree a batch is drawn with: what is asked for, what suits the images, what their rules need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import random_features

from cascade_trt.runtime.auto import Choice
from cascade_trt.runtime.bundle import DynamicInfo, TreeInfo
from cascade_trt.runtime.chooser import AutoTree, FixedTree
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Conditioning, Drawing, Request
from cascade_trt.runtime.rules import Rule, get_rule
from cascade_trt.runtime.sampling import Sampling
from cascade_trt.runtime.tree import AUTO, NO_TREE, get_tree

EXACT, TOPK = get_rule("exact"), get_rule("strict-topk")


class Asked:
    """An `Auto` that notes what it is asked and told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def choose(self, exact: int, plain: int, current: str) -> Choice:
        self.calls.append((exact, plain, current))
        return Choice("mixed_8", "it is fast")

    def rival(self, exact: int, plain: int, current: str, turn: int) -> str | None:
        self.calls.append((exact, plain, current, turn))
        return (NO_TREE, "jacobi_8", None)[turn % 3]

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
        self.calls.append((tree, tokens, rounds, busy, milliseconds))


def of(rule: Rule | None, tree: str | None) -> Drawing:
    """A checked request; only its rule and tree play a part."""
    return Drawing(Conditioning(), 0, Sampling(1.0, 1.0, 0, 1.0), rule, tree, f"{tree} it is")


FREE, PLAIN, BOUND = of(EXACT, AUTO), of(None, None), of(TOPK, "chain_7")


def test_auto_is_asked_about_images_of_exact_and_of_ar() -> None:
    asked = Asked()
    chooser = AutoTree(asked, "chain_7")  # type: ignore[arg-type]
    assert (chooser.asked, chooser.first) == (AUTO, "chain_7")
    assert chooser.choose([FREE, PLAIN, FREE], "jacobi_8").tree == "mixed_8"
    chooser.observe("mixed_8", 12, 2, 3, 4.5)
    assert asked.calls == [(2, 1, None), ("mixed_8", 12, 2, 3, 4.5)]
    assert chooser.choose([PLAIN, PLAIN], "jacobi_8").tree == NO_TREE
    assert chooser.choose([FREE, BOUND, PLAIN], "mixed_8") == Choice("chain_7", "chain_7 it is")
    assert len(asked.calls) == 2  # neither is its to say


def test_rivals_are_looked_at_for_a_moment() -> None:
    """After 48 rounds 12 of plain decoding, then 6 of another tree, if there is one; what is drawn with stays."""
    asked = Asked()
    chooser = AutoTree(asked, "chain_7")  # type: ignore[arg-type]
    used = [["mixed_8"] * 48, [NO_TREE] * 12, ["mixed_8"] * 48, ["jacobi_8"] * 6, ["mixed_8"] * 97]
    wanted = [tree for part in used for tree in part]
    choices = [chooser.choose([FREE], "any") for _ in wanted]
    assert [choice.tree for choice in choices] == wanted
    assert {choice.why for choice in choices} == {"it is fast"}
    assert {call[2] for call in asked.calls[1:]} == {"mixed_8"}


def test_what_may_join() -> None:
    auto = AutoTree(Asked(), "chain_7")  # type: ignore[arg-type]
    assert auto.serves(EXACT, AUTO) and auto.serves(TOPK, "chain_7") and auto.serves(TOPK, "mixed_8")
    fixed = FixedTree("mixed_8", "it was asked for")
    assert fixed.serves(EXACT, AUTO) and fixed.serves(TOPK, "mixed_8") and not fixed.serves(EXACT, "chain_7")
    assert not FixedTree(None, "plain decoding").serves(EXACT, AUTO)


def test_images_that_are_bound_to_different_trees_take_turns(small_vocabulary: Pipeline) -> None:
    """First come, first served; each is what it is alone, and free ones share any round."""
    given, batch = random_features(small_vocabulary, 1), small_vocabulary.batch(3)
    one = {"features": given["features"][0], "features_mask": given["features_mask"][0]}
    asked = [("strict", "chain"), ("strict", "small_9"), ("exact", None), ("strict", "chain"), ("ar", None)]
    jobs = [batch.submit(Request(**one, seed=i, options=DrawOptions(rule=rule, tree=tree)))
            for i, (rule, tree) in enumerate(asked)]  # fmt: skip
    together = set()
    while not batch.idle:
        batch.step()
        together.add(frozenset(i for i, job in enumerate(jobs) if job.progress.tokens and not job.done))
    assert not any({0, 1} <= seen or {1, 3} <= seen for seen in together)
    assert any({1, 2} <= seen for seen in together) and any({3, 4} <= seen for seen in together)
    for i, (rule, tree) in enumerate(asked):
        alone = small_vocabulary.generate(**given, seed=i, rule=rule, tree=tree)
        np.testing.assert_array_equal(jobs[i].result().codes, alone.codes[0])


def own(folder: Path, name: str, *nodes: str) -> str:
    """A file with a tree, nodes written as "J0.0" or "E0"."""
    spelt = [{"path": [int(k) for k in node[1:].split(".")], "source": {"J": "jacobi", "E": "eagle"}[node[0]]}
             for node in nodes]  # fmt: skip
    file = folder / f"{name}.json"
    file.write_text(json.dumps(spelt))
    return str(file)


@pytest.mark.parametrize("nodes", [("E0", "J0.0", "J1", "J1.0"), ("J0", "J1", "J0.0")])
@pytest.mark.parametrize("name", ["mine", "bush"])
def test_a_tree_in_a_file_needs_no_build(
    small_vocabulary: Pipeline, tmp_path: Path, nodes: tuple[str, ...], name: str
) -> None:
    """By `generate` and in a batch; also where the bundle has another tree of the file's name."""
    file, given = own(tmp_path, name, *nodes), random_features(small_vocabulary, 1)
    plain = small_vocabulary.generate(**given, seed=3, rule="ar")
    output = small_vocabulary.generate(**given, seed=3, rule="exact", tree=file)
    np.testing.assert_array_equal(output.codes, plain.codes)
    assert output.stats.tree == file
    origins = output.stats.origins
    assert bool(origins["eagle"]) == any(node.startswith("E") for node in nodes) and origins["jacobi"]
    assert output.rounds[0] > 36 / (max(len(node) for node in nodes) // 2 + 2)  # it has no more levels than the file
    batch = small_vocabulary.batch(1, tree=file)
    job = batch.submit(Request(features=given["features"][0], features_mask=given["features_mask"][0], seed=3))
    np.testing.assert_array_equal(job.result().codes, plain.codes[0])
    assert job.result().stats.rounds == output.rounds[0]


def test_a_default_batch_serves_every_rule_that_the_bundle_serves(small_vocabulary: Pipeline) -> None:
    """Images of `exact` with auto, others with the bundle's drafted tree, as when they are drawn alone."""
    given, batch = random_features(small_vocabulary, 1), small_vocabulary.batch(2)
    one = {"features": given["features"][0], "features_mask": given["features_mask"][0], "seed": 3}
    rules = ("exact", "strict", "strict-topk", "cool:children=coupled", "ar")
    jobs = {rule: batch.submit(Request(**one, options=DrawOptions(rule=rule))) for rule in rules}
    for rule, job in jobs.items():
        alone = small_vocabulary.generate(**given, seed=3, rule=rule)
        np.testing.assert_array_equal(job.result().codes, alone.codes[0])
    fixed = small_vocabulary.batch(2, tree="chain")
    with pytest.raises(CascadeError, match="this batch draws with the tree chain, the image needs small_9"):
        fixed.submit(Request(**one, options=DrawOptions(rule="strict", tree="small_9")))


def test_stats_say_why(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 1)
    said = {
        ("strict", None): "chain: the bundle's first tree for strict", ("strict", "small_9"): "small_9: it was asked",
        ("exact", "jacobi_3"): "jacobi_3: it was asked for", ("ar", None): "plain decoding was asked for",
        ("exact", None): "costs measured just now on",
    }  # fmt: skip
    for (rule, tree), sentence in said.items():
        assert sentence in small_vocabulary.generate(**given, rule=rule, tree=tree).stats.why


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "auto"}, "has a name that means another"), ({"name": "none"}, "has a name that means another"),
        ({"name": "small_9"}, "has a name that means another"), ({"engine": "draft.oak"}, "is no engine that drafts"),
        ({"engine": "target"}, "is no engine that drafts"), ({"engine": None}, "drafts and has no engine"),
        ({"parents": []}, "is no tree"), ({"parents": [-1, 1]}, "is no tree"),
        ({"parents": [-1, 0, 1, 0]}, "is no tree"),
        ({"parents": [-1]}, "does not fit into a call"), ({"parents": list(range(-1, 80))}, "does not fit into a call"),
        ({"sources": ["eagle"]}, "must give each node one of the sources"),
        ({"dynamic": DynamicInfo(-1, 2, 2)}, "needs at least 2 nodes"),
    ],
)  # fmt: skip
def test_trees_of_a_manifest_that_cannot_be_right(
    small_vocabulary: Pipeline, change: dict[str, Any], said: str
) -> None:
    """A sentence, before anything is allocated for them."""
    manifest = small_vocabulary.manifest
    first, *others = manifest.trees
    assert first.name == "chain"
    with pytest.raises(CascadeError, match=said):
        replace(manifest, trees=[replace(first, **change), *others])
    replace(manifest, trees=[TreeInfo.of(get_tree("jacobi_3"), None), *others])
