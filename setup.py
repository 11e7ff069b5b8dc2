"""Packages trainer and data_tools. The tested set of versions is in constraints.txt; the ranges here suit GPU labs too."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

# Compiled in, and compared when the library is loaded: one that is older than its sources is not used (trainer/cpu_kernels.py).
folder = Path(__file__).parent / "trainer" / "cpp"
sources = sorted([*folder.glob("*.cpp"), *folder.glob("*.h")])
digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()

# Loaded by trainer/cpu_kernels.py as a C library, not as a Python module. optional: without a compiler the installation goes on, and the
# trainer computes with transformers' own forward pass. For the processor it is built on; on another one it says so and is not used.
cpu_library = Extension(
    "trainer.cpu_library",
    sources=["trainer/cpp/library.cpp"],
    depends=[f"trainer/cpp/{name}.h" for name in ("attention", "matmul", "rows", "vectors")],
    language="c++",
    define_macros=[("XPT_SOURCES", f'"{digest}"')],
    extra_compile_args=["-std=c++20", "-O3", "-march=native", "-fopenmp", "-Wno-psabi"],
    extra_link_args=["-fopenmp"],
    optional=True,
)

setup(
    name="xpt",
    version="0.1.0",
    description="Cross-lingual post-training of English encoders into Korean ones, at scale",
    license="Apache-2.0",
    packages=["trainer", "data_tools"],
    ext_modules=[cpu_library],
    package_data={"data_tools": ["*.tsv"], "trainer": ["*.csv", "cpp/*"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.6",
        "deepspeed==0.19.8",  # trainer/engine.py reads private attributes of exactly this version
        "transformers>=5.0,<6",
        "tokenizers",
        "sentencepiece>=0.2",
        "datasets>=4",
        "mpi4py>=4.1",
        "tensorboard>=2.18",
        "scikit-learn>=1.5",
        "mwparserfromhell>=0.7",
        "safetensors>=0.5",
        "pydantic>=2.7",
        "pyyaml>=6",
        "numpy>=1.26",
        "tqdm>=4.66",
        "xxhash>=3",
        "matplotlib>=3.8",
    ],
    extras_require={
        "kiwi": ["kiwipiepy>=0.20"],  # data_tools.prepare --splitter kiwi
        # mpich: an mpirun for the tests; accelerate: Hugging Face's Trainer, which the benchmarks compare with, needs it; scipy (intervals
        # of the experiments' tables, orthogonal maps) and psutil (memory of prepare): of the benchmarks
        "dev": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "mypy",
            "types-PyYAML",
            "mpich",
            "accelerate",
            "scipy>=1.11",
            "psutil",
        ],
    },
)
