"""NaturalQuestions over 100,000 Wikipedia passages, starter checkpoint.

  dpr-jax run --config=configs/nq_100k.py --workdir=W --cpu_devices=8

The data is not part of the repository.  The environment variable DPR_JAX_DATA
(default: `../shared/data`, relative to the current folder) names the folder
that contains `nq/` with `psgs_w100.tsv.gz`, `nq-train.json.gz` and
`nq-dev.json.gz`.  Results and time are in README.md.

Variants: `:quick` = 800 passages and 6 steps, about 3 minutes on 2 CPU cores;
`:ablation` = the small experiment of README's table of poolings; `:batch_size`
= half an epoch at any `--config.train.batch_size`, with learning rate and
warm-up scaled to it, for the table in docs/training.md; `:reader` = also trains
a reader small enough for 2 CPU cores on the retrieved passages, starting from a
reader trained on SQuAD; commands and results are in docs/reading.md.
"""

import os

from dpr_jax import configuration

DATA = os.environ.get("DPR_JAX_DATA", "../shared/data")


def get_config(variant: str = ""):
  """Returns the config; variants: see above."""
  config = configuration.base_config()
  folder = os.path.join(DATA, "nq")
  config.data.passages = os.path.join(folder, "psgs_w100.tsv.gz")
  config.data.train = os.path.join(folder, "nq-train.json.gz")
  config.data.dev = os.path.join(folder, "nq-dev.json.gz")

  # The starter was trained with these settings; README.md compares them with
  # the paper's [CLS] and plain dot product.
  config.model.pooling = "mean"
  config.model.normalize = True
  config.model.title = "pair"
  config.model.temperature = 0.05
  config.model.question_length = 24
  config.model.passage_length = 256
  config.model.dropout = 0.0

  config.train.passage_length = 144
  config.train.chunk_size = 4  # texts whose activations fit into a CPU's cache
  config.train.question_chunk_size = 32
  config.train.batch_size = 64
  config.train.epochs = 1.0
  config.train.learning_rate = 2e-5
  config.train.warmup_steps = 11
  config.train.log_every = 1
  config.train.checkpoint_every = 40
  config.train.dev_questions = 100
  config.train.dev_hard_negatives = 2
  config.train.dev_other_negatives = 1

  config.embed.rows_per_shard = 10_000

  if variant == "quick":
    config.data.max_train = 192
    config.data.max_dev = 150
    config.data.max_passages = 800
    config.train.batch_size = 32
    config.train.warmup_steps = 1
    config.train.dev_questions = 32
    config.embed.shapes = 4
  elif variant == "ablation":
    config.data.max_train = 512
    config.data.max_dev = 400
    config.data.max_passages = 2_000
    config.train.batch_size = 32
    config.train.warmup_steps = 2
    config.train.dev_questions = 32
    config.embed.shapes = 4
  elif variant == "batch_size":
    config.train.epochs = 0.5
    config.train.hard_negatives = 0
    config.train.scale_rule = "sqrt"
    config.train.scale_reference = 64
    config.train.warmup_steps = 5
    # All dev questions over few passages: questions are cheap to encode.
    config.train.dev_questions = 1355
    config.train.dev_hard_negatives = 2
    config.train.dev_other_negatives = 0
    config.train.dev_topk_passages = 4_000
  elif variant == "reader":
    config.retrieve.methods = ("bm25", "dense", "hybrid")
    config.fusion.weight = 73.0  # chosen on dev: docs/retrieval.md
    reader = config.reader
    reader.train = "results"
    reader.passages = 4  # paper: 24
    reader.max_steps = 96
    reader.length = 256
    reader.question_length = 48
    reader.learning_rate = 3e-5
    reader.warmup_steps = 12
    reader.dropout = 0.0
    reader.dev_questions = 0
    config.read.methods = ("dense", "hybrid", "bm25")
    config.read.passages = (1, 10, 20)
  elif variant:
    raise ValueError(
      f"configs/nq_100k.py has no variant {variant!r}: quick, ablation,"
      " batch_size or reader"
    )
  if variant in ("quick", "ablation"):
    config.retrieve.methods = ("bm25", "dense-start", "dense")
  return config
