r"""The paper's recipe on NaturalQuestions and all of Wikipedia.

  dpr-jax run --config=configs/nq.py --workdir=W \
    --config.data.passages=psgs_w100.tsv.gz \
    --config.data.train=biencoder-nq-train.json.gz \
    --config.data.dev=biencoder-nq-dev.json.gz

docs/tpu.md says how large a batch fits on TPUs and what makes a step faster
(65,536 questions on v5e:16x16 with --config.train.gradient_cache=True
--config.train.chunk_size=64, and --config.model.attention=fused).

Not yet run by us: it needs a TPU and BERT-base from a hub.  Quoted from the
paper (Karpukhin et al. 2020), NQ test, 21,015,324 passages, top-20 / top-100:
BM25 59.1 / 73.7, DPR trained on NQ only 78.4 / 85.4, DPR on several sets
79.4 / 86.0.  Recipe (quoted): bert-base-uncased, global batch 128, one BM25
hard negative, 40 epochs (18,400 steps of 58,880 questions), AdamW 2e-5 (1e-5 in
the paper), no weight decay, 1,237 warm-up steps and linear decay, clipping at
2.0, dropout 0.1, passages of 256 tokens, model selection by average rank over a
pool of 30 hard and 30 other negatives per dev question.
"""

from dpr_jax import configuration


def get_config(variant: str = ""):
  """Returns the config; there are no variants."""
  if variant:
    raise ValueError(f"configs/nq.py has no variant {variant!r}")
  config = configuration.base_config()
  config.data.passages = "psgs_w100.tsv.gz"
  config.data.train = "biencoder-nq-train.json.gz"
  config.data.dev = "biencoder-nq-dev.json.gz"

  config.model.checkpoint = "hf:google-bert/bert-base-uncased"
  config.model.pooling = "cls"
  config.model.question_length = 32
  config.model.passage_length = 256

  config.train.negatives = "given"
  config.train.batch_size = 128
  config.train.epochs = 40.0
  config.train.hard_negatives = 1
  config.train.learning_rate = 2e-5
  config.train.warmup_steps = 1237
  config.train.weight_decay = 0.0
  config.train.clip_norm = 2.0
  config.train.dev_every = 460  # once an epoch
  config.train.checkpoint_every = 460
  config.train.dev_questions = 1000
  config.train.dev_hard_negatives = 30
  config.train.dev_other_negatives = 30

  config.embed.rows_per_shard = 200_000
  return config
