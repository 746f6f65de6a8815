"""Settings of the reader: its training, and reading."""

from dpr_jax.core.setting import Setting, section
from dpr_jax.core.settings_retrieval import METHODS

_DEV = ("reader.dev_questions > 0",)
_ENGINE = ("train-reader", "read", "retrieve")

_SOURCES = [
  Setting(
    "train",
    "",
    'what it learns from: "" = there is no reader; "results" = what'
    " `reader.method` retrieves for the training questions; or a file, in"
    " SQuAD's format or DPR's results format",
    path=True,
  ),
  Setting(
    "dev",
    "",
    '"" = the dev set\'s results; or a file, as `reader.train`',
    path=True,
    when=_DEV,
  ),
  Setting(
    "method",
    "dense",
    'whose results are "results"',
    choices=METHODS,
    when=("reader.train or reader.dev is results",),
  ),
  Setting(
    "checkpoint",
    "",
    '"" = as `model.checkpoint`; also a DPRReader, a BertForQuestionAnswering,'
    " or a workdir with a reader to go on from",
    path=True,
  ),
]

_INPUTS = [
  Setting(
    "layout",
    "auto",
    '"dpr", "dpr-hf" (token types all 0), "squad" (no title); "auto" = as the'
    ' checkpoint was made, "dpr" for a BERT',
    choices=("auto", "dpr", "dpr-hf", "squad"),
  ),
  Setting(
    "length",
    350,
    "of question, title and passage; >= 2 * (question_length + 3), and"
    " >= 4 * overlap",
    "tokens",
    least=8,
  ),
  Setting("question_length", 64, "of a question at most", "tokens", least=1),
  Setting(
    "overlap", 64, "shared by two windows of a long passage", "tokens", least=0
  ),
  Setting(
    "from_top",
    200,
    "retrieved passages that negatives are drawn from",
    "passages",
    least=1,
  ),
  Setting(
    "passages",
    24,
    "per question: a positive and negatives",
    "passages",
    least=1,
    most=1000,
  ),
  Setting(
    "spans", 10, "places of the answer in a passage, at most", "spans", least=1
  ),
]

_TRAINING = [
  Setting("batch_size", 16, "in the global batch", "questions", least=1),
  Setting(
    "epochs",
    10.0,
    "how often every question is seen",
    "epochs",
    above=0,
    when=("reader.max_steps is 0",),
  ),
  Setting("max_steps", 0, "0 = what `epochs` gives", "steps", least=0),
  Setting("learning_rate", 1e-5, "at its peak, after warm-up", above=0),
  Setting(
    "warmup_steps",
    0,
    "until the peak; below the steps of the training",
    "steps",
    least=0,
  ),
  Setting("weight_decay", 0.0, "AdamW's, of matrices and tables", least=0),
  Setting(
    "clip_norm", 2.0, "largest global norm of a gradient; 0 = any", least=0
  ),
  Setting(
    "dropout",
    -1.0,
    "everywhere in the BERT; negative: what the checkpoint's config says",
    below=1,
  ),
  Setting(
    "chunk_size",
    0,
    "read at once per core; 0 = a whole group",
    "inputs",
    least=0,
  ),
  Setting(
    "remat", "none", "as `train.remat`", choices=("none", "inner", "layer")
  ),
  Setting(
    "length_groups",
    1,
    "groups by length, each padded to its own length",
    "groups",
    least=1,
  ),
  Setting(
    "length_step",
    0,
    "padded to a multiple of it; 0 = to `reader.length`",
    "tokens",
    least=0,
  ),
  Setting(
    "sort_batches",
    1,
    "whose questions are sorted by length together",
    "batches",
    least=1,
  ),
]

_WATCHING = [
  Setting("log_every", 10, "rows of metrics.jsonl", "steps", least=1),
  Setting(
    "profile_steps",
    (),
    "(first, last): a trace of them in reader/profile; () = none",
    "steps",
    item=int,
    least=1,
  ),
  Setting(
    "dev_every",
    0,
    "between dev rows; 0 = at the end alone",
    "steps",
    least=0,
    when=_DEV,
  ),
  Setting(
    "dev_questions",
    500,
    "for dev_em and dev_f1; 0 = no such figures",
    "questions",
    least=0,
  ),
  Setting(
    "dev_passages",
    20,
    "retrieved ones read per dev question",
    "passages",
    least=1,
    when=_DEV,
  ),
  Setting(
    "checkpoint_every",
    1000,
    "between checkpoints; 0 = at the end alone",
    "steps",
    least=0,
  ),
  Setting(
    "keep_checkpoints", 2, "the newest, and the best one", "files", least=1
  ),
  Setting(
    "best_metric",
    "dev_em",
    'the best checkpoint by it is used; "" = the last one',
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
      '"" = the trained one; or a folder, as `reader.checkpoint`',
      path=True,
    ),
    Setting(
      "methods",
      ("dense",),
      "whose results are read; the first one's answers count",
      item=str,
      filled=True,
    ),
    Setting(
      "passages",
      (1, 10, 20, 50),
      "numbers to compare, per question; the largest gives the answer",
      "passages",
      item=int,
      least=1,
      filled=True,
    ),
    Setting(
      "span_tokens",
      10,
      "of an answer at most, before it is widened to words",
      "tokens",
      least=1,
      stages=_ENGINE,
    ),
    Setting(
      "retriever_weight",
      0.0,
      "of the retriever's score; negative: as `read --tune` stored it",
      stages=("read", "retrieve"),
    ),
    Setting(
      "null_answers",
      "never",
      'of a file in SQuAD\'s format: "tuned": no answer below the score that'
      " `read --questions --tune` stored",
      choices=("never", "tuned"),
    ),
    Setting(
      "tokens_per_core",
      0,
      "read at once; 0 = as `embed.tokens_per_core`",
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
      "that `retrieve --rerank=reader` reorders",
      "passages",
      least=1,
      stages=("retrieve",),
    ),
  ],
  when=("there is a reader",),
)
