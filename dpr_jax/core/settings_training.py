"""Settings of the retriever's training."""

from dpr_jax.core.setting import Setting, section

_DEV = ("train.dev_questions > 0",)

_BATCHES = [
  Setting("batch_size", 128, "in the global batch", "questions", least=1),
  Setting(
    "epochs",
    40.0,
    "how often every question is seen",
    "epochs",
    above=0,
    when=("train.max_steps is 0",),
  ),
  Setting("max_steps", 0, "0 = what `epochs` gives", "steps", least=0),
  Setting(
    "hard_negatives",
    1,
    "per question, from `train.negatives`",
    "passages",
    least=0,
    most=1000,
  ),
  Setting(
    "hard_negatives_from_top",
    1,
    "each is drawn anew in every epoch from so many mined or given ones, the"
    " best (first) of a question",
    "passages",
    least=1,
    stages=("train",),
    when=("train.negatives are mined or given",),
  ),
  Setting(
    "negatives",
    "bm25",
    '"bm25" (mined), "model" (mined with the trained towers), "given" (in the'
    ' data), "random", or a mixture with counts: "bm25:1,random:1"',
    stages=("train",),
    when=("train.hard_negatives > 0",),
  ),
  Setting(
    "negatives_from",
    "",
    'another workdir of this data, with mined negatives; "" = our own',
    stages=("train",),
    when=("train.negatives are mined",),
    path=True,
  ),
  Setting(
    "positives",
    "first",
    'of several positives of a question "first" trains on the first alone,'
    ' "drawn" on one drawn anew in every epoch; the others are no negatives',
    choices=("first", "drawn"),
  ),
  Setting("mask_answers", False, "passages with an answer are no negatives"),
]

_OPTIMIZER = [
  Setting("learning_rate", 2e-5, "at its peak, after warm-up", above=0),
  Setting(
    "warmup_steps",
    1237,
    "until the peak; below the steps of the training",
    "steps",
    least=0,
  ),
  Setting(
    "scale_rule",
    "none",
    "how rate and warm-up follow the batch size",
    choices=("none", "linear", "sqrt"),
  ),
  Setting(
    "scale_reference",
    128,
    "batch size that rate and warm-up are meant for",
    "questions",
    least=1,
    when=("train.scale_rule is not none",),
  ),
  Setting(
    "dpr_compat_workers",
    0,
    "W > 0: the gradient / W before clipping, as DPR on W workers",
    "workers",
    least=0,
  ),
  Setting(
    "dpr_compat_schedule",
    False,
    "warm-up from a first rate of 0, and Adam's epsilon before the bias"
    " correction, as in DPR's code",
  ),
  Setting("weight_decay", 0.0, "AdamW's, of matrices and tables", least=0),
  Setting(
    "clip_norm", 2.0, "largest global norm of a gradient; 0 = any", least=0
  ),
  Setting("adam_b1", 0.9, "decay of Adam's mean", least=0, below=1),
  Setting("adam_b2", 0.999, "decay of Adam's mean square", least=0, below=1),
  Setting(
    "adam_epsilon", 1e-8, "added to the root of the mean square", above=0
  ),
]

_COMPUTATION = [
  Setting(
    "passage_length",
    0,
    "of a passage in training; 0 = as `model.passage_length`",
    "tokens",
    least=0,
  ),
  Setting(
    "length_groups",
    1,
    "groups by length, each padded to its own length",
    "groups",
    least=1,
    stages=("train",),
  ),
  Setting(
    "chunk_size",
    0,
    "encoded at once per core; 0 = a whole group",
    "texts",
    least=0,
  ),
  Setting(
    "question_chunk_size",
    0,
    "of questions, which are short; 0 = as `chunk_size`",
    "texts",
    least=0,
  ),
  Setting(
    "gradient_cache",
    False,
    "forget a chunk's activations and encode it twice: batches beyond memory",
  ),
  Setting(
    "layers",
    "auto",
    '"scanned": one program for all layers, "unrolled": one for each; "auto" is'
    " scanned on a TPU, where it compiles in a fraction of the time",
    choices=("auto", "scanned", "unrolled"),
  ),
  Setting("shard_optimizer", False, "Adam's moments are cut over the cores"),
  Setting(
    "reduce_dtype",
    "float32",
    "of gradients between cores",
    choices=("float32", "bfloat16"),
  ),
  Setting(
    "remat",
    "none",
    '"inner": the backward pass computes a third of a layer again, "layer":'
    " all of it",
    choices=("none", "inner", "layer"),
  ),
  Setting(
    "loss",
    "gathered",
    '"tiled", "ring": never holds a whole score row',
    choices=("gathered", "tiled", "ring"),
  ),
  Setting(
    "loss_tile",
    0,
    "scored at once; 0 = those of one core",
    "passages",
    least=0,
    when=("train.loss is tiled or ring",),
  ),
  Setting(
    "accumulate_steps",
    1,
    "only 1: see `gradient_cache`",
    "steps",
    least=1,
  ),
  Setting(
    "rounds",
    1,
    "of train, embed, mine from the model, train",
    "rounds",
    least=1,
    stages=("train",),
  ),
  Setting(
    "step_timeout",
    0.0,
    "of several processes: a step that does not end ends all; 0 = ten times"
    " the longest so far, at least 30",
    "seconds",
    least=0,
    stages=("train",),
  ),
]

_WATCHING = [
  Setting("log_every", 10, "rows of metrics.jsonl", "steps", least=1),
  Setting(
    "profile_steps",
    (),
    "(first, last): a trace of them in training/profile; () = none",
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
    256,
    "of the dev set, for dev loss and average rank; 0 = no dev rows",
    "questions",
    least=0,
  ),
  Setting(
    "dev_hard_negatives",
    30,
    "per dev question in the pool",
    "passages",
    least=0,
    when=_DEV,
  ),
  Setting(
    "dev_other_negatives",
    30,
    "per dev question in the pool",
    "passages",
    least=0,
    when=_DEV,
  ),
  Setting(
    "dev_topk_passages",
    0,
    "> 0: top-k over a sub-corpus of so many",
    "passages",
    least=0,
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
    "",
    'of the dev rows, as "dev_average_rank": the best checkpoint by it is'
    ' used; "" = the last one',
  ),
  Setting(
    "average_checkpoints",
    1,
    "> 1: the mean of the last so many is used",
    "checkpoints",
    least=1,
  ),
]

TRAIN = section(
  "train", ("train", "plan"), [*_BATCHES, *_OPTIMIZER, *_COMPUTATION]
) + section("train", ("train",), _WATCHING)
