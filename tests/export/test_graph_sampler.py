"""The sampler in the graph draws what runtime/sampling.py and runtime/noise.py say, slot by slot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from cascade_trt.export.graphs.builder import BOOL, FLOAT, INT64, GraphBuilder
from cascade_trt.export.graphs.sampler import draw, sampler_inputs
from cascade_trt.export.graphs.weights import PRECISIONS, WeightFile
from cascade_trt.runtime.noise import Stream, gumbel
from cascade_trt.runtime.sampling import Sampling, kept, probabilities

SLOTS, NODES, ROWS = 3, 6, 4
CLOSE = 1e-5  # races and probabilities nearer than this are ties


class Sampler:
    """TopK and `draw` alone, on given logits [P, N, V]."""

    def __init__(self, folder: Path, codes: int, count: int, has_forced: bool = False) -> None:
        with WeightFile(folder / "sampler.data", PRECISIONS["fp32"]) as weights:
            g = GraphBuilder("sampler", weights)
            logits, fine = g.input("logits", FLOAT, ["P", "N", codes]), g.input("fine", BOOL, ["P", "N", 1])
            inputs = sampler_inputs(g, codes, has_forced)
            top, ids = g.op("TopK", logits, g.constant([count]), outputs=2, axis=-1, largest=1, sorted=1)
            drawn, runner_up = draw(g, codes, count, (top, ids), fine, inputs)
            g.output("drawn", drawn, INT64, ["P", "N"])
            g.output("runner_up", runner_up, INT64, ["P", "N"])
            g.output("top", top, FLOAT, ["P", "N", count])
            g.output("ids", ids, INT64, ["P", "N", count])
            g.save(folder / "sampler.onnx")
        self.session = ort.InferenceSession(folder / "sampler.onnx", providers=["CPUExecutionProvider"])
        self.codes = codes

    def __call__(self, **given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """drawn and runner_up, int64 [2, P, N]; the largest logits and their ids [P, N, K]."""
        slots, nodes, _ = given["logits"].shape
        plain = {
            "fine": np.ones((slots, nodes, 1), bool), "top_k": np.full(slots, self.codes), "top_p": np.ones(slots),
            "noise": np.zeros((slots, 1, self.codes)), "depths": np.zeros((slots, nodes), np.int64),
        }  # fmt: skip
        inputs = plain | given
        for name in ("logits", "top_p", "noise"):
            inputs[name] = inputs[name].astype(np.float32)
        drawn, runner_up, top, ids = self.session.run(["drawn", "runner_up", "top", "ids"], inputs)
        return np.stack([drawn, runner_up]), np.asarray(top), np.asarray(ids)


def expected(top: np.ndarray, ids: np.ndarray, noise: np.ndarray, sampling: Sampling) -> tuple[list[int], bool]:
    """First and second of one node, from its logits and ids [K] and the noise of its row [V]; whether one is a tie."""
    count = kept(top, sampling)
    race = top[:count] + noise[ids[:count]]
    order = np.argsort(-race, kind="stable")
    best = race[order][:3]
    tie = bool((-np.diff(best) < CLOSE).any())
    if sampling.top_p < 1:
        p = probabilities(top[: sampling.top_k or len(top)])
        tie = tie or bool((np.abs(np.cumsum(p) - p - sampling.top_p) < CLOSE).any())
    return ids[order[[0, min(1, count - 1)]]].tolist(), tie


@pytest.mark.parametrize(("codes", "count"), [(1, 1), (2, 2), (7, 7), (64, 64), (300, 100), (16384, 1000)])
def test_draws_are_those_of_the_runtime(tmp_path: Path, codes: int, count: int) -> None:
    """Every slot has settings of its own: no cut, top-k, top-p, both, greedy."""
    sampler, rng = Sampler(tmp_path, codes, count), np.random.default_rng(codes)
    judged = apart = 0
    for seed in range(12):
        settings = [
            Sampling(1, 1, int(rng.integers(0, count + 1)), float(rng.choice([1.0, 0.9, 0.5, 0.01]))),
            Sampling(1, 0, 0, 1.0),
            Sampling(1, 1, 0, float(rng.uniform(0.05, 1))),
        ]
        noise = np.stack([[gumbel(seed, SLOTS * row + p, Stream.TOKEN, codes) for row in range(ROWS)]
                          for p in range(SLOTS)])  # fmt: skip
        depths = rng.integers(0, ROWS, (SLOTS, NODES))
        drawn, top, ids = sampler(
            logits=rng.normal(size=(SLOTS, NODES, codes)) * rng.choice([0.1, 1, 5]), noise=noise, depths=depths,
            top_k=np.array([1 if s.greedy else s.top_k or count for s in settings]),
            top_p=np.array([s.top_p for s in settings]),
        )  # fmt: skip
        for p, sampling in enumerate(settings):
            for n in range(NODES):
                tokens, tie = expected(top[p, n], ids[p, n], noise[p, depths[p, n]], sampling)
                judged, apart = judged + (not tie), apart + (not tie and tokens != drawn[:, p, n].tolist())
    assert apart == 0 and judged > 0.9 * 12 * SLOTS * NODES


def test_the_last_of_many_equal_tokens_can_be_drawn(tmp_path: Path) -> None:
    """Their probabilities add up to more than 1 in float32; a top_p of 1 keeps them all, one below does not."""
    codes = 5000
    sampler, noise = Sampler(tmp_path, codes, codes), np.zeros((2, 1, codes))
    logits = np.broadcast_to(np.linspace(0, -1e-3, codes), (2, 1, codes))
    noise[..., -1] = 50
    drawn, _, ids = sampler(logits=logits, noise=noise, top_p=np.array([1.0, 0.99]))
    assert drawn[:, 0, 0].tolist() == [codes - 1, 0] and ids[0, 0, -1] == codes - 1
    assert drawn[:, 1, 0].tolist() == [0, 1]


@pytest.mark.parametrize(("codes", "count"), [(2, 2), (9, 9), (64, 40), (4096, 1000)])
def test_of_equal_ones_the_likelier_comes_first(tmp_path: Path, codes: int, count: int) -> None:
    """Races that tie to the last bit: the order is that of the sorted logits, for both tokens."""
    sampler, rng = Sampler(tmp_path, codes, count), np.random.default_rng(codes)
    tied = 0
    for _ in range(20):
        logits = rng.integers(0, 3, (1, NODES, codes))
        noise = rng.integers(0, 3, (1, ROWS, codes))
        depths, top_k = rng.integers(0, ROWS, (1, NODES)), rng.integers(1, count + 1, 1)
        drawn, top, ids = sampler(logits=logits, noise=noise, depths=depths, top_k=top_k)
        for n in range(NODES):
            race = top[0, n, : top_k[0]] + noise[0, depths[0, n], ids[0, n, : top_k[0]]]
            order = np.argsort(-race, kind="stable")
            tied += len(race) > 1 and race[order[0]] == race[order[1]]
            assert drawn[:, 0, n].tolist() == ids[0, n, order[[0, min(1, len(race) - 1)]]].tolist()
    assert tied > 5


def test_a_token_that_is_kept_alone_comes_second_too(tmp_path: Path) -> None:
    """Greedy, or the only one that top-p keeps; a token that is kept comes second however unlikely it is."""
    codes = 6
    sampler = Sampler(tmp_path, codes, codes)
    logits = np.tile([0.0, 9.0, -9.0, -9.0, -9.0, -9.0], (3, 1, 1))
    noise = np.zeros((3, 1, codes))
    noise[2, 0, 0] = -1e20
    drawn, _, _ = sampler(
        logits=logits, noise=noise, top_k=np.array([1, codes, 2]), top_p=np.array([1.0, 0.5, 1.0])
    )
    assert drawn[:, :, 0].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_forced_token_wins_and_nothing_beats_minus_one(tmp_path: Path) -> None:
    codes = 8
    sampler = Sampler(tmp_path, codes, codes, has_forced=True)
    logits = np.random.default_rng(0).normal(size=(2, 3, codes))
    forced, depths = np.array([[-1, codes, -1], [codes + 1, -1, 3]]), np.array([[0, 1, 2], [2, 1, 0]])
    fine = np.ones((2, 3, 1), bool)
    fine[1, 2] = False
    noise = np.zeros((2, 3, codes))
    drawn, _, ids = sampler(logits=logits, noise=noise, forced=forced, depths=depths, fine=fine)
    assert drawn[0].tolist() == [[ids[0, 0, 0], codes, ids[0, 2, 0]], [3, ids[1, 1, 0], -1]]
    assert drawn[1].tolist() == [[ids[0, 0, 1], codes, ids[0, 2, 1]], [3, ids[1, 1, 1], -1]]
