"""Rows of the table of commands (`commands.py`): the stages, in order."""

from dpr_jax.cli import flags as f
from dpr_jax.cli.command import (
  ALWAYS,
  FIRST,
  READER,
  START,
  TOWERS,
  WITH_READER,
  WITH_TRAINING,
  Command,
)
from dpr_jax.cli.flags import Flag, switch

_STAGE = (*f.EXPERIMENT, *f.DEVICES, f.OVERWRITE)

STAGES = (
  Command(
    "prepare",
    "Read the corpus and the questions into the workdir",
    "stages:prepare",
    processes=FIRST,
    in_run=ALWAYS,
    flags=_STAGE,
  ),
  Command(
    "mine",
    "Find hard negatives, with BM25, the trained towers or both",
    "stages:mine",
    "--workdir=W --from=model",
    in_run=WITH_TRAINING,
    devices=lambda values: values["from"] not in (None, "bm25"),
    uses=lambda values: () if values["from"] in (None, "bm25") else (TOWERS,),
    flags=(
      *_STAGE,
      f.FROM.saying(
        "bm25; model: the trained towers of this workdir and their index;"
        " hybrid: both; passage: the neighbours of the gold passage in that"
        " index; default: bm25.",
        shown="bm25|model|hybrid|passage",
      ),
    ),
  ),
  Command(
    "train",
    "Train the two towers",
    "stages:train",
    in_run=WITH_TRAINING,
    devices=True,
    flags=_STAGE,
  ),
  Command(
    "embed",
    "Encode the corpus into vectors",
    "stages:embed",
    "--workdir=W",
    in_run=ALWAYS,
    devices=True,
    uses=(TOWERS, START),
    flags=(*_STAGE, f.MODEL),
  ),
  Command(
    "index",
    "Build a FAISS index of the vectors",
    "stages:index",
    "--workdir=W --config.index.factory=HNSW32 --tune",
    in_run=ALWAYS,
    devices=lambda values: not values["plan"],
    uses=(TOWERS,),
    flags=(
      *_STAGE,
      f.MODEL,
      f.BACKEND,
      f.TUNE.saying(
        "Choose the fastest search that reaches config.index.recall_target."
      ),
      Flag(
        "shard",
        "Build only shard N of config.index.shards, counted from 0.",
        "N",
        kind=int,
      ),
      switch(
        "plan",
        "Print memory, disk space and time needed, and recommend a factory;"
        " builds nothing.",
      ),
      f.VECTORS.saying(
        "With --plan: the number of vectors; default: the workdir's."
      ),
      f.DIM,
    ),
  ),
  Command(
    "retrieve",
    "Retrieve passages for a set of questions",
    "stages:retrieve",
    "--workdir=W --method=dense,hybrid --questions=q.qa.csv --name=mine",
    in_run=ALWAYS,
    devices=True,
    uses=lambda values: (TOWERS, READER) if values["rerank"] else (TOWERS,),
    flags=(
      *_STAGE,
      f.QUESTIONS.saying("A *.qa.csv or DPR JSON; default: the dev set."),
      f.NAME,
      f.METHOD,
      f.BACKEND,
      f.QRELS.saying("Retrieve only for the questions judged in this file."),
      f.TUNE.saying(
        "Choose the weight of the dense scores in hybrid on the dev set."
      ),
      Flag(
        "rerank",
        "Also reorder the first config.read.rerank_depth passages with the"
        " reader's passage ranker (and config.read.retriever_weight), stored"
        " as a further method.",
        choices=("reader",),
      ),
    ),
  ),
  Command(
    "train-reader",
    "Train the span reader",
    "stages:train_reader",
    in_run=WITH_READER,
    devices=True,
    uses=(TOWERS,),
    flags=_STAGE,
  ),
  Command(
    "read",
    "Extract answers from retrieved passages",
    "stages:read",
    "--workdir=W --method=dense",
    processes=FIRST,
    in_run=WITH_READER,
    devices=True,
    uses=(TOWERS, READER),
    flags=(
      *_STAGE,
      f.QUESTIONS.saying(
        "A file in SQuAD's format; default: the retrieved results."
      ),
      f.NAME,
      f.METHOD,
      f.TUNE.saying(
        "Choose the weight of the retriever's score on these questions."
      ),
    ),
  ),
  Command(
    "evaluate",
    "Measure top-k accuracy, and exact match and F1 of answers",
    "stages:evaluate",
    "--workdir=W --qrels=gold --compare=dense,bm25",
    processes=FIRST,
    in_run=ALWAYS,
    uses=(TOWERS,),
    flags=(
      *_STAGE,
      f.NAME,
      f.MATCH,
      f.QRELS.saying(
        "Judgements in BEIR's or TREC's format, or gold: the positives of the"
        " questions; adds nDCG, recall, MRR and MAP."
      ),
      Flag(
        "judged",
        "With --qrels: average over the judged questions that were retrieved"
        " for (asked, the default), or over all judged questions (all), where"
        " the others count as 0.",
        choices=("asked", "all"),
      ),
      Flag(
        "compare",
        "Test whether two methods differ significantly, and list the questions"
        " that only one of them answers.",
        "METHOD,METHOD",
        kind=tuple,
      ),
    ),
  ),
)
