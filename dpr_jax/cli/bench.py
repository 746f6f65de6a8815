"""`dpr-jax bench KIND`: measures speed and memory, changes no workdir."""

from collections.abc import Sequence
from typing import Any

from dpr_jax.cli import experiment
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors


def _config(call: Invocation) -> Any:
  """The config; the model trained in the workdir, if any, sets its section."""
  if not call.has_workdir:
    return call.config
  return experiment.settled(call, call.command)


def _json_file(call: Invocation) -> str | None:
  """Path of the report, None = no report; `InputError` if not writable."""
  from dpr_jax.benchmarking import harness

  file = call.path("json")
  if file:
    harness.check_writable(file)
  return file


def train(call: Invocation) -> None:
  """Measures training, optionally against sentence-transformers."""
  from dpr_jax.benchmarking import train as train_lib

  config, file = _config(call), _json_file(call)
  train_lib.bench(
    config,
    call.workdir,
    against=call.flags["against"],
    separate=call.flags["separate"],
    repeats=call.flags["repeats"],
    json_file=file,
  )


def encode(call: Invocation) -> None:
  """Measures encoding of passages, optionally against sentence-transformers."""
  from dpr_jax.benchmarking import encode as encode_lib

  config, file = _config(call), _json_file(call)
  encode_lib.bench(
    config,
    call.workdir,
    against=call.flags["against"],
    repeats=call.flags["repeats"],
    json_file=file,
  )


def batch(call: Invocation) -> None:
  """Measures training for several batch sizes."""
  from dpr_jax.benchmarking import batch as batch_lib

  config, file = _config(call), _json_file(call)
  batch_lib.bench(
    config,
    cpu_devices=call.flags["cpu_devices"],
    batch_sizes=_integers("batch_sizes", call.flags["batch_sizes"]),
    repeats=call.flags["repeats"],
    json_file=file,
  )


def search(call: Invocation) -> None:
  """Measures search in several indexes, optionally against bm25s."""
  from dpr_jax.benchmarking import search as search_lib

  config, file = _config(call), _json_file(call)
  search_lib.bench(
    config,
    call.workdir if call.has_workdir else None,
    vectors=call.flags["vectors"],
    dim=call.flags["dim"],
    factories=[each for each in call.flags["factories"].split(";") if each],
    against=call.flags["against"],
    cpu_devices=call.flags["cpu_devices"],
    repeats=call.flags["repeats"],
    json_file=file,
  )


def scale(call: Invocation) -> None:
  """Measures all stages on generated corpora of several sizes."""
  from dpr_jax.benchmarking import scale as scale_lib

  folder, file = call.path("out"), _json_file(call)
  if not folder:
    raise errors.InputError(
      "--out is missing: a folder for the generated corpora and their workdirs,"
      " as --out=DIR"
    )
  scale_lib.bench(
    _integers("passages", call.flags["passages"]),
    folder,
    questions=call.flags["count"],
    json_file=file,
  )


def reader(call: Invocation) -> None:
  """Measures the span reader, optionally against transformers."""
  from dpr_jax.benchmarking import reader as reader_lib

  config, file = _config(call), _json_file(call)
  if call.flags["against"] not in (None, "transformers"):
    raise errors.InputError(
      f"--against={call.flags['against']}: bench reader compares with"
      " transformers only"
    )
  reader_lib.bench(config, call.workdir, json_file=file)


def _integers(flag: str, values: Sequence[str]) -> list[int]:
  """The values of a flag as integers; `InputError` if one is not a number."""
  if not values or not all(v.isascii() and v.isdigit() for v in values):
    raise errors.InputError(
      f"--{flag}={','.join(values)}: must be numbers, as in 128,1024"
    )
  return [int(value) for value in values]
