"""An operating point is written when its interval says so, and when the bundle's own rests on no more images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_trt.calibration.thresholds import Candidate, Point, least_images, operating_point
from cascade_trt.cli import cli
from cascade_trt.commands.calibrate_thresholds import Tried, to_point, write_rule
from cascade_trt.engines.origin import point_images
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.stats import Stats


def judged(answers: list[float], plain: list[float]) -> Point:
    """The point of a rule with these answers, twice as fast as plain decoding."""
    fast, slow = (Stats(rule="cascade", tree="chain_7", total_seconds=seconds) for seconds in (1.0, 2.0))
    for stats in (fast, slow):
        stats.tokens, stats.rounds = 64, 16
    one, ar = Tried(Candidate("cascade", "both", 0.9)), Tried(Candidate("ar", "plain", None))
    one.runs, ar.runs = [fast] * len(answers), [slow] * len(plain)
    one.answers, ar.answers = np.array(answers, np.float32), np.array(plain, np.float32)
    return to_point(one, ar)


@pytest.mark.parametrize("tolerance", [0.02, 0.05, 0.1, 0.3])
def test_as_many_images_as_are_asked_for_can_tell_and_fewer_cannot(tolerance: float) -> None:
    """Where no image is lost: from one image on, however sure a bootstrap of it would be."""
    least = least_images(tolerance)
    assert operating_point([judged([1.0] * least, [1.0] * least)], tolerance).images == least
    for images in {1, least // 2, least * 4 // 5} - {0}:
        if images < least:
            with pytest.raises(CascadeError, match="too few to tell .* nothing was written, give --num-images"):
                operating_point([judged([1.0] * images, [1.0] * images)], tolerance)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.floats(0.01, 0.5))
def test_nothing_is_written_beyond_the_interval(pairs: list[tuple[bool, bool]], tolerance: float) -> None:
    point = judged([float(a) for a, _ in pairs], [float(b) for _, b in pairs])
    assert point.lost is not None and point.lost_low is not None and point.lost_high is not None
    assert point.lost_low < point.lost_high
    assert point.lost_low <= point.lost + 1 / len(pairs) and point.lost <= point.lost_high + 1e-9
    if point.lost_high <= tolerance:
        assert operating_point([point], tolerance) is point
    elif point.lost_high > tolerance + 1e-5:
        with pytest.raises(CascadeError, match="--num-images|every candidate loses more"):
            operating_point([point], tolerance)


def test_the_number_of_images_that_is_asked_for_would_do() -> None:
    """The same share of images lost and won, in as many images, is told from the tolerance."""

    def drawn(images: int) -> Point:
        lost, won = round(0.05 * images), round(0.05 * images)
        plain = [1.0] * lost + [0.0] * won + [1.0] * (images - lost - won)
        return judged([0.0] * lost + [1.0] * won + [1.0] * (images - lost - won), plain)

    with pytest.raises(CascadeError) as told:
        operating_point([drawn(100)], 0.04)
    needed = int(str(told.value).partition("--num-images ")[2].split()[0])
    assert needed > 100
    assert operating_point([drawn(round(1.1 * needed))], 0.04).lost == pytest.approx(0, abs=1e-6)


def test_what_relaxes_nothing_is_chosen_when_all_others_lose_for_certain() -> None:
    """And not while more images could show a faster one."""
    none = Point("cascade:off", "none", None, 1.4, 3.0, 0.0, 0.8, 0.0, -0.1, 0.1, 50)
    bad = Point("cascade", "both", 0.5, 2.0, 4.0, 0.1, 0.4, 0.4, 0.3, 0.5, 50)
    unclear = dataclasses.replace(bad, lost=0.1, lost_low=-0.1, lost_high=0.3)
    slow = dataclasses.replace(unclear, speed_up=1.2)
    assert operating_point([none, bad], 0.05) is none
    assert operating_point([none, bad, slow], 0.05) is none
    with pytest.raises(CascadeError, match="50 images are too few"):
        operating_point([none, bad, unclear], 0.05)
    with pytest.raises(CascadeError, match="every candidate loses more than 0.05"):
        operating_point([bad], 0.05)
    with pytest.raises(CascadeError, match="--tolerance above 0"):
        least_images(0.0)


def calibrate(bundle: Path, out: Path, *more: object) -> tuple[int, str]:
    command = ["calibrate", "thresholds", "--bundle", bundle, "--threads", 1, "--out", out, *more]
    result = CliRunner().invoke(cli, [*map(str, command)])
    return result.exit_code, " ".join(result.output.split())


def test_a_chance_result_is_no_default(text_bundle: Path, tmp_path: Path) -> None:
    """Told before anything is drawn, and so is a point that rests on more images."""
    own = Path(shutil.copytree(text_bundle, tmp_path / "bundle"))
    write_rule(own, "cascade:children=coupled,tau_pos=0.5,tau_seq=off", 600)
    before, out = (own / "manifest.json").read_bytes(), tmp_path / "out"
    code, output = calibrate(own, out, "--num-images", 1)
    assert code == 2
    assert "1 image cannot show that at most 0.02 of accuracy is lost: give --num-images 149 or more" in output
    code, output = calibrate(own, out, "--num-images", 599)
    assert code == 2
    assert f"what `cascade` means in {own} was found with 600 images, more than 599: it stays" in output
    assert "--replace" in output
    assert (own / "manifest.json").read_bytes() == before
    assert not out.exists()


def test_a_point_is_written_with_its_images(text_bundle: Path, tmp_path: Path) -> None:
    """A tolerance of everything can be shown with few images; what was measured is in the report either way."""
    own, out = Path(shutil.copytree(text_bundle, tmp_path / "bundle")), tmp_path / "out"
    write_rule(own, "cascade:children=coupled,tau_pos=0.5,tau_seq=off", 5)
    code, output = calibrate(own, out, "--num-images", 2, "--tolerance", 1, "--replace")
    assert code == 0, output
    manifest = read_manifest(own)
    assert f"rule `cascade` now means {manifest.rules['cascade']} (before: cascade:children=coupled" in output
    assert point_images(manifest, "cascade") == 2
    assert json.loads((out / "thresholds.json").read_text())["operating_point"]["rule"] == manifest.rules["cascade"]
