"""Rows of the table of commands (`commands.py`): the benchmarks."""

from dpr_jax.cli import flags as f
from dpr_jax.cli.command import (
  NONE,
  ONE,
  TOWERS,
  Command,
)
from dpr_jax.cli.flags import Flag, switch

_BENCH = (*f.EXPERIMENT, *f.DEVICES, f.JSON)

BENCHES = (
  Command(
    "bench train",
    "Measure speed and memory of training",
    "bench:train",
    "--config=configs/nq_100k.py --workdir=W --against=sentence-transformers",
    devices=True,
    processes=ONE,
    settings=("train",),
    flags=(
      *(*_BENCH, f.REPEATS),
      f.AGAINST.saying(
        "A library to compare with: sentence-transformers, or"
        " sentence-transformers-cached (its gradient cache, in mini-batches of"
        " 4,096 tokens); needs dpr-jax[bench].",
        shown="LIBRARY",
      ),
      switch(
        "separate",
        "Train two towers instead of a shared one.",
      ),
    ),
  ),
  Command(
    "bench encode",
    "Measure speed and memory of encoding passages",
    "bench:encode",
    "--config=configs/nq_100k.py --workdir=W --against=sentence-transformers",
    devices=True,
    processes=ONE,
    settings=("embed",),
    uses=(TOWERS,),
    flags=(
      *(*_BENCH, f.REPEATS),
      f.AGAINST.saying(
        "A library to compare with: sentence-transformers,"
        " sentence-transformers-bfloat16 or sentence-transformers-onnx-int8;"
        " needs dpr-jax[bench].",
        shown="LIBRARY",
      ),
    ),
  ),
  Command(
    "bench batch",
    "Measure speed and memory of training for several batch sizes",
    "bench:batch",
    "--config=configs/nq_100k.py --batch_sizes=128,1024 --cpu_devices=8",
    "--config=FILE",
    devices=True,
    processes=ONE,
    flags=(
      *(f.CONFIG, *f.DEVICES, f.JSON, f.REPEATS),
      Flag(
        "batch_sizes",
        "Global batch sizes to measure, in questions; default: 128,1024,8192.",
        "N[,N]",
        kind=tuple,
        default=("128", "1024", "8192"),
      ),
    ),
  ),
  Command(
    "bench search",
    "Measure speed, memory and recall of search for several indexes",
    "bench:search",
    "--config=configs/nq_100k.py --vectors=1000000 --dim=768",
    "--config=FILE (--workdir=DIR | --vectors=N)",
    devices=True,
    processes=ONE,
    settings=("index", "retrieve"),
    uses=(TOWERS,),
    flags=(
      *(*_BENCH, f.REPEATS),
      f.VECTORS.saying(
        "Number of synthetic vectors, in clusters; default: the workdir's"
        " vectors."
      ),
      f.DIM,
      Flag(
        "factories",
        'FAISS factory strings separated by semicolons; "exact" is exact search'
        " on the devices; default: one factory of each kind.",
        "LIST",
        default="",
      ),
      f.AGAINST.saying(
        "A library to compare with: bm25s, or bm25s-numba (compiled).",
        shown="LIBRARY",
      ),
    ),
  ),
  Command(
    "bench scale",
    "Measure how time, memory and disk of all stages grow with the corpus",
    "bench:scale",
    "--passages=100000,300000,1000000 --out=DIR",
    "--out=DIR",
    processes=ONE,
    config=NONE,
    flags=(
      f.OUT.saying(
        "A folder for the generated corpora and their workdirs; one of an"
        " earlier run is resumed."
      ),
      Flag(
        "passages",
        "Numbers of passages; default: 100000,300000.",
        "N[,N]",
        kind=tuple,
        default=("100000", "300000"),
      ),
      Flag(
        "count",
        "Number of questions, train and dev each; default: 1000.",
        "N",
        kind=int,
        default=1000,
        least=1,
      ),
      f.JSON,
    ),
  ),
  Command(
    "bench reader",
    "Measure speed and memory of the span reader",
    "bench:reader",
    "--config=configs/squad.py:bench --workdir=W --against=transformers",
    devices=True,
    processes=ONE,
    settings=("train-reader",),
    flags=(
      *_BENCH,
      f.AGAINST.saying(
        "A library to compare with: transformers.", shown="LIBRARY"
      ),
    ),
  ),
)
