"""Checks that a workdir is complete, undamaged and consistent.

For every artefact: it exists, its bytes have the recorded sha256, its counts
agree, and it was made from the current contents of the workdir.  Files left by
killed processes are reported.  With `deep`, contents are read as well: every
row, id, vector and index.  Nothing is written.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dpr_jax.core import errors, manifests, temporary_names
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import staleness

OK, DAMAGED, STALE, UNFINISHED, LEFT = (
  "ok",
  "damaged",
  "stale",
  "unfinished",
  "left over",
)


@dataclasses.dataclass(frozen=True)
class Finding:
  """The state of one artefact.

  Attributes:
    state: "ok", "damaged", "stale", "unfinished" or "left over".
    name: path relative to the workdir.
    text: counts, or the problem and its fix.
  """

  state: str
  name: str
  text: str

  def __str__(self) -> str:
    return f"{self.state:10} {self.name}: {self.text}"


def check(
  workdir: workdir_lib.Workdir, *, deep: bool = False
) -> Iterator[Finding]:
  """Checks everything in a workdir, in the order of the stages.

  Args:
    workdir: workdir; may be read-only.
    deep: whether to read the contents too: minutes for millions of passages.

  Raises:
    InputError: the folder is missing or is not a workdir.
  """
  if not workdir.root.is_dir():
    raise errors.InputError(
      f"--workdir={workdir.root}: there is no such folder"
    )
  found = False
  for function in (
    *(_data, _derived, _trainings, _models, _vectors, _files, _leftovers),
  ):
    for finding in function(workdir, deep):
      found = True
      yield finding
  if not found:
    raise errors.InputError(
      f"--workdir={workdir.root} holds nothing that dpr-jax has made"
    )


def _guarded(
  name: str, function: Callable[[], str], state: str = DAMAGED
) -> Finding:
  """A finding with the text that `function` returns or raises."""
  try:
    return Finding(OK, name, function())
  except errors.InputError as error:
    return Finding(state, name, str(error))


def _manifest_of(
  folder: pathlib.Path, stage: str, name: str = workdir_lib.MANIFEST
) -> dict[str, Any]:
  """A manifest, after checking the sha256 of all its files."""
  manifest = workdir_lib.read_manifest(folder, stage, name)
  workdir_lib.check_files(folder, manifest)
  return manifest


def _counted(manifest: Mapping[str, Any]) -> str:
  counts = ", ".join(
    f"{count} {key.replace('_', ' ')}"
    for key, count in manifest["counts"].items()
    if count and "_" not in key
  )
  files = len(manifest["files"])
  return f"{counts or 'done'}; {files} file{'s' * (files != 1)}"


def _links(
  workdir: workdir_lib.Workdir,
  manifest: Mapping[str, Any],
  now: Mapping[str, str],
  command: str,
) -> None:
  """`InputError` if inputs have changed since an artefact was made."""
  inputs = manifest["inputs"]
  # In these stages, inputs of these names are the user's files or results
  # retrieved for the reader, not the prepared datasets.
  others = manifest["stage"] in ("prepare", "train-reader")
  if not others and (workdir.data / workdir_lib.MANIFEST).exists():
    names = [key for key in ("passages", "train", "dev") if key in inputs]
    now = {**workdir_lib.dataset_inputs(workdir, *names), **now}
  changed = workdir_lib.changes(
    {key: inputs[key] for key in now if key in inputs},
    {key: value for key, value in now.items() if key in inputs},
  )
  if changed:
    raise errors.InputError(
      f"made from what has changed since: {', '.join(changed)}; run `{command}`"
    )


def _whole_and_linked(
  workdir: workdir_lib.Workdir,
  folder: pathlib.Path,
  stage: str,
  now: Callable[[], Mapping[str, str]] = dict,
  name: str = workdir_lib.MANIFEST,
) -> Iterator[Finding]:
  """Checks that one stage's folder is whole, then that it is current."""
  label = _label(workdir, folder, name)
  if not (folder / name).exists():
    if _holds_something(folder) and name == workdir_lib.MANIFEST:
      yield Finding(UNFINISHED, label, f"has no {name}: it was not finished")
    return
  whole = _guarded(label, lambda: _counted(_manifest_of(folder, stage, name)))
  if whole.state == OK:
    manifest = workdir_lib.read_manifest(folder, stage, name)
    again = manifests.command(stage).removesuffix(" --overwrite")
    linked = _guarded(
      label, lambda: _links(workdir, manifest, now(), again) or "", STALE
    )
    whole = whole if linked.state == OK else linked
  elif "not finished" in whole.text:
    whole = dataclasses.replace(whole, state=UNFINISHED)
  yield whole


def _label(
  workdir: workdir_lib.Workdir, folder: pathlib.Path, name: str
) -> str:
  relative = folder.relative_to(workdir.root).as_posix()
  if name == workdir_lib.MANIFEST:
    return relative
  return f"{relative}/{name.removesuffix('.manifest.json')}"


def _holds_something(folder: pathlib.Path) -> bool:
  return folder.is_dir() and any(
    not temporary_names.is_temporary(path) for path in folder.iterdir()
  )


def _data(workdir: workdir_lib.Workdir, deep: bool) -> Iterator[Finding]:
  """Checks the corpus and the questions; deep: every row."""
  findings = list(_whole_and_linked(workdir, workdir.data, "prepare"))
  yield from findings
  if not deep or not findings or findings[0].state != OK:
    return
  from dpr_jax.data import prepare

  names = workdir_lib.read_manifest(workdir.data, "prepare")["counts"]

  def rows(name: str) -> str:
    if name == "passages":
      table = prepare.open_passages(workdir)
    else:
      table = prepare.open_questions(workdir, name)
    for first, block in table.blocks(4096):
      if name != "passages":
        continue
      ids = table.ids(range(first, first + len(block)))
      for row, (passage, identifier) in enumerate(
        zip(block, ids, strict=True), start=first
      ):
        if passage.id != identifier:
          raise errors.InputError(
            f"row {row} has the id {passage.id!r}, ids.npy says {identifier!r};"
            " run `dpr-jax prepare --overwrite`"
          )
    return f"all {len(table)} rows read"

  for name in ("passages", *prepare.SPLITS):
    if name in names:
      yield _guarded(f"data/{name}", lambda name=name: rows(name))


def _derived(workdir: workdir_lib.Workdir, deep: bool) -> Iterator[Finding]:
  """Checks what is made from the data alone: BM25, mined negatives, tokens."""
  from dpr_jax.data import mined_negatives

  bm25 = list(_whole_and_linked(workdir, workdir.bm25, "bm25"))
  yield from bm25
  if deep and bm25 and bm25[0].state == OK:
    from dpr_jax.retrieval import bm25 as bm25_lib

    yield _guarded(
      "bm25", lambda: f"{len(bm25_lib.load_checked(workdir))} passages loaded"
    )
  for ranker in mined_negatives.RANKERS:
    stage, name = mined_negatives.stage_of(ranker)
    yield from _whole_and_linked(workdir, workdir.negatives, stage, name=name)
  for folder in (workdir.tokens, workdir.question_tokens):
    yield from _whole_and_linked(workdir, folder, "tokens")


def _trainings(workdir: workdir_lib.Workdir, deep: bool) -> Iterator[Finding]:
  """Checks checkpoints of the retriever and the reader, and their inputs."""
  for folder, stage in (
    (workdir.training, "train"),
    (workdir.reader, "train-reader"),
  ):
    name = folder.name
    if (folder / "checkpoints").is_dir():
      yield from _checkpoints(folder / "checkpoints", f"{name}/checkpoints")
    yield from _whole_and_linked(
      workdir, folder, stage, lambda stage=stage: _negatives(workdir, stage)
    )
    for round_folder in sorted((folder / "rounds").glob("*")):
      yield from _whole_and_linked(workdir, round_folder, "train")


def _models(workdir: workdir_lib.Workdir, deep: bool) -> Iterator[Finding]:
  """Checks what is stored with weights: sizes, tokenizer, settings."""
  from dpr_jax.models import model_files, model_settings

  def look(folder: pathlib.Path, kind: str) -> str:
    fix = model_settings.fix_of(folder)
    record = model_files.read(folder, kind, fix)
    model_files.check(folder, record, fix, tuple(record["files"]))
    return f"settings of {kind} and {len(record['files'])} files"

  for folder, kind in model_settings.folders(workdir).items():
    label = _label(workdir, folder, workdir_lib.MANIFEST)
    yield _guarded(label, lambda folder=folder, kind=kind: look(folder, kind))


def _negatives(workdir: workdir_lib.Workdir, stage: str) -> dict[str, str]:
  if (
    stage != "train" or not (workdir.negatives / workdir_lib.MANIFEST).exists()
  ):
    return {}
  return {
    "negatives": workdir_lib.manifest_fingerprint(workdir.negatives, "mine")
  }


def _checkpoints(folder: pathlib.Path, label: str) -> Iterator[Finding]:
  from dpr_jax.models import checkpoints

  steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
  record = {}
  with contextlib.suppress(errors.InputError):  # reported below
    record = checkpoints.read_selected(folder)
  names = [*steps, *checkpoints.blend_of(record)]
  wrong = checkpoints.problems(folder, names)
  for name in names:
    if name in wrong:
      yield Finding(DAMAGED, f"{label}/{name}", wrong[name])
    else:
      yield Finding(OK, f"{label}/{name}", "all files match their sha256")

  def selected() -> str:
    record = checkpoints.read_selected(folder)
    chosen = record.get("steps", [])
    if missing := [step for step in chosen if step not in steps]:
      raise errors.InputError(f"names step {missing[0]}, which is not there")
    said = f"step {', '.join(map(str, chosen))}" if chosen else "the newest"
    blended = checkpoints.blend_of(record)
    return f"{said}, blended with the start" if blended else said

  if steps:
    yield _guarded(f"{label}/{checkpoints.SELECTED}", selected)


def _vectors(workdir: workdir_lib.Workdir, deep: bool) -> Iterator[Finding]:
  """Checks embeddings, and the indexes made from them."""
  from dpr_jax.embedding import vector_shards

  models = {
    f"dense{folder.name.removeprefix('passages')}": folder
    for folder in sorted(workdir.embeddings().parent.glob("passages*"))
    if not temporary_names.is_temporary(folder)
  }
  for folder in models.values():
    for finding in _whole_and_linked(workdir, folder, vector_shards.STAGE):
      if finding.state == OK:
        finding = _guarded(
          finding.name, lambda folder=folder: _shards(workdir, folder, deep)
        )
      yield finding
  root = workdir.index("x").parent
  for folder in sorted(root.glob("*")) if root.is_dir() else ():
    if folder.is_dir() and not temporary_names.is_temporary(folder):
      model = next(
        (m for m in models if m != "dense" and folder.name.endswith(m[5:])),
        "dense",
      )
      yield from _index(workdir, folder, models.get(model), deep)


def _shards(
  workdir: workdir_lib.Workdir, folder: pathlib.Path, deep: bool
) -> str:
  """Checks the manifest of vectors; deep: also ids and numbers."""
  import numpy as np

  from dpr_jax.data import prepare
  from dpr_jax.embedding import vector_shards

  vectors = vector_shards.Vectors(folder, vector_shards.read_manifest(folder))
  said = f"{len(vectors)} vectors of {vectors.dim}"
  if not deep:
    return said
  table = None
  if (workdir.data / "passages").is_dir():
    table = prepare.open_passages(workdir)
  for first, block in vectors.blocks(8192):
    if not np.isfinite(block).all():
      row = first + int(np.flatnonzero(~np.isfinite(block).all(1))[0])
      raise errors.InputError(
        f"the vector of row {row} is not finite; run `dpr-jax embed"
        " --overwrite`"
      )
    rows = range(first, first + len(block))
    if table is not None and vectors.ids(rows) != table.ids(rows):
      raise errors.InputError(
        f"ids of rows {first} to {rows[-1]} are not those of the passages; run"
        " `dpr-jax embed --overwrite`"
      )
  return f"{said}, all finite, ids as in the corpus"


def _index(
  workdir: workdir_lib.Workdir,
  folder: pathlib.Path,
  embeddings: pathlib.Path | None,
  deep: bool,
) -> Iterator[Finding]:
  def now() -> dict[str, str]:
    if embeddings is None or not (embeddings / workdir_lib.MANIFEST).exists():
      return {}  # deleted vectors are fine: the index holds its own copy
    return {"embeddings": workdir_lib.manifest_fingerprint(embeddings, "embed")}

  findings = list(_whole_and_linked(workdir, folder, "index", now))
  for part in sorted(folder.glob("*/")):
    findings += _whole_and_linked(workdir, part, "index", now)
  yield from findings
  if deep and findings and all(each.state == OK for each in findings):
    from dpr_jax.index import faiss_files

    def load() -> str:
      index, manifest = faiss_files.load_index(folder)
      return f"{index.ntotal} vectors of {manifest['dim']} loaded"

    yield _guarded(f"index/{folder.name}", load)


def _files(workdir: workdir_lib.Workdir, deep: bool) -> Iterator[Finding]:
  """Checks results, answers and evaluations against their manifests."""
  for folder, look in (
    (workdir.results("x", "y").parent, staleness.check_results),
    (workdir.answers("x").parent, staleness.check_answers),
    (workdir.evaluation("x").parent, None),
  ):
    for path in sorted(folder.glob("*.manifest.json")):
      if temporary_names.is_temporary(path):
        continue
      label = path.relative_to(workdir.root).as_posix()
      label = label.removesuffix(".manifest.json")
      yield _beside(workdir, path, label, look)


def _beside(
  workdir: workdir_lib.Workdir,
  path: pathlib.Path,
  label: str,
  look: Callable[..., None] | None,
) -> Finding:
  """Checks one file and its manifest."""
  try:
    record = workdir_lib.read_record(path)
    stage = str(record.get("stage", "retrieve"))
    manifest = manifests.check_manifest(path, record, stage)
    if manifest.get("unfinished"):
      again = manifests.command(manifest["stage"])
      return Finding(UNFINISHED, label, f"run `{again}`")
    workdir_lib.check_files(path.parent, manifest)
  except errors.InputError as error:
    return Finding(DAMAGED, label, str(error))
  if look is not None:
    name, _, method = path.name.removesuffix(".manifest.json").rpartition(".")
    stale = _guarded(
      label, lambda: look(workdir, name, method, manifest) or "", STALE
    )
    if stale.state != OK:
      return stale
  return Finding(OK, label, _counted(manifest))


def _leftovers(workdir: workdir_lib.Workdir, deep: bool) -> Iterator[Finding]:
  """Finds temporary files, unless a running process may own them."""
  if holder := workdir_lib.in_use(workdir):
    yield Finding(OK, ".", f"in use by {holder}; temporary files are its own")
    return
  roots = [workdir.root / name for name in workdir_lib.FOLDERS]
  names = [path for path in workdir.root.iterdir()]
  for root in roots:
    for folder, folders, files in os.walk(root):
      names += [pathlib.Path(folder, name) for name in (*folders, *files)]
      folders[:] = [n for n in folders if not temporary_names.is_temporary(n)]
  for path in sorted(set(names)):
    if temporary_names.is_temporary(path):
      yield Finding(
        LEFT,
        path.relative_to(workdir.root).as_posix(),
        "left by a killed process; the next command removes it",
      )
