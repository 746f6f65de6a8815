"""Refuses results whose inputs in the workdir have changed since.

Input: the manifest of a file of results or answers, which records the
fingerprints of their inputs.  If an input has changed, the error names both
fingerprints and the command that makes the file again.  Inputs that no longer
exist (for example deleted vectors) are not compared.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib

_DATASETS = ("passages", "train", "dev")
START = "dense-start"


def check_results(
  workdir: workdir_lib.Workdir,
  name: str,
  method: str,
  manifest: Mapping[str, Any],
) -> None:
  """Refuses results whose corpus, questions, towers or index have changed.

  Args:
    workdir: workdir of the results.
    name: name of the question set.
    method: method of the results.
    manifest: manifest of the results; {} = they are from other software.

  Raises:
    InputError: the corpus, questions, towers or index have changed.
  """
  inputs = manifest.get("inputs", {})
  now = _datasets(workdir, inputs)
  config = manifest.get("config", {})
  model = START if config.get("method") == START else "dense"
  if "training" in inputs:
    now |= _of_stage(workdir.training, "train", "training")
  if "embeddings" in inputs:
    now |= _of_stage(workdir.embeddings(model), "embed", "embeddings")
  if "encoder" in inputs:  # of imported vectors
    record = workdir.embeddings(model) / "model" / "dpr_jax.json"
    now |= _of_file(record, "encoder")
  if "index" in inputs and isinstance(config.get("factory"), str):
    folder = workdir.index(config["factory"], model)
    now |= _of_stage(folder, "index", "index")
  again = f"dpr-jax retrieve --name={name} --method="
  command = again + method
  if "results" in inputs:  # results of another method, reranked by the reader
    before, _, _ = method.rpartition("-")
    now |= _of_file(workdir.results(name, before), "results")
    now |= _of_reader(workdir, manifest)
    command = f"{again}{before} --rerank=reader"
  there = inputs | _reader(manifest)
  _refuse(workdir.results(name, method), there, now, command)


def check_answers(
  workdir: workdir_lib.Workdir,
  name: str,
  method: str,
  manifest: Mapping[str, Any],
) -> None:
  """Refuses answers read from other results, or by another reader.

  Arguments and errors as in `check_results`.
  """
  now = _of_file(workdir.results(name, method), "questions")
  now |= _of_reader(workdir, manifest)
  _refuse(
    workdir.answers(name, method),
    manifest.get("inputs", {}) | _reader(manifest),
    now,
    f"dpr-jax read --name={name} --method={method}",
  )


def _refuse(
  path: pathlib.Path,
  inputs: Mapping[str, str],
  now: Mapping[str, str],
  command: str,
) -> None:
  changed = workdir_lib.changes({key: inputs.get(key) for key in now}, now)
  if changed:
    raise errors.InputError(
      f"{path} is out of date, its inputs have changed: {', '.join(changed)};"
      f" run `{command}` again"
    )


def _datasets(
  workdir: workdir_lib.Workdir, inputs: Mapping[str, str]
) -> dict[str, str]:
  if not (workdir.data / workdir_lib.MANIFEST).exists():
    return {}
  wanted = [key for key in _DATASETS if key in inputs]
  return workdir_lib.dataset_inputs(workdir, *wanted)


def _of_stage(folder: pathlib.Path, stage: str, key: str) -> dict[str, str]:
  if not (folder / workdir_lib.MANIFEST).exists():
    return {}
  return {key: workdir_lib.manifest_fingerprint(folder, stage)}


def _of_file(path: pathlib.Path, key: str) -> dict[str, str]:
  return {key: workdir_lib.fingerprint_file(path)} if path.exists() else {}


def reader_training(workdir: workdir_lib.Workdir) -> str | None:
  """Fingerprint of the reader's training, which manifests of answers record."""
  fingerprints = _of_stage(workdir.reader, "train-reader", "reader")
  return fingerprints.get("reader")


def _reader(manifest: Mapping[str, Any]) -> dict[str, str]:
  """The recorded `reader_training`; {} of older versions and other readers."""
  fingerprint = manifest.get("reader_training")
  return {"reader_training": fingerprint} if fingerprint else {}


def _of_reader(
  workdir: workdir_lib.Workdir, manifest: Mapping[str, Any]
) -> dict[str, str]:
  now = reader_training(workdir)
  if now is None or not _reader(manifest):
    return {}
  return {"reader_training": now}
