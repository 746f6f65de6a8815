"""Values of settings, worked out by hand: the last good one, the first bad one.

A row is (key, good values, [(bad value, what the line says)]), all as typed.
"""

WHOLE = "must be a whole number"
NUMBER = "must be a number"
FINITE = "must be a finite number"
SWITCH = "must be True or False"
ONE = ">= 1"
NONE_NEGATIVE = ">= 0"
POSITIVE = "> 0"


def count(key: str, least: int) -> tuple:
  """A whole number that is at least so many."""
  wrong = f"must be {NONE_NEGATIVE if least == 0 else f'>= {least}'}"
  return (
    key,
    [str(least), "7_000"],
    [(str(least - 1), wrong), ("7.5", WHOLE), ("many", WHOLE)],
  )


def rate(key: str, wrong: str, bad: str, good: str) -> tuple:
  """A finite number."""
  return (
    key,
    [good, "1e-5"],
    [(bad, f"must be {wrong}"), ("nan", FINITE), ("inf", FINITE)],
  )


def choice(key: str, good: list[str], bad: str) -> tuple:
  """One of some words."""
  return key, good, [(bad, f"must be one of {', '.join(good)}")]


def switch(key: str) -> tuple:
  """True or False."""
  return (
    key,
    ["True", "yes", "1", "on", "False", "no", "0", "f"],
    [("2", SWITCH), ("maybe", SWITCH)],
  )


def auto_length(key: str) -> tuple:
  """A number of tokens; 0 = as the checkpoint says."""
  wrong = "must be 0 or >= 3"
  return (
    key,
    ["0", "3", "7_000"],
    [("2", wrong), ("-1", wrong), ("7.5", WHOLE), ("auto", WHOLE)],
  )


VALUES = [
  ("seed", ["0", "4294967295"], [("-1", "must be >= 0"), ("x", WHOLE)]),
  ("seed", ["7"], [("4294967296", "<= 4294967295"), ("1.0", WHOLE)]),
  count("data.max_passages", 0),
  count("data.max_train", 0),
  count("data.max_dev", 0),
  choice("data.quoting", ["auto", "csv", "none"], "excel"),
  switch("data.title_line"),
  (
    "train.distill_weight",
    ["0", "0.5", "1"],
    [
      ("-0.1", "must be >= 0 and <= 1"),
      ("1.1", ">= 0 and <= 1"),
      ("x", NUMBER),
    ],
  ),
  choice("train.distill_loss", ["kl", "margin_mse"], "mse"),
  rate("train.distill_temperature", POSITIVE, "0", "2"),
  rate("train.distill_scale", POSITIVE, "0", "0.5"),
  (
    "train.source_weights",
    ["2,0.5", "()"],
    [("1,0", "must be > 0"), ("a", "must be numbers, as in 0.5,1")],
  ),
  switch("train.one_source_batches"),
  ("data.train_prefixes", ["'nq: ',''", "()"], []),
  count("model.random_layers", 1),
  count("model.random_width", 1),
  count("model.random_heads", 1),
  choice(
    "model.pooling",
    ["auto", "cls", "mean", "max", "weightedmean", "lasttoken"]
    + ["mean_sqrt_len"],
    "median",
  ),
  (
    "model.normalize",
    ["auto", "True", "yes", "1", "on", "False", "no", "0", "f"],
    [("2", SWITCH), ("automatic", SWITCH)],
  ),
  rate("model.temperature", POSITIVE, "0", "0.05"),
  switch("model.shared_towers"),
  choice("model.title", ["auto", "pair", "joined", "none"], "both"),
  auto_length("model.question_length"),
  auto_length("model.passage_length"),
  rate("model.dropout", "< 1", "1", "0.999"),
  rate("model.dropout", "< 1", "1.5", "-1"),
  choice("model.compute_dtype", ["auto", "float32", "bfloat16"], "float16"),
  choice("model.attention", ["plain", "fused", "cudnn"], "flash"),
  count("train.batch_size", 1),
  rate("train.epochs", POSITIVE, "0", "0.5"),
  count("train.max_steps", 0),
  (
    "train.hard_negatives",
    ["0", "1000"],
    [("-1", "must be >= 0 and <= 1000"), ("1001", "<= 1000"), ("1.5", WHOLE)],
  ),
  count("train.hard_negatives_from_top", 1),
  switch("train.mask_answers"),
  rate("train.learning_rate", POSITIVE, "-1", "1e30"),
  rate("train.learning_rate", POSITIVE, "0", "2e-5"),
  count("train.warmup_steps", 0),
  choice("train.scale_rule", ["none", "linear", "sqrt"], "cubic"),
  count("train.scale_reference", 1),
  count("train.dpr_compat_workers", 0),
  switch("train.dpr_compat_schedule"),
  rate("train.weight_decay", NONE_NEGATIVE, "-0.1", "0"),
  rate("train.clip_norm", NONE_NEGATIVE, "-2", "0"),
  rate("train.adam_b1", ">= 0 and < 1", "1", "0"),
  rate("train.adam_b1", ">= 0 and < 1", "-0.1", "0.9"),
  rate("train.adam_b2", ">= 0 and < 1", "1", "0.9999"),
  rate("train.adam_epsilon", POSITIVE, "0", "1e-12"),
  count("train.passage_length", 0),
  switch("train.packing"),
  count("train.packed_widths", 1),
  count("train.chunk_size", 0),
  count("train.question_chunk_size", 0),
  switch("train.gradient_cache"),
  choice("train.layers", ["auto", "scanned", "unrolled"], "rolled"),
  switch("train.shard_optimizer"),
  choice("train.reduce_dtype", ["float32", "bfloat16"], "auto"),
  choice("train.remat", ["none", "inner", "layer"], "outer"),
  choice("train.positives", ["first", "drawn"], "all"),
  choice("train.loss", ["gathered", "tiled", "ring"], "triplet"),
  count("train.loss_tile", 0),
  count("train.accumulate_steps", 1),
  count("train.rounds", 1),
  switch("train.restart"),
  rate("train.step_timeout", NONE_NEGATIVE, "-1", "0"),
  count("train.log_every", 1),
  (
    "train.profile_steps",
    ["", "()", "(2, 4)", "2,4", "[2,4]"],
    [("(0,4)", "must be >= 1"), ("2,x", "whole numbers"), ("1.5,2", "whole")],
  ),
  count("train.dev_every", 0),
  count("train.dev_questions", 0),
  count("train.dev_hard_negatives", 0),
  count("train.dev_other_negatives", 0),
  count("train.dev_topk_passages", 0),
  count("train.checkpoint_every", 0),
  count("train.keep_checkpoints", 1),
  count("train.average_checkpoints", 1),
  choice("train.blend", ["none", "auto"], "half"),
  rate("bm25.k1", NONE_NEGATIVE, "-0.5", "0"),
  rate("bm25.b", ">= 0 and <= 1", "1.1", "1"),
  rate("bm25.b", ">= 0 and <= 1", "-0.1", "0"),
  ("bm25.stemmer", ["", "english"], [("klingon", "must be one of '', arabic")]),
  ("bm25.stopwords", ["", "en"], [("xx", "must be one of '', en, english")]),
  switch("bm25.one_letter_words"),
  count("mine.depth", 1),
  count("mine.keep", 1),
  count("mine.range_min", 0),
  *(
    (
      f"mine.{name}",
      ["none", "-3", "0.5"],
      [("nan", FINITE), ("auto", f"{NUMBER}, or none")],
    )
    for name in ("max_score", "min_score")
  ),
  (
    "mine.absolute_margin",
    ["None", "0", "1e-5"],
    [("-1", "must be >= 0, or none"), ("inf", FINITE), ("auto", NUMBER)],
  ),
  (
    "mine.relative_margin",
    ["none", "0", "0.05", "1"],
    [
      ("-0.1", ">= 0 and <= 1, or none"),
      ("1.5", "<= 1"),
      ("x", NUMBER),
    ],
  ),
  choice("mine.sampling", ["top", "random", "score"], "hard"),
  count("embed.rows_per_shard", 1),
  choice("embed.dtype", ["float32", "float16", "bfloat16"], "int8"),
  choice("embed.backend", ["jax", "onnx-int8"], "onnx"),
  count("embed.shapes", 1),
  count("embed.tokens_per_core", 0),
  count("embed.length_step", 1),
  count("index.threads", 0),
  count("index.train_sample", 1),
  count("index.ef_construction", 1),
  count("index.ef_search", 0),
  count("index.nprobe", 0),
  rate("index.refine_factor", NONE_NEGATIVE, "-1", "0"),
  switch("index.rescore"),
  switch("index.mmap"),
  count("index.shards", 1),
  rate("index.memory_gb", NONE_NEGATIVE, "-1", "0"),
  switch("index.allow_too_large"),
  count("index.recall_questions", 0),
  rate("index.recall_target", ">= 0 and <= 1", "98", "1"),
  (
    "retrieve.methods",
    ["bm25", "bm25,dense", "('bm25','dense')", '["bm25"]', "('exact',)"],
    [
      ("", "is empty: must be names, as in bm25,dense"),
      ("bm52", "must be one of bm25, dense"),
      ("bm25,dens", "must be one of bm25, dense"),
    ],
  ),
  count("retrieve.depth", 1),
  switch("retrieve.pyserini"),
  choice("exact.storage", ["float32", "bfloat16"], "float16"),
  switch("exact.approximate"),
  rate("exact.recall_target", "> 0 and <= 1", "0", "1"),
  rate("exact.recall_target", "> 0 and <= 1", "1.01", "0.5"),
  rate("exact.core_gb", NONE_NEGATIVE, "-4", "0"),
  choice("fusion.method", ["linear", "minmax", "reciprocal"], "rrf"),
  ("fusion.weight", ["-1", "1.1"], [("nan", FINITE), ("much", NUMBER)]),
  count("fusion.depth", 1),
  count("fusion.rank_constant", 0),
  choice(
    "reader.method", ["bm25", "dense", "dense-start", "exact", "hybrid"], "mean"
  ),
  choice("reader.layout", ["auto", "dpr", "dpr-hf", "squad"], "bert"),
  count("reader.length", 8),
  count("reader.question_length", 1),
  count("reader.overlap", 0),
  count("reader.from_top", 1),
  ("reader.passages", ["1", "1000"], [("0", ">= 1"), ("1001", "<= 1000")]),
  count("reader.spans", 1),
  count("reader.batch_size", 1),
  rate("reader.epochs", POSITIVE, "-1", "2"),
  count("reader.max_steps", 0),
  rate("reader.learning_rate", POSITIVE, "0", "3e-5"),
  count("reader.warmup_steps", 0),
  rate("reader.weight_decay", NONE_NEGATIVE, "-1", "0"),
  rate("reader.clip_norm", NONE_NEGATIVE, "-1", "0"),
  rate("reader.dropout", "< 1", "1", "0"),
  count("reader.chunk_size", 0),
  choice("reader.remat", ["none", "inner", "layer"], "all"),
  switch("reader.packing"),
  count("reader.packed_widths", 1),
  count("reader.length_groups", 1),
  count("reader.length_step", 0),
  count("reader.sort_batches", 1),
  count("reader.log_every", 1),
  ("reader.profile_steps", ["1,2"], [("0,1", ">= 1"), ("a", "whole numbers")]),
  count("reader.dev_every", 0),
  count("reader.dev_questions", 0),
  count("reader.dev_passages", 1),
  count("reader.checkpoint_every", 0),
  count("reader.keep_checkpoints", 1),
  (
    "reader.best_metric",
    ["", "dev_em", "dev_f1"],
    [("em", "must be one of '', dev_em, dev_f1")],
  ),
  ("read.methods", ["dense", "a,b"], [("()", "is empty: must be names")]),
  (
    "read.passages",
    ["20", "(1,10)", "1, 10,"],
    [("", "is empty"), ("0,5", "must be >= 1"), ("5.5", "whole numbers")],
  ),
  count("read.span_tokens", 1),
  choice("read.null_answers", ["never", "tuned"], "always"),
  ("read.retriever_weight", ["-1", "5"], [("inf", FINITE), ("x", NUMBER)]),
  count("read.tokens_per_core", 0),
  count("read.length_step", 1),
  count("read.rerank_depth", 1),
  choice("evaluate.match", ["string", "regex"], "exact"),
  choice("evaluate.drop_self", ["auto", "on", "off"], "always"),
  (
    "evaluate.ranks",
    ["1,5,20,100", "(20,)"],
    [("", "is empty"), ("0", "must be >= 1"), ("1,2.5", "whole numbers")],
  ),
  count("plan.train_questions", 1),
  count("plan.passages", 1),
]
# Text that may be anything, or is checked by a rule of its own.
FREE = {
  *("data.passages", "data.train", "data.dev", "model.checkpoint"),
  *("model.question_checkpoint", "model.passage_checkpoint"),
  *("model.question_prefix", "model.passage_prefix", "train.negatives"),
  *("train.negatives_from", "train.best_metric", "index.factory"),
  "train.distill_scores",
  "index.backend",
  *("reader.train", "reader.dev", "reader.checkpoint", "read.reader"),
  "plan.lengths",
}
