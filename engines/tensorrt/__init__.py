"""TensorRT and TensorRT-RTX behind one code path.

| module | idea |
|---|---|
| `target` | what to compile for: `rtx:sm89`, `tensorrt`; dtypes and head dims that it cannot take |
| `loader` | imports the flavour that Polygraphy is to compile with |
| `profiles` | the static shapes that the runtime calls each engine with |
| `build` | one graph to one plan, through Polygraphy |
| `attention` | the form of attention in which a GPU's kernels read the KV cache in place |
| `grouping` | a parsed network rewritten to that form: query heads doubled, or nodes as query heads |
| `report` | TensorRT's layer report as data: layers, I/O tensors, what touches the KV cache |
| `header` | what a plan file says of itself without a GPU |
| `worker` | the process in which plans are built |

Nothing of TensorRT is imported before `loader.import_tensorrt` is called. What runs plans belongs to the runtime:
`runtime/plans.py` says which of them fit a machine, `runtime/backends/tensorrt.py` draws with them.
"""
