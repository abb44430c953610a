"""The bundled demo model: what a fresh checkout draws with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support import build
from ties import same_but_for_ties, watch_leads

from cascade_trt.cli import cli
from cascade_trt.runtime.output import Output
from cascade_trt.runtime.pipeline import Pipeline

PROMPTS = ["a red apple", "a carrot", "a hamburger on a pale blue background", "pizza, noto style"]
Leads = dict[tuple[int, int], float]
WEIGHTS = Path(__file__).parent.parent / "examples" / "emoji" / "weights"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "emoji"
    trees = ("pair_4", "mc_sim_7b_63", "eagle2_60", "chain_1")
    build("emoji", "--batch", 4, *(part for name in trees for part in ("--tree", name)), "--out", out)
    return out


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle)


@pytest.fixture(scope="module")
def plain(pipe: Pipeline) -> tuple[Output, Leads]:
    with pytest.MonkeyPatch.context() as patch:
        leads = watch_leads(patch)
        return pipe.generate(PROMPTS, seed=0, rule="ar"), leads


def test_the_weights_stay_small() -> None:
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size < 40e6


def test_a_red_apple(bundle: Path, tmp_path: Path) -> None:
    """Read back from the file: mostly white around, mostly red inside."""
    command = ["generate", "a red apple", "--bundle", str(bundle), "--out", str(tmp_path / "apple.png")]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    pixels = np.asarray(Image.open(tmp_path / "apple.png")).astype(int)
    assert pixels.shape == (64, 64, 3)
    assert np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean() > 235
    red, green, blue = pixels[20:50, 16:48].reshape(-1, 3).mean(0)
    assert red > 1.3 * max(green, blue)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "least"),
    [("pair_4", 1.5), ("mc_sim_7b_63", 2.5), ("eagle2_60", 2.5), ("jacobi_8", 2), ("jacobi_32", 3.5), ("mixed_8", 2.5),
     ("mixed_32", 4.5), ("mixed_20x8", 4)],
)  # fmt: skip
def test_exact_draws_the_images_of_ar(pipe: Pipeline, plain: tuple[Output, Leads], tree: str, least: float) -> None:
    """On a trained model, whose drafter and guesses are followed for several tokens at a time."""
    output, leads = plain
    for prompts in (PROMPTS, PROMPTS[:1]):
        exact = pipe.generate(prompts, seed=0, rule="exact", tree=tree)
        for codes, expected, seed in zip(exact.codes, output.codes, exact.seeds, strict=False):
            same_but_for_ties(codes, expected, seed, leads)
        assert exact.stats.tau > least


def test_unknown_words_and_other_orders_are_drawn(pipe: Pipeline) -> None:
    output = pipe.generate(["apple red a", "a zyzzogeton on a pink background"], seed=1)
    assert len(output.images) == 2
    assert output.warnings == []
