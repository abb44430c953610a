"""What goes into the wheel: every package of the tree, with all files in it. The rest is pyproject.toml's.

The repository root is the package `cascade_trt`, so that the top level reads like the data flow.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import find_packages, setup

NAME = "cascade_trt"
CACHES = {"": ["*.py[co]"]}

packages = find_packages(str(Path(__file__).parent), exclude=["tests", "tests.*"])
files = {f"{NAME}.{package}": ["**/*"] for package in packages if "." not in package}  # weights, results, kernels

# Setuptools puts what it finds in its build folder into the wheel, whatever is left there of modules that are gone. So
# each build has a folder of its own; ./build is for bundles.
with TemporaryDirectory() as folder:
    setup(
        script_name="setup.py",  # which is no module of the package, whoever runs it
        packages=[NAME, *(f"{NAME}.{package}" for package in packages)],
        package_dir={NAME: "."},
        package_data={NAME: ["py.typed"], **files},
        exclude_package_data=CACHES,
        options={"build": {"build_base": folder}},
    )
