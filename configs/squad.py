r"""A reader trained only on SQuAD, from the starter checkpoint.

  dpr-jax train-reader --config=configs/squad.py --workdir=W --cpu_devices=8
  dpr-jax read --config=configs/squad.py --workdir=W --cpu_devices=8 \
    --questions=../shared/data/squad/squad-dev.json.gz --name=squad
  dpr-jax evaluate --config=configs/squad.py --workdir=W --name=squad

The data is not part of the repository: the environment variable DPR_JAX_DATA
(default: `../shared/data`) names the folder that contains `squad/`.  `read` and
`evaluate` follow SQuAD's protocol: every question is read in its own paragraph
and scored by its best reference.

  dpr-jax bench reader --config=configs/squad.py:bench --workdir=W \
    --cpu_devices=2 --against=transformers

compares with transformers on PyTorch.  One epoch: EM 58.3, F1 69.0 (README.md);
the two epochs set below have not been run to the end.
"""

import os

from dpr_jax import configuration

DATA = os.environ.get("DPR_JAX_DATA", "../shared/data")


def get_config(variant: str = ""):
  """Returns the config; variant "bench" = a part of it, for comparisons."""
  config = configuration.base_config()
  reader = config.reader
  reader.train = os.path.join(DATA, "squad", "squad-train.json.gz")
  reader.dev = os.path.join(DATA, "squad", "squad-dev.json.gz")
  reader.passages = 1
  reader.length = 320
  reader.question_length = 48
  reader.batch_size = 16
  reader.learning_rate = 1e-4
  reader.warmup_steps = 100
  reader.dropout = 0.0
  reader.sort_batches = 32
  reader.dev_every = 400
  reader.dev_questions = 500
  reader.checkpoint_every = 400
  reader.best_metric = "dev_f1"
  config.read.span_tokens = 30
  if variant == "bench":
    reader.max_steps = 128
    reader.warmup_steps = 12
    reader.dev_questions = 300
  elif variant:
    raise ValueError(f"configs/squad.py has no variant {variant!r}: bench")
  else:
    reader.epochs = 2.0
  return config
