"""`python -m cascade_trt`."""

from .cli import main

main()
