"""`dpr-jax STAGE --config=… --workdir=…`: flags in, one stage called.

Exit codes: 0 done; 2 bad input, config or flag, with one clear line on stderr;
1 anything unexpected; 130 / 143 interrupted (SIGINT / SIGTERM), after saving.
"""

import contextlib
import logging as py_logging
import os
import pathlib
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources as importlib_resources

# Before transformers is imported: it would advise to install PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from dpr_jax import configuration, errors, interrupts, version
from dpr_jax import workdir as workdir_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment: configs/X.py or configs/X.py:variant."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written.")
_CPU_DEVICES = flags.DEFINE_integer(
  "cpu_devices",
  int(os.environ.get("DPR_JAX_CPU_DEVICES", "0")),
  "Emulate so many cores on this machine's CPU; 0 = the devices there are.",
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Do the stage again even if nothing has changed."
)
_QUESTIONS = flags.DEFINE_string(
  "questions",
  None,
  "retrieve: a *.qa.csv or DPR JSON; default: the dev set. read: a file in"
  " SQuAD's format; default: what was retrieved.",
)
_NAME = flags.DEFINE_string("name", "dev", "Name of the question set.")
_METHOD = flags.DEFINE_list(
  "method",
  None,
  "retrieve, read, ask: bm25, dense, dense-start; default: the config's.",
)
_MODEL = flags.DEFINE_enum(
  "model",
  None,
  ["dense", "dense-start"],
  "embed, index: the trained towers, or those before training; default: what"
  " config.retrieve.methods asks for.",
)
_MATCH = flags.DEFINE_enum(
  "match", None, ["string", "regex"], "evaluate: how answers are looked for."
)
_FROM = flags.DEFINE_string(
  "from",
  None,
  'mine: "bm25", or "model" = the trained towers of this workdir with their'
  " index; default: bm25.",
)
_RERANK = flags.DEFINE_enum(
  "rerank",
  None,
  ["reader"],
  "retrieve: reorder the first config.read.rerank_depth passages by the"
  " reader's rank head, as another method.",
)
_FORMAT = flags.DEFINE_enum(
  "format",
  None,
  ["dpr-reader", "question-answering"],
  "export: the trained reader as a DPRReader or a BertForQuestionAnswering.",
)
_OUT = flags.DEFINE_string("out", None, "export: a new folder.")
_K = flags.DEFINE_integer("k", 20, "ask: passages to read per question.")
_AGAINST = flags.DEFINE_enum(
  "against",
  None,
  ["sentence-transformers", "transformers"],
  "bench train (sentence-transformers), bench reader (transformers): another"
  " library to compare with, needs dpr-jax[bench].",
)
_JSON = flags.DEFINE_string(
  "json", None, "bench: a file for the report. ask: --json alone prints JSON."
)
_REPEATS = flags.DEFINE_integer(
  "repeats", 0, "bench: rounds that count; 0 = what the bench is made for."
)
_SEPARATE = flags.DEFINE_bool(
  "separate", False, "bench train: two towers of ours, not a shared one."
)
_BATCH_SIZES = flags.DEFINE_list(
  "batch_sizes",
  ["128", "1024", "8192"],
  "bench batch: questions in the global batch, one size after the other.",
)

_WIDE = "xla_cpu_prefer_vector_width"
STAGES = (
  *("prepare", "mine", "train", "embed", "index", "retrieve"),
  *("train-reader", "read", "evaluate"),
)
READING = ("train-reader", "read")  # `run` does them if config.reader.train
BENCHES = ("train", "batch", "reader")
USAGE = f"""usage: dpr-jax STAGE --config=configs/X.py[:variant] --workdir=DIR
       [--config.section.key=value ...] [--cpu_devices=N] [--overwrite]

STAGE is one of
  {"  ".join(STAGES)}
  run       all of them in order; what is done and unchanged is skipped
  demo      the whole flow on the embedded sample
or "ask QUESTION ...": answers from a finished workdir; without a question,
   one per line of standard input; --json for programs
or "export --format=FORMAT --out=DIR": the workdir's reader for transformers
or "bench KIND": how fast, and in how much memory; KIND is one of
  {"  ".join(BENCHES)}
dpr-jax --help lists the flags."""


def main() -> None:
  """Console entry point."""
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  logging.get_absl_handler().setFormatter(_Formatter())
  logging.get_absl_handler().addFilter(_is_ours_or_a_warning)
  arguments = sys.argv
  if any(a in ("-h", "-help", "--help") for a in arguments[1:]):
    _help()
    return
  if len(arguments) > 1 and arguments[1] == "--version":
    print(version.__version__)
    return
  app.run(_run, argv=arguments, flags_parser=_parse)


def _is_ours_or_a_warning(record: py_logging.LogRecord) -> bool:
  """Libraries (Orbax, TFDS) are heard from WARNING on."""
  ours = str(pathlib.Path(__file__).parent)
  return record.levelno >= py_logging.WARNING or record.pathname.startswith(
    ours
  )


class _Formatter(logging.PythonFormatter):
  """`12:34:56 message`, with the level where it is not information."""

  def format(self, record):
    """One line, without source positions."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.created))
    level = "" if record.levelname == "INFO" else f"{record.levelname}: "
    return f"{clock} {level}{record.getMessage()}"


def _help() -> None:
  """Usage and our own flags; absl's would fill a screen and exit with 1."""
  print(USAGE, end="\n\n")
  for flag in (
    _CONFIG,
    _WORKDIR,
    _CPU_DEVICES,
    _OVERWRITE,
    _QUESTIONS,
    _NAME,
    _METHOD,
    _MODEL,
    _MATCH,
    _FROM,
    _RERANK,
    _FORMAT,
    _OUT,
    _K,
    _AGAINST,
    _JSON,
    _REPEATS,
    _SEPARATE,
    _BATCH_SIZES,
  ):
    print(f"  --{flag.name}\n      {flags.FLAGS[flag.name].help}")


def _fail(message: object) -> None:
  """One line on stderr, exit status 2."""
  print(f"dpr-jax: {' '.join(str(message).split())}", file=sys.stderr)
  sys.exit(2)


def _parse(arguments: Sequence[str]) -> list[str]:
  """Parses flags; anything wrong with them is the user's to mend."""
  if arguments[1:2] == ["ask"]:  # there --json needs no file
    arguments = ["--json=-" if a == "--json" else a for a in arguments]
  try:
    return flags.FLAGS(list(arguments))
  except flags.Error as error:
    # What a config file raises comes with a traceback: keep its two ends.
    before, traceback, after = str(error).partition("Traceback")
    last = after.strip().rpartition("\n")[2] if traceback else ""
    return _fail(before + last)
  except (KeyError, AttributeError, TypeError, ValueError) as error:
    return _fail(f"in --config or an override of it: {error}")
  except (OSError, ImportError, SyntaxError) as error:
    return _fail(f"--config: {error}")


def _run(arguments: list[str]) -> None:
  if arguments[1:2] == ["bench"]:
    if len(arguments) != 3 or arguments[2] not in BENCHES:
      _fail(f"bench needs one KIND: {', '.join(BENCHES)}")
  elif arguments[1:2] != ["ask"] and len(arguments) != 2:
    _fail(USAGE if len(arguments) < 2 else f"one STAGE only: {arguments[1:]}")
  stage = arguments[1]
  others = ("run", "demo", "ask", "export", "bench")
  if stage not in (*STAGES, *others):
    known = ", ".join((*STAGES, *others))
    _fail(f"unknown stage {stage!r}: one of {known}")
  interrupts.listen()
  try:
    _set_up_cores(_CPU_DEVICES.value or (8 if stage == "demo" else 0))
    if stage == "demo":
      _demo()
    elif stage == "bench":
      _bench(arguments[2])
    elif stage == "ask":
      _ask(arguments[2:])
    elif stage == "export":
      with _experiment() as (config, workdir):
        _export(config, workdir)
    else:
      with _experiment() as (config, workdir):
        _stages(stage, config, workdir)
  except errors.InputError as error:
    _fail(error)
  except FloatingPointError as error:
    print(f"dpr-jax: {error}", file=sys.stderr)
    sys.exit(1)
  except interrupts.Interrupted as interrupted:
    print(f"dpr-jax: {interrupted}", file=sys.stderr)
    sys.exit(interrupted.exit_code)


def _set_up_cores(cpu_devices: int) -> None:
  """Emulated cores; before JAX is used."""
  import jax

  if cpu_devices < 0:
    raise errors.InputError(f"--cpu_devices={cpu_devices}: must be positive")
  if cpu_devices:
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if _WIDE not in xla_flags:  # 5 to 8 % faster steps where there is AVX-512
      os.environ["XLA_FLAGS"] = f"{xla_flags} --{_WIDE}=512".strip()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", cpu_devices)
  if os.environ.get("DPR_JAX_COORDINATOR"):
    raise errors.InputError(
      "several processes (DPR_JAX_COORDINATOR is set) cannot work in one"
      " workdir yet: checkpoints, metrics and shards would be written twice;"
      " run dpr-jax as one process, with --cpu_devices=N for N cores"
    )


def _experiment():
  """The config and the workdir that the flags name, as `_open` gives them."""
  config = _config()
  if not _WORKDIR.value:
    raise errors.InputError("--workdir is missing: --workdir=DIR")
  return _open(config, _WORKDIR.value)


def _config() -> ml_collections.ConfigDict:
  """The config that the flags name, all of its keys known."""
  if _CONFIG.value is None:
    raise errors.InputError("--config is missing: --config=configs/X.py")
  try:
    _CONFIG.value.items()
  except OSError as error:  # a file that cannot be loaded shows only now
    raise errors.InputError(f"--config: {error}") from error
  return _known(_CONFIG.value)


def _known(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config; `InputError` where it holds keys of its own."""
  known = configuration.base_config()
  for section, values in configuration.plain(config).items():
    if section not in known or (
      isinstance(values, dict) and values.keys() - known[section].keys()
    ):
      raise errors.InputError(f"config.{section}: unknown or with unknown keys")
  return config


@contextlib.contextmanager
def _open(
  config: ml_collections.ConfigDict, folder: str
) -> Iterator[tuple[ml_collections.ConfigDict, workdir_lib.Workdir]]:
  """Config and workdir, locked for the block, the config saved there."""
  config = _known(config)
  workdir = workdir_lib.Workdir(folder)
  with workdir_lib.locked(workdir):
    try:
      workdir_lib.write_json(
        workdir.root / "config.json", configuration.plain(config)
      )
    except OSError as error:
      raise errors.InputError(
        f"--workdir={folder} cannot be written: {error.strerror}"
      ) from error
    yield config, workdir


def _stages(
  stage: str,
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
) -> None:
  if _FROM.value is not None and stage != "mine":
    raise errors.InputError(
      f"--from={_FROM.value}: only `dpr-jax mine` mines from something else"
    )
  if _RERANK.value is not None and stage != "retrieve":
    raise errors.InputError(
      f"--rerank={_RERANK.value}: only `dpr-jax retrieve` reranks, once there"
      " is a reader"
    )
  functions = _functions(config, workdir, stage)
  wanted = STAGES if stage == "run" else (stage,)
  if stage == "run" and not config.reader.train:
    wanted = tuple(name for name in wanted if name not in READING)
  for name in wanted:
    logging.info("== %s", name)
    functions[name]()


def _functions(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, stage: str
) -> dict[str, Callable[[], object]]:
  """Every stage as a call without arguments, for the command `stage`."""
  from dpr_jax.data import prepare
  from dpr_jax.evaluation import ranking
  from dpr_jax.retrieval import (
    answering,
    embedding,
    faiss_index,
    mining,
    reranking,
    search,
  )
  from dpr_jax.training import train_reader, train_retriever

  again = {"overwrite": _OVERWRITE.value}
  models = (
    [_MODEL.value]
    if _MODEL.value
    else [method for method in config.retrieve.methods if method != "bm25"]
  )

  def for_models(function: Callable) -> None:
    for model in models:
      function(config, workdir, model=model, **again)

  def retrieve() -> None:
    search.retrieve(
      config,
      workdir,
      questions_file=_QUESTIONS.value,
      name=_NAME.value,
      methods=_METHOD.value,
      **again,
    )
    if _RERANK.value:
      for method in _METHOD.value or config.retrieve.methods:
        reranking.rerank(
          config, workdir, name=_NAME.value, method=method, **again
        )

  return {
    "prepare": lambda: prepare.prepare(config, workdir, **again),
    "mine": lambda: mining.mine(
      config, workdir, ranker=_FROM.value or "bm25", **again
    ),
    "train": lambda: train_retriever.train(config, workdir, **again),
    "embed": lambda: for_models(embedding.embed),
    "index": lambda: for_models(faiss_index.index),
    "retrieve": retrieve,
    "train-reader": lambda: train_reader.train_reader(config, workdir, **again),
    "read": lambda: answering.read(
      config,
      workdir,
      name=_NAME.value,
      # In `run` they have been retrieved for.
      questions_file=_QUESTIONS.value if stage == "read" else None,
      methods=_METHOD.value,
      **again,
    ),
    "evaluate": lambda: ranking.evaluate(
      config, workdir, name=_NAME.value, match=_MATCH.value, **again
    ),
  }


def _ask(questions: list[str]) -> None:
  """Answers questions from a finished workdir."""
  from dpr_jax.retrieval import asking

  if not _WORKDIR.value:
    raise errors.InputError("--workdir is missing: --workdir=DIR")
  as_json = _JSON.value is not None
  if as_json and _JSON.value != "-":
    raise errors.InputError(f"--json={_JSON.value}: ask prints: --json alone")
  if _K.value < 1:
    raise errors.InputError(f"--k={_K.value}: must be at least 1")
  answerer = asking.Answerer.load(
    _WORKDIR.value, method=(_METHOD.value or [""])[0], k=_K.value
  )
  for question in questions or sys.stdin:
    if question.strip():
      reply = answerer.ask(question.strip())
      print(reply.json() if as_json else reply.text(), flush=True)


def _export(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
  """Writes the trained reader for transformers."""
  from dpr_jax.models import readers

  if not _FORMAT.value or not _OUT.value:
    raise errors.InputError("export needs --format=FORMAT and --out=DIR")
  readers.export(readers.trained(config, workdir), _OUT.value, _FORMAT.value)
  logging.info("export: %s", _OUT.value)


def _bench(kind: str) -> None:
  """Measures; unlike a stage it leaves nothing in the workdir."""
  config = _config()
  if _REPEATS.value < 0:
    raise errors.InputError(f"--repeats={_REPEATS.value}: must be positive")
  from dpr_jax.benchmarking import harness

  if _JSON.value:
    harness.check_writable(_JSON.value)
  common = {"repeats": _REPEATS.value, "json_file": _JSON.value}
  if kind == "batch":
    from dpr_jax.benchmarking import batch

    batch.bench(
      config,
      cpu_devices=_CPU_DEVICES.value,
      batch_sizes=_integers("batch_sizes", _BATCH_SIZES.value),
      **common,
    )
    return
  if not _WORKDIR.value:
    raise errors.InputError("--workdir is missing: --workdir=DIR")
  if kind == "reader":
    from dpr_jax.benchmarking import reader

    if _AGAINST.value not in (None, "transformers"):
      raise errors.InputError(
        f"--against={_AGAINST.value}: bench reader knows transformers alone"
      )
    reader.bench(
      config, workdir_lib.Workdir(_WORKDIR.value), json_file=_JSON.value
    )
    return
  from dpr_jax.benchmarking import train

  train.bench(
    config,
    workdir_lib.Workdir(_WORKDIR.value),
    against=_AGAINST.value,
    separate=_SEPARATE.value,
    **common,
  )


def _integers(flag: str, values: Sequence[str]) -> list[int]:
  """The numbers of a flag; `InputError` that names it where there are none."""
  if not values or not all(v.isascii() and v.isdigit() for v in values):
    raise errors.InputError(
      f"--{flag}={','.join(values)}: must be numbers, as in 128,1024"
    )
  return [int(value) for value in values]


def _demo() -> None:
  """Trains, embeds, indexes, retrieves and compares on the sample."""
  config = _CONFIG.value
  if config is None:
    path = importlib_resources.files("dpr_jax.configs") / "demo.py"
    config = runpy.run_path(str(path))["get_config"]()
  folder = _WORKDIR.value or tempfile.mkdtemp(prefix="dpr-jax-demo-")
  with _open(config, folder) as (config, workdir):
    _stages("run", config, workdir)
  from dpr_jax.retrieval import asking, search

  question = "Where was Einstein born?"
  hits = search.Retriever.load(workdir.root).search([question], k=3)[0]
  print(f"\n{question}")
  for rank, hit in enumerate(hits, start=1):
    print(f"  {rank}. {hit.score:8.4f}  {hit.title}: {hit.text}")
  if config.reader.train:
    reply = asking.Answerer.load(workdir.root, k=3).ask(question)
    print(f"\n{reply.text()}")
  print(f"\nEverything is in {pathlib.Path(folder).absolute()}")


if __name__ == "__main__":
  main()
