"""What the processes of `test_all_processes.py` run: one program in all.

  launch/cpu_emulate.py --processes=2 --devices=4 -- \
    python -m tests.index.search_program FOLDER MODE

The test calls `search` in its own process too, and compares.
"""

import os
import pathlib
import sys

import jax
import numpy as np

from dpr_jax.core import collectives, errors, multiprocess
from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_formats, vector_shards
from dpr_jax.index import (
  all_processes,
  faiss_build,
  faiss_search,
  faiss_shards,
  faiss_tune,
)

COUNT, DIM = 500, 16
FACTORIES = {"IVF4,SQ8": 3, "Flat": 3, "SQ8": 1}  # and their shards
# Bits that a sum, a cast or a print would change.
FLOATS = np.array([-0.0, 0.0, np.nan, np.inf, 1e-45, 1 / 3], np.float32)
INTEGERS = np.array([[-1, 2**62], [2**32 + 1, -(2**63)]], np.int64)


def embed(root: pathlib.Path) -> None:
  """Vectors, many of them twice, so that there are ties."""
  generator = np.random.default_rng(0)
  vectors = generator.normal(size=(COUNT // 2, DIM)).astype(np.float32)
  source = root / "source"
  source.mkdir(parents=True)
  np.save(source / "vectors-00000.npy", np.concatenate([vectors, vectors]))
  ids = "".join(f"p{row}\n" for row in range(COUNT))
  (source / "ids-00000.txt").write_text(ids)
  vector_formats.import_(source, workdir_lib.Workdir(root).embeddings())


def build(root: pathlib.Path) -> None:
  """Builds every index, as `dpr-jax index` does with shards."""
  workdir = workdir_lib.Workdir(root)
  vectors = vector_shards.open_vectors(workdir.embeddings())
  for factory, shards in FACTORIES.items():
    stage = workdir_lib.Stage("index", workdir.index(factory), {}, {})
    settings = faiss_build.Settings(factory)
    assert faiss_shards.write_shards(stage, settings, vectors, shards, None)


def questions(count: int) -> np.ndarray:
  """The first process's; the others have as many zeros."""
  if not multiprocess.is_first():
    return np.zeros((count, DIM), np.float32)
  found = np.random.default_rng(1).normal(size=(count, DIM))
  return found.astype(np.float32)


def search(root: pathlib.Path) -> dict[str, np.ndarray]:
  """What all indexes and exact search find; and what `tune` chooses."""
  workdir = workdir_lib.Workdir(root)
  vectors = vector_shards.open_vectors(workdir.embeddings())
  faiss_tune.LEAST_SECONDS = faiss_tune.MOST_SECONDS = 0.01
  found = {}

  def note(name: str, rows: np.ndarray, scores: np.ndarray) -> None:
    found[f"{name} rows"], found[f"{name} scores"] = rows, scores

  for factory in FACTORIES:
    index, _ = all_processes.open_index(workdir, factory, "dense")
    for count, k in ((7, 5), (300, COUNT + 9), (1, 1)):
      name = f"{factory} {count} {k}"
      note(name, *faiss_search.search_index(index, questions(count), k))
    best, _ = faiss_tune.tune(index, vectors, questions(40), 0.9)
    found[f"{factory} tuned"] = np.array(sorted(best.values()))
    note(factory, *faiss_search.search_index(index, questions(40), 20))
    recall = faiss_tune.measure(index, vectors, questions(40))
    if multiprocess.is_first():
      found[f"{factory} recall"] = np.array(recall["recall@20"])
  for storage, core_gb in (("float32", 1), ("bfloat16", 1), ("float32", 0)):
    config = config_lib.base_config()
    config.exact.storage, config.exact.core_gb = storage, core_gb
    exact = all_processes.open_exact(config, workdir, "dense")
    for count, k in ((7, 5), (300, COUNT + 9)):
      name = f"{storage} {core_gb} {count} {k}"
      note(name, *exact.search(questions(count), k))
  return found


def exchange() -> dict[str, np.ndarray]:
  """Arrays of the first process and of all."""
  first, me = multiprocess.is_first(), multiprocess.number()
  nested = multiprocess.first_alone(
    lambda: [
      multiprocess.count(),
      multiprocess.barrier(),
      multiprocess.first_alone(lambda: 7),
      collectives.gather(np.int32([5])).tolist(),
    ]
  )
  assert nested == [1, None, 7, [[5]]]
  assert multiprocess.count() == 2
  refused = "only the first process has it"

  def only(array: np.ndarray) -> np.ndarray:
    assert first, refused
    return array

  return {
    name: collectives.array_of_first(
      lambda array=array: only(array), array.shape, array.dtype
    )
    for name, array in (("floats", FLOATS), ("integers", INTEGERS))
  } | {
    "floats of all": collectives.gather(FLOATS if first else -FLOATS),
    "integers of all": collectives.gather(INTEGERS + me),
  }


def follow(root: pathlib.Path, mode: str) -> dict[str, np.ndarray]:
  """The first process alone knows what is asked; or something goes wrong."""
  mine = root
  if mode == "other index" and not multiprocess.is_first():
    mine = root.parent / "other"
  workdir = workdir_lib.Workdir(mine)
  index, _ = all_processes.open_index(workdir, "Flat", "dense")
  if not multiprocess.is_first():
    if mode == "error":
      refuse(index)
    all_processes.follow(index)
    return {}
  found = {}
  for count, k in ((7, 5), (300, COUNT + 9), (1, 1)):
    rows, _ = faiss_search.search_index(index, questions(count), k)
    found[f"{count} {k}"] = rows
    if mode == "error of the first":
      raise errors.InputError("the first has had enough")
  all_processes.end()
  return found


def refuse(index: all_processes.AllProcessesIndex) -> None:
  """Makes the next search fail, while the first waits for its hits."""

  def search_for(*_) -> None:
    raise errors.InputError("no more hits here")

  index.search_for = search_for


def main() -> None:
  """One process."""
  root, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
  jax.config.update(
    "jax_num_cpu_devices", int(os.environ["DPR_JAX_CPU_DEVICES"])
  )
  multiprocess.start(pod=False)
  try:
    if mode == "all":
      build(root)
      found = search(root) | exchange()
    else:
      found = follow(root, mode)
    np.savez(root / f"found-{multiprocess.number()}.npz", **found)
  except errors.InputError as error:
    multiprocess.fail(2, str(error))
  except Exception as error:
    multiprocess.fail_of(error)
    raise
  multiprocess.finish()


if __name__ == "__main__":
  main()
