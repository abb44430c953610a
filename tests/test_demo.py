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
from cascade_trt.runtime.pipeline import Pipeline

WEIGHTS = Path(__file__).parent.parent / "examples" / "emoji" / "weights"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "emoji"
    build("emoji", "--batch", 4, "--tree", "pair_3", "--tree", "mc_sim_7b_63", "--tree", "eagle2_60", "--out", out)
    return out


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
@pytest.mark.parametrize("tree", ["pair_3", "mc_sim_7b_63", "eagle2_60"])
def test_exact_draws_the_pictures_of_ar(bundle: Path, tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a trained model, whose drafter is followed for several tokens at a time."""
    pipe = Pipeline.load(bundle)
    prompts = ["a red apple", "a carrot", "a hamburger on a pale blue background", "pizza, noto style"]
    with monkeypatch.context() as patch:
        leads = watch_leads(patch)
        plain = pipe.generate(prompts, seed=0, rule="ar")
    exact = pipe.generate(prompts, seed=0, rule="exact", tree=tree)
    for codes, expected, seed in zip(exact.codes, plain.codes, exact.seeds, strict=True):
        same_but_for_ties(codes, expected, seed, leads)
    assert exact.stats.tau > 1.5


def test_unknown_words_and_other_orders_are_drawn(bundle: Path) -> None:
    pipe = Pipeline.load(bundle)
    output = pipe.generate(["apple red a", "a zyzzogeton on a pink background"], seed=1)
    assert len(output.images) == 2
    assert output.warnings == []
