"""Settings of the retriever's training."""

from dpr_jax.core.setting import Setting, section

_DEV = ("train.dev_questions > 0",)

_BATCHES = [
  Setting("batch_size", 128, "size of the global batch", "questions", least=1),
  Setting(
    "epochs",
    40.0,
    "passes over the training questions",
    "epochs",
    above=0,
    when=("train.max_steps is 0",),
  ),
  Setting("max_steps", 0, "training steps; 0 = by `epochs`", "steps", least=0),
  Setting(
    "source_weights",
    (),
    "how often an epoch takes the questions of each source of `data.train`;"
    " with `train.rounds`, optionally one weight per source for every round,"
    " the first round's first; () = once",
    item=float,
    above=0,
    stages=("train",),
  ),
  Setting(
    "one_source_batches",
    False,
    "the questions of a batch are of one source of `data.train`",
    stages=("train",),
  ),
  Setting(
    "hard_negatives",
    1,
    "hard negatives per question, from `train.negatives`",
    "passages",
    least=0,
    most=1000,
  ),
  Setting(
    "hard_negatives_from_top",
    1,
    "number of top mined or given negatives of a question from which hard"
    " negatives are drawn in every epoch",
    "passages",
    least=1,
    stages=("train",),
    when=("train.negatives are mined or given",),
  ),
  Setting(
    "negatives",
    "bm25",
    'source of hard negatives: "bm25", "model", "hybrid" or "passage" (mined,'
    ' see `dpr-jax mine --from`), "previous" (those of the round before, with'
    ' `train.rounds`), "given" (in the data), "random", or a mixture with'
    ' counts: "bm25:1,random:1"',
    stages=("train",),
    when=("train.hard_negatives > 0",),
  ),
  Setting(
    "negatives_from",
    "",
    'workdir with the same data whose mined negatives are used; "" = this one',
    stages=("train",),
    when=("train.negatives are mined",),
    path=True,
  ),
  Setting(
    "positives",
    "first",
    'positive of a question with several: "first", or "drawn" at random in'
    " every epoch; the others are not used as negatives",
    choices=("first", "drawn"),
  ),
  Setting(
    "mask_answers",
    False,
    "do not use passages that contain an answer as negatives",
  ),
]

_TEACHER = [
  Setting(
    "distill_scores",
    "",
    "file with a teacher's scores of the training questions' passages (see"
    ' docs/training.md, Teachers); "negatives" = the scores in the file of'
    ' mined negatives; "" = no teacher',
    path=True,
  ),
  Setting(
    "distill_weight",
    0.5,
    "share w of the teacher: the loss is (1 - w) * in-batch loss + w * distance"
    " from the teacher; 0 = no teacher",
    least=0,
    most=1,
    when=("train.distill_scores is set",),
  ),
  Setting(
    "distill_loss",
    "kl",
    'distance from the teacher over a question\'s own passages: "kl" (of the'
    ' two softmaxes) or "margin_mse" (of positive minus negative)',
    choices=("kl", "margin_mse"),
    when=("train.distill_scores is set",),
  ),
  Setting(
    "distill_temperature",
    1.0,
    "scores of both sides are divided by it before the softmaxes",
    above=0,
    when=("train.distill_scores is set", "train.distill_loss is kl"),
  ),
  Setting(
    "distill_scale",
    1.0,
    "the teacher's scores are multiplied by it",
    above=0,
    when=("train.distill_scores is set",),
  ),
]

_OPTIMIZER = [
  Setting("learning_rate", 2e-5, "peak learning rate, after warm-up", above=0),
  Setting(
    "warmup_steps",
    1237,
    "linear warm-up to the peak; shorter than the training",
    "steps",
    least=0,
  ),
  Setting(
    "scale_rule",
    "none",
    "how learning rate and warm-up are scaled with the batch size",
    choices=("none", "linear", "sqrt"),
  ),
  Setting(
    "scale_reference",
    128,
    "batch size that learning rate and warm-up were chosen for",
    "questions",
    least=1,
    when=("train.scale_rule is not none",),
  ),
  Setting(
    "dpr_compat_workers",
    0,
    "W > 0: divide the gradient by W before clipping, as DPR does on W workers",
    "workers",
    least=0,
  ),
  Setting(
    "dpr_compat_schedule",
    False,
    "warm-up from a first learning rate of 0, and Adam's epsilon added before"
    " the bias correction, as in DPR's code",
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
  Setting("adam_b1", 0.9, "decay of Adam's first moment", least=0, below=1),
  Setting("adam_b2", 0.999, "decay of Adam's second moment", least=0, below=1),
  Setting(
    "adam_epsilon",
    1e-8,
    "added to the root of Adam's second moment",
    above=0,
  ),
]

_COMPUTATION = [
  Setting(
    "passage_length",
    0,
    "length of a passage in training at most; 0 = `model.passage_length`",
    "tokens",
    least=0,
  ),
  Setting(
    "packing",
    True,
    "texts are encoded in rows without padding between them; False = they are"
    " padded",
    stages=("train",),
  ),
  Setting(
    "packed_widths",
    2,
    "widths of packed rows that steps choose from, at most; each is a program"
    " of its own, compiled before the first step",
    "widths",
    least=1,
    stages=("train",),
    when=("train.packing is True",),
  ),
  Setting(
    "chunk_size",
    0,
    "texts encoded at once per device; 0 = all",
    "texts",
    least=0,
  ),
  Setting(
    "question_chunk_size",
    0,
    "as `chunk_size`, for questions, which are shorter; 0 = `chunk_size`",
    "texts",
    least=0,
  ),
  Setting(
    "gradient_cache",
    False,
    "encode every chunk twice instead of keeping its activations: allows"
    " batches that do not fit into memory",
  ),
  Setting(
    "layers",
    "auto",
    'loop over layers: "scanned" (one program for all layers; compiles faster)'
    ' or "unrolled"; "auto" = unrolled on CPUs',
    choices=("auto", "scanned", "unrolled"),
  ),
  Setting("shard_optimizer", False, "shard Adam's moments over the devices"),
  Setting(
    "reduce_dtype",
    "float32",
    "dtype of gradients when summed over devices",
    choices=("float32", "bfloat16"),
  ),
  Setting(
    "remat",
    "none",
    "rematerialization: the backward pass computes a third of a layer again"
    ' ("inner"), or all of it ("layer")',
    choices=("none", "inner", "layer"),
  ),
  Setting(
    "loss",
    "gathered",
    'in-batch loss: "gathered" holds all scores of a device\'s questions;'
    ' "tiled" and "ring" hold a tile of them at a time',
    choices=("gathered", "tiled", "ring"),
  ),
  Setting(
    "loss_tile",
    0,
    "passages scored at once; 0 = those of one device",
    "passages",
    least=0,
    when=("train.loss is tiled or ring",),
  ),
  Setting(
    "accumulate_steps",
    1,
    "must be 1: use `gradient_cache` for larger batches",
    "steps",
    least=1,
  ),
  Setting(
    "rounds",
    1,
    "training rounds; between two, the corpus is embedded and negatives are"
    " mined with the model",
    "rounds",
    least=1,
    stages=("train",),
  ),
  Setting(
    "restart",
    False,
    "every round starts from the pretrained checkpoint, with a learning rate"
    " schedule of its own",
    stages=("train",),
    when=("train.rounds > 1",),
  ),
  Setting(
    "step_timeout",
    0.0,
    "time after which a step that does not end stops all processes; 0 = ten"
    " times the longest step so far, at least 30",
    "seconds",
    least=0,
    stages=("train",),
  ),
]

_WATCHING = [
  Setting(
    "log_every", 10, "interval of rows in metrics.jsonl", "steps", least=1
  ),
  Setting(
    "profile_steps",
    (),
    "(first, last) step to trace to training/profile; () = none",
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
    256,
    "dev questions for dev loss and average rank; 0 = no dev rows",
    "questions",
    least=0,
  ),
  Setting(
    "dev_hard_negatives",
    30,
    "hard negatives per dev question in the average-rank pool",
    "passages",
    least=0,
    when=_DEV,
  ),
  Setting(
    "dev_other_negatives",
    30,
    "other negatives per dev question in the average-rank pool",
    "passages",
    least=0,
    when=_DEV,
  ),
  Setting(
    "dev_topk_passages",
    0,
    "size of the sub-corpus for dev top-k; 0 = not measured",
    "passages",
    least=0,
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
    "",
    'dev metric that selects the checkpoint to use, such as "dev_average_rank";'
    ' "" = the last checkpoint',
  ),
  Setting(
    "average_checkpoints",
    1,
    "number of last checkpoints whose mean is used; 1 = no average",
    "checkpoints",
    least=1,
  ),
  Setting(
    "blend",
    "none",
    '"auto": after training, means of the trained weights and those before'
    " training are compared on the dev pool, and the best one is used; must be"
    " none without dev questions",
    choices=("none", "auto"),
  ),
]

TRAIN = (
  section("train", ("train", "plan"), _BATCHES)
  + section("train", ("train",), _TEACHER)
  + section("train", ("train", "plan"), [*_OPTIMIZER, *_COMPUTATION])
  + section("train", ("train",), _WATCHING)
)
