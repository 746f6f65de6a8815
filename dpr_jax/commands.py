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

from dpr_jax import command_flags as given
from dpr_jax import (
  configuration,
  errors,
  experiment,
  processes,
  settings_command,
)
from dpr_jax import workdir as workdir_lib
from dpr_jax.settings_call import READING, STAGES

# Several processes do these together; the others are led by the first, which
# asks for help where an index has shards or search is exact (`spread`).
TOGETHER = ("train", "embed", "train-reader")


def _stages(
  stage: str,
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
) -> None:
  from dpr_jax.retrieval import spread

  tasks = spread.Helper(config, workdir).tasks
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
        processes.first_leads(function, tasks)


def _check_trainings(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
  """Before what a training has read is made again, with other settings."""
  from dpr_jax.training import retriever_inputs, train_reader

  if not given.overwrites("train"):
    processes.first_alone(
      lambda: retriever_inputs.check_before(config, workdir)
    )
  if config.reader.train and not given.overwrites("train-reader"):
    processes.first_alone(lambda: train_reader.check_before(config, workdir))


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

  questions = experiment.path(given.QUESTIONS)

  def again(name: str) -> dict[str, bool]:
    return {"overwrite": given.overwrites(name)}

  def for_models(function: Callable, room: dict[str, str], **kwargs) -> None:
    models = rankers.models_of(config.retrieve.methods, room)
    for model in [given.MODEL.value] if given.MODEL.value else models:
      function(config, workdir, model=model, **kwargs)

  def retrieve() -> None:
    search.retrieve(
      config,
      workdir,
      questions_file=questions,
      name=given.NAME.value,
      methods=given.METHOD.value,
      qrels=experiment.path(given.QRELS) if stage == "retrieve" else None,
      tune=given.TUNE.value,
      **again("retrieve"),
    )
    if given.RERANK.value:
      for method in given.METHOD.value or config.retrieve.methods:
        reranking.rerank(
          config,
          workdir,
          name=given.NAME.value,
          method=method,
          **again("retrieve"),
        )

  return {
    "prepare": lambda: prepare.prepare(config, workdir, **again("prepare")),
    "mine": lambda: mining.mine(
      config, workdir, ranker=given.FROM.value or "bm25", **again("mine")
    ),
    "train": lambda: train_retriever.train(config, workdir, **again("train")),
    "embed": lambda: for_models(
      embedding.embed, rankers.VECTORS, **again("embed")
    ),
    "index": lambda: for_models(
      faiss_index.index,
      rankers.INDEXES,
      **again("index"),
      shard=given.SHARD.value,
      tune=given.TUNE.value,
    ),
    "retrieve": retrieve,
    "train-reader": lambda: train_reader.train_reader(
      config, workdir, **again("train-reader")
    ),
    "read": lambda: answering.read(
      config,
      workdir,
      name=given.NAME.value,
      # In `run` they have been retrieved for.
      questions_file=questions if stage == "read" else None,
      methods=given.METHOD.value,
      tune=given.TUNE.value,
      **again("read"),
    ),
    "evaluate": lambda: ranking.evaluate(
      config,
      workdir,
      name=given.NAME.value,
      match=given.MATCH.value,
      qrels=experiment.path(given.QRELS),
      compare=given.COMPARE.value,
      **again("evaluate"),
    ),
  }


def _ask(questions: list[str]) -> None:
  """Answers questions from a finished workdir."""
  from dpr_jax.retrieval import asking

  workdir, as_json = experiment.workdir(), given.JSON.value is not None
  if as_json and given.JSON.value != "-":
    raise errors.InputError(
      f"--json={given.JSON.value}: ask prints: --json alone"
    )
  if given.K.value < 1:
    raise errors.InputError(f"--k={given.K.value}: must be at least 1")
  config = None
  if given.CONFIG.value is not None:
    config = experiment.settled(experiment.config(), workdir, "ask")
  answerer = asking.Answerer.load(
    workdir.root,
    method=(given.METHOD.value or [""])[0],
    k=given.K.value,
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
  if given.WORKDIR.value:
    workdir = experiment.workdir()
    config = experiment.settled(config, workdir, f"bench {kind}")
  if given.REPEATS.value < 0:
    raise errors.InputError(
      f"--repeats={given.REPEATS.value}: must be positive"
    )
  against, json_file = given.AGAINST.value, experiment.path(given.JSON)
  if json_file:
    harness.check_writable(json_file)
  common = {"repeats": given.REPEATS.value, "json_file": json_file}
  if kind == "batch":
    batch.bench(
      config,
      cpu_devices=given.CPU_DEVICES.value,
      batch_sizes=_integers("batch_sizes", given.BATCH_SIZES.value),
      **common,
    )
  elif kind == "search":
    search.bench(
      config,
      experiment.workdir() if given.WORKDIR.value else None,
      vectors=given.VECTORS.value,
      dim=given.DIM.value,
      factories=[each for each in given.FACTORIES.value.split(";") if each],
      against=against,
      cpu_devices=given.CPU_DEVICES.value,
      **common,
    )
  elif kind == "encode":
    encode.bench(config, experiment.workdir(), against=against, **common)
  elif kind == "train":
    train.bench(
      config,
      experiment.workdir(),
      against=against,
      separate=given.SEPARATE.value,
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
  from dpr_jax.planning import chips, report, search, tpu_plan

  config, json_file = experiment.config(), experiment.path(given.JSON)
  if not given.TOPOLOGY.value:
    raise errors.InputError("--topology is missing: --topology=v5e:16x16")
  topology = chips.Topology.parse(given.TOPOLOGY.value)
  if json_file:
    harness.check_writable(json_file)
  options = {
    "quick": given.QUICK.value,
    "say": lambda line: logging.info(line),
  }
  if given.SEARCH.value:
    config = search.largest(config, topology, **options)
  found = tpu_plan.plan(config, topology, embed=given.EMBED.value, **options)
  print(report.table(found))
  if json_file:
    workdir_lib.write_json(json_file, found)


def _out(name: str) -> pathlib.Path:
  if not given.OUT.value:
    raise errors.InputError(f"{name} needs --out=DIR")
  return workdir_lib.user_path(given.OUT.value)


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
    if given.WHAT.value == "embeddings":
      from dpr_jax.retrieval import vector_formats, vectors

      found = vectors.open_vectors(
        workdir.embeddings(given.MODEL.value or "dense")
      )
      vector_formats.export(found, given.FORMAT.value, out)
      return
    if given.WHAT.value == "reader":
      from dpr_jax.models import readers

      readers.export(
        readers.trained(config, workdir), out, given.FORMAT.value or ""
      )
      return
    from dpr_jax.models import export

    export.export(
      config,
      workdir,
      given.FORMAT.value,
      out,
      given.MODEL.value or "dense",
    )


def _import() -> None:
  """Vectors of other libraries."""
  out = _out("import")
  if given.WHAT.value != "embeddings":
    raise errors.InputError(
      "import: --what=embeddings is all that can be imported; checkpoints are"
      " loaded as they are: --config.model.checkpoint=DIR"
    )
  if not given.FROM.value:
    raise errors.InputError("import needs --from=FILE or --from=DIR")
  from dpr_jax.retrieval import vector_formats

  vector_formats.import_(workdir_lib.user_path(given.FROM.value), out)


def _check() -> None:
  """Prints a line for every artefact; not all in order is exit status 2."""
  from dpr_jax import workdir_check

  workdir, wrong = experiment.workdir(), 0
  for finding in workdir_check.check(workdir, deep=given.DEEP.value):
    print(finding, flush=True)
    wrong += finding.state != workdir_check.OK
  if wrong:
    raise errors.InputError(
      f"--workdir={workdir.root}: {wrong} of the above are not in order"
    )


def _plan_index() -> None:
  """Prints what an index would take; reads the workdir at most."""
  from dpr_jax.retrieval import faiss_index_plan

  config = experiment.config()
  count, dim = given.VECTORS.value, given.DIM.value
  if not count:
    if not given.WORKDIR.value:
      raise errors.InputError("--plan needs --vectors=N, or a --workdir")
    folder = experiment.workdir().embeddings(given.MODEL.value or "dense")
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
  config = given.CONFIG.value
  if config is None:
    path = importlib_resources.files("dpr_jax.configs") / "demo.py"
    config = runpy.run_path(str(path))["get_config"]()
  folder = given.WORKDIR.value or tempfile.mkdtemp(prefix="dpr-jax-demo-")
  config = configuration.with_full_paths(config)
  with experiment.opened(workdir_lib.Workdir(folder)) as workdir:
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
  if given.CONFIG.value is None:
    shown = settings_command.show(configuration.base_config(), "default")
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
  elif command == "index" and given.PLAN.value:
    _plan_index()
  else:
    config, workdir = experiment.config(), experiment.workdir()
    with experiment.opened(workdir):
      _stages(command, config, workdir)
