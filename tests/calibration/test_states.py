"""Tables of states: what one rests on, which are enough, and which stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cascade_trt.calibration.states import Reach, StateSums
from cascade_trt.cli import cli
from cascade_trt.commands.calibrate_states import write_table
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.rules.states import StateTable


def sums(used: list[int], count: list[int], dim: int = 4) -> StateSums:
    totals = np.random.default_rng(0).normal(size=(len(used), dim)) * np.array(count)[:, None]
    return StateSums(totals, np.array(count), np.array(used))


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 50)), min_size=2, max_size=200), st.integers(0, 40))
def test_a_table_tells_what_it_rests_on(tokens: list[tuple[int, int]], least: int) -> None:
    """Its draws exactly, where few draws of the rarest token explain the shares; never more than there were, else."""
    used, count = [least + drawn for drawn, _ in tokens], [3, *(max(1, seen) for _, seen in tokens[1:])]
    reach = Reach.of(sums(used, count).table())
    assert reach.tokens == sum(seen >= 3 for seen in count)
    parts = np.sort(np.array(used) + 1)
    assert reach.draws <= sum(used)
    if parts[0] < 100 and np.gcd.reduce(parts[:64]) == 1:
        assert reach.draws == sum(used)


def test_the_demos_table_rests_on_many_images() -> None:
    table = StateTable.load(Path(__file__).parents[2] / "examples" / "emoji" / "weights" / "states.npz")
    assert Reach.of(table) == Reach(1024, 18432 * 256)


def test_a_table_that_misses_much_is_told_with_the_images_that_it_needs() -> None:
    """Half as many images as are asked for would not do, twice as many do."""
    rng, shares = np.random.default_rng(1), 1 / np.arange(1, 513)

    def seen(images: int) -> StateSums:
        used = rng.multinomial(64 * images, shares / shares.sum())
        return sums(used.tolist(), used.tolist())

    with pytest.raises(CascadeError, match="the states of 4 images are too few for a table: they cover"):
        seen(4).check_covered(4)
    needed = seen(4).images_needed(4)
    seen(2 * needed).check_covered(2 * needed)
    with pytest.raises(CascadeError):
        seen(needed // 2).check_covered(needed // 2)


def calibrate(bundle: Path, images: int, *more: str) -> tuple[int, str]:
    command = ["calibrate", "states", "--bundle", str(bundle), "--num-images", str(images), "--threads", "1", *more]
    result = CliRunner().invoke(cli, command)
    return result.exit_code, result.output


def test_too_few_images_write_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = (own / "manifest.json").read_bytes()
    code, output = calibrate(own, 1)
    assert code == 2
    assert "the states of 1 image are too few for a table" in output
    assert "nothing was written, draw about" in output
    assert (own / "manifest.json").read_bytes() == before
    assert not (own / "states.npz").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_better_table_stays_unless_asked(text_bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(text_bundle, tmp_path / "bundle"))
    model = read_manifest(own).model
    rows = np.eye(model.vocab_size, model.features, dtype=np.float16)
    shares = np.full(model.vocab_size, 1000.0)
    shares[0] = 1
    better = StateTable(rows, (shares / shares.sum()).astype(np.float32))
    write_table(own, better)
    code, output = calibrate(own, 4)
    assert code == 2
    assert "rests on 30,969 draws (about 860 images) and has rows of 32 tokens, 4 images have fewer: it stays" in output
    assert "--replace" in output
    np.testing.assert_array_equal(StateTable.load(own / "states.npz").rows, rows)
    code, output = calibrate(own, 4, "--replace")
    assert code == 0, output
    assert Reach.of(StateTable.load(own / "states.npz")).draws < 200
    code, output = calibrate(own, 4)  # as many again
    assert code == 0, output
