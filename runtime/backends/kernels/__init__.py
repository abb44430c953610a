"""The kernels of a round on a GPU, as CUDA C++ (*.cu, *.h), and the layout of the arrays that they work on.

docs/kernels.md says what each reads and writes. `engines/kernels.py` compiles them.
"""
