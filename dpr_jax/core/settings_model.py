"""Settings of the data and of the model."""

from dpr_jax.core.setting import Setting, section

_TOWERS = ("train", "embed", "index", "retrieve", "plan")
_MODELS = (*_TOWERS, "train-reader", "read")
_RANDOM = ("model.checkpoint or reader.checkpoint is random",)

SEED = Setting(
  "seed",
  0,
  "of every random choice: the order of questions, dropout, negatives",
  least=0,
  most=2**32 - 1,  # JAX takes the lower 32 bits
  stages=("train", "embed", "train-reader"),
)

DATA = section(
  "data",
  ("prepare",),
  [
    Setting(
      "passages",
      "",
      "the corpus: psgs_w100.tsv[.gz], or JSON in BEIR's or Pyserini's form;"
      ' "sample" is the embedded sample',
      path=True,
    ),
    Setting(
      "train",
      "",
      "questions to train on: DPR's JSON or JSONL, [.gz], or BEIR's; \"none\":"
      " there is nothing to train on",
      path=True,
    ),
    Setting("dev", "", "questions to measure with; also *.qa.csv", path=True),
    Setting(
      "max_passages",
      0,
      "of the corpus; 0 = all; gold passages of kept questions come first",
      "passages",
      least=0,
    ),
    Setting(
      "max_train",
      0,
      "the first so many; 0 = all",
      "questions",
      least=0,
      when=("data.train is not none",),
    ),
    Setting("max_dev", 0, "the first so many; 0 = all", "questions", least=0),
    Setting(
      "quoting",
      "auto",
      'of a corpus with tabs: "csv": fields in quotation marks may hold tabs'
      ' and line breaks; "none": marks are text; "auto": what keeps the rows',
      choices=("auto", "csv", "none"),
    ),
  ],
)

MODEL = section(
  "model",
  _TOWERS,
  [
    Setting(
      "checkpoint",
      "starter",
      '"starter", "random", "hf:NAME[@REVISION]" or a Hugging Face folder',
      stages=_MODELS,
      path=True,
    ),
    Setting(
      "random_layers",
      2,
      "of a random BERT",
      "layers",
      least=1,
      stages=_MODELS,
      when=_RANDOM,
    ),
    Setting(
      "random_width",
      128,
      "of a random BERT; a multiple of random_heads",
      "numbers",
      least=1,
      stages=_MODELS,
      when=_RANDOM,
    ),
    Setting(
      "random_heads",
      2,
      "of a random BERT",
      "heads",
      least=1,
      stages=_MODELS,
      when=_RANDOM,
    ),
    Setting(
      "pooling",
      "cls",
      "from token vectors to one: the first token's (paper), or their mean",
      choices=("cls", "mean"),
    ),
    Setting("normalize", False, "unit vectors: cosine instead of dot product"),
    Setting(
      "temperature",
      1.0,
      "scores are divided by it in the loss",
      above=0,
      stages=("train", "plan"),
    ),
    Setting("shared_towers", False, "one encoder for questions and passages"),
    Setting(
      "title",
      "pair",
      'beside the text (DPR), joined to it as "title text", or left out',
      choices=("pair", "joined", "none"),
    ),
    Setting(
      "question_prefix",
      "",
      'before every question, for encoders trained with "query: "',
    ),
    Setting("passage_prefix", "", "before every passage"),
    Setting("question_length", 32, "of a question at most", "tokens", least=3),
    Setting("passage_length", 256, "of a passage at most", "tokens", least=3),
    Setting(
      "dropout",
      -1.0,
      "everywhere in the BERT; negative: what the checkpoint's config says",
      below=1,
      stages=("train", "plan"),
    ),
    Setting(
      "compute_dtype",
      "auto",
      '"auto": bfloat16 on a TPU, float32 elsewhere',
      choices=("auto", "float32", "bfloat16"),
      stages=_MODELS,
    ),
    Setting(
      "attention",
      "plain",
      '"fused": a TPU kernel, not yet run on one',
      choices=("plain", "fused"),
      stages=_MODELS,
    ),
  ],
)
