"""Rules that involve several settings.

They are checked twice: before anything starts, so that a mistake costs a second
instead of an hour, and by the code that relies on them, which can also be
called from Python.  This module is fast to import.
"""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors

SCALE_RULES = ("none", "linear", "sqrt")


def checkpoint_pair(question: str, passage: str, shared: bool) -> None:
  """`InputError` if a pair of checkpoints lacks one, or is to be shared."""
  if bool(question) != bool(passage):
    there = "question" if question else "passage"
    missing = "passage" if question else "question"
    raise errors.InputError(
      f"config.model.{there}_checkpoint={question or passage!r}: set"
      f" config.model.{missing}_checkpoint too: towers start from one"
      " config.model.checkpoint, or from these two"
    )
  if "random" in (question, passage):
    raise errors.InputError(
      "config.model.question_checkpoint and passage_checkpoint must be"
      " checkpoints: 'random' is for config.model.checkpoint"
    )
  if question and shared:
    raise errors.InputError(
      f"config.model.shared_towers=True: config.model.question_checkpoint="
      f"{question!r} and passage_checkpoint={passage!r} are two encoders: set"
      " it to False, or give one config.model.checkpoint"
    )


def checkpoint_name(model: Any) -> str:
  """The checkpoint of a section `model`, or both of its pair, for messages."""
  pair = (model.question_checkpoint, model.passage_checkpoint)
  return " and ".join(pair) if all(pair) else model.checkpoint


def random_sizes(model: Any, checkpoint: str) -> None:
  """`InputError` if the heads of a random model do not divide its width."""
  if checkpoint == "random" and model.random_width % model.random_heads:
    raise errors.InputError(
      f"config.model.random_width={model.random_width}: must be a multiple of"
      f" config.model.random_heads={model.random_heads}"
    )


def embedding_backend(name: str) -> None:
  """`InputError` if the libraries of an `embed.backend` are not installed."""
  if name == "jax":
    return
  for library in ("onnx", "onnxruntime"):
    if importlib.util.find_spec(library) is None:
      raise errors.InputError(
        f"config.embed.backend={name!r}: the library {library} is not"
        " installed: pip install 'dpr-jax[onnx]', or set it to 'jax'"
      )


def reader_lengths(length: int, question_length: int, overlap: int) -> None:
  """`InputError` if a question leaves no tokens for a passage's windows."""
  if question_length < 1 or overlap < 0:
    raise errors.InputError(
      f"config.reader.question_length={question_length} must be >= 1"
      f" and config.reader.overlap={overlap} >= 0"
    )
  least = 2 * (question_length + 3)
  if length < least or overlap > length // 4:
    raise errors.InputError(
      f"config.reader.length={length}: must be >= {least}, twice"
      f" question_length + 3, and >= 4 * overlap = {4 * overlap}"
    )


def metric_names(config: Any) -> tuple[str, ...]:
  """Names of the dev metrics of a config, for `train.best_metric`.

  Empty without dev questions.

  Raises:
    InputError: `train.dev_topk_passages` or `evaluate.ranks` is out of range.
  """
  if config.train.dev_questions <= 0:
    return ()
  names = ["dev_loss", "dev_average_rank", "dev_top1"]
  if sub_corpus_size(config):
    for kind in ("gold", "answer"):
      names += [f"dev_{kind}_top{k}" for k in ranks(config)]
  return tuple(names)


def sub_corpus_size(config: Any) -> int:
  """Number of passages that dev top-k is measured over; 0 = not measured."""
  size = config.train.dev_topk_passages
  return int(config_lib.at_least("train.dev_topk_passages", size, 0))


def ranks(config: Any) -> tuple[int, ...]:
  """The values of k for top-k, ascending."""
  found = config.evaluate.ranks
  if not len(found):
    raise errors.InputError(
      "config.evaluate.ranks is empty: give values of k for top-k, or set"
      " config.train.dev_topk_passages=0"
    )
  return tuple(
    sorted({int(config_lib.at_least("evaluate.ranks", k, 1)) for k in found})
  )


def selection(config: Any) -> tuple[str, int]:
  """How the checkpoint to use is chosen after a training.

  Returns:
    (dev metric, "" = the last checkpoint; number of last checkpoints that are
    averaged, 1 = no average).

  Raises:
    InputError: the config does not measure the metric, or sets both rules.
  """
  settings = config.train
  if settings.blend != "none" and settings.dev_questions < 1:
    raise errors.InputError(
      f"config.train.blend={settings.blend!r}: the blend is chosen on dev"
      " questions, and config.train.dev_questions is 0: set it above 0, or"
      " config.train.blend=none"
    )
  metric, average = settings.best_metric, settings.average_checkpoints
  config_lib.at_least("train.average_checkpoints", average, 1)
  if metric:
    names = metric_names(config)
    if metric not in names:
      raise errors.InputError(
        f"config.train.best_metric={metric!r}: this config measures"
        f" {', '.join(names) or 'no dev metrics (train.dev_questions=0)'}"
      )
    if average > 1:
      raise errors.InputError(
        f"config.train.average_checkpoints={average} and"
        f" config.train.best_metric={metric!r}: choose one of them"
      )
  if average > settings.keep_checkpoints:
    raise errors.InputError(
      f"config.train.average_checkpoints={average}: must be <="
      f" config.train.keep_checkpoints={settings.keep_checkpoints}"
    )
  return metric, int(average)


def is_taught(train: Any) -> bool:
  """Whether section `train` of a config has a teacher that counts."""
  return bool(train.distill_scores) and train.distill_weight > 0


def teacher_of_negatives(train: Any, mined: Sequence[str]) -> str:
  """The kind of mined negatives whose scores are learnt.

  Args:
    train: section `train` of a config with `distill_scores="negatives"`.
    mined: kinds of its negatives that are mined.

  Raises:
    InputError: there is not exactly one, or they are mined again in the run.
  """
  where = "config.train.distill_scores='negatives'"
  if train.rounds > 1:
    raise errors.InputError(
      f"{where}: with config.train.rounds={train.rounds} negatives are mined"
      " again, by the model itself: name a file of scores"
    )
  if len(mined) != 1:
    raise errors.InputError(
      f"{where}: config.train.negatives={train.negatives!r} with"
      f" config.train.hard_negatives={train.hard_negatives} has"
      f" {'several kinds' if mined else 'no kind'} of mined negatives: name a"
      " file of scores"
    )
  return mined[0]


def scaled(
  learning_rate: float,
  warmup_steps: int,
  batch_size: int,
  reference: int,
  rule: str,
) -> tuple[float, int]:
  """Scales learning rate and warm-up to another batch size.

  With k = `batch_size` / `reference`, "linear" multiplies the rate by k and
  "sqrt" by the square root of k; either keeps the warm-up at the same number of
  examples, rounded up to whole steps.  These are starting points for a search,
  not laws.

  "linear" is the rule of Goyal et al. 2017 (arXiv 1706.02677) for SGD with
  momentum; their warm-up, too, is a number of epochs whatever the batch.  The
  square root keeps the variance of a step the same (Krizhevsky 2014, arXiv
  1404.5997, who found the linear rule better for his SGD).  You et al. 2019
  (arXiv 1904.00962) train BERT with it, by their own optimizer, LAMB.  Malladi
  et al. 2022 (arXiv 2205.10287) derive it for Adam, where 1 - beta is also
  multiplied by k, for both betas, and epsilon divided by the square root of k.
  Here betas and epsilon stay as they are, so "sqrt" is only part of their rule.
  All of this is about one loss; with in-batch negatives a larger batch is also
  a harder task.

  Args:
    learning_rate: peak rate for batches of `reference`.
    warmup_steps: number of steps for batches of `reference`.
    batch_size: number of questions in the global batch of this training.
    reference: number of questions in the global batch for which the first two
      arguments were tuned.
    rule: "none" (no scaling), "linear" or "sqrt".

  Raises:
    InputError: `rule` is unknown, or a size is below 1.
  """
  config_lib.one_of("train.scale_rule", rule, SCALE_RULES)
  config_lib.at_least("train.warmup_steps", warmup_steps, 0)
  config_lib.at_least("train.batch_size", batch_size, 1)
  config_lib.at_least("train.scale_reference", reference, 1)
  if rule == "none":
    return learning_rate, warmup_steps
  factor = batch_size / reference
  if rule == "sqrt":
    factor = math.sqrt(factor)
  return learning_rate * factor, -(-warmup_steps * reference // batch_size)


def total_steps(
  max_steps: int, epochs: float, questions: int, batch_size: int
) -> int:
  """Number of training steps: `max_steps`, or if that is 0, from `epochs`.

  Args:
    max_steps: number of steps; 0 = use `epochs`.
    epochs: number of passes over the questions, rounded up to whole steps.
    questions: number of questions in the training set.
    batch_size: number of questions in the global batch.
  """
  return max_steps or max(1, -int(-epochs * questions // batch_size))


def weights_of_round(
  train: Any, sources: int, number: int = 0
) -> tuple[float, ...]:
  """The weights of the sources in a round; () = all 1.

  Args:
    train: section `train` of a config; older ones lack the weights.
    sources: number of sources of `data.train`.
    number: number of the round, from 0.
  """
  weights = tuple(train.get("source_weights", ()))
  if len(weights) == sources * train.get("rounds", 1):
    return weights[number * sources :][:sources]
  return weights


def questions_per_source(
  sizes: Sequence[int], weights: Sequence[float], one_source: bool = False
) -> list[int]:
  """Number of questions that an epoch takes from each source.

  Args:
    sizes: number of questions of each source of `data.train`.
    weights: `train.source_weights` of a round; () = all 1.
    one_source: `train.one_source_batches`.

  Raises:
    InputError: another number of weights than of sources, or batches of one
      source with a single source.
  """
  if weights and len(weights) != len(sizes):
    raise errors.InputError(
      f"config.train.source_weights={tuple(weights)}: {len(weights)} weights"
      f" for the {len(sizes)} sources in config.data.train: give one per"
      " source, or one per source for every one of config.train.rounds"
    )
  if one_source and len(sizes) < 2:
    raise errors.InputError(
      "config.train.one_source_batches=True: config.data.train has a single"
      " source: leave it False, or give several, separated by commas"
    )
  weights = weights or [1.0] * len(sizes)
  return [
    max(1, round(size * weight))
    for size, weight in zip(sizes, weights, strict=True)
  ]


def warm_up(train: Any, steps: int) -> tuple[float, int]:
  """Learning rate and warm-up steps of section `train`.

  Raises:
    InputError: a setting is out of range, or the scaled warm-up is not shorter
      than the training of `steps` steps.
  """
  rule = train.scale_rule
  rate, warmup_steps = scaled(
    train.learning_rate,
    train.warmup_steps,
    train.batch_size,
    train.scale_reference,
    rule,
  )
  if rule == "none":
    below_steps("train.warmup_steps", warmup_steps, steps)
  elif warmup_steps >= steps:
    raise errors.InputError(
      f"config.train.warmup_steps={train.warmup_steps} for batches of"
      f" {train.scale_reference} is {warmup_steps} for batches of"
      f" {train.batch_size} (scale_rule={rule!r}), not below the"
      f" {steps} steps of the training: lower it, or train longer"
    )
  return rate, warmup_steps


def below_steps(key: str, warmup_steps: int, steps: int) -> None:
  """`InputError` if a warm-up is not shorter than the training."""
  if warmup_steps >= steps:
    raise errors.InputError(
      f"config.{key}={warmup_steps} is not below the {steps} steps of the"
      " training: lower it, or train longer"
    )


def profile_steps(key: str, steps: Sequence[int], last: float | int) -> None:
  """`InputError` unless two steps are in order and within the training.

  Args:
    key: key of the setting.
    steps: (first, last) step to trace; () = none.
    last: last step of the training; infinity = not known.
  """
  if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1] <= last):
    end = "" if math.isinf(last) else f" <= {int(last)}"
    raise errors.InputError(
      f"config.{key}={tuple(steps)}: must be (first, last) with 1 <= first"
      f" <= last{end}"
    )


def mining(mine: Any) -> None:
  """`InputError` if a setting of section `mine` is bad, or excludes all."""
  for name, least in (("depth", 1), ("keep", 1), ("range_min", 0)):
    config_lib.at_least(f"mine.{name}", mine[name], least)
  if mine.range_min >= mine.depth:
    raise errors.InputError(
      f"config.mine.range_min={mine.range_min}: leaves out all of the"
      f" config.mine.depth={mine.depth} retrieved passages: lower it, or raise"
      " depth"
    )
  scores = mine.min_score, mine.max_score
  if "none" not in scores and scores[0] > scores[1]:
    raise errors.InputError(
      f"config.mine.min_score={scores[0]} is above"
      f" config.mine.max_score={scores[1]}: no score is between them"
    )


def accumulation(steps: int) -> None:
  """`InputError` for `train.accumulate_steps` above 1."""
  if steps != 1:
    raise errors.InputError(
      f"config.train.accumulate_steps={steps}: must be 1: gradient accumulation"
      " is not supported: each micro-batch would only see its own negatives;"
      " set config.train.gradient_cache=True and a larger"
      " config.train.batch_size"
    )


def answer_masks(mask_answers: bool, match: str) -> None:
  """`InputError` if `train.mask_answers` is set with regex answers."""
  if mask_answers and match != "string":
    raise errors.InputError(
      "config.train.mask_answers=True: supports only string answers, not"
      f" config.evaluate.match={match!r}: set"
      " config.train.mask_answers=False or config.evaluate.match=string"
    )


def divides(batch_size: int, cores: int) -> None:
  """`InputError` if the devices do not divide the retriever's batch size."""
  if batch_size % cores:
    raise errors.InputError(
      f"config.train.batch_size={batch_size}: must be a multiple of the"
      f" {cores} devices"
    )


def reader_source(train: str) -> None:
  """`InputError` if a reader has no training data."""
  if not train:
    raise errors.InputError(
      'config.reader.train is empty: set it to "results" to train on the'
      " results of config.reader.method, or to a file in SQuAD's format or"
      " DPR's results format"
    )
