"""`dpr-jax bench search`: compares indexes with each other and with BM25.

Uses the vectors and dev questions of a workdir, or synthetic ones in clusters
(`clusters.py`).  Every index is built in a process of its own
(`search_cell.py`), tuned to the same recall and measured.  With
`--against=bm25s`, the fastest index that reaches the recall, our BM25 and the
library bm25s (with `-numba`: also compiled by Numba) then take turns on the
same questions with one thread each.  Encoding the questions, and splitting them
into words, is timed separately.
"""

import copy
import importlib.util
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
import rich.table
from absl import logging

from dpr_jax.benchmarking import (
  bm25_peer,
  harness,
  search_cell,
  search_sources,
)
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare
from dpr_jax.evaluation import tables
from dpr_jax.index import faiss_build, faiss_search, faiss_size, faiss_tune
from dpr_jax.retrieval import bm25

NUMBA = "bm25s-numba"
PEERS = ("bm25s", NUMBA)  # the second includes the first
OURS = "BM25 of dpr-jax"
REPEATS = 3
EXACT = search_cell.EXACT
_THREADS = ("1 thread", "all threads")


def factories_for(count: int, dim: int) -> list[str]:
  """The indexes that are compared by default."""
  lists = faiss_size.usual_lists(count)
  codes = faiss_size.fast_codes(count, dim)
  return [
    "Flat",
    "HNSW32",
    f"IVF{lists},Flat",
    codes,
    f"{codes},RFlat",
    f"{codes},Refine(SQ8)",
    f"IVF{lists},RaBitQfs4",
    "SQ8",
    EXACT,
  ]


def bench(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir | None,
  *,
  vectors: int = 0,
  dim: int = 768,
  factories: Sequence[str] = (),
  against: str | None = None,
  cpu_devices: int = 0,
  repeats: int = 0,
  json_file: str | None = None,
) -> dict[str, Any]:
  """Measures every index, prints the table, returns (and writes) the report.

  Args:
    config: the experiment; `index` and `exact.storage` are used.
    workdir: workdir after `embed`; only a missing BM25 index is written to it.
      None = use synthetic vectors.
    vectors: number of synthetic vectors; 0 = use the workdir's vectors.
    dim: dimension of synthetic vectors.
    factories: factory strings, and "exact"; () = `factories_for`.
    against: one of `PEERS`, which needs a workdir; None = none.
    cpu_devices: number of emulated devices for "exact"; 0 = the machine's
      devices.
    repeats: number of rounds against the peer; 0 = `REPEATS`.
    json_file: file for the report, written after every index; None = none.

  Raises:
    InputError: the workdir lacks a stage, or a factory string is bad.
  """
  if against not in (None, *PEERS):
    raise errors.InputError(
      f"--against={against}: must be one of {', '.join(PEERS)}"
    )
  if against == NUMBA and importlib.util.find_spec("numba") is None:
    raise errors.InputError(
      f"--against={against} needs numba: pip install 'dpr-jax[bench]'"
    )
  if (workdir is None) == (not vectors):
    raise errors.InputError(
      "bench search needs either a --workdir, or --vectors=N synthetic vectors"
    )
  if workdir is None and against:
    raise errors.InputError(
      f"--against={against} needs the text of a --workdir"
    )
  with tempfile.TemporaryDirectory(prefix="dpr-jax-bench-") as folder:
    scratch = pathlib.Path(folder)
    source = (
      search_sources.Real(config, workdir, scratch)
      if workdir is not None
      else search_sources.MadeUp(scratch, vectors, dim)
    )
    exact = faiss_search.search_vectors(
      source.vectors, source.questions, faiss_tune.RANKS[-1]
    )[0]
    np.save(scratch / "exact.npy", exact)
    report = _header(config, source)
    for factory in factories or factories_for(
      len(source.vectors), source.vectors.dim
    ):
      logging.info("bench search: %s", factory)
      found = _measure(config, source, scratch, factory, cpu_devices)
      rows = scratch / "rows.npy"
      if rows.exists():
        found |= source.answers(np.load(rows))
        rows.unlink()
      report["indexes"][factory] = found
      if json_file:
        workdir_lib.write_json(json_file, report)
    if against:
      report["against"] = _against_bm25s(
        config, workdir, source, report, repeats or REPEATS, against
      )
  if json_file:
    workdir_lib.write_json(json_file, report)
  print_report(report)
  return report


def _header(config: ml_collections.ConfigDict, source) -> dict[str, Any]:
  return {
    "bench": "search",
    "machine": harness.machine(),
    "versions": harness.versions(),
    "settings": {
      "vectors": source.name,
      "questions": len(source.questions),
      "encode_questions_per_second": len(source.questions)
      / source.encode_seconds
      if source.encode_seconds
      else None,
      "recall_target": float(config.index.recall_target),
      "ef_construction": int(config.index.ef_construction),
    },
    "indexes": {},
  }


def _measure(
  config: ml_collections.ConfigDict,
  source,
  scratch: pathlib.Path,
  factory: str,
  cpu_devices: int,
) -> dict[str, Any]:
  """Measures one index; "exact" runs in two processes, on 1 and on all CPUs."""
  settings = faiss_build.Settings.of(config).plain()
  spec = {
    "factory": factory,
    "vectors": str(source.path),
    "questions": str(scratch / "questions.npy"),
    "exact": str(scratch / "exact.npy"),
    "scratch": str(scratch),
    "rows": str(scratch / "rows.npy"),
    "target": float(config.index.recall_target),
    "settings": {**settings, "factory": factory},
  }
  if factory != EXACT:
    return harness.run_cell("search_cell", spec, scratch / "result.json")
  import jax

  found: dict[str, Any] = {}
  speeds = {}
  for name in _THREADS:
    found = harness.run_cell(
      "search_cell",
      {
        **spec,
        "speed_of": name,
        "storage": config.exact.storage,
        "platform": jax.default_backend(),
        "cpu_devices": 1 if name == _THREADS[0] else cpu_devices,
      },
      scratch / "result.json",
    )
    speeds |= found.get("questions_per_second", {})
  return {**found, "questions_per_second": speeds}


def _against_bm25s(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir | None,
  source,
  report: dict[str, Any],
  rounds: int,
  against: str = PEERS[0],
) -> dict[str, Any]:
  """Compares the best index with our BM25 and the peer, one thread each."""
  import bm25s

  depth, target = faiss_tune.RANKS[-1], float(config.index.recall_target)
  reached = {
    name: found["questions_per_second"]["1 thread"]
    for name, found in report["indexes"].items()
    if name != EXACT and found.get("recall@20", 0) >= target
  }
  if not reached:
    raise errors.InputError(
      f"--against: no index reaches recall@20 {target:g}: give other factory"
      " strings with --factories"
    )
  factory = max(reached, key=reached.get)
  settings = faiss_build.Settings.of(config).plain()
  index = faiss_build.build_index(
    source.vectors,
    faiss_build.Settings(**{**settings, "factory": factory}),
  )
  faiss_search.set_parameters(index, report["indexes"][factory]["search"])
  ours = bm25.build_or_load(config, workdir)
  words, split_seconds = [], time.perf_counter()
  for question in source.asked:
    words.append(ours.word_ids(question.question))
  split_seconds = time.perf_counter() - split_seconds
  vocabulary = dict(ours.vocabulary)
  tokens = bm25s.tokenization.Tokenized(ids=words, vocab=vocabulary)
  library = bm25_peer.index(
    prepare.open_passages(workdir), vocabulary, ours.parameters
  )

  def dense(_: int) -> None:
    for first in range(0, len(source.questions), faiss_tune.BATCH):
      some = source.questions[first : first + faiss_tune.BATCH]
      faiss_search.search_index(index, some, depth)

  def retrieve(library: Any, backend: str) -> Callable[[int], Any]:
    return lambda _: library.retrieve(
      tokens,
      k=depth,
      n_threads=1,
      show_progress=False,
      backend_selection=backend,
    )

  texts = [question.question for question in source.asked]
  contenders = [
    harness.Contender(factory, dense),
    harness.Contender(OURS, lambda _: ours.search(texts, depth)),
    harness.Contender(PEERS[0], retrieve(library, "numpy")),
  ]
  if against == NUMBA:
    compiled = copy.copy(library)
    compiled.backend = "numba"
    compiled.activate_numba_scorer()
    contenders.append(harness.Contender(NUMBA, retrieve(compiled, "numba")))
  with faiss_search.threads(1):
    outcome = harness.contest(contenders, rounds=rounds)
  count = len(source.questions)
  return {
    "index": factory,
    "search": report["indexes"][factory]["search"],
    "questions_per_second": {
      name: harness.spread([count / each for each in seconds])
      for name, seconds in outcome.seconds.items()
    },
    "words_per_second": count / split_seconds,
    "speedup": {
      each.name: harness.speedup(
        outcome.seconds[factory], outcome.seconds[each.name]
      )
      for each in contenders[1:]
    },
  }


def print_report(report: dict[str, Any]) -> None:
  """Prints the report as a table."""
  settings = report["settings"]
  table = rich.table.Table(
    title=f"Search: {settings['vectors']}, {settings['questions']} questions,"
    f" tuned to recall@20 {settings['recall_target']:g}",
    title_justify="left",
  )
  table.add_column("index", no_wrap=True)
  for name in (
    "build s",
    "bytes/vector",
    "peak / size",
    "recall@20",
    "@100",
    "questions/s, 1 thread",
    "all",
    "answer top-20",
    "search",
  ):
    table.add_column(name, justify="right", no_wrap=True)
  for name, found in report["indexes"].items():
    table.add_row(name, *_row(found))
  tables.print_table(table)
  print("peak / size: memory used by building, relative to the index size.")
  if settings["encode_questions_per_second"]:
    print(
      "Encoding, timed separately and with all CPU cores:"
      f" {settings['encode_questions_per_second']:.0f} questions/s."
    )
  if "against" in report:
    found = report["against"]
    print("One thread each, top 100:")
    for peer, speedup in found["speedup"].items():
      print(f"  {harness.speedup_line(found['index'], peer, speedup)}.")
  print(harness.machine_line({**report, "matrix_peak_gflops": None}))


def _row(found: dict[str, Any]) -> list[str]:
  if "failure" in found:
    return [found["failure"]]
  peak, speeds = found["peak_bytes"], found["questions_per_second"]
  answer = found.get("answer_top20")
  return [
    f"{found['build_seconds']:.1f}",
    f"{found['bytes_per_vector']:.0f}",
    "-" if peak is None else f"{peak / found['bytes']:.2f}",
    f"{found['recall@20']:.4f}",
    f"{found['recall@100']:.4f}",
    *(f"{speeds[name]:.0f}" if name in speeds else "-" for name in _THREADS),
    "-" if answer is None else f"{100 * answer:.1f}",
    ", ".join(f"{key} {value:g}" for key, value in found["search"].items()),
  ]
