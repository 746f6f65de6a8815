"""Every setting there is, with its default: `configs/*.py` start from here.

A config file defines `get_config(variant)` that takes `base_config()`, changes
what it needs and returns it.  Keys are locked: a misspelt key or override is an
error, not a new key.  Only stage functions read a config; everything below
them takes plain arguments.
"""

import copy
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from dpr_jax import errors, workdir

FILE = "config.json"  # in a workdir
# Settings that name a file or a folder, or one of the words below.
PATHS = (
  *("data.passages", "data.train", "data.dev", "model.checkpoint"),
  *("train.negatives_from", "reader.checkpoint", "reader.train", "reader.dev"),
  "read.reader",
)
_WORDS = ("", "sample", "none", "starter", "random", "results")


def base_config() -> ml_collections.ConfigDict:
  """The defaults: DPR as in the paper where the paper says it."""
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.data = data = ml_collections.ConfigDict()
  data.passages = ""  # psgs_w100.tsv[.gz]; "sample" = the embedded sample
  data.train = ""  # DPR JSON, JSONL [.gz]; "none" = nothing to train on
  data.dev = ""  # DPR JSON, JSONL [.gz] or *.qa.csv
  data.max_passages = 0  # 0 = all; gold passages of kept questions come first
  data.max_train = 0  # 0 = all, else the first so many questions
  data.max_dev = 0

  config.model = model = ml_collections.ConfigDict()
  model.checkpoint = "starter"  # "starter", "random", "hf:NAME" or a folder
  model.random_layers = 2  # sizes of checkpoint="random"
  model.random_width = 128
  model.random_heads = 2
  model.pooling = "cls"  # "cls" (paper) or "mean"
  model.normalize = False  # unit vectors: cosine instead of dot product
  model.temperature = 1.0  # scores are divided by it in the loss
  model.shared_towers = False  # one encoder for questions and passages
  model.title = "pair"  # "pair" (DPR), "joined" (`title text`) or "none"
  model.question_prefix = ""  # for encoders trained with "query: "
  model.passage_prefix = ""
  model.question_length = 32  # tokens
  model.passage_length = 256  # tokens
  model.dropout = -1.0  # negative: what the checkpoint's config says
  model.compute_dtype = "auto"  # bfloat16 on TPU, float32 elsewhere
  model.attention = "plain"  # "fused": a TPU kernel, not yet run on one

  config.train = train = ml_collections.ConfigDict()
  train.batch_size = 128  # questions in the global batch
  train.epochs = 40.0
  train.max_steps = 0  # 0 = what `epochs` gives
  train.hard_negatives = 1  # per question, from `train.negatives`
  train.hard_negatives_from_top = 1  # each drawn from the best n mined ones
  # "bm25" (mined), "model" (mined with the trained towers), "given" (in the
  # data), "random", or a mixture with counts: "bm25:1,random:1"
  train.negatives = "bm25"
  train.negatives_from = ""  # another workdir of this data; "" = our own
  train.mask_answers = False  # passages with an answer are no negatives
  train.learning_rate = 2e-5
  train.warmup_steps = 1237
  train.scale_rule = "none"  # "linear", "sqrt": rate and warm-up with the batch
  train.scale_reference = 128  # batch size that the two above are meant for
  train.dpr_compat_workers = 0  # W > 0: gradient / W before clipping, as DPR's
  train.weight_decay = 0.0
  train.clip_norm = 2.0
  train.adam_b1 = 0.9
  train.adam_b2 = 0.999
  train.adam_epsilon = 1e-8
  train.passage_length = 0  # tokens; 0 = as `model.passage_length`
  train.length_groups = 1  # groups by length, each padded to its own length
  train.chunk_size = 0  # texts encoded at once per core; 0 = a whole group
  train.question_chunk_size = 0  # of questions, which are short; 0 = the same
  train.gradient_cache = False  # forget a chunk's activations, encode it twice
  # "scanned": one program for all layers, "unrolled": one for each; "auto" is
  # scanned on a TPU, where it compiles in a fraction of the time
  train.layers = "auto"
  train.shard_optimizer = False  # Adam's moments cut over the cores
  train.reduce_dtype = "float32"  # of gradients between cores; "bfloat16"
  # "inner": the backward pass computes a third of a layer again, "layer": all
  train.remat = "none"
  train.loss = "gathered"  # "tiled", "ring": never holds a whole score row
  train.loss_tile = 0  # passages scored at once; 0 = those of one core
  train.accumulate_steps = 1  # only 1: see train.gradient_cache
  train.rounds = 1  # of train, embed, mine from the model, train
  # Several processes: seconds after which a step that does not end ends all;
  # 0 = ten times the longest so far, at least 30
  train.step_timeout = 0.0
  train.log_every = 10  # steps
  train.profile_steps = ()  # (first, last): trace in training/profile
  train.dev_every = 0  # steps; 0 = at the end of training alone
  train.dev_questions = 256  # of the dev set, for dev loss and average rank
  train.dev_hard_negatives = 30  # per dev question in the pool (paper: 30)
  train.dev_other_negatives = 30
  train.dev_topk_passages = 0  # > 0: top-k over a sub-corpus of so many
  train.checkpoint_every = 1000  # steps
  train.keep_checkpoints = 2  # the newest, and the best one
  train.best_metric = ""  # of the dev rows, "dev_average_rank"; "" = the last
  train.average_checkpoints = 1  # > 1: the mean of the last so many is used

  config.bm25 = bm25 = ml_collections.ConfigDict()
  bm25.k1 = 0.9
  bm25.b = 0.4
  bm25.stemmer = "english"  # a Snowball name, "" for none
  bm25.stopwords = "en"  # a bm25s list, "" for none

  config.mine = mine = ml_collections.ConfigDict()
  mine.depth = 100  # ranks searched for hard negatives
  mine.keep = 30  # hard negatives kept per question

  config.embed = embed = ml_collections.ConfigDict()
  embed.rows_per_shard = 50_000
  embed.dtype = "float32"  # of the vectors on disk; or "float16", "bfloat16"
  embed.shapes = 12  # widths that a corpus's passages are padded to, at most
  embed.tokens_per_core = 0  # encoded at once on a core; 0 = as fits the device
  embed.length_step = 32  # questions etc. are padded to a multiple of it

  config.index = index = ml_collections.ConfigDict()
  index.factory = "Flat"  # a FAISS factory string, or "dpr" (the paper's HNSW)
  index.threads = 0  # that build and search use; 0 = all
  index.train_sample = 262_144  # vectors that quantisers learn from, at most
  index.ef_construction = 200  # HNSW, while building
  index.ef_search = 0  # HNSW, while searching; 0 = as the index's manifest says
  index.nprobe = 0  # IVF: lists searched; 0 = as the manifest says
  index.refine_factor = 0.0  # Refine: hits looked at per hit; 0 = the same
  index.rescore = True  # hits of a compressed index by their own vectors
  index.mmap = True  # vectors stay in the file, where FAISS can
  index.shards = 1  # index files, each of a range of rows
  index.memory_gb = 0.0  # that a build may take; 0 = what is free
  index.allow_too_large = False  # build what is predicted not to fit
  index.recall_questions = 500  # dev questions; recall and speed; 0 = none
  index.recall_target = 0.98  # recall@20 that `index --tune` looks for

  config.retrieve = retrieve = ml_collections.ConfigDict()
  # "dense-start": towers untrained; "exact": on the cores, without an index;
  # "hybrid": bm25 and dense together, see `fusion`
  retrieve.methods = ("bm25", "dense")
  retrieve.depth = 100  # passages per question
  retrieve.pyserini = False  # also in Pyserini's format

  config.exact = exact = ml_collections.ConfigDict()
  exact.storage = "float32"  # "bfloat16": half of it, hits scored again
  exact.approximate = False  # lax.approx_max_k: on a TPU
  exact.recall_target = 0.95  # of approximate
  exact.core_gb = 4.0  # of each core's memory, for vectors; more are streamed

  config.fusion = fusion = ml_collections.ConfigDict()
  fusion.method = "linear"  # paper; "minmax" (Pyserini), "reciprocal" (ranks)
  fusion.weight = 1.1  # of dense; negative: as `retrieve --tune` stored it
  fusion.depth = 2000  # hits of each that are joined
  fusion.rank_constant = 60  # of "reciprocal"

  config.reader = reader = ml_collections.ConfigDict()
  # What it learns from: "" = there is no reader; "results" = what
  # `reader.method` retrieves for the training questions; or a file, in SQuAD's
  # format or DPR's results format
  reader.train = ""
  reader.dev = ""  # "" = the dev set's results; or a file, as `reader.train`
  reader.method = "dense"  # whose results are "results"
  # "" = as `model.checkpoint`; also a DPRReader, a BertForQuestionAnswering, or
  # a workdir with a reader to go on from
  reader.checkpoint = ""
  # "dpr", "dpr-hf" (token types all 0), "squad" (no title); "auto" = as the
  # checkpoint was made, "dpr" for a BERT
  reader.layout = "auto"
  reader.length = 350  # tokens of question, title and passage
  reader.question_length = 64  # tokens of the question at most
  reader.overlap = 64  # tokens shared by two windows of a long passage
  reader.from_top = 200  # negatives are drawn from so many retrieved passages
  reader.passages = 24  # per question: a positive and negatives
  reader.spans = 10  # places of the answer in a passage, at most
  reader.batch_size = 16  # questions in the global batch
  reader.epochs = 10.0
  reader.max_steps = 0  # 0 = what `epochs` gives
  reader.learning_rate = 1e-5
  reader.warmup_steps = 0
  reader.weight_decay = 0.0
  reader.clip_norm = 2.0
  reader.dropout = -1.0  # negative: what the checkpoint's config says
  reader.chunk_size = 0  # inputs read at once per core; 0 = a whole group
  reader.remat = "none"  # as `train.remat`
  reader.length_groups = 1  # groups by length, each padded to its own length
  reader.length_step = 0  # padded to a multiple of it; 0 = to `reader.length`
  reader.sort_batches = 1  # questions of so many batches are sorted by length
  reader.log_every = 10  # steps
  reader.profile_steps = ()  # as `train.profile_steps`
  reader.dev_every = 0  # steps; 0 = at the end of training alone
  reader.dev_questions = 500  # for dev_em and dev_f1; 0 = no such figures
  reader.dev_passages = 20  # retrieved passages read per dev question
  reader.checkpoint_every = 1000  # steps
  reader.keep_checkpoints = 2  # the newest, and the best one
  reader.best_metric = "dev_em"  # or "dev_f1"; "" = the last checkpoint

  config.read = read_ = ml_collections.ConfigDict()
  read_.reader = ""  # "" = the trained one; or a folder, as `reader.checkpoint`
  read_.methods = ("dense",)  # whose results are read; the first one's count
  read_.passages = (1, 10, 20, 50)  # read per question; the largest counts
  read_.span_tokens = 10  # of an answer at most, before it is widened to words
  # Of the retriever's score; negative: as `read --tune` stored it
  read_.retriever_weight = 0.0
  read_.tokens_per_core = 0  # read at once; 0 = as `embed.tokens_per_core`
  read_.length_step = 32  # inputs are padded to a multiple of it
  read_.rerank_depth = 50  # passages that `retrieve --rerank=reader` reorders

  config.evaluate = evaluate = ml_collections.ConfigDict()
  evaluate.match = "string"  # "string", or "regex": patterns
  evaluate.ranks = (1, 5, 20, 100)

  config.plan = plan = ml_collections.ConfigDict()  # what `plan` reckons with
  plan.train_questions = 58_880  # NaturalQuestions as DPR trains on it
  plan.passages = 21_015_324  # Wikipedia in blocks of 100 words

  return config.lock()


def read(path: str | os.PathLike) -> ml_collections.ConfigDict:
  """The config that a stage left in a workdir as `config.json`.

  Raises:
    InputError: no such file, or keys that this version does not know.
  """
  config = base_config()
  try:
    values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    config.update(
      {
        name: {
          key: tuple(value) if isinstance(value, list) else value
          for key, value in section.items()
        }
        if isinstance(section, dict)
        else section
        for name, section in values.items()
      }
    )
  except OSError as error:
    raise errors.InputError(
      f"cannot read {path}: {error.strerror}; is it a workdir of dpr-jax?"
    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f"{path} is not a config of this version: {error}"
    ) from error
  return config


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as nested dicts, lists and scalars, as manifests hold it."""
  return {
    key: plain(value)
    if isinstance(value, ml_collections.ConfigDict)
    else list(value)
    if isinstance(value, tuple)
    else value
    for key, value in config.items()
  }


def sections(config: ml_collections.ConfigDict, *names: str) -> dict[str, Any]:
  """Some sections as plain data: what a stage's output depends on."""
  everything = plain(config)
  return {name: everything[name] for name in names}


def with_full_paths(config: ml_collections.ConfigDict) -> Any:
  """A copy in which every path that exists is absolute, and `~` is a home.

  What does not exist stays as it is: the error message then names what the
  user has typed.
  """
  config = copy.deepcopy(config)
  for key in PATHS:
    section, _, name = key.partition(".")
    value = config[section][name]
    if _is_path(value):
      path = workdir.user_path(value)
      config[section][name] = str(path.absolute() if path.exists() else path)
  return config


def as_recorded(
  settings: dict[str, Any], manifest: str | os.PathLike
) -> dict[str, Any]:
  """Settings with every path spelt as a manifest spells it, if it is the same.

  A path was once recorded as it was typed.  That it is absolute now, or typed
  in another folder, does not make a stage's output another one: what is read
  there is compared by its content.

  Args:
    settings: sections of a config, and single settings; plain data.
    manifest: has the same under "config"; need not exist.
  """
  if not pathlib.Path(manifest).exists():
    return settings
  try:
    recorded = workdir.read_record(manifest).get("config", {})
  except errors.InputError:  # said by whoever needs it
    return settings
  return _as_recorded(settings, recorded)


def _as_recorded(settings: dict[str, Any], recorded: Any) -> dict[str, Any]:
  if not isinstance(recorded, Mapping):
    return settings
  names = {key.partition(".")[2] for key in PATHS}
  found = {}
  for name, value in settings.items():
    old = recorded.get(name)
    if isinstance(value, dict):
      value = _as_recorded(value, old)
    elif name in names and same_path(value, old):
      value = old
    found[name] = value
  return found


def same_path(one: Any, other: Any) -> bool:
  """True where two settings name one file, one of them perhaps from a folder.

  A relative path is taken for the end of an absolute one, as it is not known in
  which folder it was typed.
  """
  if one == other:
    return True
  if not (_is_path(one) and _is_path(other)):
    return False
  paths = [
    pathlib.PurePath(os.path.normpath(os.path.expanduser(each)))
    for each in (one, other)
  ]
  relative, absolute = sorted(paths, key=lambda path: path.is_absolute())
  if relative.is_absolute() or not absolute.is_absolute():
    return paths[0] == paths[1]
  end = tuple(part for part in relative.parts if part != "..")
  return bool(end) and absolute.parts[-len(end) :] == end


def _is_path(value: Any) -> bool:
  return (
    isinstance(value, str)
    and value not in _WORDS
    and not value.startswith("hf:")
  )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
  """Returns `value`; `InputError` that lists what `name` may be."""
  if value not in allowed:
    raise errors.InputError(
      f"config.{name}={value!r}: must be one of {', '.join(allowed)}"
    )
  return value


def at_least(name: str, value: float | int, least: float | int) -> float | int:
  """Returns `value`; `InputError` where it is below `least`."""
  if value < least:
    raise errors.InputError(f"config.{name}={value}: must be >= {least}")
  return value
