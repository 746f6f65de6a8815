"""The stage `embed`: computes the vectors of a corpus with the workdir's model.

It writes shards of fixed row ranges (`vectors-*.npy`, `ids-*.npy`) and a
manifest that names the model into `embeddings/passages/`.  Shards are dealt to
the processes by number, and each is renamed into place when it is complete.  An
interrupted run is resumed with the missing shards, on any number of devices.
"""

import time
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import (
  earlier_output,
  errors,
  multiprocess,
  progress,
  setting_rules,
  sharded_output,
)
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import datasets, prepare, token_store
from dpr_jax.embedding import vector_reuse, vector_shards
from dpr_jax.inference import backends, tiled_encoder
from dpr_jax.models import (
  dual_encoder,
  model_files,
  model_settings,
  retriever_model,
  stored_towers,
)

STAGE = vector_shards.STAGE
START = "dense-start"  # the towers before training, as a model's name


def embed(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  model: str = "dense",
  overwrite: bool = False,
) -> None:
  """Stage `embed`: vectors of the whole corpus.

  Args:
    config: config of the experiment.
    workdir: its folder, with the corpus and the checkpoint.
    model: "dense" = the trained towers, or the pretrained ones if nothing is
      trained and `data.train` is none; "dense-start" = before training.
    overwrite: run even if nothing has changed.

  Raises:
    InputError: the existing vectors are of another model or corpus, or a
      setting is bad or contradicts the training.
  """
  config_lib.one_of("retrieve.methods", model, ("dense", START))
  config = model_settings.settle(config, workdir, starts=True)
  # Of a model that is not trained, the vectors' folder stores a copy.
  copied = model == START or (
    config.data.train == "none" and model_settings.of_towers(workdir) is None
  )
  if copied:
    loaded = stored_towers.before_training(
      config, workdir, fresh=overwrite, model=model
    )
  else:
    loaded = stored_towers.trained(config, workdir)
  backend = config.embed.backend
  setting_rules.embedding_backend(backend)
  stage = workdir_lib.Stage(
    STAGE,
    workdir.embeddings(model),
    # "jax" is left out, so that vectors of older versions stay valid.
    settings(config) | ({} if backend == "jax" else {"backend": backend}),
    workdir_lib.dataset_inputs(workdir, "passages")
    | {"model": loaded.fingerprint},
  )
  replace = False
  if overwrite:
    multiprocess.first_alone(lambda: earlier_output.discard(stage))
  else:
    _check_settings(stage, copied, loaded)
    replace = multiprocess.first_alone(lambda: vector_reuse.set_aside(stage))
  stored = stage.folder / model_settings.FOLDER

  def keep() -> None:
    """Stores an untrained model next to its vectors, or removes an old one."""
    if jax.process_index() == 0:
      if copied:
        stored_towers.store(loaded, config, stored, weights=True)
      else:
        workdir_lib.remove_folder(stored, "export")

  def make() -> tiled_encoder.TiledEncoder:
    keep()
    return backends.sized(loaded, config.embed)

  passages = prepare.open_passages(workdir)
  embed_corpus(
    make,
    passages,
    workdir,
    stage,
    label=f"embed {model}",
    shapes=config.embed.shapes,
    overwrite=overwrite,
    replace=replace,
  )
  multiprocess.first_alone(lambda: earlier_output.discard(stage))
  if copied and not model_files.is_sealed(stored):
    keep()  # an older version made the vectors


def _check_settings(
  stage: workdir_lib.Stage, copied: bool, loaded: retriever_model.Towers
) -> None:
  """`InputError` if existing vectors were made with other settings.

  Vectors of the same settings but other weights are refused by `embed_corpus`.

  Args:
    stage: folder of the vectors.
    copied: whether the towers are untrained ones.
    loaded: the towers.
  """
  fingerprint, made_with = None, None
  try:
    manifest = workdir_lib.read_manifest(stage.folder, STAGE)
    fingerprint = manifest["inputs"].get("model")
    made_with = manifest.get("model_settings")
  except errors.InputError:  # missing or damaged: `embed_corpus` reports it
    pass
  if made_with is None and copied:
    made_with = model_settings.of_start_in(stage.folder)
  if made_with is None or fingerprint == loaded.fingerprint:
    return
  keys = model_settings.DECIDING
  differing = model_settings.differences(made_with, loaded.settings, keys)
  if not differing:
    return
  fix = "embed with those settings, or give another --workdir"
  if not copied:
    fix = (
      "the towers were trained again since; give another --workdir to keep"
      " these vectors, --overwrite replaces them by vectors of the new towers"
    )
  raise errors.InputError(
    f"{stage.folder} has vectors of another model:"
    f" {model_settings.listed(differing)}: {fix}"
  )


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Settings that determine the shards, checked, for a Stage."""
  config_lib.at_least("embed.shapes", config.embed.shapes, 1)
  return vector_shards.settings(config)


def embed_corpus(
  make: Any,
  passages: datasets.PassageTable,
  workdir: workdir_lib.Workdir,
  stage: workdir_lib.Stage,
  *,
  label: str,
  shapes: int,
  overwrite: bool = False,
  replace: bool = False,
  process: int | None = None,
  processes: int | None = None,
) -> None:
  """Writes this process's shards of a corpus; process 0 writes the manifest.

  Args:
    make: returns the encoder; only called if shards are missing.
    passages: the corpus.
    workdir: workdir of the token store.
    stage: folder and inputs of the vectors; its config is that of `settings`,
      its inputs include "model".
    label: label of the progress lines.
    shapes: maximum number of widths that passages are padded to.
    overwrite: do not use existing shards.
    replace: delete shards that were made from other inputs; False = refuse.
    process: index of this process; None = JAX's.
    processes: number of processes; None = JAX's.

  Raises:
    InputError: existing shards were made from other inputs.
  """
  rows_per_shard = stage.config["rows_per_shard"]
  shards = sharded_output.Parts(
    stage,
    -(-len(passages) // rows_per_shard),
    vector_shards.PATTERNS,
    jax.process_index() if process is None else process,
    jax.process_count() if processes is None else processes,
  )
  whole = shards.begin(overwrite, replace)
  # Otherwise a late process might find the shards of the others complete, and
  # skip their exchanges in `token_store.make`.
  multiprocess.barrier()
  if whole:
    return
  encoder = make()
  tokens = token_store.make(
    workdir,
    passages,
    encoder.model.tokenizer,
    process=shards.process,
    processes=shards.processes,
  )
  widths = encoder.widths(tokens.histogram(), shapes)
  if encoder.compiles:
    logging.info(
      "%s: encoding in widths of %s tokens; the first batch of each width takes"
      " longer, while it is compiled",
      label,
      ", ".join(map(str, widths)),
    )
  earlier = vector_reuse.Earlier(stage)
  started, done, written, reused = time.monotonic(), 0, 0, 0
  everything = range(len(passages))
  mine = {
    number: everything[number * rows_per_shard : (number + 1) * rows_per_shard]
    for number in shards.mine
  }
  with progress.Progress(
    sum(map(len, mine.values())), label, "passages"
  ) as bar:
    for number, some in mine.items():
      rows = np.arange(some.start, some.stop)
      if shards.find(number) is not None:
        bar.update(len(rows))
        continue
      work = tiled_encoder.Work()
      lengths = tokens.lengths(some.start, some.stop)
      digests = vector_reuse.row_digests(
        encoder.tiles(lengths, widths),
        tokens,
        some.start,
        encoder.independent,
      )
      before = earlier.find(digests)
      vectors = _encode_rows(
        encoder, tokens, rows, bar, widths, stage, work, before < 0
      )
      known = before >= 0
      if known.any():
        vectors[known] = earlier.take(before[known])
        bar.update(int(known.sum()))
      _write_shard(shards, number, rows, passages, vectors, digests, work)
      done += int((~known).sum())
      reused += int(known.sum())
      written += 1
  seconds = max(time.monotonic() - started, 1e-9)
  _finish(shards, encoder, len(passages), done, seconds, widths)
  if reused:
    logging.info(
      "%s: %d passages have the vectors of the earlier corpus", label, reused
    )
  logging.info(
    "%s: wrote %d of %d shards: %d passages in %.0f s, %.1f passages/s, %.1f %%"
    " of the tokens were padding",
    label,
    written,
    shards.count,
    done,
    seconds,
    done / seconds,
    100 * encoder.work.padding,
  )


def _encode_rows(
  encoder: tiled_encoder.TiledEncoder,
  tokens: token_store.TokenStore,
  rows: np.ndarray,
  bar: progress.Progress,
  widths: tuple[int, ...],
  stage: workdir_lib.Stage,
  work: tiled_encoder.Work,
  wanted: np.ndarray,
) -> np.ndarray:
  """Vectors of the wanted rows of a shard, in their places, as stored."""
  dtype = stage.config["dtype"]
  lengths = tokens.lengths(int(rows[0]), int(rows[-1]) + 1)
  vectors = np.empty((len(rows), encoder.dim), vector_shards.storage(dtype))
  before = (encoder.work.tokens, encoder.work.padded_tokens)
  for some, result in encoder.stream(
    dual_encoder.PASSAGE, tokens, lengths, widths, int(rows[0]), wanted
  ):
    if not np.isfinite(result).all():
      raise errors.InputError(
        f"the vector of passage row {rows[some[0]]} or of another of the"
        f" {len(some)} rows encoded with it is not finite (NaN or infinite):"
        " the model is broken; train again"
      )
    vectors[some] = result
    if dtype == "float16" and not np.isfinite(vectors[some]).all():
      raise errors.InputError(
        f"config.embed.dtype=float16 has no number above 65504, which passage"
        f" row {rows[some[0]]} or another of the {len(some)} rows encoded with"
        " it needs: use bfloat16 or float32"
      )
    bar.update(len(some))
  work.tokens = encoder.work.tokens - before[0]
  work.padded_tokens = encoder.work.padded_tokens - before[1]
  return vectors


def _write_shard(
  shards: sharded_output.Parts,
  number: int,
  rows: np.ndarray,
  passages: datasets.PassageTable,
  vectors: np.ndarray,
  digests: np.ndarray,
  work: tiled_encoder.Work,
) -> None:
  """Writes the three files of a shard, renamed into place, then its record."""
  folder, names = shards.stage.folder, vector_shards.names(number)
  names = (*names, vector_shards.digests_name(number))
  ids = np.array([i.encode() for i in passages.ids(rows)])
  arrays = (vector_shards.as_stored(vectors), ids, digests)
  files = {
    name: sharded_output.write_array(folder / name, array)
    for name, array in zip(names, arrays, strict=True)
  }
  shards.finish(
    number, files, tokens=work.tokens, padded_tokens=work.padded_tokens
  )


def _finish(
  shards: sharded_output.Parts,
  encoder: tiled_encoder.TiledEncoder,
  count: int,
  done: int,
  seconds: float,
  widths: tuple[int, ...],
) -> None:
  """Waits for the shards of all processes and writes the manifest."""
  records = shards.collect()
  if records is None:
    return
  per_shard = shards.stage.config["rows_per_shard"]
  listed = [
    vector_shards.entry(
      number, first, min(per_shard, count - first), records[number]["files"]
    )
    for number, first in enumerate(range(0, count, per_shard))
  ]
  work = tiled_encoder.Work(
    *(
      sum(record[name] for record in records)
      for name in ("tokens", "padded_tokens")
    )
  )
  shards.close(
    records,
    {"passages": count, "encoded_in_this_run": done},
    encoder=encoder.backend,
    model=encoder.model.fingerprint,
    model_settings=encoder.model.settings,
    step=encoder.model.step,
    dim=encoder.dim,
    dtype=shards.stage.config["dtype"],
    count=count,
    shards=listed,
    widths=widths,
    padding_share=round(work.padding, 4),
    passages_per_second=round(done / seconds, 2),
  )
