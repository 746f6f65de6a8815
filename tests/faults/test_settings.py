"""Row 17: mistakes in settings and flags end at once, in one line.

Exit code 2 within three seconds, before anything is compiled; the line holds
the key or flag, and what was meant where that can be told.
"""

import shutil

import pytest

from tests.faults import flows
from tests.faults.amounts import FULL

SECONDS = 3.0
# What is wrong, and what the line must hold besides the key or flag.
MEANT = {
  "train --config.train.batchsize=8": "did you mean --config.train.batch_size",
  "train --config.trian.batch_size=8": "did you mean --config.train.batch_size",
  "train --config.model.poolling=mean": "did you mean --config.model.pooling",
  "embed --config.embed.dtypes=float16": "did you mean --config.embed.dtype",
  "index --config.index.factry=Flat": "did you mean --config.index.factory",
  "read --config.read.span_token=3": "did you mean --config.read.span_tokens",
  "prepare --overwrit": "did you mean --overwrite",
  "train --config.nosuch=1": "nosuch",
  "train --confg.train.batch_size=8": "confg",
  "trian": "did you mean train",
  "prepare extra": "one COMMAND only",
  "train --k=3": "only for ask",
  "ask --k=0 question": "at least 1",
  "export": "needs --out=DIR",
}
WRONG_TYPE = (
  "train --config.train.batch_size=abc",
  "train --config.train.batch_size=7.5",
  "train --config.train.learning_rate=fast",
  "train --config.seed=abc",
)
NOT_ONE_OF = (
  "train --config.model.pooling=means",
  "train --config.model.compute_dtype=float8",
  "train --config.model.attention=fussed",
  "train --config.model.title=pairs",
  "train --config.train.negatives=bm52",
  "train --config.train.negatives=bm25:x",
  "train --config.train.scale_rule=lineal",
  "train --config.train.loss=gatherd",
  "train --config.train.remat=layers",
  "train --config.train.layers=scaned",
  "train --config.train.reduce_dtype=float16",
  "train --config.train.best_metric=dev_los",
  "mine --config.bm25.stemmer=englsh",
  "mine --config.bm25.stopwords=xx",
  "mine --from=modle",
  "embed --config.embed.dtype=float31",
  "embed --model=dens",
  "retrieve --config.retrieve.methods=bm52",
  "retrieve --rerank=readr",
  "train-reader --config.reader.layout=dprr",
  "train-reader --config.reader.best_metric=em",
  "evaluate --config.evaluate.match=regx",
  "evaluate --match=strng",
  "evaluate --compare=bm25,dens",
  "export --format=hff --out=out",
)
OUT_OF_RANGE = (
  "prepare --config.data.max_train=-1",
  "prepare --cpu_devices=-1",
  "train --config.train.batch_size=0",
  "train --config.train.batch_size=-8",
  "train --config.train.hard_negatives=-1",
  "train --config.train.hard_negatives_from_top=0",
  "train --config.train.warmup_steps=-1",
  "train --config.train.packed_widths=0",
  "train --config.train.average_checkpoints=0",
  "train --config.train.rounds=0",
  "train --config.model.passage_length=0",
  "train --config.model.passage_length=1000",
  "train --config.model.question_length=1",
  "mine --config.bm25.k1=-1",
  "mine --config.bm25.b=2",
  "mine --config.mine.depth=0",
  "mine --config.mine.keep=0",
  "embed --config.embed.rows_per_shard=0",
  "embed --config.embed.shapes=0",
  "embed --config.embed.length_step=0",
  "index --config.index.shards=0",
  "index --config.index.train_sample=0",
  "index --config.index.threads=-1",
  "retrieve --config.retrieve.depth=0",
  "train-reader --config.reader.batch_size=0",
  "train-reader --config.reader.passages=0",
  "read --config.read.passages=0",
  "read --config.read.span_tokens=0",
  "evaluate --config.evaluate.ranks=0",
)
NOT_THERE = (
  "prepare --config.data.passages=/nowhere.tsv",
  "train --config.model.checkpoint=/nowhere",
  "retrieve --questions=/nowhere.csv --name=x",
  "evaluate --qrels=/nowhere",
)
VALUES = (
  "train --config.model.temperature=0",
  "train --config.model.temperature=-1",
  "train --config.model.dropout=2",
  "train --config.seed=-1",
  "train --config.train.learning_rate=-1",
  "train --config.train.learning_rate=nan",
  "train --config.train.epochs=-1",
  "train --config.train.adam_b1=1.5",
  "train --config.train.adam_b2=-0.1",
  "train --config.train.adam_epsilon=0",
  "train --config.train.clip_norm=-1",
  "train --config.train.weight_decay=-1",
  "train --config.train.chunk_size=-1",
  "train --config.train.checkpoint_every=-1",
  "train --config.train.log_every=0",
  "train --config.train.step_timeout=-1",
  "train --config.train.dev_every=-1",
  "train --config.train.dev_questions=-1",
  "train --config.train.max_steps=-3",
  "index --config.index.factory=IFV4,Flat",
  "index --config.index.nprobe=-1",
  "index --config.index.recall_target=2",
  "retrieve --config.exact.storage=float8 --method=exact",
)
TELLS_OF_COMPILING = """
import sys
from jax import monitoring
def tell(name, *_, **__):
  if "backend_compile" in name:
    print("compiled", file=sys.stderr)
monitoring.register_event_duration_secs_listener(tell)
"""
MISTAKES = {
  **dict.fromkeys(
    (*WRONG_TYPE, *NOT_ONE_OF, *OUT_OF_RANGE, *NOT_THERE, *VALUES), ""
  ),
  **MEANT,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("settings")


def _run(flow, words, folder):
  """The command where it would have something to do."""
  command, *flags = words.split()
  root = folder / "root"
  shutil.rmtree(root, ignore_errors=True)
  if command in flows.STAGES:
    flow.copy_before(command, root)
  else:
    flow.copy_after("evaluate", root)
  where = [f"--workdir={root / 'w'}", "--cpu_devices=1"]
  if command != "ask":
    where.append(f"--config={flow.config}")
  return flow.zygote.run(
    command, *where, *flags, cwd=root, hook=TELLS_OF_COMPILING
  )


def check(ended, words, wanted):
  """One line, at once, that names the key or flag."""
  line = " / ".join(ended.lines[-1:])
  last = line[-300:]
  assert ended.code == 2, f"exit {ended.code}: {last}"
  assert "compiled" not in ended.lines, f"after compiling: {last}"
  assert len(ended.lines) == 1, f"{len(ended.lines)} lines: {last}"
  assert wanted in line, last
  if not wanted:  # the key, the flag, or the file that it names
    key, _, value = words.split()[1].lstrip("-").partition("=")
    assert key in line or value in line, last
  assert ended.seconds < SECONDS, f"{ended.seconds:.1f} s: {last}"


@pytest.mark.slow
def test_mistakes_are_refused_at_once(flow, tally, folder):
  rows = tally(17)
  names = list(MISTAKES) if FULL else list(MISTAKES)[::4]
  for words in rows.each(names):
    with rows.trial(words):
      check(_run(flow, words, folder), words, MISTAKES[words])
