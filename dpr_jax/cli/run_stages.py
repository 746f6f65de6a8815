"""`dpr-jax run`, `demo` and single stages: runs stages in a locked workdir."""

import runpy
import tempfile
from importlib import resources as importlib_resources

import ml_collections
from absl import logging

from dpr_jax.cli import command, commands, experiment, report
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, multiprocess
from dpr_jax.core import workdir as workdir_lib


def one(call: Invocation) -> None:
  """Runs the one stage that was called."""
  if call.command.name == "index" and call.flags["plan"]:
    from dpr_jax.cli import plan

    multiprocess.first_alone(lambda: plan.plan_index(call))
    return
  _in_workdir(call, (call.command,))


def run(call: Invocation) -> None:
  """Runs all stages that the config asks for, in order."""
  names = commands.stages_of(call.config)
  _in_workdir(call, tuple(commands.BY_NAME[name] for name in names))


def _in_workdir(call: Invocation, stages: tuple[command.Command, ...]) -> None:
  config, workdir = call.config, call.workdir
  with experiment.opened(workdir):
    _do(call.with_config(config, workdir), stages)


def _do(call: Invocation, stages: tuple[command.Command, ...]) -> None:
  # Several stages: a training that would be refused at its turn is refused now,
  # before hours of earlier stages.
  if call.command not in stages:
    _check_trainings(call)
  for row in stages:
    logging.info("== %s", row.name)
    settled = call.with_config(experiment.settled(call, row))
    with experiment.remembered(call.config, call.workdir):
      row.call(settled)
  if call.command not in stages:
    logging.info("== report")
    multiprocess.first_alone(lambda: _end(call))


def _end(call: Invocation) -> None:
  """Writes the report; the last lines of a run with a training are verdicts."""
  verdicts = []
  if "train" in commands.stages_of(call.config):
    verdicts = _verdicts(call)  # stored before the report looks for changes
  report.at_the_end(call)
  for line, is_worse in verdicts:
    (logging.warning if is_worse else logging.info)("run: %s", line)


def _verdicts(call: Invocation) -> list[tuple[str, bool]]:
  """Trained towers against BM25, then the start; each a line, and if worse.

  Of a start that was not retrieved with, the dev pool of the training tells.
  """
  from dpr_jax.evaluation import significance, verdict

  name = call.flags["name"]
  match = call.flags["match"] or call.config.evaluate.match
  try:
    found = verdict.of_results(call.workdir, name, match)
    lines = [verdict.line_of_results(each, name) for each in found]
    if verdict.START not in [each["other"] for each in found]:
      manifest = workdir_lib.read_manifest(call.workdir.training, "train")
      found.append(manifest.get("verdict") or verdict.OLDER)
      lines.append(verdict.line_of_pool(found[-1]))
  except errors.InputError as error:
    return [(f"no verdict: {error}", True)]
  worse = [each["outcome"] == significance.WORSE for each in found]
  return list(zip(lines, worse, strict=True))


def _check_trainings(call: Invocation) -> None:
  """Refuses trainings with other settings before their inputs are rebuilt."""
  from dpr_jax.training import retriever_inputs, train_reader

  config, workdir = call.config, call.workdir
  trains = "train" in commands.stages_of(config)
  if trains and not call.flags.overwrites("train"):
    multiprocess.first_alone(
      lambda: retriever_inputs.check_before(config, workdir)
    )
  if config.reader.train and not call.flags.overwrites("train-reader"):
    multiprocess.first_alone(lambda: train_reader.check_before(config, workdir))


def demo(call: Invocation) -> None:
  """Runs all stages on the embedded sample and shows one question's hits."""
  config = config_lib.with_full_paths(_config_of_demo(call))
  folder = call.flags["workdir"] or tempfile.mkdtemp(prefix="dpr-jax-demo-")
  workdir = workdir_lib.Workdir(folder)
  run(call.with_config(config, workdir))
  from dpr_jax.reading import answerer as answerer_lib
  from dpr_jax.retrieval import api

  question, answerer = "Where was Einstein born?", None
  if config.reader.train:
    answerer = answerer_lib.Answerer.load(workdir.root, "dense", k=3)
    retriever = answerer.retriever
  else:
    retriever = api.Retriever.load(workdir.root)
  hits = retriever.search([question], k=3)[0]
  print(f"\n{question}")
  for rank, hit in enumerate(hits, start=1):
    print(f"  {rank}. {hit.score:8.4f}  {hit.title}: {hit.text}")
  if answerer is not None:
    print(f"\n{answerer.ask(question).text()}")
  print(f"\nEverything is in {workdir.root}")


def _config_of_demo(call: Invocation) -> ml_collections.ConfigDict:
  if call.has_config:
    return call.config
  path = importlib_resources.files("dpr_jax.configs") / "demo.py"
  return runpy.run_path(str(path))["get_config"]()
