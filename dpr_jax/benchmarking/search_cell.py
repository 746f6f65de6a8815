"""One row of `bench search`: measures an index in a process of its own.

Input: JSON on standard input (see `search.py`).  Output: a JSON file with build
time, bytes per vector, peak anonymous memory while building (pages of mapped
files belong to the system), recall and speed; and a file of the rows found.
"""

import os
import pathlib
import tempfile
import time
from typing import Any

import faiss
import numpy as np

from dpr_jax.benchmarking import cells, clusters
from dpr_jax.index import faiss_build, faiss_search, faiss_tune

EXACT = "exact"  # exact search on the devices, in place of a factory string
DEPTH = 100


def open_vectors(path: str) -> faiss_build.Vectors:
  """Opens one `.npy` file, or a folder written by `embed`."""
  if path.endswith(".npy"):
    return clusters.FileVectors(pathlib.Path(path))
  from dpr_jax.embedding import vector_shards

  return vector_shards.open_vectors(pathlib.Path(path))


def measure_index(
  spec: dict[str, Any], folder: pathlib.Path
) -> tuple[dict[str, Any], np.ndarray]:
  """Builds, writes, opens, tunes and measures a FAISS index."""
  vectors, questions = open_vectors(spec["vectors"]), np.load(spec["questions"])
  settings = faiss_build.Settings(**spec["settings"])
  with cells.PeakMemory() as peak:
    started = time.perf_counter()
    built = faiss_build.build_index(vectors, settings)
    seconds = time.perf_counter() - started
  path = folder / "index.faiss"
  faiss.write_index(built, str(path))
  del built
  flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE | faiss.IO_FLAG_MMAP_IFC
  index = faiss.read_index(str(path), flags)
  exact = np.load(spec["exact"])
  chosen, _ = faiss_tune.tune(index, vectors, questions, spec["target"], DEPTH)
  found = faiss_tune.measure(
    index, vectors, questions, (exact, np.zeros(exact.shape, np.float32))
  )
  rows, _ = faiss_search.search_index(index, questions, DEPTH)
  size = path.stat().st_size
  return {
    "build_seconds": seconds,
    "peak_bytes": peak.grown,
    "bytes": size,
    "bytes_per_vector": size / len(vectors),
    "search": chosen,
    **found,
  }, rows


def measure_exact(spec: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
  """Measures exact search on the devices."""
  from dpr_jax.index import exact_search

  vectors, questions = open_vectors(spec["vectors"]), np.load(spec["questions"])
  search = exact_search.ExactSearch(
    vectors, exact_search.Settings(storage=spec["storage"])
  )
  with cells.PeakMemory() as peak:
    started = time.perf_counter()
    search.search(questions[:1], DEPTH)  # copies vectors and compiles
    seconds = time.perf_counter() - started
  started = time.perf_counter()
  rows, _ = search.search(questions, DEPTH)
  speed = len(questions) / (time.perf_counter() - started)
  exact = np.load(spec["exact"])
  width = {"float32": 4, "bfloat16": 2}[spec["storage"]] * vectors.dim
  return {
    "build_seconds": seconds,
    "peak_bytes": peak.grown,
    "bytes": width * len(vectors),
    "bytes_per_vector": width,
    "search": {},
    "questions": len(questions),
    **{
      f"recall@{k}": faiss_tune.recall(rows, exact, k) for k in faiss_tune.RANKS
    },
    "questions_per_second": {spec["speed_of"]: speed},
  }, rows


def measure(spec: dict[str, Any]) -> dict[str, Any]:
  """Measures the index of a task; writes the rows found to its file `rows`."""
  if spec.get("speed_of") == "1 thread" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  if spec["factory"] == EXACT:
    import jax

    jax.config.update("jax_platforms", spec["platform"])
    if spec["cpu_devices"]:
      jax.config.update("jax_num_cpu_devices", spec["cpu_devices"])
    found, rows = measure_exact(spec)
  else:
    with tempfile.TemporaryDirectory(dir=spec["scratch"]) as folder:
      found, rows = measure_index(spec, pathlib.Path(folder))
  np.save(spec["rows"], rows)
  return found


if __name__ == "__main__":
  cells.main(measure)
