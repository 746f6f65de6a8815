"""A checkpoint becomes vectors of a corpus.

`Encoder` encodes questions and passages on all cores; the stage `embed` runs it
over the corpus and writes `embeddings/passages/`: shards of fixed row ranges
(`vectors-*.npy`, `ids-*.npy`) and a manifest that names the model.  A run that
was interrupted goes on after the last whole shard.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float

from dpr_jax import configuration, errors, parallel, progress
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import prepare, records
from dpr_jax.models import dual_encoder, towers

STAGE = "embed"
START = "dense-start"  # the towers before training, as a model's name
_PARTIAL = "partial.json"


class Encoder:
  """Encodes texts on all cores of this process, in fixed shapes.

  Passages are sorted by length and padded to a multiple of `length_step`, so
  that there are few shapes to compile and little padding; the vectors come back
  in the order of the texts.
  """

  def __init__(
    self,
    model: towers.Towers,
    *,
    batch_size: int = 32,
    length_step: int = 32,
    params: Any = None,
  ):
    """Prepares encoding with `batch_size` texts a call over all cores.

    Args:
      model: towers and tokenizer.
      batch_size: rounded up to a multiple of the cores.
      length_step: lengths are padded to a multiple of it.
      params: replicated parameters to use in place of the model's own.
    """
    configuration.at_least("embed.batch_size", batch_size, 1)
    configuration.at_least("embed.length_step", length_step, 1)
    self.model = model
    self._params = (
      parallel.replicate(model.params, parallel.local_devices())
      if params is None
      else params
    )
    self._batch_size = -(-batch_size // parallel.cores()) * parallel.cores()
    self._length_step = length_step
    self._questions = parallel.map_over_cores(model.encoder.encode_questions)
    self._passages = parallel.map_over_cores(model.encoder.encode_passages)

  @classmethod
  def load(
    cls, folder: str | os.PathLike, which: str = "best", **options: Any
  ) -> "Encoder":
    """The encoder of a workdir, or of a Hugging Face folder.

    Args:
      folder: where `dpr-jax train` ran; or a BERT as Hugging Face or
        Sentence-Transformers save it, used as it is for both kinds of text.
      which: of a workdir: "best" = as trained, "start" = before training.
      **options: as of the constructor.
    """
    path = pathlib.Path(folder) / "config.json"
    if path.exists() and "hidden_size" in workdir_lib.read_json(path):
      return cls(towers.from_folder(folder), **options)
    where = workdir_lib.Workdir(folder)
    config = configuration.read(path)
    return cls(load_towers(config, where, which), **options)

  @property
  def fingerprint(self) -> str:
    """Identifies the model; equal to "model" in an embeddings manifest."""
    return self.model.fingerprint

  @property
  def dim(self) -> int:
    """Width of a vector."""
    return self.model.encoder.config.hidden_size

  def with_params(self, params: Any) -> "Encoder":
    """The same encoder, nothing recompiled, with other parameters."""
    other = object.__new__(Encoder)
    other.__dict__ |= self.__dict__ | {"_params": params}
    return other

  def encode_questions(
    self, questions: Sequence[str]
  ) -> Float[np.ndarray, "questions dim"]:
    """float32 vectors of questions."""
    tokenizer = self.model.tokenizer
    ids = tokenizer.question_ids(questions)
    limit = tokenizer.question_length
    return self._collect(self._stream(self._questions, ids, limit), len(ids))

  def encode_passages(
    self, passages: Sequence[records.Passage | tuple[str, str]]
  ) -> Float[np.ndarray, "passages dim"]:
    """float32 vectors of passages, or of (title, text) pairs."""
    passages = [
      p if isinstance(p, records.Passage) else records.Passage("", *p)
      for p in passages
    ]
    ids = self.model.tokenizer.passage_ids(passages)
    return self._collect(self.stream_passages(ids), len(ids))

  def stream_passages(
    self, ids: list[list[int]]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (rows of `ids`, their vectors), shortest passages first."""
    limit = self.model.tokenizer.passage_length
    return self._stream(self._passages, ids, limit)

  def _collect(self, stream, count: int) -> np.ndarray:
    vectors = np.empty((count, self.dim), np.float32)
    for rows, result in stream:
      vectors[rows] = result
    return vectors

  def _stream(
    self, function: Callable, ids: list[list[int]], limit: int
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One call is on the cores while the next batch is put together."""
    lengths = np.array([len(row) for row in ids], np.int64)
    step = self._length_step
    widths = np.minimum(-(-lengths // step) * step, limit)
    pending: list[tuple[np.ndarray, Any]] = []
    for width in np.unique(widths):
      rows = np.flatnonzero(widths == width)
      for first in range(0, len(rows), self._batch_size):
        some = rows[first : first + self._batch_size]
        pending.append((some, self._call(function, ids, some, int(width))))
        if len(pending) > 1:
          yield self._fetch(*pending.pop(0))
    for some, result in pending:
      yield self._fetch(some, result)

  def _call(self, function, ids, rows: np.ndarray, width: int) -> Any:
    padded = [ids[row] for row in rows]
    padded += [ids[rows[0]]] * (self._batch_size - len(rows))
    tokens = self.model.tokenizer.pad(padded, width)
    texts = dual_encoder.Texts(tokens.ids, tokens.mask)
    return function(self._params, parallel.split_over_cores(texts))

  def _fetch(self, rows: np.ndarray, result: Any):
    vectors = np.asarray(result).reshape(self._batch_size, -1)[: len(rows)]
    return rows, vectors


def load_towers(
  config: ml_collections.ConfigDict, where: workdir_lib.Workdir, which: str
) -> towers.Towers:
  """The towers `which` = "best" (as trained) or "start" (before training)."""
  if which == "start":
    return towers.start(config)
  if which == "best":
    return towers.trained(config, where)
  raise errors.InputError(f"model {which!r}: must be best or start")


@dataclasses.dataclass(frozen=True)
class Vectors:
  """The vectors of a corpus: a view over memory-mapped shards.

  Attributes:
    folder: `embeddings/passages`.
    manifest: its manifest.
  """

  folder: pathlib.Path
  manifest: dict[str, Any]

  def __len__(self) -> int:
    return self.manifest["count"]

  @property
  def dim(self) -> int:
    """Width of a vector."""
    return self.manifest["dim"]

  def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, at most `rows` vectors as float32)."""
    for shard in self.manifest["shards"]:
      vectors = np.load(self.folder / shard["file"], mmap_mode="r")
      for first in range(0, len(vectors), rows):
        block = np.asarray(vectors[first : first + rows], np.float32)
        yield shard["first_row"] + first, block


def open_vectors(folder: pathlib.Path) -> Vectors:
  """Opens `embeddings/…` after comparing every shard with its sha256."""
  manifest = workdir_lib.read_manifest(folder, STAGE)
  workdir_lib.check_files(folder, manifest)
  return Vectors(folder, manifest)


def embed(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  model: str = "dense",
  overwrite: bool = False,
) -> None:
  """Stage `embed`: vectors of the whole corpus.

  Args:
    config: the experiment.
    workdir: its folder; the corpus and the checkpoint are read there.
    model: "dense" = the trained towers, "dense-start" = before training.
    overwrite: do it again even if nothing has changed.
  """
  configuration.one_of("retrieve.methods", model, ("dense", START))
  loaded = load_towers(config, workdir, "start" if model == START else "best")
  stage = workdir_lib.Stage(
    STAGE,
    workdir.embeddings(model),
    {"rows_per_shard": config.embed.rows_per_shard},
    workdir_lib.dataset_inputs(workdir, "passages")
    | {"model": loaded.fingerprint},
  )
  if stage.is_current(overwrite):
    return
  encoder = Encoder(
    loaded,
    batch_size=config.embed.batch_size,
    length_step=config.embed.length_step,
  )
  passages = prepare.open_passages(workdir)
  embed_corpus(
    encoder, passages, stage, label=f"embed {model}", overwrite=overwrite
  )


def embed_corpus(
  encoder: Encoder,
  passages,
  stage: workdir_lib.Stage,
  *,
  label: str,
  overwrite: bool = False,
) -> None:
  """Writes shards of all vectors of a corpus, and then their manifest.

  A call that was interrupted goes on after the last whole shard, if it is for
  the same stage.

  Args:
    encoder: gives the vectors; its model stands in the manifest.
    passages: a PassageTable.
    stage: the folder and what the vectors depend on; its config has
      "rows_per_shard".
    label: what the progress is shown as.
    overwrite: nothing that is there is used.
  """
  folder, loaded = stage.folder, encoder.model
  per_shard = int(
    configuration.at_least(
      "embed.rows_per_shard", stage.config["rows_per_shard"], 1
    )
  )
  files, started = _begin(stage, overwrite), time.monotonic()
  shards, done = [], 0
  with progress.Progress(len(passages), label, "passages") as bar:
    for number, first in enumerate(range(0, len(passages), per_shard)):
      rows = np.arange(first, min(first + per_shard, len(passages)))
      names = [f"vectors-{number:05d}.npy", f"ids-{number:05d}.npy"]
      if not all(_is_whole(folder, name, files) for name in names):
        vectors = _encode_rows(encoder, passages, rows, bar)
        done += len(rows)
        ids = np.array([i.encode() for i in passages.ids(rows)])
        for name, array in zip(names, (vectors, ids), strict=True):
          files[name] = _write_array(folder / name, array)
        workdir_lib.write_json(
          folder / _PARTIAL, {"hash": _identity(stage), "files": files}
        )
      else:
        bar.update(len(rows))
      shards.append(
        {
          "file": names[0],
          "ids": names[1],
          "first_row": first,
          "rows": len(rows),
          "sha256": files[names[0]],
        }
      )
  seconds = time.monotonic() - started
  stage.finish(
    {"passages": len(passages), "encoded_in_this_run": done},
    files=files,
    model=loaded.fingerprint,
    step=loaded.step,
    dim=encoder.dim,
    dtype="float32",
    count=len(passages),
    shards=shards,
    passages_per_second=round(done / seconds, 2),
  )
  (folder / _PARTIAL).unlink(missing_ok=True)
  logging.info(
    "%s: %d passages in %.0f s, %.1f passages/s",
    label,
    done,
    seconds,
    done / seconds,
  )


def _identity(stage: workdir_lib.Stage) -> str:
  return workdir_lib.fingerprint([stage.config, stage.inputs])


def _begin(stage: workdir_lib.Stage, overwrite: bool) -> dict[str, str]:
  """Empties the folder, unless it holds a part of this very job."""
  folder = stage.folder
  partial = folder / _PARTIAL
  if partial.exists() and not overwrite:
    found = workdir_lib.read_json(partial)
    if found["hash"] == _identity(stage):
      logging.info("embed: %d files are there already", len(found["files"]))
      return found["files"]
  folder.mkdir(parents=True, exist_ok=True)
  stage.manifest.unlink(missing_ok=True)
  for pattern in ("vectors-*.npy", "ids-*.npy", _PARTIAL):
    for path in folder.glob(pattern):
      path.unlink()
  return {}


def _is_whole(folder: pathlib.Path, name: str, files: dict[str, str]) -> bool:
  path = folder / name
  return (
    name in files
    and path.exists()
    and workdir_lib.fingerprint_file(path) == files[name]
  )


def _write_array(path: pathlib.Path, array: np.ndarray) -> str:
  with workdir_lib.replace_file(path) as temporary:
    np.save(temporary, array, allow_pickle=False)
    return workdir_lib.fingerprint_file(temporary)


def _encode_rows(
  encoder: Encoder, passages, rows: np.ndarray, bar: progress.Progress
) -> np.ndarray:
  """Vectors of some rows of the corpus, in their order."""
  tokenizer = encoder.model.tokenizer
  ids: list[list[int]] = []
  for first in range(0, len(rows), 4096):
    ids += tokenizer.passage_ids(passages.take(rows[first : first + 4096]))
  vectors = np.empty((len(rows), encoder.dim), np.float32)
  for some, result in encoder.stream_passages(ids):
    vectors[some] = result
    bar.update(len(some))
  return vectors
