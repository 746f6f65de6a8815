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

from dpr_jax import (
  command_flags,
  configuration,
  errors,
  interrupts,
  parallel,
  processes,
  version,
)
from dpr_jax import workdir as workdir_lib

_WIDE = "xla_cpu_prefer_vector_width"
STAGES = (
  *("prepare", "mine", "train", "embed", "index", "retrieve"),
  *("train-reader", "read", "evaluate"),
)
READING = ("train-reader", "read")  # `run` does them if config.reader.train
# Several processes do these together; of other stages, the first alone.
TOGETHER = ("train", "embed", "train-reader")
BENCHES = ("train", "encode", "batch", "search", "reader")
USAGE = f"""usage: dpr-jax STAGE --config=configs/X.py[:variant] --workdir=DIR
       [--config.section.key=value ...] [--cpu_devices=N] [--overwrite]

STAGE is one of
  {"  ".join(STAGES)}
  run       all of them in order; what is done and unchanged is skipped
  demo      the whole flow on the embedded sample
  plan      compiles for a TPU without one: does it fit, how fast at best?
  ask       answers the questions behind it from a finished workdir, or one per
            line of standard input; --json for programs
  export    the trained towers, or with --what=embeddings the vectors, into
            --out=DIR as --format=hf, sentence-transformers, dpr, tevatron,
            contriever or npy; with --what=reader the reader, as dpr-reader or
            question-answering
  import    with --what=embeddings: vectors in one of those formats, --from=FILE
            or DIR, into --out=DIR as `embed` leaves them
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
  print(command_flags.help_text())


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
  others = ("run", "demo", "ask", "export", "import", "plan", "bench")
  if stage not in (*STAGES, *others):
    known = ", ".join((*STAGES, *others))
    _fail(f"unknown stage {stage!r}: one of {known}")
  interrupts.listen()
  try:
    command_flags.check(" ".join(arguments[1:]) if stage == "bench" else stage)
    cores = command_flags.CPU_DEVICES.value or (8 if stage == "demo" else 0)
    _set_up_cores(cores, stage)
    if stage == "demo":
      _demo()
    elif stage == "bench":
      _bench(arguments[2])
    elif stage == "ask":
      _ask(arguments[2:])
    elif stage == "plan":
      _plan()
    elif stage == "export":
      _export()
    elif stage == "import":
      _import()
    elif stage == "index" and command_flags.PLAN.value:
      _plan_index()
    else:
      with _experiment() as (config, workdir):
        _stages(stage, config, workdir)
    processes.finish()
  except errors.InputError as error:
    processes.fail(2, str(error))
    _fail(error)
  except FloatingPointError as error:
    processes.fail(1, str(error))
    print(f"dpr-jax: {error}", file=sys.stderr)
    sys.exit(1)
  except interrupts.Interrupted as interrupted:
    processes.fail(interrupted.exit_code, str(interrupted))
    print(f"dpr-jax: {interrupted}", file=sys.stderr)
    sys.exit(interrupted.exit_code)
  except Exception as error:
    processes.fail_of(error)
    raise


def _set_up_cores(cpu_devices: int, stage: str) -> None:
  """Emulated cores, and the other processes; before JAX is used."""
  import jax

  if cpu_devices < 0:
    raise errors.InputError(f"--cpu_devices={cpu_devices}: must be positive")
  if cpu_devices:
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if _WIDE not in xla_flags:  # 5 to 8 % faster steps where there is AVX-512
      os.environ["XLA_FLAGS"] = f"{xla_flags} --{_WIDE}=512".strip()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", cpu_devices)
  if stage == "plan":
    jax.config.update("jax_platforms", "cpu")
    return
  os.environ["LIBTPU_INIT_ARGS"] = parallel.libtpu_arguments()
  processes.start(command_flags.POD.value)
  if processes.count() > 1 and stage in ("demo", "bench"):
    raise errors.InputError(f"{stage} is for one process")


def _experiment():
  """The config and the workdir that the flags name, as `_open` gives them."""
  config = _config()
  if not command_flags.WORKDIR.value:
    raise errors.InputError("--workdir is missing: --workdir=DIR")
  return _open(config, command_flags.WORKDIR.value)


def _config() -> ml_collections.ConfigDict:
  """The config that the flags name, all of its keys known."""
  if command_flags.CONFIG.value is None:
    raise errors.InputError("--config is missing: --config=configs/X.py")
  try:
    command_flags.CONFIG.value.items()
  except OSError as error:  # a file that cannot be loaded shows only now
    raise errors.InputError(f"--config: {error}") from error
  return _known(command_flags.CONFIG.value)


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
  if not processes.is_first():  # the first holds the lock for all
    processes.barrier()
    yield config, workdir
    return
  with workdir_lib.locked(workdir):
    try:
      workdir_lib.write_json(
        workdir.root / "config.json", configuration.plain(config)
      )
    except OSError as error:
      raise errors.InputError(
        f"--workdir={folder} cannot be written: {error.strerror}"
      ) from error
    processes.barrier()
    yield config, workdir


def _stages(
  stage: str,
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
) -> None:
  functions = _functions(config, workdir, stage)
  wanted = STAGES if stage == "run" else (stage,)
  if stage == "run" and not config.reader.train:
    wanted = tuple(name for name in wanted if name not in READING)
  for name in wanted:
    logging.info("== %s", name)
    if name in TOGETHER:
      functions[name]()
    else:
      processes.first_alone(functions[name])


def _functions(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, stage: str
) -> dict[str, Callable[[], object]]:
  """Every stage as a call without arguments."""
  from dpr_jax.data import prepare
  from dpr_jax.evaluation import ranking
  from dpr_jax.retrieval import (
    answering,
    embedding,
    faiss_index,
    mining,
    rankers,
    reranking,
    search,
  )
  from dpr_jax.training import train_reader, train_retriever

  again = {"overwrite": command_flags.OVERWRITE.value}

  def for_models(function: Callable, room: dict[str, str], **kwargs) -> None:
    models = rankers.models_of(config.retrieve.methods, room)
    for model in (
      [command_flags.MODEL.value] if command_flags.MODEL.value else models
    ):
      function(config, workdir, model=model, **again, **kwargs)

  def retrieve() -> None:
    search.retrieve(
      config,
      workdir,
      questions_file=command_flags.QUESTIONS.value,
      name=command_flags.NAME.value,
      methods=command_flags.METHOD.value,
      qrels=command_flags.QRELS.value if stage == "retrieve" else None,
      tune=command_flags.TUNE.value,
      **again,
    )
    if command_flags.RERANK.value:
      for method in command_flags.METHOD.value or config.retrieve.methods:
        reranking.rerank(
          config, workdir, name=command_flags.NAME.value, method=method, **again
        )

  return {
    "prepare": lambda: prepare.prepare(config, workdir, **again),
    "mine": lambda: mining.mine(
      config, workdir, ranker=command_flags.FROM.value or "bm25", **again
    ),
    "train": lambda: train_retriever.train(config, workdir, **again),
    "embed": lambda: for_models(embedding.embed, rankers.VECTORS),
    "index": lambda: for_models(
      faiss_index.index,
      rankers.INDEXES,
      shard=command_flags.SHARD.value,
      tune=command_flags.TUNE.value,
    ),
    "retrieve": retrieve,
    "train-reader": lambda: train_reader.train_reader(config, workdir, **again),
    "read": lambda: answering.read(
      config,
      workdir,
      name=command_flags.NAME.value,
      # In `run` they have been retrieved for.
      questions_file=command_flags.QUESTIONS.value if stage == "read" else None,
      methods=command_flags.METHOD.value,
      **again,
    ),
    "evaluate": lambda: ranking.evaluate(
      config,
      workdir,
      name=command_flags.NAME.value,
      match=command_flags.MATCH.value,
      qrels=command_flags.QRELS.value,
      compare=command_flags.COMPARE.value,
      **again,
    ),
  }


def _ask(questions: list[str]) -> None:
  """Answers questions from a finished workdir."""
  from dpr_jax.retrieval import asking

  if not command_flags.WORKDIR.value:
    raise errors.InputError("--workdir is missing: --workdir=DIR")
  as_json = command_flags.JSON.value is not None
  if as_json and command_flags.JSON.value != "-":
    raise errors.InputError(
      f"--json={command_flags.JSON.value}: ask prints: --json alone"
    )
  if command_flags.K.value < 1:
    raise errors.InputError(f"--k={command_flags.K.value}: must be at least 1")
  answerer = asking.Answerer.load(
    command_flags.WORKDIR.value,
    method=(command_flags.METHOD.value or [""])[0],
    k=command_flags.K.value,
  )
  for question in questions or sys.stdin:
    if question.strip():
      reply = answerer.ask(question.strip())
      print(reply.json() if as_json else reply.text(), flush=True)


def _bench(kind: str) -> None:
  """Measures; unlike a stage it leaves nothing in the workdir."""
  config = _config()
  if command_flags.REPEATS.value < 0:
    raise errors.InputError(
      f"--repeats={command_flags.REPEATS.value}: must be positive"
    )
  from dpr_jax.benchmarking import harness

  if command_flags.JSON.value:
    harness.check_writable(command_flags.JSON.value)
  common = {
    "repeats": command_flags.REPEATS.value,
    "json_file": command_flags.JSON.value,
  }
  if kind == "batch":
    from dpr_jax.benchmarking import batch

    batch.bench(
      config,
      cpu_devices=command_flags.CPU_DEVICES.value,
      batch_sizes=_integers("batch_sizes", command_flags.BATCH_SIZES.value),
      **common,
    )
    return
  if kind == "search":
    from dpr_jax.benchmarking import search

    search.bench(
      config,
      workdir_lib.Workdir(command_flags.WORKDIR.value)
      if command_flags.WORKDIR.value
      else None,
      vectors=command_flags.VECTORS.value,
      dim=command_flags.DIM.value,
      factories=[
        each for each in command_flags.FACTORIES.value.split(";") if each
      ],
      against=command_flags.AGAINST.value,
      cpu_devices=command_flags.CPU_DEVICES.value,
      **common,
    )
    return
  if not command_flags.WORKDIR.value:
    raise errors.InputError("--workdir is missing: --workdir=DIR")
  if kind == "encode":
    from dpr_jax.benchmarking import encode

    encode.bench(
      config,
      workdir_lib.Workdir(command_flags.WORKDIR.value),
      against=command_flags.AGAINST.value,
      **common,
    )
    return
  if kind == "reader":
    from dpr_jax.benchmarking import reader

    if command_flags.AGAINST.value not in (None, "transformers"):
      raise errors.InputError(
        f"--against={command_flags.AGAINST.value}: bench reader knows"
        " transformers alone"
      )
    reader.bench(
      config,
      workdir_lib.Workdir(command_flags.WORKDIR.value),
      json_file=command_flags.JSON.value,
    )
    return
  from dpr_jax.benchmarking import train

  train.bench(
    config,
    workdir_lib.Workdir(command_flags.WORKDIR.value),
    against=command_flags.AGAINST.value,
    separate=command_flags.SEPARATE.value,
    **common,
  )


def _plan() -> None:
  """Compiles for a topology; needs no workdir, no data and no TPU."""
  from dpr_jax.benchmarking import harness
  from dpr_jax.planning import chips, report, search, tpu_plan

  config = _config()
  if not command_flags.TOPOLOGY.value:
    raise errors.InputError("--topology is missing: --topology=v5e:16x16")
  topology = chips.Topology.parse(command_flags.TOPOLOGY.value)
  if command_flags.JSON.value:
    harness.check_writable(command_flags.JSON.value)
  options = {
    "quick": command_flags.QUICK.value,
    "say": lambda line: logging.info(line),
  }
  if command_flags.SEARCH.value:
    config = search.largest(config, topology, **options)
  found = tpu_plan.plan(
    config, topology, embed=command_flags.EMBED.value, **options
  )
  print(report.table(found))
  if command_flags.JSON.value:
    workdir_lib.write_json(command_flags.JSON.value, found)


def _out(name: str) -> pathlib.Path:
  if not command_flags.OUT.value:
    raise errors.InputError(f"{name} needs --out=DIR")
  return pathlib.Path(command_flags.OUT.value)


def _export() -> None:
  """The towers or the vectors of a workdir, for other libraries."""
  out = _out("export")
  with _experiment() as (config, workdir):
    if command_flags.WHAT.value == "embeddings":
      from dpr_jax.retrieval import vector_formats, vectors

      found = vectors.open_vectors(
        workdir.embeddings(command_flags.MODEL.value or "dense")
      )
      vector_formats.export(found, command_flags.FORMAT.value, out)
      return
    if command_flags.WHAT.value == "reader":
      from dpr_jax.models import readers

      readers.export(
        readers.trained(config, workdir), out, command_flags.FORMAT.value or ""
      )
      return
    from dpr_jax.models import export

    export.export(
      config,
      workdir,
      command_flags.FORMAT.value,
      out,
      command_flags.MODEL.value or "dense",
    )


def _import() -> None:
  """Vectors of other libraries."""
  out = _out("import")
  if command_flags.WHAT.value != "embeddings":
    raise errors.InputError(
      "import: --what=embeddings is all that can be imported; checkpoints are"
      " loaded as they are: --config.model.checkpoint=DIR"
    )
  if not command_flags.FROM.value:
    raise errors.InputError("import needs --from=FILE or --from=DIR")
  from dpr_jax.retrieval import vector_formats

  vector_formats.import_(pathlib.Path(command_flags.FROM.value), out)


def _plan_index() -> None:
  """Prints what an index would take; reads the workdir at most."""
  from dpr_jax.retrieval import faiss_index_plan

  config, count, dim = (
    _config(),
    command_flags.VECTORS.value,
    command_flags.DIM.value,
  )
  if not count:
    if not command_flags.WORKDIR.value:
      raise errors.InputError("--plan needs --vectors=N, or a --workdir")
    folder = workdir_lib.Workdir(command_flags.WORKDIR.value).embeddings(
      command_flags.MODEL.value or "dense"
    )
    manifest = workdir_lib.read_manifest(folder, "embed")
    count, dim = manifest["count"], manifest["dim"]
  faiss_index_plan.print_plan(config, count, dim)


def _integers(flag: str, values: Sequence[str]) -> list[int]:
  """The numbers of a flag; `InputError` that names it where there are none."""
  if not values or not all(v.isascii() and v.isdigit() for v in values):
    raise errors.InputError(
      f"--{flag}={','.join(values)}: must be numbers, as in 128,1024"
    )
  return [int(value) for value in values]


def _demo() -> None:
  """Trains, embeds, indexes, retrieves and compares on the sample."""
  config = command_flags.CONFIG.value
  if config is None:
    path = importlib_resources.files("dpr_jax.configs") / "demo.py"
    config = runpy.run_path(str(path))["get_config"]()
  folder = command_flags.WORKDIR.value or tempfile.mkdtemp(
    prefix="dpr-jax-demo-"
  )
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
