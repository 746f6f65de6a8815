"""`dpr-jax bench encode`: compares passage encoding with another library.

Both sides use the same checkpoint, passages, text format, pooling and maximum
length, in float32; a peer in bfloat16 or with 8 bits is compared with ours of
the same kind too, which `config.embed.backend` also asks for.  The
time includes everything from texts to vectors, also tokenizing; every round has
other passages.  Before the measurement the vectors of both sides are compared,
and the benchmark fails if they differ.  To show how busy the machine was, its
peak of matrix products is measured in every round, and the CPU time of each
side is reported.
"""

import copy
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.table
from absl import logging

from dpr_jax.benchmarking import harness, vector_quality
from dpr_jax.benchmarking import sentence_transformers_onnx as onnx_peer
from dpr_jax.benchmarking import sentence_transformers_peer as peer_lib
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare, records
from dpr_jax.evaluation import tables
from dpr_jax.inference import backends, onnx_encoder, tiled_encoder
from dpr_jax.models import checkpoint_sources, dual_encoder, retriever_model
from dpr_jax.models import flops as flops_lib

OURS = "dpr-jax"
BFLOAT16 = f"{peer_lib.NAME}-bfloat16"
INT8 = f"{peer_lib.NAME}-{onnx_encoder.BACKEND}"
PEERS = (peer_lib.NAME, BFLOAT16, INT8)  # the others include the first
# Our sides besides float32, by the peer that they are compared with.
OURS_LIKE = {
  BFLOAT16: f"{OURS}-bfloat16",
  INT8: f"{OURS}-{onnx_encoder.BACKEND}",
}
REPEATS = 5
PASSAGES = 1024  # per round; with few, the last tiles are half empty
TOLERANCE = 1e-5
_SAMPLE = 2000  # passages whose lengths choose the widths
_QUESTIONS = 200  # dev questions to compare what vectors find


class Ours:
  """Our side: encodes texts with the tiles of `dpr-jax embed`."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    model: retriever_model.Towers,
    sample: Sequence[records.Passage],
  ):
    """Chooses the padded lengths; each compiles at its first use.

    Args:
      config: config whose section `embed` sets the tile sizes.
      model: towers to encode with.
      sample: passages with the length distribution of the corpus.
    """
    self.encoder = backends.sized(model, config.embed)
    self._tokenizer = model.tokenizer
    lengths = [len(ids) for ids in self._tokenizer.passage_ids(sample)]
    lengths += [self._tokenizer.passage_length]  # the longest possible
    self.widths = self.encoder.widths(
      np.bincount(lengths),
      config_lib.at_least("embed.shapes", config.embed.shapes, 1),
    )

  def encode(self, passages: Sequence[records.Passage]) -> np.ndarray:
    """float32 vectors, [passages, dim]."""
    ids = self._tokenizer.passage_ids(passages)
    return self.encoder.collect(dual_encoder.PASSAGE, ids, self.widths)


def bench(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  against: str | None = None,
  repeats: int = 0,
  passages: int = PASSAGES,
  json_file: str | None = None,
  peak_size: int = harness.PEAK_SIZE,
) -> dict[str, Any]:
  """Measures all sides, prints the table, returns (and writes) the report.

  Args:
    config: the experiment; its towers before training are used.
    workdir: workdir after `prepare`; nothing is written to it.
    against: one of `PEERS`; None = measure only dpr-jax.
    repeats: number of measured rounds; 0 = `REPEATS`.
    passages: passages per round, at most those of the corpus.
    json_file: file for the report; None = none.
    peak_size: see `harness.matrix_peak`.

  Raises:
    InputError: the workdir lacks a stage, or the peer is not installed.
    RuntimeError: the vectors of the two sides differ.
  """
  if against not in (None, *PEERS):
    raise errors.InputError(
      f"--against={against}: must be one of {', '.join(PEERS)}"
    )
  config = retriever_model.resolved(config)
  rounds, sample = _rounds(workdir, repeats or REPEATS, passages)
  ours = {}
  for name in _our_names(config, against):
    config = copy.deepcopy(config)
    bfloat16 = name == OURS_LIKE[BFLOAT16]
    config.model.compute_dtype = "bfloat16" if bfloat16 else "float32"
    config.embed.backend = "jax"
    if name == OURS_LIKE[INT8]:
      config.embed.backend = onnx_encoder.BACKEND
    model = retriever_model.start(config)
    ours[name] = Ours(config, model, sample)
  peers = _peers(config, against) if against else {}
  report: dict[str, Any] = {
    "bench": "encode",
    "machine": harness.machine(),
    "versions": harness.versions(),
    "settings": {
      "cores": jax.local_device_count(),
      "passages": len(rounds[0]),
      "rounds": len(rounds),
      "widths": ours[OURS].widths,
      "config": config_lib.plain(config),
    },
  }
  texts = [[model.tokenizer.passage_text(p) for p in some] for some in rounds]
  if peers:
    report["settings"]["peer_threads"] = peers[peer_lib.NAME].threads
  if len(ours) + len(peers) > 1:
    questions = ours[OURS].encoder.encode_questions(_questions(workdir))
    report["checks"], report["quality"] = compare(
      ours, peers, rounds[0], texts[0], questions
    )
  for side in ours.values():
    for some in rounds:  # compiles all shapes before the measurement
      side.encode(some)
    side.encoder.work = tiled_encoder.Work()
  peaks: list[float] = []
  contenders = [
    *(
      harness.Contender(
        name, _timed(lambda n, side=side, of=of: side.encode(of[n]))
      )
      for sides, of in ((ours, rounds), (peers, texts))
      for name, side in sides.items()
    ),
    harness.Contender(
      "peak", lambda n: peaks.append(harness.matrix_peak(peak_size))
    ),
  ]
  programs = _programs(ours)
  outcome = harness.contest(contenders, rounds=len(rounds), warmups=())
  report["compiled_in_rounds"] = _programs(ours) - programs
  report["padding_share"] = ours[OURS].encoder.work.padding
  report["matrix_peak_gflops"] = float(np.median(peaks))
  report["matrix_peaks_gflops"] = peaks
  flops = [_flops(model, some) for some in rounds]
  report["contenders"] = {
    name: figures(seconds, outcome.results[name], len(rounds[0]), flops, peaks)
    for name, seconds in outcome.seconds.items()
    if name != "peak"
  }
  if peers:
    report["speedup"] = {
      side: {
        peer: harness.speedup(outcome.seconds[side], outcome.seconds[peer])
        for peer in peers
      }
      for side in ours
    }
  if json_file:
    workdir_lib.write_json(json_file, report)
  print_report(report)
  return report


def _our_names(
  config: ml_collections.ConfigDict, against: str | None
) -> list[str]:
  """Our sides, float32 first."""
  names = [OURS]
  if against in OURS_LIKE:
    names.append(OURS_LIKE[against])
  elif config.embed.backend == onnx_encoder.BACKEND:
    names.append(OURS_LIKE[INT8])
  return names


def _questions(workdir: workdir_lib.Workdir) -> list[str]:
  """At most `_QUESTIONS` dev questions."""
  table = prepare.open_questions(workdir, "dev")
  rows = np.arange(min(_QUESTIONS, len(table)))
  return [each.question for each in table.take(rows)]


def _programs(ours: dict[str, Ours]) -> int:
  return sum(side.encoder.programs for side in ours.values())


def _rounds(
  workdir: workdir_lib.Workdir, count: int, size: int
) -> tuple[list[list[records.Passage]], list[records.Passage]]:
  """Passages of each round, and a sample of lengths, evenly spaced.

  All passages have a title, or none has: a peer does not take a mixture.
  """
  table = prepare.open_passages(workdir)
  rows = np.linspace(0, len(table) - 1, min(_SAMPLE, len(table))).astype(int)
  sample = table.take(np.unique(rows))
  size = min(size, len(table))
  rows = np.linspace(0, len(table) - 1, min(2 * count * size, len(table)))
  found = table.take(np.unique(rows.astype(int)))
  titled = [bool(passage.title) for passage in found]
  wanted = 2 * sum(titled) >= len(titled)
  usable = [p for p, has in zip(found, titled, strict=True) if has == wanted]
  order = np.random.default_rng(5).permutation(len(usable))
  places = np.resize(order, count * size).reshape(count, size)
  return [[usable[i] for i in row] for row in places], sample


def _peers(
  config: ml_collections.ConfigDict, against: str
) -> dict[str, peer_lib.Embedder]:
  model = config.model
  if model.checkpoint == "random":
    raise errors.InputError(
      'config.model.checkpoint="random" cannot be loaded by another library:'
      ' use "starter" or a folder'
    )
  settings = peer_lib.EncodingSettings(
    folder=checkpoint_sources.checkpoint_folder(model.checkpoint),
    pooling=model.pooling,
    normalize=model.normalize,
    passage_length=model.passage_length,
  )
  peers = {peer_lib.NAME: peer_lib.Embedder(settings)}
  if against == BFLOAT16:
    peers[BFLOAT16] = peer_lib.Embedder(settings, "bfloat16")
  if against == INT8:
    peers[INT8] = peer_lib.Embedder(settings, load=onnx_peer.load)
  return peers


def compare(
  ours: dict[str, Ours],
  peers: dict[str, Any],
  passages: Sequence[records.Passage],
  texts: Sequence[Any],
  questions: np.ndarray,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
  """Largest difference of vectors from `OURS`, relative to the largest number.

  Args:
    ours: our sides, with `OURS`.
    peers: the other sides.
    passages: passages to encode.
    texts: the same as texts for the peers.
    questions: vectors of questions, [questions, dim].

  Returns:
    The differences, and `vector_quality.quality`, by side.

  Raises:
    RuntimeError: the peer's in float32 differ by more than `TOLERANCE`.
  """
  vectors = {name: side.encode(passages) for name, side in ours.items()}
  wanted = vectors.pop(OURS)
  vectors |= {name: side.encode(texts) for name, side in peers.items()}
  scale = float(np.abs(wanted).max())
  found = {
    name: float(np.abs(some - wanted).max()) / scale
    for name, some in vectors.items()
  }
  for name, distance in found.items():
    logging.info("vectors: %s differs by at most %.1e", name, distance)
  if not found.get(peer_lib.NAME, 0.0) <= TOLERANCE:
    raise RuntimeError(
      "the two sides do not compute the same: their vectors differ by"
      f" {found[peer_lib.NAME]:.1e} of the largest number"
    )
  return found, {
    name: vector_quality.quality(wanted, some, questions)
    for name, some in vectors.items()
  }


def _timed(run: Any) -> Any:
  """A turn that returns its CPU seconds, of all threads together."""

  def turn(number: int) -> float:
    started = time.process_time()
    run(number)
    return time.process_time() - started

  return turn


def _flops(
  model: retriever_model.Towers, passages: Sequence[records.Passage]
) -> int:
  """FLOPs of one round without padding, as our program computes them."""
  first_only = model.encoder.first_only
  return sum(
    flops_lib.encoding_flops(
      model.encoder.config, len(ids), first_only=first_only
    )
    for ids in model.tokenizer.passage_ids(passages)
  )


def figures(
  seconds: Sequence[float],
  processor_seconds: Sequence[float],
  passages: int,
  flops: Sequence[int],
  peaks: Sequence[float],
) -> dict[str, Any]:
  """The reported figures of a contender.

  Args:
    seconds: seconds of each round.
    processor_seconds: CPU seconds of each round, of all threads.
    passages: number of passages per round.
    flops: FLOPs of each round without padding, the same for all sides.
    peaks: peak GFLOP/s of the machine, measured in each round.
  """
  rates = [f / s / harness.GIGA for f, s in zip(flops, seconds, strict=True)]
  shares = [rate / peak for rate, peak in zip(rates, peaks, strict=True)]
  return {
    "seconds": list(seconds),
    "passages_per_second": harness.spread([passages / s for s in seconds]),
    "passages_per_processor_second": harness.spread(
      [passages / s for s in processor_seconds]
    ),
    "gflops": float(np.median(rates)),
    "share_of_peak": harness.spread(shares),
  }


def print_report(report: dict[str, Any]) -> None:
  """Prints the report as a table."""
  settings, model = report["settings"], report["settings"]["config"]["model"]
  table = rich.table.Table(
    title=f"Encoding, {settings['rounds']} rounds of {settings['passages']}"
    f" passages, checkpoint {model['checkpoint']}, {model['pooling']} pooling",
    title_justify="left",
  )
  table.add_column("", no_wrap=True)
  for name in (
    "passages/s (quartiles)",
    "per processor second",
    "GFLOP/s",
    "of peak",
  ):
    table.add_column(name, justify="right", no_wrap=True)
  for name, found in report["contenders"].items():
    speed = found["passages_per_second"]
    table.add_row(
      name,
      f"{speed['median']:.1f} ({speed['quartile1']:.1f} to"
      f" {speed['quartile3']:.1f})",
      f"{found['passages_per_processor_second']['median']:.1f}",
      f"{found['gflops']:.0f}",
      f"{100 * found['share_of_peak']['median']:.0f} %",
    )
  tables.print_table(table)
  for side, beside in report.get("speedup", {}).items():
    for peer, found in beside.items():
      print(harness.speedup_line(side, peer, found) + ".")
  print(
    f"{100 * report['padding_share']:.1f} % of our tokens were padding, with"
    f" {len(settings['widths'])} padded lengths. GFLOP/s do not count padding,"
    " nor the part of the last layer that the pooling does not need."
  )
  for name, found in report.get("quality", {}).items():
    print(vector_quality.line(name, found))
  if report["compiled_in_rounds"]:
    print("Some measured rounds of dpr-jax include compilation.")
  print(harness.machine_line(report))
