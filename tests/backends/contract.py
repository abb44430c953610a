"""The contract of `runtime/backends/__init__.py` as tests: every backend passes them.

A test module makes a class from `Contract` and gives it a backend; the graphs are tiny and float32, so that any
backend can load them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cascade_trt.export.graphs.merge import merge
from cascade_trt.runtime.backends import Backend, Buffer, Engine
from cascade_trt.runtime.errors import CascadeError

LAYERS, ROWS, HEADS, SLOTS, DIM = 2, 6, 2, 12, 4
computes = pytest.mark.computes  # left out where engines run and compute nothing (tests/stand_in)


def save(path: Path, nodes: list, inputs: list, outputs: list) -> Path:
    graph = helper.make_graph(nodes, "contract", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def sums_graph(folder: Path) -> Path:
    """x [R, N] and y [R, N] in, x + y and x - y out."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["R", "N"])  # noqa: E731
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Sub", ["x", "y"], ["difference"])]
    return save(folder / "sums.onnx", nodes, [value("x"), value("y")], [value("sum"), value("difference")])


def scatter_graph(folder: Path, slots: int = SLOTS) -> Path:
    """The cache update of our graphs: `written` [R, H, N, Dh] goes to `write_index` [R] of past_key.0."""
    cache = ["R", HEADS, slots, DIM]
    inputs = [
        helper.make_tensor_value_info("past_key.0", TensorProto.FLOAT, cache),
        helper.make_tensor_value_info("written", TensorProto.FLOAT, ["R", HEADS, "N", DIM]),
        helper.make_tensor_value_info("write_index", TensorProto.INT64, ["R"]),
    ]
    node = helper.make_node("TensorScatter", ["past_key.0", "written", "write_index"], ["present_key.0"], axis=2)
    output = helper.make_tensor_value_info("present_key.0", TensorProto.FLOAT, cache)
    return save(folder / "scatter.onnx", [node], inputs, [output])


def merged_graphs(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Both graphs as one file, and each one's name in it with its own file."""
    graphs = {"draft.sums": sums_graph(folder), "draft.scatter": scatter_graph(folder)}
    merge(graphs, folder / "draft.onnx")
    onnx.checker.check_model(folder / "draft.onnx", full_check=True)
    return folder / "draft.onnx", graphs


class Contract:
    """What every backend promises. Subclasses define the fixture `backend`."""

    @pytest.fixture
    def backend(self) -> Backend:
        raise NotImplementedError

    # buffers ------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
    @pytest.mark.parametrize("kind", ["in", "out", "device"])
    def test_a_buffer_is_zeroed_contiguous_and_knows_its_dtype(self, backend: Backend, dtype: str, kind) -> None:
        buffer = backend.buffer((3, 2, 5), dtype, kind)
        assert buffer.shape == buffer.host.shape == (3, 2, 5)
        assert buffer.dtype == dtype
        assert buffer.host.dtype == np.dtype("uint16" if dtype == "bfloat16" else dtype)
        assert buffer.host.flags.c_contiguous and not buffer.host.any()

    def test_a_view_is_a_part_of_the_same_memory(self, backend: Backend) -> None:
        buffer = backend.buffer((4, 3), "float32", "in")
        view = buffer.view(1, 3)
        assert view.shape == (2, 3) and view.dtype == "float32"
        view.host[:] = 7
        assert buffer.host[:, 0].tolist() == [0, 7, 7, 0]
        deeper = view.view(1, 2)
        deeper.host[:] = 9
        assert buffer.host[:, 0].tolist() == [0, 7, 9, 0]
        assert np.shares_memory(buffer.host, deeper.host)

    @pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 2), (2, 5), (4, 5)])
    def test_a_view_outside_is_refused(self, backend: Backend, start: int, stop: int) -> None:
        with pytest.raises(ValueError, match="outside"):
            backend.buffer((4, 3), "float32", "in").view(start, stop)

    @pytest.mark.parametrize(("source", "to"), [(4, 0), (0, 4), (1, 2)])
    def test_move_copies_places(self, backend: Backend, source: int, to: int) -> None:
        buffer = backend.buffer((6, 2), "int64", "in")
        buffer.host[:] = np.arange(12).reshape(6, 2)
        wanted = buffer.host.copy()
        wanted[to : to + 2] = wanted[source : source + 2].copy()
        buffer.move(source, to, 2)
        np.testing.assert_array_equal(buffer.host, wanted)

    @computes
    def test_a_moved_output_is_what_the_engine_wrote(self, backend: Backend, tmp_path: Path) -> None:
        """Also in a buffer that the host has not fetched."""
        engine = backend.load(sums_graph(tmp_path))
        x, y = (backend.buffer((4, 2), "float32", "in") for _ in range(2))
        between, total = backend.buffer((4, 2), "float32", "device"), backend.buffer((4, 2), "float32", "out")
        x.host[:] = np.arange(8).reshape(4, 2)
        engine.bind({"x": x, "y": y}, {"sum": between}).run()
        between.move(3, 0, 1)
        engine.bind({"x": between, "y": y}, {"sum": total}).run(fetch=("sum",))
        np.testing.assert_array_equal(total.host, x.host[[3, 1, 2, 3]])

    @computes
    def test_a_buffer_of_the_device_holds_what_was_sent(self, backend: Backend, tmp_path: Path) -> None:
        """To all places or some of them; a run sends nothing by itself, for kernels may have written since."""
        engine = backend.load(sums_graph(tmp_path))
        x, y = backend.buffer((4, 2), "float32", "device"), backend.buffer((4, 2), "float32", "in")
        total = backend.buffer((4, 2), "float32", "out")
        call = engine.bind({"x": x, "y": y}, {"sum": total})
        x.host[:] = np.arange(8).reshape(4, 2)
        x.send()
        call.run(fetch=("sum",))
        np.testing.assert_array_equal(total.host, x.host)
        x.host[1:3] = 9
        x.view(1, 3).send()
        call.run(fetch=("sum",))
        assert total.host[:, 0].tolist() == [0, 9, 9, 6]

    def test_a_view_has_its_own_address(self, backend: Backend) -> None:
        buffer = backend.buffer((4, 3), "float32", "device")
        assert buffer.view(2, 4).address == buffer.address + 2 * 3 * 4 > 0

    # binding ------------------------------------------------------------------------------------------------
    @computes
    def test_a_call_reads_what_was_written_before_each_run(self, backend: Backend, tmp_path: Path) -> None:
        engine = backend.load(sums_graph(tmp_path))
        x, y = (backend.buffer((2, 3), "float32", "in") for _ in range(2))
        total = backend.buffer((2, 3), "float32", "out")
        call = engine.bind({"x": x, "y": y}, {"sum": total})
        for value in (1.0, 5.0):
            x.host[:], y.host[:] = value, 2 * value
            call.run(fetch=("sum",))
            np.testing.assert_array_equal(total.host, np.full((2, 3), 3 * value, np.float32))

    @computes
    def test_views_bind_like_buffers(self, backend: Backend, tmp_path: Path) -> None:
        """Neighbouring rows are left as they were."""
        engine = backend.load(sums_graph(tmp_path))
        x, y = (backend.buffer((4, 2), "float32", "in") for _ in range(2))
        total = backend.buffer((4, 2), "float32", "out")
        x.host[:] = np.arange(8).reshape(4, 2)
        total.host[:] = -1
        part = total.view(1, 3)
        engine.bind({"x": x.view(1, 3), "y": y.view(2, 4)}, {"sum": part}).run(fetch=("sum",))
        np.testing.assert_array_equal(part.host, x.host[1:3])
        assert (total.host[[0, 3]] == -1).all()

    @computes
    def test_only_named_outputs_need_come_back(self, backend: Backend, tmp_path: Path) -> None:
        """Nothing may rely on the others; a backend whose host memory is its own leaves it alone."""
        engine = backend.load(sums_graph(tmp_path))
        x, y = (backend.buffer((1, 2), "float32", "in") for _ in range(2))
        total, difference = (backend.buffer((1, 2), "float32", "out") for _ in range(2))
        x.host[:], y.host[:] = 3, 1
        call = engine.bind({"x": x, "y": y}, {"sum": total, "difference": difference})
        call.run(fetch=("difference",))
        np.testing.assert_array_equal(difference.host, [[2, 2]])
        if not self.host_is_device:
            assert not total.host.any()
        call.run(fetch=("sum", "difference"))
        np.testing.assert_array_equal(total.host, [[4, 4]])

    host_is_device = True  # whether the host's memory is where the engines compute

    @computes
    def test_outputs_may_be_left_out(self, backend: Backend, tmp_path: Path) -> None:
        engine = backend.load(sums_graph(tmp_path))
        x, y = (backend.buffer((1, 2), "float32", "in") for _ in range(2))
        difference = backend.buffer((1, 2), "float32", "out")
        x.host[:] = 4
        engine.bind({"x": x, "y": y}, {"difference": difference}).run(fetch=("difference",))
        np.testing.assert_array_equal(difference.host, [[4, 4]])

    @computes
    def test_one_engine_feeds_another_without_the_host(self, backend: Backend, tmp_path: Path) -> None:
        engine = backend.load(sums_graph(tmp_path))
        x, y = (backend.buffer((2, 2), "float32", "in") for _ in range(2))
        between, end = backend.buffer((2, 2), "float32", "device"), backend.buffer((2, 2), "float32", "out")
        x.host[:], y.host[:] = 1, 2
        engine.bind({"x": x, "y": y}, {"sum": between}).run()
        engine.bind({"x": between, "y": y}, {"sum": end}).run(fetch=("sum",))
        np.testing.assert_array_equal(end.host, np.full((2, 2), 5))

    def test_misfits_are_refused(self, backend: Backend, tmp_path: Path) -> None:
        engine = backend.load(sums_graph(tmp_path))
        x, y = (backend.buffer((1, 2), "float32", "in") for _ in range(2))
        total, half = backend.buffer((1, 2), "float32", "out"), backend.buffer((1, 2), "float16", "in")
        with pytest.raises(ValueError, match="y"):
            engine.bind({"x": x}, {"sum": total})
        with pytest.raises(ValueError, match="odd"):
            engine.bind({"x": x, "y": y, "odd": y}, {"sum": total})
        with pytest.raises(ValueError, match="product"):
            engine.bind({"x": x, "y": y}, {"product": total})
        with pytest.raises(ValueError, match="float16"):
            engine.bind({"x": x, "y": half}, {"sum": total})
        with pytest.raises(ValueError, match="difference"):
            engine.bind({"x": x, "y": y}, {"sum": total}).run(fetch=("difference",))
        assert engine.dtype("x") == engine.dtype("sum") == "float32"
        with pytest.raises(KeyError):
            engine.dtype("odd")

    def test_a_damaged_graph_is_a_sentence(self, backend: Backend, tmp_path: Path) -> None:
        (tmp_path / "odd.onnx").write_bytes(b"odd")
        with pytest.raises(CascadeError, match="odd.onnx"):
            backend.load(tmp_path / "odd.onnx")

    # several graphs in one file -----------------------------------------------------------------------------
    def merged(self, backend: Backend, folder: Path) -> tuple[Engine, Engine]:
        """The engines of the sums and of the scatter, out of one file."""
        path, files = merged_graphs(folder)
        engines = backend.load_merged(path, files)
        assert list(engines) == list(files)
        return engines["draft.sums"], engines["draft.scatter"]

    @computes
    @pytest.mark.parametrize("left_out", ["sum", "difference", None])
    def test_a_merged_engine_runs_alone(self, backend: Backend, tmp_path: Path, left_out: str | None) -> None:
        """The others are neither bound nor run."""
        engine, _ = self.merged(backend, tmp_path)
        x, y = (backend.buffer((2, 3), "float32", "in") for _ in range(2))
        outputs = {name: backend.buffer((2, 3), "float32", "out") for name in ("sum", "difference") if name != left_out}
        call = engine.bind({"x": x, "y": y}, outputs)
        for value in (1.0, 5.0):
            x.host[:], y.host[:] = value, 2 * value
            call.run(fetch=tuple(outputs))
            for name, buffer in outputs.items():
                np.testing.assert_array_equal(buffer.host, np.full((2, 3), {"sum": 3, "difference": -1}[name] * value))

    @computes
    def test_merged_engines_take_turns_in_place(self, backend: Backend, tmp_path: Path) -> None:
        """Each call runs its own graph, whichever ran before; a cache's other rows are left as they were, and bound
        sizes differ from call to call."""
        sums, scatter = self.merged(backend, tmp_path)
        cache = backend.cache(1, ROWS, HEADS, SLOTS, DIM, "float32")
        wanted = self.fill(backend, cache, tmp_path)
        writes = []
        for rows, nodes in ((2, 3), (1, 5)):
            past, present = cache.bindings(2, 2 + rows)
            written = backend.buffer((rows, HEADS, nodes, DIM), "float32", "in")
            index = backend.buffer((rows,), "int64", "in")
            given = {"past_key.0": past["past_key.0"], "written": written, "write_index": index}
            call = scatter.bind(given, {"present_key.0": present["present_key.0"]})
            writes.append((call, written, index, rows, nodes))
        x, y, total = (backend.buffer((4, 2), "float32", kind) for kind in ("in", "in", "out"))
        add = sums.bind({"x": x, "y": y}, {"sum": total})
        for step, value in enumerate((1.0, 2.0, 3.0, 4.0)):
            call, written, index, rows, nodes = writes[step % 2]
            written.host[:], index.host[:], x.host[:] = value, step, value
            call.run()
            add.run(fetch=("sum",))
            wanted[2 : 2 + rows, :, step : step + nodes] = value
            np.testing.assert_array_equal(total.host, np.full((4, 2), value))
            np.testing.assert_array_equal(self.keys(backend, cache, tmp_path), wanted)

    def test_a_merged_engine_knows_its_own_names_only(self, backend: Backend, tmp_path: Path) -> None:
        sums, scatter = self.merged(backend, tmp_path)
        assert sums.dtype("x") == sums.dtype("difference") == scatter.dtype("past_key.0") == "float32"
        assert scatter.dtype("write_index") == "int64"
        for engine, odd in ((sums, "written"), (scatter, "x"), (sums, "graph"), (sums, "draft.sums/x")):
            with pytest.raises(KeyError):
                engine.dtype(odd)
        x, y, total = (backend.buffer((1, 2), "float32", kind) for kind in ("in", "in", "out"))
        with pytest.raises(ValueError, match="y"):
            sums.bind({"x": x}, {"sum": total})
        with pytest.raises(ValueError, match="written"):
            sums.bind({"x": x, "y": y, "written": x}, {"sum": total})
        with pytest.raises(ValueError, match="present_key"):
            sums.bind({"x": x, "y": y}, {"present_key.0": total})

    loads_merged = True  # whether the backend loads the merged file, rather than each graph's own

    @pytest.mark.parametrize(
        "names", [["draft.scatter", "draft.sums"], ["draft.sums"], ["draft.sums", "draft.other"], []]
    )
    def test_other_names_than_the_file_holds_are_refused(self, backend: Backend, tmp_path: Path, names) -> None:
        if not self.loads_merged:
            pytest.skip("this backend does not look into the merged file")
        path, _ = merged_graphs(tmp_path)
        with pytest.raises(CascadeError, match="draft.onnx holds the graphs draft.sums, draft.scatter"):
            backend.load_merged(path, dict.fromkeys(names, tmp_path / "sums.onnx"))

    def test_a_single_graph_is_no_merged_one(self, backend: Backend, tmp_path: Path) -> None:
        if not self.loads_merged:
            pytest.skip("this backend does not look into the merged file")
        single = sums_graph(tmp_path)
        with pytest.raises(CascadeError, match="sums.onnx"):
            backend.load_merged(single, {"x": single, "y": single})

    def test_a_damaged_merged_graph_is_a_sentence(self, backend: Backend, tmp_path: Path) -> None:
        odd = tmp_path / "odd.onnx"
        odd.write_bytes(b"odd")
        with pytest.raises(CascadeError, match="odd.onnx"):
            backend.load_merged(odd, {"x": odd, "y": odd})

    # caches -------------------------------------------------------------------------------------------------
    def test_a_cache_knows_its_block(self, backend: Backend) -> None:
        cache = backend.cache(LAYERS, ROWS, HEADS, SLOTS, DIM, "float16")
        assert cache.shape == (LAYERS, 2, ROWS, HEADS, SLOTS, DIM)
        assert cache.nbytes == 2 * np.prod(cache.shape)
        assert cache.address % 16 == 0 and cache.address  # kernels move 16 bytes at a time

    def test_bindings_are_views_of_one_block(self, backend: Backend) -> None:
        cache = backend.cache(LAYERS, ROWS, HEADS, SLOTS, DIM, "float16")
        assert cache.nbytes == LAYERS * 2 * ROWS * HEADS * SLOTS * DIM * 2
        inputs, outputs = cache.bindings(2, 4)
        assert set(inputs) == {f"past_{kind}.{layer}" for kind in ("key", "value") for layer in range(LAYERS)}
        for name, buffer in inputs.items():
            assert buffer.shape == (2, HEADS, SLOTS, DIM) and buffer.dtype == "float16"
            assert outputs[name.replace("past", "present")] is buffer
        stepwise, _ = cache.bindings(0, ROWS, steps=3)
        assert len(stepwise) == 6 * LAYERS and stepwise["past_key.0"] is stepwise["past_key.2"]
        assert stepwise["past_key.2"] is not stepwise["past_key.3"]

    @computes
    def test_an_update_is_in_place(self, backend: Backend, tmp_path: Path) -> None:
        """A call on some rows writes its slots of their memory and nothing else, call after call."""
        engine, cache = backend.load(scatter_graph(tmp_path)), backend.cache(1, ROWS, HEADS, SLOTS, DIM, "float32")
        written, index = backend.buffer((2, HEADS, 3, DIM), "float32", "in"), backend.buffer((2,), "int64", "in")
        past, present = cache.bindings(2, 4)
        call = engine.bind(
            {"past_key.0": past["past_key.0"], "written": written, "write_index": index},
            {"present_key.0": present["present_key.0"]},
        )
        wanted = np.zeros((ROWS, HEADS, SLOTS, DIM), np.float32)
        for step, value in ((0, 1.0), (3, 2.0), (4, 3.0)):
            written.host[:], index.host[:] = value, (step, step + 1)
            call.run()
            wanted[2, :, step : step + 3] = wanted[3, :, step + 1 : step + 4] = value
        np.testing.assert_array_equal(self.keys(backend, cache, tmp_path), wanted)

    @computes
    @pytest.mark.parametrize("path", [[0], [0, 2, 5], [0, 1, 2], [0, 3], [0, 1, 4, 6]])
    def test_move_equals_gather_then_write(self, backend: Backend, tmp_path: Path, path: list[int]) -> None:
        cache = backend.cache(1, ROWS, HEADS, SLOTS, DIM, "float32")
        before = self.fill(backend, cache, tmp_path)
        cache.move([1, 4], 3, path)
        wanted = before.copy()
        for row in (1, 4):
            wanted[row, :, 3 : 3 + len(path)] = before[row][:, [3 + node for node in path]]
        np.testing.assert_array_equal(self.keys(backend, cache, tmp_path), wanted)

    @computes
    def test_rows_are_copied_and_cleared(self, backend: Backend, tmp_path: Path) -> None:
        cache = backend.cache(1, ROWS, HEADS, SLOTS, DIM, "float32")
        wanted = self.fill(backend, cache, tmp_path)
        cache.copy_rows(4, 0, 2, 5)
        wanted[0:2, :, :5] = wanted[4:6, :, :5]
        np.testing.assert_array_equal(self.keys(backend, cache, tmp_path), wanted)
        cache.clear(2, 4)
        wanted[2:4] = 0
        np.testing.assert_array_equal(self.keys(backend, cache, tmp_path), wanted)

    def fill(self, backend: Backend, cache, folder: Path) -> np.ndarray:
        """Random keys in all slots through an engine; returns them."""
        engine = backend.load(scatter_graph(folder))
        written = backend.buffer((ROWS, HEADS, SLOTS, DIM), "float32", "in")
        index = backend.buffer((ROWS,), "int64", "in")
        written.host[:] = np.random.default_rng(0).normal(size=written.shape)
        past, present = cache.bindings(0, ROWS)
        key = {"past_key.0": past["past_key.0"], "written": written, "write_index": index}
        engine.bind(key, {"present_key.0": present["present_key.0"]}).run()
        return written.host.copy()

    def keys(self, backend: Backend, cache, folder: Path) -> np.ndarray:
        """The keys of layer 0 as an engine reads them, float32 [rows, H, S, Dh]."""
        flat = helper.make_tensor_value_info("past_key.0", TensorProto.FLOAT, ["R", HEADS, SLOTS, DIM])
        read = helper.make_tensor_value_info("read", TensorProto.FLOAT, ["R", HEADS, SLOTS, DIM])
        path = save(folder / "read.onnx", [helper.make_node("Identity", ["past_key.0"], ["read"])], [flat], [read])
        found: Buffer = backend.buffer((ROWS, HEADS, SLOTS, DIM), "float32", "out")
        past, _ = cache.bindings(0, ROWS)
        backend.load(path).bind({"past_key.0": past["past_key.0"]}, {"read": found}).run(fetch=("read",))
        return found.host.copy()

    # shapes -------------------------------------------------------------------------------------------------
    def test_it_says_what_its_figures_belong_to(self, backend: Backend) -> None:
        identity = backend.identity
        assert identity.backend and identity.version and identity.machine and identity.threads >= 1

    @pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
    def test_sizes_rise_to_all_slots(self, backend: Backend, slots: int) -> None:
        sizes = backend.sizes(slots)
        assert sizes[0] == 1 and sizes[-1] == slots and list(sizes) == sorted(set(sizes))
