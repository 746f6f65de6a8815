"""What `dpr-jax` does: every command as a function of the flags.

Rooms are imported by the command that needs them, so that a mistake in the
flags is answered at once.
"""

import contextlib
import pathlib
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources as importlib_resources

import ml_collections
from absl import logging

from dpr_jax.cli import experiment, settings_command
from dpr_jax.cli import flags as cli_flags
from dpr_jax.cli.settings_call import READING, STAGES
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, multiprocess
from dpr_jax.core import workdir as workdir_lib

# Several processes do these together; the others are led by the first, which
# asks for help where an index has shards or search is exact
# (`index.all_processes`).
TOGETHER = ("train", "embed", "train-reader")


def _stages(
  stage: str,
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
) -> None:
  from dpr_jax.index import all_processes

  tasks = all_processes.Helper(config, workdir).tasks
  wanted = STAGES if stage == "run" else (stage,)
  if stage == "run" and not config.reader.train:
    wanted = tuple(name for name in wanted if name not in READING)
  if stage == "run":
    _check_trainings(config, workdir)
  for name in wanted:
    logging.info("== %s", name)
    settled = experiment.settled(config, workdir, name)
    function = _functions(settled, workdir, stage)[name]
    with experiment.remembered(config, workdir):
      if name in TOGETHER:
        function()
      else:
        multiprocess.first_leads(function, tasks)


def _check_trainings(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
  """Before what a training has read is made again, with other settings."""
  from dpr_jax.training import retriever_inputs, train_reader

  if not cli_flags.overwrites("train"):
    multiprocess.first_alone(
      lambda: retriever_inputs.check_before(config, workdir)
    )
  if config.reader.train and not cli_flags.overwrites("train-reader"):
    multiprocess.first_alone(lambda: train_reader.check_before(config, workdir))


def _functions(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, stage: str
) -> dict[str, Callable[[], object]]:
  """Every stage as a call without arguments."""
  from dpr_jax.data import prepare
  from dpr_jax.embedding import embed
  from dpr_jax.evaluation import evaluate as evaluate_lib
  from dpr_jax.index import all_processes, faiss_stage
  from dpr_jax.reading import read as read_lib
  from dpr_jax.reading import rerank
  from dpr_jax.retrieval import mine, negative_refresh, retrievers
  from dpr_jax.retrieval import retrieve as retrieve_lib
  from dpr_jax.training import train_reader, train_retriever

  questions = experiment.path(cli_flags.QUESTIONS)

  def again(name: str) -> dict[str, bool]:
    return {"overwrite": cli_flags.overwrites(name)}

  def for_models(function: Callable, room: dict[str, str], **kwargs) -> None:
    models = retrievers.models_of(config.retrieve.methods, room)
    for model in [cli_flags.MODEL.value] if cli_flags.MODEL.value else models:
      function(config, workdir, model=model, **kwargs)

  def retrieve() -> None:
    retrieve_lib.retrieve(
      config,
      workdir,
      questions_file=questions,
      name=cli_flags.NAME.value,
      methods=cli_flags.METHOD.value,
      qrels=experiment.path(cli_flags.QRELS) if stage == "retrieve" else None,
      tune=cli_flags.TUNE.value,
      **again("retrieve"),
    )
    if cli_flags.RERANK.value:
      for method in cli_flags.METHOD.value or config.retrieve.methods:
        rerank.rerank(
          config,
          workdir,
          name=cli_flags.NAME.value,
          method=method,
          **again("retrieve"),
        )

  def retrieve_together(*arguments, **options) -> None:
    """`retrieve` where all processes call it, within a stage."""
    multiprocess.first_leads(
      lambda: retrieve_lib.retrieve(*arguments, **options),
      all_processes.Helper(config, workdir).tasks,
    )

  return {
    "prepare": lambda: prepare.prepare(config, workdir, **again("prepare")),
    "mine": lambda: mine.mine(
      config, workdir, ranker=cli_flags.FROM.value or "bm25", **again("mine")
    ),
    "train": lambda: train_retriever.train(
      config, workdir, refresh=negative_refresh.refresh, **again("train")
    ),
    "embed": lambda: for_models(
      embed.embed, retrievers.VECTORS, **again("embed")
    ),
    "index": lambda: for_models(
      faiss_stage.index,
      retrievers.INDEXES,
      **again("index"),
      shard=cli_flags.SHARD.value,
      tune=cli_flags.TUNE.value,
    ),
    "retrieve": retrieve,
    "train-reader": lambda: train_reader.train_reader(
      config, workdir, retrieve=retrieve_together, **again("train-reader")
    ),
    "read": lambda: read_lib.read(
      config,
      workdir,
      name=cli_flags.NAME.value,
      # In `run` they have been retrieved for.
      questions_file=questions if stage == "read" else None,
      methods=cli_flags.METHOD.value,
      tune=cli_flags.TUNE.value,
      **again("read"),
    ),
    "evaluate": lambda: evaluate_lib.evaluate(
      config,
      workdir,
      name=cli_flags.NAME.value,
      match=cli_flags.MATCH.value,
      qrels=experiment.path(cli_flags.QRELS),
      judged=cli_flags.JUDGED.value,
      compare=cli_flags.COMPARE.value,
      **again("evaluate"),
    ),
  }


def _ask(questions: list[str]) -> None:
  """Answers questions from a finished workdir."""
  from dpr_jax.reading import answerer as answerer_lib

  workdir, as_json = experiment.workdir(), cli_flags.JSON.value is not None
  if as_json and cli_flags.JSON.value != "-":
    raise errors.InputError(
      f"--json={cli_flags.JSON.value}: ask prints: --json alone"
    )
  if cli_flags.K.value < 1:
    raise errors.InputError(f"--k={cli_flags.K.value}: must be at least 1")
  config = None
  if cli_flags.CONFIG.value is not None:
    config = experiment.settled(experiment.config(), workdir, "ask")
  answerer = answerer_lib.Answerer.load(
    workdir.root,
    method=(cli_flags.METHOD.value or [""])[0],
    k=cli_flags.K.value,
    config=config,
  )
  for question in questions or sys.stdin:
    if question.strip():
      reply = answerer.ask(question.strip())
      print(reply.json() if as_json else reply.text(), flush=True)


def _bench(arguments: list[str]) -> None:
  """Measures; unlike a stage it leaves nothing in the workdir."""
  from dpr_jax.benchmarking import batch, encode, harness, reader, search, train

  kind, config = arguments[0], experiment.config()
  if cli_flags.WORKDIR.value:
    workdir = experiment.workdir()
    config = experiment.settled(config, workdir, f"bench {kind}")
  if cli_flags.REPEATS.value < 0:
    raise errors.InputError(
      f"--repeats={cli_flags.REPEATS.value}: must be positive"
    )
  against, json_file = cli_flags.AGAINST.value, experiment.path(cli_flags.JSON)
  if json_file:
    harness.check_writable(json_file)
  common = {"repeats": cli_flags.REPEATS.value, "json_file": json_file}
  if kind == "batch":
    batch.bench(
      config,
      cpu_devices=cli_flags.CPU_DEVICES.value,
      batch_sizes=_integers("batch_sizes", cli_flags.BATCH_SIZES.value),
      **common,
    )
  elif kind == "search":
    search.bench(
      config,
      experiment.workdir() if cli_flags.WORKDIR.value else None,
      vectors=cli_flags.VECTORS.value,
      dim=cli_flags.DIM.value,
      factories=[each for each in cli_flags.FACTORIES.value.split(";") if each],
      against=against,
      cpu_devices=cli_flags.CPU_DEVICES.value,
      **common,
    )
  elif kind == "encode":
    encode.bench(config, experiment.workdir(), against=against, **common)
  elif kind == "train":
    train.bench(
      config,
      experiment.workdir(),
      against=against,
      separate=cli_flags.SEPARATE.value,
      **common,
    )
  elif against not in (None, "transformers"):
    raise errors.InputError(
      f"--against={against}: bench reader knows transformers alone"
    )
  else:
    reader.bench(config, experiment.workdir(), json_file=json_file)


def _plan() -> None:
  """Compiles for a topology; needs no workdir, no data and no TPU."""
  from dpr_jax.benchmarking import harness
  from dpr_jax.planning import chips, largest_batch, report, tpu_plan

  config, json_file = experiment.config(), experiment.path(cli_flags.JSON)
  if not cli_flags.TOPOLOGY.value:
    raise errors.InputError("--topology is missing: --topology=v5e:16x16")
  topology = chips.Topology.parse(cli_flags.TOPOLOGY.value)
  if json_file:
    harness.check_writable(json_file)
  options = {
    "quick": cli_flags.QUICK.value,
    "say": lambda line: logging.info(line),
  }
  if cli_flags.SEARCH.value:
    config = largest_batch.largest(config, topology, **options)
  found = tpu_plan.plan(
    config, topology, embed=cli_flags.EMBED.value, **options
  )
  print(report.table(found))
  if json_file:
    workdir_lib.write_json(json_file, found)


def _out(name: str) -> pathlib.Path:
  if not cli_flags.OUT.value:
    raise errors.InputError(f"{name} needs --out=DIR")
  return workdir_lib.user_path(cli_flags.OUT.value)


def _export() -> None:
  """The towers or the vectors of a workdir, for other libraries."""
  out = _out("export")
  workdir = experiment.workdir()
  for name in workdir_lib.FOLDERS:
    workdir_lib.refuse_inside("--out", out, workdir.root / name)
  config = experiment.settled(experiment.config(), workdir, "export")
  with contextlib.ExitStack() as stack:
    # One that may only be read is not written by anybody meanwhile.
    with contextlib.suppress(errors.DiskError):
      stack.enter_context(experiment.opened(workdir))
    if cli_flags.WHAT.value == "embeddings":
      from dpr_jax.embedding import vector_formats, vector_shards

      found = vector_shards.open_vectors(
        workdir.embeddings(cli_flags.MODEL.value or "dense")
      )
      vector_formats.export(found, cli_flags.FORMAT.value, out)
      return
    if cli_flags.WHAT.value == "reader":
      from dpr_jax.models import reader_model

      reader_model.export(
        reader_model.trained(config, workdir), out, cli_flags.FORMAT.value or ""
      )
      return
    from dpr_jax.models import export

    export.export(
      config,
      workdir,
      cli_flags.FORMAT.value,
      out,
      cli_flags.MODEL.value or "dense",
    )


def _import() -> None:
  """Vectors of other libraries."""
  out = _out("import")
  if cli_flags.WHAT.value != "embeddings":
    raise errors.InputError(
      "import: --what=embeddings is all that can be imported; checkpoints are"
      " loaded as they are: --config.model.checkpoint=DIR"
    )
  if not cli_flags.FROM.value:
    raise errors.InputError("import needs --from=FILE or --from=DIR")
  from dpr_jax.embedding import vector_formats

  vector_formats.import_(workdir_lib.user_path(cli_flags.FROM.value), out)


def _check() -> None:
  """Prints a line for every artefact; not all in order is exit status 2."""
  from dpr_jax.cli import workdir_check

  workdir, wrong = experiment.workdir(), 0
  for finding in workdir_check.check(workdir, deep=cli_flags.DEEP.value):
    print(finding, flush=True)
    wrong += finding.state != workdir_check.OK
  if wrong:
    raise errors.InputError(
      f"--workdir={workdir.root}: {wrong} of the above are not in order"
    )


def _plan_index() -> None:
  """Prints what an index would take; reads the workdir at most."""
  from dpr_jax.index import faiss_size

  config = experiment.config()
  count, dim = cli_flags.VECTORS.value, cli_flags.DIM.value
  if not count:
    if not cli_flags.WORKDIR.value:
      raise errors.InputError("--plan needs --vectors=N, or a --workdir")
    folder = experiment.workdir().embeddings(cli_flags.MODEL.value or "dense")
    manifest = workdir_lib.read_manifest(folder, "embed")
    count, dim = manifest["count"], manifest["dim"]
  faiss_size.print_plan(config, count, dim)


def _integers(flag: str, values: Sequence[str]) -> list[int]:
  """The numbers of a flag; `InputError` that names it where there are none."""
  if not values or not all(v.isascii() and v.isdigit() for v in values):
    raise errors.InputError(
      f"--{flag}={','.join(values)}: must be numbers, as in 128,1024"
    )
  return [int(value) for value in values]


def _demo() -> None:
  """Trains, embeds, indexes, retrieves and compares on the sample."""
  config = cli_flags.CONFIG.value
  if config is None:
    path = importlib_resources.files("dpr_jax.configs") / "demo.py"
    config = runpy.run_path(str(path))["get_config"]()
  folder = cli_flags.WORKDIR.value or tempfile.mkdtemp(prefix="dpr-jax-demo-")
  config = config_lib.with_full_paths(config)
  with experiment.opened(workdir_lib.Workdir(folder)) as workdir:
    _stages("run", config, workdir)
  from dpr_jax.reading import answerer as answerer_lib
  from dpr_jax.retrieval import retrieve as retrieve_lib

  question = "Where was Einstein born?"
  hits = retrieve_lib.Retriever.load(workdir.root).search([question], k=3)[0]
  print(f"\n{question}")
  for rank, hit in enumerate(hits, start=1):
    print(f"  {rank}. {hit.score:8.4f}  {hit.title}: {hit.text}")
  if config.reader.train:
    reply = answerer_lib.Answerer.load(workdir.root, k=3).ask(question)
    print(f"\n{reply.text()}")
  print(f"\nEverything is in {workdir.root}")


# What is no stage, called with the words behind its name.
OTHERS = {
  "demo": lambda _: _demo(),
  "ask": _ask,
  "export": lambda _: _export(),
  "import": lambda _: _import(),
  "check": lambda _: _check(),
  "config": lambda _: _show(),
  "plan": lambda _: _plan(),
  "bench": _bench,
}


def _show() -> None:
  """Prints the settings that a call would use."""
  if cli_flags.CONFIG.value is None:
    shown = settings_command.show(config_lib.base_config(), "default")
  else:
    shown = settings_command.show(experiment.config(), experiment.origin())
  if shown:
    print(shown)


def call(command: str, arguments: list[str]) -> None:
  """Does what a command says.

  Args:
    command: one of STAGES, "run", or one of OTHERS.
    arguments: behind it: the kind of bench, questions to ask.

  Raises:
    InputError: anything wrong with flags, config or data.
  """
  if command in OTHERS:
    OTHERS[command](arguments)
  elif command == "index" and cli_flags.PLAN.value:
    _plan_index()
  else:
    config, workdir = experiment.config(), experiment.workdir()
    with experiment.opened(workdir):
      _stages(command, config, workdir)
