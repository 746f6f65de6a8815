"""The flags of `dpr-jax`, and which commands take which."""

import os
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from dpr_jax.core import errors

CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "The experiment: configs/X.py or configs/X.py:variant; default: what the"
  " workdir has in config.json.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written.")
CPU_DEVICES = flags.DEFINE_integer(
  "cpu_devices",
  int(os.environ.get("DPR_JAX_CPU_DEVICES", "0")),
  "Emulate so many cores on this machine's CPU; 0 = the devices there are.",
)
POD = flags.DEFINE_bool(
  "pod",
  False,
  "On every host of a TPU pod: the processes find each other and work as one.",
)
OVERWRITE = flags.DEFINE_list(
  "overwrite",
  [],
  "Do the stage again even if nothing has changed; in `run` and `demo`"
  " --overwrite=STAGE[,STAGE] names those to do again.",
)
QUESTIONS = flags.DEFINE_string(
  "questions",
  None,
  "retrieve: a *.qa.csv or DPR JSON; default: the dev set. read: a file in"
  " SQuAD's format; default: what was retrieved.",
)
NAME = flags.DEFINE_string("name", "dev", "Name of the question set.")
METHOD = flags.DEFINE_list(
  "method",
  None,
  "retrieve, read, ask: some of bm25, dense, dense-start, exact, hybrid;"
  " default: the config's.",
)
MODEL = flags.DEFINE_enum(
  "model",
  None,
  ["dense", "dense-start"],
  "embed, index: the trained towers, or those before training; default: what"
  " config.retrieve.methods asks for.",
)
MATCH = flags.DEFINE_enum(
  "match", None, ["string", "regex"], "evaluate: how answers are looked for."
)
QRELS = flags.DEFINE_string(
  "qrels",
  None,
  "evaluate: judgements in BEIR's or TREC's format, or \"gold\": the"
  " questions' own positives; adds nDCG, recall, MRR and MAP. retrieve: ask"
  " only the questions judged there.",
)
JUDGED = flags.DEFINE_enum(
  "judged",
  None,
  ["asked", "all"],
  "evaluate --qrels: measures over the judged questions that were asked (the"
  " default), or over all that are judged, with 0 for those not asked.",
)
COMPARE = flags.DEFINE_list(
  "compare",
  None,
  "evaluate: two methods; tests their difference, and lists the questions that"
  " one finds and the other misses.",
)
TUNE = flags.DEFINE_bool(
  "tune",
  False,
  "index: search as carefully as config.index.recall_target needs; retrieve:"
  " the weight of dense in hybrid, on the dev set; read: the weight of the"
  " retriever's score, on the questions read. Stored in the workdir.",
)
SHARD = flags.DEFINE_integer(
  "shard", None, "index: build this one of config.index.shards alone, from 0."
)
PLAN = flags.DEFINE_bool(
  "plan",
  False,
  "index: what it would take, and what to choose; builds nothing.",
)
VECTORS = flags.DEFINE_integer(
  "vectors",
  0,
  "index --plan: so many; default: those of the workdir. bench search: so many"
  " made-up ones, in clusters; default: the workdir's.",
)
DIM = flags.DEFINE_integer(
  "dim", 768, "index --plan, bench search: width of those vectors."
)
FROM = flags.DEFINE_string(
  "from",
  None,
  'mine: "bm25", or "model" = the trained towers of this workdir with their'
  " index; default: bm25. import: a file or folder.",
)
RERANK = flags.DEFINE_enum(
  "rerank",
  None,
  ["reader"],
  "retrieve: reorder the first config.read.rerank_depth passages by the"
  " reader's rank head (and config.read.retriever_weight), as another method.",
)
K = flags.DEFINE_integer("k", 20, "ask: passages to read per question.")
AGAINST = flags.DEFINE_enum(
  "against",
  None,
  [
    "sentence-transformers",
    "sentence-transformers-bfloat16",
    "bm25s",
    "bm25s-numba",
    "transformers",
  ],
  "A library to compare with; bench train, encode: sentence-transformers, which"
  " needs dpr-jax[bench] (in bfloat16 for encode alone); bench search: bm25s"
  " (-numba: compiled as well); bench reader: transformers.",
)
JSON = flags.DEFINE_string(
  "json",
  None,
  "bench, plan: a file for the report. ask, config: --json alone prints JSON.",
)
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "plan: chips and how they are laid out, as v5e:16x16."
)
SEARCH = flags.DEFINE_bool(
  "search",
  False,
  "plan: look for the largest batch that fits; with the gradient cache, for the"
  " largest chunk.",
)
EMBED = flags.DEFINE_bool(
  "embed", True, "plan: of the embed step too; --noembed: the train step alone."
)
QUICK = flags.DEFINE_bool(
  "quick",
  False,
  "plan: the compiler tries less hard; a fifth of the time, about the same"
  " memory.",
)
REPEATS = flags.DEFINE_integer(
  "repeats", 0, "bench: rounds that count; 0 = what the bench is made for."
)
SEPARATE = flags.DEFINE_bool(
  "separate", False, "bench train: two towers of ours, not a shared one."
)
FACTORIES = flags.DEFINE_string(
  "factories",
  "",
  'bench search: FAISS factory strings between semicolons, and "exact" for'
  " search on the cores; default: one of each kind.",
)
BATCH_SIZES = flags.DEFINE_list(
  "batch_sizes",
  ["128", "1024", "8192"],
  "bench batch: questions in the global batch, one size after the other.",
)

WHAT = flags.DEFINE_enum(
  "what",
  "model",
  ["model", "embeddings", "reader"],
  "export, import: the trained towers, vectors of passages, or the reader.",
)
FORMAT = flags.DEFINE_enum(
  "format",
  None,
  [
    *("hf", "sentence-transformers", "dpr", "tevatron", "contriever", "npy"),
    *("dpr-reader", "question-answering"),
  ],
  "export: hf or sentence-transformers for the towers, the last two for the"
  " reader (DPRReader, BertForQuestionAnswering), the others for embeddings.",
)
OUT = flags.DEFINE_string("out", None, "export, import: the folder to write.")

DEEP = flags.DEFINE_bool(
  "deep", False, "check: also reads every row, vector, id and index."
)

PRINT = flags.DEFINE_bool(
  "print", False, "config: all settings; it does so without this flag, too."
)
DIFF = flags.DEFINE_bool(
  "diff", False, "config: only what differs from the default."
)

BENCHES = ("train", "encode", "batch", "search", "reader")
_BENCHES = tuple(f"bench {kind}" for kind in BENCHES)
_BARE = "true"  # what `--overwrite` alone, once a boolean, stands for
# What is not named here every command takes, or has no use for.
_TAKEN_BY = {
  "against": tuple(name for name in _BENCHES if name != "bench batch"),
  "batch_sizes": ("bench batch",),
  "compare": ("evaluate",),
  "deep": ("check",),
  "diff": ("config",),
  "dim": ("index", "bench search"),
  "embed": ("plan",),
  "factories": ("bench search",),
  "format": ("export",),
  "from": ("mine", "import"),
  "json": ("ask", "config", "plan", *_BENCHES),
  "k": ("ask",),
  "judged": ("evaluate",),
  "match": ("evaluate", "run"),
  "method": ("retrieve", "read", "ask", "run"),
  "model": ("embed", "index", "export", "run"),
  "name": ("retrieve", "read", "evaluate", "run"),
  "out": ("export", "import"),
  "plan": ("index",),
  "print": ("config",),
  "qrels": ("retrieve", "evaluate"),
  "questions": ("retrieve", "read", "run"),
  "quick": ("plan",),
  "repeats": tuple(name for name in _BENCHES if name != "bench reader"),
  "rerank": ("retrieve",),
  "search": ("plan",),
  "separate": ("bench train",),
  "shard": ("index",),
  "topology": ("plan",),
  "tune": ("index", "retrieve", "read"),
  "vectors": ("index", "bench search"),
  "what": ("export", "import"),
}


def with_values(arguments: Sequence[str]) -> list[str]:
  """A command line where `--overwrite` alone has got its value."""
  bare = {"--overwrite": _BARE, "-overwrite": _BARE}
  bare |= {"--nooverwrite": "", "-nooverwrite": ""}
  return [
    f"--overwrite={bare[each]}" if each in bare else each for each in arguments
  ]


def overwrites(stage: str) -> bool:
  """True where a stage is to be done again."""
  named = _overwritten()
  return stage in named or named == [_BARE]


def _overwritten() -> list[str]:
  """Stages, or `_BARE` alone; `--overwrite=false` is as for a boolean."""
  return [each for each in OVERWRITE.value if each != "false"]


def _check_overwrite(command: str, stages: Sequence[str]) -> None:
  value = _overwritten()
  if command in ("run", "demo"):
    wrong = [each for each in value if each not in stages]
    if wrong:
      what = "" if value == [_BARE] else f"={','.join(value)}"
      raise errors.InputError(
        f"--overwrite{what}: {command} does again what is named, as in"
        f" --overwrite=train,embed: some of {', '.join(stages)}"
      )
  elif value not in ([], [_BARE], [command]):
    raise errors.InputError(
      f"--overwrite={','.join(value)}: {command} can do itself again alone:"
      " --overwrite"
    )


def check(command: str, stages: Sequence[str]) -> None:
  """Refuses flags that a command would not look at.

  Args:
    command: a stage, or "bench KIND".
    stages: those that `run` does, in order.

  Raises:
    InputError: such a flag stands on the command line.
  """
  _check_overwrite(command, stages)
  for name, commands in _TAKEN_BY.items():
    if flags.FLAGS[name].present and command not in commands:
      raise errors.InputError(f"--{name}: only for {_listed(commands)}")


def help_text(command: str = "") -> str:
  """Flags, which commands take them, and what they say.

  Args:
    command: those of this one alone, "bench" for every kind of it.
  """
  own = flags.FLAGS.flags_by_module_dict()[__name__]
  lines = []
  for flag in sorted(own, key=lambda flag: flag.name):
    if flag.name in _TAKEN_BY:
      takers = _TAKEN_BY[flag.name]
      if command and not any(f"{t} ".startswith(f"{command} ") for t in takers):
        continue
      taken = f"  ({_listed(takers)})"
    else:
      taken = ""
    lines += [f"  --{flag.name}{taken}", f"      {flag.help}"]
  return "\n".join(lines)


def _listed(commands: tuple[str, ...]) -> str:
  *most, last = commands
  return f"{', '.join(most)} and {last}" if most else last
