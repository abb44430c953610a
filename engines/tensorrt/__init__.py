"""TensorRT and TensorRT-RTX behind one code path.

| module | idea |
|---|---|
| `target` | what to compile for: `rtx:sm89`, `tensorrt`; dtypes and head dims that it cannot take |
| `loader` | imports the flavour and names its version, or says in a sentence why it cannot |
| `profiles` | the static shapes that the runtime calls each engine with |
| `build` | one graph to one plan, through Polygraphy |
| `grouping` | query heads doubled where attention then reads the KV cache in place |
| `report` | TensorRT's layer report as data: layers, I/O tensors, what touches the KV cache |
| `header` | what a plan file says of itself without a GPU |
| `run` | plans on this machine's GPU, for `verify` |
| `worker` | the process in which plans are built |

Nothing of TensorRT is imported before `loader.import_tensorrt` is called.
"""
