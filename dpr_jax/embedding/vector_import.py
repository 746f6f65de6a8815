"""Imports vectors of another library as the vectors of a workdir's passages.

Input: files in a format of `vector_formats`, in any order of passages.  Output:
`embeddings/passages` (or `-start`) as `embed` writes it: row i is the vector of
passage i.  Ids are matched with those of the corpus; one file at a time is in
memory.  If the checkpoint is named that made the vectors, it is compared with
them and stored beside them (`vector_encoder.py`), to encode questions.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from dpr_jax.core import errors, progress, sharded_output
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import datasets, prepare
from dpr_jax.embedding import vector_encoder, vector_formats, vector_shards


def into_workdir(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  source: pathlib.Path,
  *,
  model: str = "dense",
  named: bool = False,
  verify: bool = True,
  overwrite: bool = False,
) -> int:
  """Writes the vectors of the workdir's passages from other libraries' files.

  Args:
    config: reads `embed.rows_per_shard` and `embed.dtype`, and section `model`
      if `named`.
    workdir: workdir with the corpus.
    source: a file, or a folder of files.
    model: name that `index` and `retrieve` will use: "dense", in a workdir
      without a training, or "dense-start".
    named: `config.model` names the checkpoint that made the vectors; store it,
      to encode questions.
    verify: compare that checkpoint with the vectors.
    overwrite: replace existing vectors.

  Returns:
    The number of vectors.

  Raises:
    InputError: a passage has no vector, an id has two, widths differ, the
      checkpoint did not make them, or there are other vectors already.
  """
  folder = workdir.embeddings(model)
  if model == "dense" and (workdir.training / workdir_lib.MANIFEST).exists():
    raise errors.InputError(
      f"{workdir.training} has trained towers, whose vectors --model=dense are:"
      " import with --model=dense-start, or into another --workdir"
    )
  files = vector_formats.files_of(source, folder)
  passages = prepare.open_passages(workdir)
  names = {path.name: workdir_lib.fingerprint_file(path) for path in files}
  stage = workdir_lib.Stage(
    vector_shards.STAGE,
    folder,
    vector_shards.settings(config),
    workdir_lib.dataset_inputs(workdir, "passages")
    | {f"from/{name}": sha256 for name, sha256 in names.items()},
  )
  if not overwrite:
    _refuse_others(stage)
  if not stage.is_current(overwrite):
    _write(stage, files, passages, f"{vector_shards.IMPORTED}{_hash(names)}")
  if named:
    vectors = vector_shards.open_vectors(folder, check=False)
    vector_encoder.store(config, folder, passages, vectors, verify=verify)
  elif not vector_encoder.is_stored(folder):
    logging.warning(
      "import: no checkpoint is named, so questions cannot be encoded for these"
      " vectors: the same command with --config.model.checkpoint=DIR adds it"
    )
  return len(passages)


def _hash(names: dict[str, str]) -> str:
  return workdir_lib.fingerprint(names)


def _refuse_others(stage: workdir_lib.Stage) -> None:
  """`InputError` if the folder has other vectors, or parts of them."""
  changed: list[str] = []
  if stage.manifest.exists():
    there = workdir_lib.read_manifest(stage.folder, stage.name)
    changed = stage.changed(there)
  elif any(stage.folder.glob("part-*.json")):
    changed = ["shards of an unfinished `dpr-jax embed`"]
  if changed:
    raise errors.InputError(
      f"{stage.folder} has other vectors: {', '.join(changed[:3])};"
      " --overwrite replaces them"
    )


def _write(
  stage: workdir_lib.Stage,
  files: list[pathlib.Path],
  passages: datasets.PassageTable,
  model: str,
) -> None:
  """Writes shards and manifest into a temporary folder that becomes final."""
  counts: dict[str, int] = collections.Counter()
  with workdir_lib.replace_folder(stage.folder, stage.name) as temporary:
    shards = None
    with progress.Progress(len(files), "import", "files") as bar:
      for path in files:
        row = 0  # of the file, at the start of the part
        for ids, vectors in vector_formats.read_parts(path):
          if shards is None:
            shards = _Shards.of(temporary, passages, vectors, stage.config)
          shards.check_width(path, vectors)
          counts["vectors_read"] += len(ids)
          counts.update(_place(shards, path, row, passages, ids, vectors))
          row += len(ids)
        bar.update(1)
    _check_all(stage, files, passages, shards, counts)
    listed, written = shards.finish()
    stage.finish(
      {"passages": len(passages), **counts},
      folder=temporary,
      files=written,
      parts=[
        {"files": {name: written[name] for name in (s["file"], s["ids"])}}
        for s in listed
      ],
      model=model,
      dim=shards.dim,
      dtype=shards.dtype,
      count=len(passages),
      shards=listed,
    )
  logging.info(
    "import: %d vectors of width %d in %s",
    *(len(passages), shards.dim, stage.folder),
  )


def _place(
  shards: "_Shards",
  path: pathlib.Path,
  first_row: int,
  passages: datasets.PassageTable,
  ids: list[str],
  vectors: Float[np.ndarray, "ids dim"],
) -> dict[str, int]:
  """Writes vectors to the rows of their ids.

  Args:
    shards: where to write.
    path: the file that is read.
    first_row: row of the first of the vectors in that file.
    passages: the corpus.
    ids: ids of the vectors.
    vectors: the vectors.

  Returns:
    Numbers of ids that the corpus does not have, and of ids that have the same
    vector twice.

  Raises:
    InputError: an id has two different vectors.
  """
  rows = passages.rows_of(ids)
  unknown = int((rows < 0).sum())
  places = np.flatnonzero(rows >= 0)
  _, first = np.unique(rows[places], return_index=True)
  new = np.zeros(len(places), bool)
  new[first] = True
  new &= ~shards.filled[rows[places]]
  shards.write(path, rows[places[new]], vectors[places[new]])
  again = places[~new]
  if len(again):
    kept = shards.read(rows[again])
    differ = np.flatnonzero((kept != shards.cast(vectors[again])).any(axis=1))
    if len(differ):
      place = again[differ[0]]
      raise errors.InputError(
        f"{path}, row {first_row + place}: id {ids[place]!r} has two"
        f" different vectors ({len(differ)} such ids in this file): the files"
        " are of several models or corpora; give those of one"
      )
  return {"unknown_ids": unknown, "repeated_ids": len(again)}


def _check_all(
  stage: workdir_lib.Stage,
  files: list[pathlib.Path],
  passages: datasets.PassageTable,
  shards: "_Shards | None",
  counts: dict[str, int],
) -> None:
  """`InputError` if a passage has no vector; logs what was left out."""
  where = files[0] if len(files) == 1 else files[0].parent
  missing = np.flatnonzero(~shards.filled) if shards else range(len(passages))
  if len(missing):
    (identifier,) = passages.ids([int(missing[0])])
    raise errors.InputError(
      f"{where}: {len(missing)} of {len(passages)} passages of the workdir have"
      f" no vector, the first is row {missing[0]} (id {identifier!r}), and"
      f" {counts['unknown_ids']} vectors have ids that it does not have: give"
      " all files of the vectors of this corpus, or prepare the corpus that"
      " they are of"
    )
  for key, text in (
    ("unknown_ids", "have ids that the workdir's corpus does not have"),
    ("repeated_ids", "repeat an id with the same vector"),
  ):
    if counts[key]:
      logging.warning(
        "import: %d of %d vectors %s: left out",
        *(counts[key], counts["vectors_read"], text),
      )


@dataclasses.dataclass
class _Shards:
  """Files of shards that are written row by row, in any order.

  Attributes:
    folder: folder of the files.
    passages: the corpus.
    dim: width of a vector.
    dtype: one of `vector_shards.DTYPES`.
    per_shard: rows per file.
    filled: rows that are written.
    starts: bytes before the first vector of each file.
  """

  folder: pathlib.Path
  passages: datasets.PassageTable
  dim: int
  dtype: str
  per_shard: int
  filled: np.ndarray
  starts: list[int] = dataclasses.field(default_factory=list)

  @classmethod
  def of(
    cls,
    folder: pathlib.Path,
    passages: datasets.PassageTable,
    vectors: Float[np.ndarray, "rows dim"],
    settings: dict[str, Any],
  ) -> "_Shards":
    """Creates the files, for vectors of the width of `vectors`."""
    shards = cls(
      folder,
      passages,
      vectors.shape[1],
      settings["dtype"],
      settings["rows_per_shard"],
      np.zeros(len(passages), bool),
    )
    for number, rows in shards._numbered():
      with open(shards._path(number), "wb") as file:
        shards._write_header(file, len(rows))
        shards.starts.append(file.tell())
        file.truncate(file.tell() + len(rows) * shards._row_bytes)
    return shards

  @property
  def _stored(self) -> np.dtype:
    return vector_shards.as_stored(np.empty(0, self._type)).dtype

  @property
  def _type(self) -> np.dtype:
    return vector_shards.storage(self.dtype)

  def _numbered(self) -> Iterator[tuple[int, range]]:
    every = range(len(self.passages))
    for number in range(-(-len(every) // self.per_shard)):
      yield number, every[number * self.per_shard :][: self.per_shard]

  def _path(self, number: int) -> pathlib.Path:
    return self.folder / vector_shards.names(number)[0]

  def _write_header(self, file: Any, rows: int) -> None:
    np.lib.format.write_array_header_1_0(
      file,
      {
        "descr": np.lib.format.dtype_to_descr(self._stored),
        "fortran_order": False,
        "shape": (rows, self.dim),
      },
    )

  @property
  def _row_bytes(self) -> int:
    return self.dim * self._stored.itemsize

  def _place(self, row: int) -> int:
    """Position of a row in its file."""
    number, place = divmod(row, self.per_shard)
    return self.starts[number] + place * self._row_bytes

  def check_width(self, path: pathlib.Path, vectors: np.ndarray) -> None:
    """`InputError` if vectors have another width than those before."""
    if vectors.shape[1] != self.dim:
      raise errors.InputError(
        f"{path}: vectors of width {vectors.shape[1]}, the files before have"
        f" {self.dim}: import files of one model"
      )

  def cast(
    self, vectors: Float[np.ndarray, "rows dim"]
  ) -> Float[np.ndarray, "rows dim"]:
    """Vectors as they are after storing them: float32, rounded to `dtype`."""
    with np.errstate(over="ignore"):
      return vectors.astype(self._type).astype(np.float32)

  def write(
    self,
    path: pathlib.Path,
    rows: Int[np.ndarray, " rows"],
    vectors: Float[np.ndarray, "rows dim"],
  ) -> None:
    """Writes the vectors of rows, in any order.

    Raises:
      InputError: a value is too large for float16.
    """
    with np.errstate(over="ignore"):
      block = vectors.astype(self._type)
    if self.dtype == "float16" and not np.isfinite(block).all():
      raise errors.InputError(
        f"config.embed.dtype=float16 has no number above 65504, which {path}"
        " needs: use bfloat16 or float32"
      )
    stored = vector_shards.as_stored(block)
    order = np.argsort(rows)
    for places in _split(order, np.diff(rows[order] // self.per_shard) != 0):
      with open(self._path(int(rows[places[0]]) // self.per_shard), "rb+") as f:
        # Successive rows are written at once.
        for run in _split(places, np.diff(rows[places]) != 1):
          f.seek(self._place(int(rows[run[0]])))
          f.write(stored[run].tobytes())
    self.filled[rows] = True

  def read(
    self, rows: Int[np.ndarray, " rows"]
  ) -> Float[np.ndarray, "rows dim"]:
    """Float32 vectors of rows that are written."""
    vectors = np.empty((len(rows), self.dim), self._stored)
    for place, row in enumerate(rows.tolist()):
      with open(self._path(row // self.per_shard), "rb") as file:
        file.seek(self._place(row))
        data = file.read(self._row_bytes)
        vectors[place] = np.frombuffer(data, self._stored)
    return vectors.view(self._type).astype(np.float32)

  def finish(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Writes the ids.

    Returns:
      The shards as a manifest lists them, and the sha256 of all files by name.
    """
    listed, files = [], {}
    for number, rows in self._numbered():
      file, ids = vector_shards.names(number)
      encoded = np.array([i.encode() for i in self.passages.ids(rows)])
      files[file] = workdir_lib.fingerprint_file(self.folder / file)
      files[ids] = sharded_output.write_array(self.folder / ids, encoded)
      listed.append(vector_shards.entry(number, rows.start, len(rows), files))
    return listed, files


def _split(
  places: Int[np.ndarray, " places"], ends: Bool[np.ndarray, " gaps"]
) -> list[np.ndarray]:
  """Splits places where `ends`, one shorter, is true; [] if there are none."""
  if not len(places):
    return []
  return np.split(places, np.flatnonzero(ends) + 1)
