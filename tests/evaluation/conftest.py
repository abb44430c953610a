"""A tiny random judge that knows the labels of the drawn shapes, with prompts and features of "real" images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_trt.evaluation.captions import Caption, write_captions
from cascade_trt.evaluation.judge import Judge, JudgeConfig, load_judge, save_judge
from cascade_trt.evaluation.real import PROMPTS, RealFeatures, save_real
from cascade_trt.evaluation.score import HELD_OUT, Gallery, Reference

CONCEPTS = ("red", "apple", "cat")
COLOURS = {"white": (255, 255, 255), "black": (24, 24, 24)}
CONFIG = JudgeConfig(CONCEPTS, ("noto", "fluent"), COLOURS, size=16, widths=(8, 8), features=4)


@pytest.fixture(scope="session")
def judge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    torch.manual_seed(0)
    save_judge(Judge(CONFIG), file, {})
    groups = ("training", HELD_OUT, "background")
    asked = [(CONCEPTS[i % 3], groups[i % 3]) for i in range(30)]
    prompts = [Caption(f"a {concept}", None, concept, "noto", "white", group) for concept, group in asked]
    write_captions(file.parent / PROMPTS, prompts)
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(count, 4)) for name, count in (("r", 40), ("g", 9), ("a", 30), ("b", 30))}
    real = RealFeatures(
        Reference(features["r"], np.arange(40) % 3 == 1),
        Gallery(features["g"], np.arange(9) % 3),
        {"real": (features["a"], np.zeros(30, int)), "reconstruction": (features["b"], np.zeros(30, int))},
    )
    save_real(file.with_suffix(".npz"), file, real)
    return file


@pytest.fixture(scope="session")
def judge(judge_file: Path) -> Judge:
    return load_judge(judge_file)
