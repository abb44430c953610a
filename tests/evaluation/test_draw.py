"""What the files of a drawn set say of its cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade_trt.evaluation.captions import Caption
from cascade_trt.evaluation.draw import Drawing, draw, speed
from cascade_trt.runtime.pipeline import Pipeline


@pytest.mark.parametrize(("rule", "tree"), [("ar", None), ("exact", "pair_4")])
def test_files_share_the_calls_of_the_run(text_bundle: Path, tmp_path: Path, rule: str, tree: str | None) -> None:
    """Two slots; with `ar` two images are done in the same step. Every call and second is in one file."""
    pipe = Pipeline.load(text_bundle, threads=1)
    prompts, seen = ["red apple", "a cat", "apple", "a red cat", "cat"], []
    images = draw(pipe, Drawing(rule, tree, 7, rule), [Caption(prompt) for prompt in prompts], tmp_path, seen.append)
    whole = pipe.generate(prompts, seed=7, rule=rule, tree=tree)
    said = {name: [float(image.info[name]) for image in images] for name in ("tokens", "rounds", "target_calls")}
    assert sum(said["target_calls"]) == whole.stats.target_calls
    assert said["rounds"] == whole.rounds.tolist()
    assert sum(said["tokens"]) == whole.stats.tokens
    assert speed(images)["tau"] == pytest.approx(whole.stats.tau)
    seconds = sum(float(image.info["total_seconds"]) for image in images)
    assert speed(images)["images_per_second"] == pytest.approx(5 / seconds)
    assert seen == sorted(seen) and seen[-1] == 5 * pipe.manifest.model.plan.length
