"""The real TensorRT-RTX has every name that the backend uses, and every name of the tests' stand-in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import Enum
from functools import partial
from pathlib import Path

import fake_trt
import pytest
from any_plans import any_plans
from conftest_trt import require_rtx
from contract import ROWS, SLOTS, scatter_graph, sums_graph
from inside_tensorrt import compile_for

from cascade_trt.engines.tensorrt import header
from cascade_trt.runtime.backends import runtime_cache, tensorrt, tensorrt_library
from cascade_trt.runtime.plans import Here

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'cascade-trt[rtx]'")
OBJECTS = {  # in a class of the backend: how it calls TensorRT's objects, and what they are
    "TensorRtEngine": {
        "self._engine": trt.ICudaEngine, "engine": trt.ICudaEngine, "context": trt.IExecutionContext,
        "config": trt.IRuntimeConfig, "self._config": trt.IRuntimeConfig,
    },
    "Context": {"self.context": trt.IExecutionContext},
    "TensorRtCall": {"self._context.context": trt.IExecutionContext, "context": trt.IExecutionContext},
    "TensorRtBackend": {"self._parts.runtime": trt.Runtime},
    "RuntimeCache": {"self._cache": trt.IRuntimeCache},
}  # fmt: skip
MODULE = ("trt", "self._trt", "library.trt")


def uses() -> Iterator[tuple[object, str]]:
    """(TensorRT's class or module, a name of it), as the source has them."""
    for module in (tensorrt, tensorrt_library, runtime_cache):
        tree = ast.parse(Path(module.__file__).read_text())
        scopes = [(node, OBJECTS.get(node.name, {})) for node in tree.body if isinstance(node, ast.ClassDef)]
        for scope, objects in [*scopes, (tree, {})]:
            for node in ast.walk(scope):
                if isinstance(node, ast.Attribute):
                    owner = ast.unparse(node.value)
                    if owner in MODULE:
                        yield trt, node.attr
                    elif owner in objects:
                        yield objects[owner], node.attr
                    elif (parts := owner.rpartition("."))[0] in MODULE:  # trt.TensorIOMode.OUTPUT
                        yield getattr(trt, parts[2]), node.attr


def test_every_name_is_there() -> None:
    found = set(uses())
    for owner, name in found:
        assert name.startswith("__") or hasattr(owner, name), f"{owner} has no {name}"
    names = {name for _, name in found}
    assert names >= {
        "deserialize_cuda_engine", "get_aliased_input_tensor", "create_execution_context", "create_runtime_config",
        "set_optimization_profile_async", "set_input_shape", "set_tensor_address", "set_device_memory",
        "device_memory_size_v2", "execute_async_v3", "is_stream_capturable", "cuda_graph_strategy", "OUTPUT",
        "USER_MANAGED", "EAGER", "WHOLE_GRAPH_CAPTURE", "get_tensor_location", "set_runtime_cache", "Severity",
        "create_runtime_cache", "serialize", "deserialize",
    }  # fmt: skip
    assert tensorrt._DTYPES.keys() <= set(trt.DataType.__members__)


@pytest.mark.parametrize(
    ("fake", "real", "own"),
    [
        (fake_trt.FakeTrt, trt, {"driver"}),
        (fake_trt.FakeEngine, trt.ICudaEngine, {"shape", "dtype"}),
        (fake_trt.FakeContext, trt.IExecutionContext, {"made", "compute"}),
        (fake_trt.RuntimeConfig, trt.IRuntimeConfig, {"strategy", "cache"}),
        (fake_trt.RuntimeCache, trt.IRuntimeCache, {"driver", "compiled", "need"}),
        (fake_trt.FakeTrt.Runtime, trt.Runtime, set()),
    ],
)
def test_the_stand_in_has_no_name_of_its_own(fake: type, real: object, own: set[str]) -> None:
    """Beside those that make it work, `own`."""
    names = {name for name in vars(fake) if not name.startswith("_")} - own
    assert names
    for name in names:
        assert hasattr(real, name), name
        inner = getattr(fake, name)
        if isinstance(inner, type) and issubclass(inner, Enum):
            assert {member.name for member in inner} <= set(getattr(real, name).__members__), name


def test_a_log_is_one_of_tensorrts() -> None:
    log = tensorrt_library.new_log(trt)
    assert isinstance(log, trt.ILogger)
    log.log(trt.ILogger.Severity.WARNING, "quiet")
    log.log(trt.ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 9)")
    assert list(log.errors) == ["Error Code 2: OutOfMemory (Requested size was 9)"]
    assert "has not enough memory to run x" in str(tensorrt_library.refused("run x", log, "start again"))
    assert not log.errors


def test_the_library_is_the_real_one() -> None:
    library = tensorrt_library.import_library("tensorrt-rtx")
    assert library.trt is trt and library.version == trt.__version__
    log = tensorrt_library.new_log(trt)
    assert library.trt.Runtime(log).deserialize_cuda_engine(b"odd" * 99) is None and log.errors


def test_what_tensorrt_gives_as_a_reason_is_one_sentence() -> None:
    log = tensorrt_library.new_log(trt)
    log.log(trt.ILogger.Severity.ERROR, "Magic tag does not match.\nMore of it")
    said = str(tensorrt_library.refused("load a.plan", log, "compile it again"))
    assert said == "TensorRT on this GPU cannot load a.plan (Magic tag does not match): compile it again."
    said = str(tensorrt_library.refused("load a.plan", log, "compile it again"))
    assert said == "TensorRT on this GPU cannot load a.plan (it gives no reason): compile it again."


def test_the_contracts_graphs_compile_for_the_card_that_will_run_them(tmp_path: Path) -> None:
    """`inside_tensorrt.py` compiles them there; caches are updated in place, and every profile is there."""
    require_rtx()
    plans = any_plans(tmp_path, partial(compile_for, "rtx:sm89"))
    compiled = plans.fitting("tensorrt-rtx", Here.look(("A card", (8, 9))))
    for graph in (sums_graph(tmp_path), scatter_graph(tmp_path)):
        plan = compiled.get(graph.name)
        assert plan is not None and plan.bytes > 1 << 16 and len(plan.profiles) == ROWS * SLOTS
        assert header.plan_problem(Path(plan.file)) is None
