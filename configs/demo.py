"""All stages on the sample that comes with the package.

  dpr-jax demo            (or: make demo)

260 passages and 518 questions, 8 emulated devices: trains the starter
checkpoint for three quarters of an epoch and compares BM25, the towers before
training and the trained towers; then trains a small reader and answers a
question.  Under five minutes on 2 CPU cores, including installation.
"""

from dpr_jax import configuration


def get_config(variant: str = ""):
  """Returns the demo's config; there are no variants."""
  if variant:
    raise ValueError(f"configs/demo.py has no variant {variant!r}")
  config = configuration.base_config()
  config.data.passages = config.data.train = config.data.dev = "sample"

  config.model.pooling = "mean"  # as the starter checkpoint was made
  config.model.normalize = True
  config.model.title = "pair"
  config.model.temperature = 0.05
  config.model.passage_length = 96
  config.model.question_length = 24
  config.model.dropout = 0.0

  config.train.batch_size = 32
  config.train.epochs = 0.75
  config.train.learning_rate = 2e-5
  config.train.warmup_steps = 2
  config.train.log_every = 1
  config.train.dev_hard_negatives = 1
  config.train.dev_other_negatives = 1

  config.retrieve.methods = ("bm25", "dense-start", "dense")

  # A reader that trains in a minute: with one passage per question its passage
  # ranker learns nothing, so the retriever's score is added when reading.
  config.reader.train = "results"
  config.reader.length = 112
  config.reader.question_length = 24
  config.reader.overlap = 16
  config.reader.passages = 1
  config.reader.batch_size = 16
  config.reader.max_steps = 20
  config.reader.learning_rate = 3e-4
  config.reader.warmup_steps = 3
  config.reader.dropout = 0.0
  config.reader.dev_questions = 0
  config.read.length_step = 112
  config.read.passages = (1, 3)
  config.read.retriever_weight = 5.0
  return config
