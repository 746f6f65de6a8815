"""The table of all commands: name, help, function and flags of each.

To add a command, add one row, here or in the tables of the stages
(`commands_stages.py`) and benchmarks (`commands_bench.py`), and one module with
its function, which takes an `Invocation`.  Usage, `COMMAND --help`, checks of
flags, "did you mean", the order of `run` and the setup before a command follow
from the rows.  A command's module is imported only when the command is called.
"""

from typing import Any

from dpr_jax.cli import commands_bench, commands_stages
from dpr_jax.cli import flags as f
from dpr_jax.cli.command import (
  APART,
  FIRST,
  NONE,
  ONE,
  READER,
  START,
  STARTS,
  STORED,
  TOWERS,
  WITH_READER,
  WITH_TRAINING,
  Command,
)
from dpr_jax.cli.flags import Flag, switch

_INT8 = switch("int8", "With onnx: also write graphs with int8 weights.")

STAGES = tuple(row.name for row in commands_stages.STAGES)

_OTHERS = (
  Command(
    "run",
    "Run all stages in order; skip those that are done and unchanged",
    "run_stages:run",
    devices=True,
    settings=STAGES,
    flags=(
      *(*f.EXPERIMENT, *f.DEVICES, f.OVERWRITE_STAGES, f.NAME, f.METHOD),
      *(f.MODEL, f.MATCH),
      f.QUESTIONS.saying("A *.qa.csv or DPR JSON; default: the dev set."),
    ),
  ),
  Command(
    "demo",
    "Run all stages on the embedded sample",
    "run_stages:demo",
    "",
    "[--workdir=DIR]",
    devices=True,
    processes=ONE,
    settings=STAGES,
    cpu_devices=8,
    flags=(*f.EXPERIMENT, *f.DEVICES, f.OVERWRITE_STAGES),
  ),
  Command(
    "sweep",
    "Run an experiment with all combinations of some settings and several"
    " seeds, and compare them",
    "sweep:sweep",
    "--config=configs/demo.py --workdir=S"
    ' --over="train.learning_rate=1e-5,2e-5" --seeds=3',
    '--config=FILE --workdir=DIR --over="KEY=VALUE,VALUE;KEY=..." --seeds=N',
    processes=STARTS,
    config=NONE,
    settings=STAGES,
    flags=(
      f.CONFIG,
      f.WORKDIR.saying(
        "The folder of the sweep: the prepared data, a workdir for each trial"
        " in trials/, and the comparison, sweep.md and sweep.json."
      ),
      f.CPU_DEVICES,
      Flag(
        "over",
        "Settings and their values, all combinations of which are tried. A"
        " value with a comma is quoted, as in"
        " train.negatives='bm25:1,random:1',bm25.",
        "KEY=VALUE,VALUE;...",
        default="",
      ),
      Flag(
        "seeds",
        "Number of seeds for each combination, counted from the config's.",
        "N",
        kind=int,
        default=3,
        least=1,
      ),
      switch(
        "dev_only",
        "Only train, and compare on the dev pool of the training; without, the"
        " corpus is embedded and searched in every trial.",
      ),
    ),
  ),
  Command(
    "plan",
    "Predict memory and best possible speed on a TPU, without having one",
    "plan:plan",
    "--config=configs/nq.py --topology=v5e:16x16",
    "--config=FILE --topology=CHIPS [--workdir=DIR]",
    processes=APART,
    flags=(
      f.CONFIG,
      f.WORKDIR.saying(
        "Plan for the lengths of this workdir's texts (those of its token"
        " store, which train makes)."
      ),
      Flag(
        "topology",
        "TPU type and grid of chips, for example v5e:16x16.",
        "CHIPS",
      ),
      switch(
        "search",
        "Find the largest batch that fits; with the gradient cache, the largest"
        " chunk.",
      ),
      switch(
        "pareto",
        "Only print which batches, remat and chunks fit, with their speed:"
        " up to 21 compilations.",
      ),
      switch(
        "embed",
        "Plan the embed step too; --noembed: only the train step.",
        default=True,
      ),
      switch(
        "quick",
        "Lower compiler effort: a fifth of the time, about the same memory.",
      ),
      f.JSON,
    ),
  ),
  Command(
    "teach",
    "Score the training questions' passages with a retrieval method or the"
    " reader, as a teacher for train",
    "teach:teach",
    "--workdir=W --method=hybrid --out=scores.jsonl.gz",
    "--workdir=DIR --method=METHOD --out=FILE",
    devices=True,
    config=STORED,
    uses=lambda values: (
      (TOWERS, READER) if "reader" in (values["method"] or ()) else (TOWERS,)
    ),
    settings=("retrieve", "read"),
    flags=(
      *(*f.EXPERIMENT, *f.DEVICES),
      f.METHOD.saying(
        "One of bm25, dense, dense-start, exact, hybrid: scores the first"
        " config.retrieve.depth passages that it finds; or reader: scores the"
        " gold passages and the mined negatives.",
        shown="METHOD",
        most=1,
      ),
      f.OUT.saying(
        "The file of scores, for config.train.distill_scores.", shown="FILE"
      ),
    ),
  ),
  Command(
    "ask",
    "Answer questions with a finished workdir: those of the command line, or"
    " one per line of standard input",
    "ask:ask",
    "--workdir=W Where was Einstein born?",
    "--workdir=DIR [QUESTION ...] [-- QUESTION ...]",
    processes=FIRST,
    devices=True,
    config=STORED,
    uses=(TOWERS, READER),
    takes_words=True,
    flags=(
      *(*f.EXPERIMENT, *f.DEVICES),
      f.METHOD.saying(
        "One of bm25, dense, dense-start, exact, hybrid; default: the first of"
        " config.read.methods.",
        shown="METHOD",
        most=1,
      ),
      Flag(
        "k",
        "Passages to read per question; default: 20.",
        "N",
        kind=int,
        default=20,
        least=1,
      ),
      f.JSON_ALONE.saying("Print one line of JSON per question, or null."),
    ),
  ),
  Command(
    "export",
    "Write the towers, the vectors or the reader for other libraries",
    "export:export",
    "--workdir=W --format=hf --out=DIR",
    "--workdir=DIR --format=FORMAT --out=DIR",
    processes=FIRST,
    config=STORED,
    uses=lambda values: (
      (TOWERS, START, READER) if values["what"] == "reader" else (TOWERS, START)
    ),
    flags=(
      *(*f.EXPERIMENT, f.OUT),
      f.WHAT.saying("The trained towers (model), vectors, or the reader."),
      f.FORMAT.saying(
        "hf, dpr, sentence-transformers, tevatron or onnx for the towers; the"
        " last two for the reader (DPRReader, BertForQuestionAnswering); dpr,"
        " tevatron, contriever, npy or parquet for embeddings."
      ),
      _INT8,
      f.MODEL.saying("The trained towers (default), or before training."),
    ),
  ),
  Command(
    "publish",
    "Export the towers and upload them to the Hugging Face hub",
    "publish:publish",
    "--workdir=W --to=hf:OWNER/NAME --dry_run",
    "--workdir=DIR --to=hf:OWNER/NAME",
    processes=FIRST,
    config=STORED,
    uses=(TOWERS, START),
    flags=(
      *f.EXPERIMENT,
      Flag(
        "to",
        "The repository; it is created if necessary. The token is taken from"
        " HF_TOKEN, or from `hf auth login`.",
        "hf:OWNER/NAME",
      ),
      f.FORMAT.saying(
        "hf, sentence-transformers, dpr, tevatron or onnx; default:"
        " sentence-transformers."
      ),
      _INT8,
      f.MODEL.saying("The trained towers (default), or before training."),
      switch("private", "Create a private repository."),
      switch("dry_run", "Only list the files and their sizes."),
    ),
  ),
  Command(
    "import",
    "Read vectors of other libraries, into a workdir or into a folder in the"
    " format of `embed`",
    "export:import_",
    "--workdir=W --from=vectors --config.model.checkpoint=DIR",
    "--from=FILE_OR_DIR (--workdir=DIR | --out=DIR)",
    config=STORED,
    processes=ONE,
    devices=lambda values: values.names_checkpoint,
    flags=(
      *(*f.EXPERIMENT, f.CPU_DEVICES, f.OVERWRITE),
      f.FROM.saying("A file or folder of the other library.", shown="PATH"),
      f.OUT.saying("A folder to write, instead of a workdir's vectors."),
      f.MODEL.saying(
        "Name of the vectors in the workdir: dense (default; refused if towers"
        " were trained in it), or dense-start."
      ),
      switch(
        "verify",
        "Compare some vectors with those of --config.model.checkpoint.",
        default=True,
      ),
      f.WHAT.saying("Only embeddings (passage vectors) can be imported."),
    ),
  ),
  Command(
    "fetch",
    "Download the data, checkpoints and embeddings of the original DPR, and"
    " verify them",
    "fetch:fetch",
    "nq psgs_w100 --out=DIR",
    "NAME ... --out=DIR",
    processes=FIRST,
    config=NONE,
    takes_words=True,
    flags=(
      f.OUT,
      switch("list", "List the names, or the files of the names given."),
      switch(
        "check",
        "Download nothing; verify the files in --out, which may have been"
        " brought from another machine.",
      ),
      f.FROM.saying(
        "Address of a mirror, in place of https://dl.fbaipublicfiles.com/dpr.",
        shown="URL",
      ),
    ),
  ),
  Command(
    "config",
    "Show the value of every setting and its origin: default, file, workdir or"
    " command line",
    "settings_command:show",
    "--config=configs/nq_100k.py --diff",
    "[--config=FILE] [--workdir=DIR]",
    processes=APART,
    config=NONE,
    flags=(
      *f.EXPERIMENT,
      switch(
        "print",
        "Show all settings; this is the default.",
      ),
      switch(
        "diff",
        "Show only settings that differ from their default.",
      ),
      f.JSON_ALONE,
    ),
  ),
  Command(
    "report",
    "Write one HTML page that shows a workdir: verdict, curves, questions won"
    " and lost, data, settings",
    "report:report",
    "--workdir=W --against=W2",
    "--workdir=DIR",
    processes=FIRST,
    config=NONE,
    flags=(
      *(f.WORKDIR, f.NAME, f.MATCH),
      f.AGAINST.saying(
        "A second workdir, shown beside the first, with tests of the"
        " differences.",
        shown="DIR",
      ),
      f.OUT.saying("The folder for the page; default: report in the workdir."),
    ),
  ),
  Command(
    "check",
    "Check that a workdir is complete, undamaged and consistent; exit status 2"
    " if not",
    "check:check",
    "--workdir=W --deep",
    "--workdir=DIR",
    processes=FIRST,
    config=NONE,
    flags=(
      f.WORKDIR,
      switch(
        "deep",
        "Also read every row, vector, id and index.",
      ),
    ),
  ),
)

COMMANDS = (
  *commands_stages.STAGES,
  *_OTHERS,
  *commands_bench.BENCHES,
)
BY_NAME = {row.name: row for row in COMMANDS}
FLAGS = (*f.LOG, *(flag for row in COMMANDS for flag in row.flags))
EVERYWHERE = tuple({x.name: x for x in FLAGS if x.everywhere}.values())


def stages_of(config: Any) -> tuple[str, ...]:
  """Names of the stages that `run` will run with a config, in order."""
  left_out = set()
  if not config.reader.train:
    left_out.add(WITH_READER)
  if config.data.train == "none":
    left_out.add(WITH_TRAINING)
  return tuple(
    row.name for row in commands_stages.STAGES if row.in_run not in left_out
  )


def taken_by(flag: str) -> tuple[str, ...]:
  """Names of the commands that accept a flag."""
  return tuple(
    row.name for row in COMMANDS if flag in [each.name for each in row.flags]
  )
