"""Settings of the data and of the model."""

from dpr_jax.core.setting import Setting, section

_TOWERS = ("train", "embed", "index", "retrieve", "plan")
_MODELS = (*_TOWERS, "train-reader", "read")
POOLINGS = ("cls", "mean", "max", "weightedmean", "lasttoken", "mean_sqrt_len")
_RANDOM = ("model.checkpoint or reader.checkpoint is random",)

SEED = Setting(
  "seed",
  0,
  "seed of all random choices: order of questions, dropout, negatives",
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
      "corpus: psgs_w100.tsv[.gz], or another format of"
      ' docs/reference/formats.md; a file, a folder, or "ir_datasets:NAME";'
      ' "from-train": the passages of `data.train` and `data.dev`; "sample" is'
      " the embedded sample",
      path=True,
    ),
    Setting(
      "train",
      "",
      "training questions: DPR's JSON, or another format of"
      ' docs/reference/formats.md; a file, a folder, or "ir_datasets:NAME";'
      ' several separated by commas; "none": no training',
      path=True,
    ),
    Setting(
      "train_prefixes",
      (),
      "text put before the questions of each source of `data.train`; () = none",
      item=str,
      when=("data.train is not none",),
    ),
    Setting(
      "dev",
      "",
      "dev questions: a format of `data.train`, or *.qa.csv",
      path=True,
    ),
    Setting(
      "max_passages",
      0,
      "size of the corpus at most; 0 = all; gold passages of the kept questions"
      " are kept first",
      "passages",
      least=0,
    ),
    Setting(
      "max_train",
      0,
      "number of training questions, from the start of the file; 0 = all",
      "questions",
      least=0,
      when=("data.train is not none",),
    ),
    Setting(
      "max_dev",
      0,
      "number of dev questions, from the start of the file; 0 = all",
      "questions",
      least=0,
    ),
    Setting(
      "quoting",
      "auto",
      'quotation marks in a TSV corpus: "csv": quoted fields may contain tabs'
      ' and line breaks; "none": marks are text; "auto": the reading that keeps'
      " the rows",
      choices=("auto", "csv", "none"),
    ),
    Setting(
      "title_line",
      False,
      "the first line of a passage's `contents` (Pyserini) is its title",
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
      'pretrained encoder, or a pair of them: "starter", "random",'
      ' "hf:NAME[@REVISION]", a folder of Hugging Face or'
      " Sentence-Transformers, an export, a workdir, or a file of the original"
      " DPR",
      stages=_MODELS,
      path=True,
    ),
    Setting(
      "question_checkpoint",
      "",
      "pretrained encoder of questions, if passages have another; named like"
      " model.checkpoint, which is then not read",
      path=True,
    ),
    Setting(
      "passage_checkpoint",
      "",
      "pretrained encoder of passages; with model.question_checkpoint",
      path=True,
    ),
    Setting(
      "random_layers",
      2,
      "number of layers of a random BERT",
      "layers",
      least=1,
      stages=_MODELS,
      when=_RANDOM,
    ),
    Setting(
      "random_width",
      128,
      "hidden size of a random BERT; a multiple of random_heads",
      "dimensions",
      least=1,
      stages=_MODELS,
      when=_RANDOM,
    ),
    Setting(
      "random_heads",
      2,
      "number of attention heads of a random BERT",
      "heads",
      least=1,
      stages=_MODELS,
      when=_RANDOM,
    ),
    Setting(
      "pooling",
      "auto",
      "text vector: the first token's hidden state (paper), the mean of all,"
      ' ...; "auto": as the checkpoint says, cls if it says nothing',
      choices=("auto", *POOLINGS),
    ),
    Setting(
      "normalize",
      "auto",
      "normalize vectors to length 1: cosine instead of dot product;"
      ' "auto": as the checkpoint says',
      or_auto=True,
    ),
    Setting(
      "temperature",
      1.0,
      "divisor of the scores in the loss",
      above=0,
      stages=("train", "plan"),
    ),
    Setting("shared_towers", False, "one encoder for questions and passages"),
    Setting(
      "title",
      "auto",
      "title of a passage: paired with the text by [SEP] (DPR), joined to it as"
      ' "title text", or left out; "auto": as the checkpoint says, joined for'
      " Sentence-Transformers, else paired",
      choices=("auto", "pair", "joined", "none"),
    ),
    Setting(
      "question_prefix",
      "auto",
      'text put before every question, such as "query: " for E5; "auto": as the'
      " checkpoint says",
    ),
    Setting(
      "passage_prefix",
      "auto",
      'text put before every passage; "auto": as the checkpoint says',
    ),
    Setting(
      "question_length",
      0,
      "length of a question at most; 0 = as the checkpoint says, 32 if it says"
      " nothing",
      "tokens",
      least=3,
      or_zero=True,
    ),
    Setting(
      "passage_length",
      0,
      "length of a passage at most; 0 = as the checkpoint says, 256 if it says"
      " nothing",
      "tokens",
      least=3,
      or_zero=True,
    ),
    Setting(
      "dropout",
      -1.0,
      "dropout rate of all of BERT; negative: the rates of the checkpoint",
      below=1,
      stages=("train", "plan"),
    ),
    Setting(
      "compute_dtype",
      "auto",
      'dtype of activations; "auto": float32 on CPUs, bfloat16 elsewhere',
      choices=("auto", "float32", "bfloat16"),
      stages=_MODELS,
    ),
    Setting(
      "attention",
      "plain",
      'attention; "fused": a TPU kernel, "cudnn": on NVIDIA GPUs without'
      " dropout of its weights; neither has run on such a device yet",
      choices=("plain", "fused", "cudnn"),
      stages=_MODELS,
    ),
  ],
)
