"""The backends on plans, on a TensorRT and a CUDA driver that compute on the CPU (fake_trt.py, host_cuda.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import fake_trt
import pytest
from any_plans import any_plans
from contract import DIM, HEADS, ROWS, SLOTS, Contract, scatter_graph, sums_graph
from host_cuda import HostDriver, host_device

from cascade_trt.runtime.backends.host import host_buffer
from cascade_trt.runtime.backends.tensorrt import TensorRtBackend, TensorRtCall
from cascade_trt.runtime.backends.tensorrt_shapes import Padded
from cascade_trt.runtime.errors import CascadeError, CascadeWarning
from cascade_trt.runtime.plans import Plans


class TestTensorRt(Contract):
    host_is_device = False
    loads_merged = False
    name, graphs = "tensorrt-rtx", True

    @pytest.fixture
    def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRtBackend:
        device, driver = host_device()
        plans = any_plans(tmp_path)
        return fake_trt.backend(monkeypatch, plans, device, driver, self.name, graphs=self.graphs)


class TestWithoutGraphs(TestTensorRt):
    graphs = False


class TestWithoutRtx(TestTensorRt):
    """TensorRT has none of TensorRT-RTX's settings of a context."""

    name = "tensorrt"

    @pytest.fixture(autouse=True)
    def without_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("DynamicShapesKernelSpecializationStrategy", "CudaGraphStrategy"):
            monkeypatch.delattr(fake_trt.FakeTrt, name)
        monkeypatch.delattr(fake_trt.FakeEngine, "create_runtime_config")
        monkeypatch.delattr(fake_trt.FakeContext, "is_stream_capturable")


# what a call does ---------------------------------------------------------------------------------------------
@dataclass
class Sums:
    """x + y of [1, 2], bound on the backend."""

    backend: TensorRtBackend
    driver: HostDriver
    folder: Path
    name: str = "sums"

    def __post_init__(self) -> None:
        graph = sums_graph(self.folder).rename(self.folder / f"{self.name}.onnx")
        self.engine = self.backend.load(graph)
        self.x, self.y = (self.backend.buffer((1, 2), "float32", "in") for _ in range(2))
        self.total = self.backend.buffer((1, 2), "float32", "out")
        self.call = self.bind()

    def bind(self) -> TensorRtCall:
        return self.engine.bind({"x": self.x, "y": self.y}, {"sum": self.total})

    def check(self, value: float) -> None:
        self.x.host[:], self.y.host[:] = value, 2 * value
        self.call.run(("sum",))
        assert self.total.host.tolist() == [[3 * value, 3 * value]]


@pytest.fixture
def sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sums:
    device, driver = host_device()
    plans = any_plans(tmp_path)
    return Sums(fake_trt.backend(monkeypatch, plans, device, driver), driver, tmp_path)


def test_a_steady_run_is_one_launch(sums: Sums) -> None:
    """The first is plain, the second makes the graph; a wait only where something comes back."""
    for value in (1.0, 2.0):
        sums.check(value)
    assert sums.driver.launches == 1
    waits, memory = sums.driver.waits, len(sums.driver.blocks)
    for _ in range(3):
        sums.call.run()
    assert (sums.driver.launches, sums.driver.waits, len(sums.driver.blocks)) == (4, waits, memory)
    assert len(sums.driver.queue) == 3  # the engine's, and no upload of what the host has not changed
    sums.check(5.0)


def test_without_graphs_nothing_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, driver = host_device()
    plans = any_plans(tmp_path)
    sums = Sums(fake_trt.backend(monkeypatch, plans, device, driver, graphs=False), driver, tmp_path)
    for value in (1.0, 2.0, 3.0):
        sums.check(value)
    assert sums.driver.launches == 0


def test_engines_that_run_once_an_image_share_contexts(sums: Sums) -> None:
    """And are not captured, though several calls are bound, each to its own buffers."""
    image = Sums(sums.backend, sums.driver, sums.folder, "decode")
    before = next(fake_trt.FakeContext.made)
    other = image.backend.buffer((1, 2), "float32", "in")
    other.host[:] = 7
    second = image.engine.bind({"x": other, "y": other}, {"sum": image.total})
    for value in (1.0, 2.0, 3.0):
        image.check(value)
        second.run(("sum",))
        assert image.total.host.tolist() == [[14, 14]]
    assert next(fake_trt.FakeContext.made) == before + 1 and sums.driver.launches == 0


def test_tensorrt_rtx_may_make_its_own_graph(sums: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_trt.FakeContext, "is_stream_capturable", lambda *_: False)
    for value in (1.0, 2.0, 3.0):
        sums.check(value)
    assert sums.driver.launches == 0 and sums.call._context.context.whole_graph


def test_a_capture_that_fails_is_told_and_runs_go_on(sums: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the graph; what TensorRT said is in the warning."""
    execute = fake_trt.FakeContext.execute_async_v3

    def refuses(context: fake_trt.FakeContext, stream: int) -> bool:
        if sums.driver.recorded is not None:
            context.engine.log.log(fake_trt.FakeTrt.ILogger.Severity.ERROR, "operation not permitted")
            return False
        return execute(context, stream)

    monkeypatch.setattr(fake_trt.FakeContext, "execute_async_v3", refuses)
    sums.check(1.0)
    with pytest.warns(CascadeWarning, match=r"^.*sums.onnx.plan makes no CUDA graph \(.*operation not permitted"):
        sums.check(2.0)
    sums.check(3.0)
    assert sums.driver.launches == 0 and sums.driver.recorded is None


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 9)", "^the GPU has not enough memory to run .*sums.onnx.plan"),
        ("Error Code 1: no kernel", r"^TensorRT on this GPU cannot run .*plan \(Error Code 1: no kernel\): run "
         r"`cascade-trt compile .* --target rtx:sm89`\.$"),
    ],
)  # fmt: skip
def test_a_run_that_fails_is_a_sentence(sums: Sums, monkeypatch: pytest.MonkeyPatch, said: str, sentence: str) -> None:
    def fails(context: fake_trt.FakeContext, _: int) -> bool:
        context.engine.log.log(fake_trt.FakeTrt.ILogger.Severity.ERROR, said)
        return False

    monkeypatch.setattr(fake_trt.FakeContext, "execute_async_v3", fails)
    with pytest.raises(CascadeError, match=sentence):
        sums.call.run()


@pytest.mark.parametrize("method", ["set_optimization_profile_async", "set_input_shape", "set_tensor_address"])
def test_a_context_that_cannot_be_prepared(sums: Sums, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(fake_trt.FakeContext, method, lambda *_: False)
    with pytest.raises(CascadeError, match=r"^TensorRT on this GPU cannot prepare .*sums.onnx.plan \(it gives"):
        sums.bind()


def test_contexts_work_in_one_scratch_that_grows(sums: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bound keeps the scratch that it was bound with."""
    first = sums.call._context.memory
    assert sums.bind()._context.memory is first
    monkeypatch.setattr(fake_trt.FakeEngine, "device_memory_size_v2", 3 * fake_trt.SCRATCH_BYTES)
    larger = sums.bind()._context.memory
    assert larger.size == 3 * fake_trt.SCRATCH_BYTES and sums.bind()._context.memory is larger
    for value in (1.0, 2.0, 3.0):
        sums.check(value)


def test_a_cache_must_be_bound_to_one_memory(sums: Sums) -> None:
    """As input and output; an output that is left out is updated with its input."""
    backend = sums.backend
    engine = backend.load(scatter_graph(sums.folder))
    cache = backend.cache(1, ROWS, HEADS, SLOTS, DIM, "float32")
    past, present = cache.bindings(0, 2)
    written, index = backend.buffer((2, HEADS, 3, DIM), "float32", "in"), backend.buffer((2,), "int64", "in")
    inputs = {"past_key.0": past["past_key.0"], "written": written, "write_index": index}
    with pytest.raises(ValueError, match="present_key.0 updates past_key.0 in place, and they are bound to different"):
        engine.bind(inputs, {"present_key.0": cache.bindings(2, 4)[1]["present_key.0"]})
    written.host[:] = 4
    for outputs in ({}, {"present_key.0": present["present_key.0"]}):
        engine.bind(inputs, outputs).run()
    keys = present["present_key.0"]
    keys.fetch()  # type: ignore[attr-defined]
    backend.device.synchronize()
    assert (keys.host[:, :, :3] == 4).all() and not keys.host[:, :, 3:].any()
    with pytest.raises(ValueError, match="sum is not updated in place, and shares the memory of an input"):
        sums.engine.bind({"x": sums.total, "y": sums.y}, {"sum": sums.total})
    with pytest.raises(ValueError, match="sum is an output, and its buffer is one that the host writes"):
        sums.engine.bind({"x": sums.x, "y": sums.y}, {"sum": sums.y})


def test_other_buffers_are_refused(sums: Sums) -> None:
    with pytest.raises(ValueError, match="y is a buffer of another backend"):
        sums.engine.bind({"x": sums.x, "y": host_buffer((1, 2), "float32")}, {})
    other = sums.backend.buffer((1, 3), "float32", "out")
    with pytest.raises(ValueError, match=r"\['sum'\] are of another shape than the engine's"):
        sums.engine.bind({"x": sums.x, "y": sums.y}, {"sum": other})


def test_a_shape_without_profile_is_a_sentence(sums: Sums) -> None:
    x, y = (sums.backend.buffer((1, SLOTS + 1), "float32", "in") for _ in range(2))
    with pytest.raises(CascadeError, match=r"has no profile for x \[1, 13\], y \[1, 13\]: draw with guidance as"):
        sums.engine.bind({"x": x, "y": y}, {})


def test_nodes_that_fill_a_call_up_see_themselves(sums: Sums) -> None:
    """Whatever the caller's nodes see; a node without any slot would not be finite on every GPU."""
    mask = sums.backend.buffer((2, 2, 6), "bool", "in")
    mask.host[:, :, 0] = mask.host[1, 1, 1] = True
    padded = Padded(sums.backend.device, {"tree_mask": mask}, {}, {"tree_mask": (2, 4, 6)}, {})
    mask.upload()
    padded.before()
    own = padded.own["tree_mask"]
    own.fetch()
    sums.backend.device.synchronize()
    assert (own.host[:, :2] == mask.host).all()
    assert own.host[:, 2:].astype(int).tolist() == [[[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]] * 2


# what it loads ----------------------------------------------------------------------------------------------
def on_card(monkeypatch: pytest.MonkeyPatch, plans: Plans) -> TensorRtBackend:
    device, driver = host_device()
    return fake_trt.backend(monkeypatch, plans, device, driver)


def test_plans_that_are_not_whole_are_sentences(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = fake_trt.compiled(tiny_bundle, tmp_path)
    backend, graph = on_card(monkeypatch, plans), tiny_bundle / "embed.onnx"
    again = "run `cascade-trt compile .* --target rtx:sm89`"
    with pytest.raises(CascadeError, match=f"^other.onnx has no engine for rtx:sm89: {again}"):
        backend.load(tiny_bundle / "other.onnx")
    file = tmp_path / "embed.plan"
    size = file.stat().st_size
    file.write_bytes(b"x" * size)
    with pytest.raises(CascadeError, match=f"embed.plan has changed since it was compiled: {again}"):
        backend.load(graph)
    with monkeypatch.context() as patch:
        patch.setattr("cascade_trt.runtime.plans._HASHED", 0)
        with pytest.raises(CascadeError, match=rf"cannot load .*embed.plan of embed.onnx \(Magic tag .*: {again}"):
            backend.load(graph)
    file.write_bytes(b"x")
    with pytest.raises(CascadeError, match=f"embed.plan has 1 bytes instead of {size}: {again}"):
        backend.load(graph)
    file.unlink()
    with pytest.raises(CascadeError, match=rf"embed.plan cannot be read \(No such file or directory\): {again}"):
        backend.load(graph)
    few = [plan for plan in plans.entries if plan.engine != "decode"]
    with pytest.raises(CascadeError, match=f"^rtx:sm89 cannot be used here: it lacks the engine decode: {again}"):
        on_card(monkeypatch, replace(plans, entries=few))


def test_what_the_runtime_never_binds_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = on_card(monkeypatch, fake_trt.compiled(tiny_bundle, tmp_path))
    for method, odd in (("get_tensor_dtype", fake_trt.DataType.FP8),
                        ("get_tensor_location", fake_trt.FakeTrt.TensorLocation.HOST)):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(fake_trt.FakeEngine, method, lambda *_, odd=odd: odd)
            with pytest.raises(CascadeError, match="wants ids in a form that it never had"):
                backend.load(tiny_bundle / "embed.onnx")


@pytest.mark.parametrize(
    ("counts", "sizes"), [((3,), (3,)), ((1, 2, 3), (1, 2, 3)), ((1, 3), (1, 3)), ((2, 3), (2, 3))]
)
def test_calls_have_the_numbers_of_slots_that_were_compiled(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    """A prefix fills one slot, whatever the others are."""
    profiles = fake_trt.for_slots(tiny_bundle, counts)
    backend = on_card(monkeypatch, fake_trt.compiled(tiny_bundle, tmp_path, profiles))
    assert backend.sizes(3) == sizes and backend.sizes(1) == (1,)
