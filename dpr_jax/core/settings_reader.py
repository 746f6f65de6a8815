"""Settings of the reader: its training, and extraction of answers."""

from dpr_jax.core.setting import Setting, section
from dpr_jax.core.settings_retrieval import METHODS

_DEV = ("reader.dev_questions > 0",)
_PACKED = ("reader.packing is True",)
_PADDED = ("reader.packing is False",)
_ENGINE = ("train-reader", "read", "retrieve")

_SOURCES = [
  Setting(
    "train",
    "",
    'training data: "" = no reader; "results" = passages that `reader.method`'
    " retrieves for the training questions; or a file in SQuAD's format or"
    " DPR's results format",
    path=True,
  ),
  Setting(
    "dev",
    "",
    'dev data: "" = the results for the dev set; or a file, as `reader.train`',
    path=True,
    when=_DEV,
  ),
  Setting(
    "method",
    "dense",
    'retrieval method whose results are "results"',
    choices=METHODS,
    when=("reader.train or reader.dev is results",),
  ),
  Setting(
    "checkpoint",
    "",
    'initial weights: "" = as `model.checkpoint`; also a DPRReader, a'
    " BertForQuestionAnswering, or a workdir with a reader",
    path=True,
  ),
]

_INPUTS = [
  Setting(
    "layout",
    "auto",
    'order of the input: "dpr", "dpr-hf" (token types all 0), "squad" (no'
    ' title); "auto" = that of the checkpoint, "dpr" for a BERT',
    choices=("auto", "dpr", "dpr-hf", "squad"),
  ),
  Setting(
    "length",
    350,
    "length of question, title and passage together;"
    " >= 2 * (question_length + 3), and >= 4 * overlap",
    "tokens",
    least=8,
  ),
  Setting(
    "question_length", 64, "length of a question at most", "tokens", least=1
  ),
  Setting(
    "overlap",
    64,
    "overlap of two windows of a long passage",
    "tokens",
    least=0,
  ),
  Setting(
    "from_top",
    200,
    "number of top retrieved passages that negatives are drawn from",
    "passages",
    least=1,
  ),
  Setting(
    "passages",
    24,
    "passages per question: one positive, the rest negatives",
    "passages",
    least=1,
    most=1000,
  ),
  Setting("spans", 10, "answer spans per passage at most", "spans", least=1),
]

_TRAINING = [
  Setting("batch_size", 16, "size of the global batch", "questions", least=1),
  Setting(
    "epochs",
    10.0,
    "passes over the training questions",
    "epochs",
    above=0,
    when=("reader.max_steps is 0",),
  ),
  Setting("max_steps", 0, "training steps; 0 = by `epochs`", "steps", least=0),
  Setting("learning_rate", 1e-5, "peak learning rate, after warm-up", above=0),
  Setting(
    "warmup_steps",
    0,
    "linear warm-up to the peak; shorter than the training",
    "steps",
    least=0,
  ),
  Setting(
    "weight_decay",
    0.0,
    "AdamW's decay of matrices and embedding tables",
    least=0,
  ),
  Setting(
    "clip_norm",
    2.0,
    "gradients are clipped to this global norm; 0 = no clipping",
    least=0,
  ),
  Setting(
    "dropout",
    -1.0,
    "dropout rate of all of BERT; negative: the rates of the checkpoint",
    below=1,
  ),
  Setting(
    "chunk_size",
    0,
    "inputs read at once per device; 0 = all, or a whole length group",
    "inputs",
    least=0,
  ),
  Setting(
    "remat",
    "none",
    "rematerialization, as `train.remat`",
    choices=("none", "inner", "layer"),
  ),
  Setting(
    "packing",
    True,
    "inputs are read in rows without padding between them; False = they are"
    " padded",
  ),
  Setting(
    "packed_widths",
    2,
    "widths of packed rows, as `train.packed_widths`",
    "widths",
    least=1,
    when=_PACKED,
  ),
  Setting(
    "length_groups",
    1,
    "number of length groups, each padded to its own length",
    "groups",
    least=1,
    when=_PADDED,
  ),
  Setting(
    "length_step",
    0,
    "inputs are padded to a multiple of it; 0 = to `reader.length`",
    "tokens",
    least=0,
    when=_PADDED,
  ),
  Setting(
    "sort_batches",
    1,
    "number of batches whose questions are dealt to them anew: so that all have"
    " about as many tokens, or, without packing, sorted by length",
    "batches",
    least=1,
  ),
]

_WATCHING = [
  Setting(
    "log_every", 10, "interval of rows in metrics.jsonl", "steps", least=1
  ),
  Setting(
    "profile_steps",
    (),
    "(first, last) step to trace to reader/profile; () = none",
    "steps",
    item=int,
    least=1,
  ),
  Setting(
    "dev_every",
    0,
    "interval of dev rows; 0 = only at the end",
    "steps",
    least=0,
    when=_DEV,
  ),
  Setting(
    "dev_questions",
    500,
    "dev questions for dev_em and dev_f1; 0 = not measured",
    "questions",
    least=0,
  ),
  Setting(
    "dev_passages",
    20,
    "retrieved passages read per dev question",
    "passages",
    least=1,
    when=_DEV,
  ),
  Setting(
    "checkpoint_every",
    1000,
    "interval of checkpoints; 0 = only at the end",
    "steps",
    least=0,
  ),
  Setting(
    "keep_checkpoints",
    2,
    "newest checkpoints to keep, besides the best one",
    "checkpoints",
    least=1,
  ),
  Setting(
    "best_metric",
    "dev_em",
    'dev metric that selects the checkpoint to use; "" = the last one',
    choices=("", "dev_em", "dev_f1"),
    when=_DEV,
  ),
]

READER = section(
  "reader",
  ("train-reader",),
  [*_SOURCES, *_INPUTS, *_TRAINING, *_WATCHING],
  when=("there is a reader",),
)

READ = section(
  "read",
  ("read",),
  [
    Setting(
      "reader",
      "",
      'reader: "" = the trained one; or a folder, as `reader.checkpoint`',
      path=True,
    ),
    Setting(
      "methods",
      ("dense",),
      "retrieval methods whose results are read; the first one's answers are"
      " reported",
      item=str,
      filled=True,
    ),
    Setting(
      "passages",
      (1, 10, 20, 50),
      "passage counts per question to compare; the largest gives the reported"
      " answer",
      "passages",
      item=int,
      least=1,
      filled=True,
    ),
    Setting(
      "span_tokens",
      10,
      "length of an answer at most, before it is widened to whole words",
      "tokens",
      least=1,
      stages=_ENGINE,
    ),
    Setting(
      "retriever_weight",
      0.0,
      "weight of the retriever's score; negative: the weight that `read --tune`"
      " stored",
      stages=("read", "retrieve"),
    ),
    Setting(
      "null_answers",
      "never",
      'empty answers for a file in SQuAD\'s format: "tuned": if the score is'
      " below the threshold that `read --questions --tune` stored",
      choices=("never", "tuned"),
    ),
    Setting(
      "tokens_per_core",
      0,
      "tokens read at once per device; 0 = as `embed.tokens_per_core`",
      "tokens",
      least=0,
      stages=_ENGINE,
    ),
    Setting(
      "length_step",
      32,
      "inputs are padded to a multiple of it",
      "tokens",
      least=1,
      stages=_ENGINE,
    ),
    Setting(
      "rerank_depth",
      50,
      "passages per question that `retrieve --rerank=reader` reorders",
      "passages",
      least=1,
      stages=("retrieve",),
    ),
  ],
  when=("there is a reader",),
)
