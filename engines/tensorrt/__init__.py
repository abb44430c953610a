"""TensorRT and TensorRT-RTX behind one code path.

| module | idea |
|---|---|
| `target` | what to compile for: `rtx:sm89`, `tensorrt`; dtypes and head dims that it cannot take |
| `loader` | imports the flavour and names its version, or says in a sentence why it cannot |
| `profiles` | the static shapes that the runtime calls each engine with |
| `build` | one graph to one plan, through Polygraphy |
| `attention` | the form of attention in which a GPU's kernels read the KV cache in place |
| `grouping` | a parsed network rewritten to that form: query heads doubled, or nodes as query heads |
| `report` | TensorRT's layer report as data: layers, I/O tensors, what touches the KV cache |
| `header` | what a plan file says of itself without a GPU |
| `run` | plans on this machine's GPU, for `verify` |
| `fixed_nodes`, `fixed_pairs` | calls of any number of nodes, or pairs, on an engine that takes one number |
| `worker` | the process in which plans are built |

Nothing of TensorRT is imported before `loader.import_tensorrt` is called.
"""
