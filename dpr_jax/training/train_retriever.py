"""Training of the retriever, top to bottom.

In come `data/train`, the mined negatives and a pretrained checkpoint; out come
`training/checkpoints/<step>` and `training/metrics.jsonl`.  The step is one
function for one core, mapped over all cores; while the cores work on step N the
host reads the metrics of step N-1 and Grain prepares the batches to come.
"""

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from dpr_jax import configuration, errors, parallel
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import batches, prepare
from dpr_jax.models import checkpoints, dual_encoder, towers
from dpr_jax.retrieval import mining
from dpr_jax.training import metrics, objectives, optimizer, validation

STAGE = "train"


@flax.struct.dataclass
class TrainState:
  """What a step changes; replicated over the cores.

  Attributes:
    step: steps taken.
    params: the towers'.
    optimizer: optax's state.
  """

  step: Int[ArrayLike, ""]
  params: Any
  optimizer: Any


def dropout_keys(
  seed: int,
  step: Int[ArrayLike, ""],
  global_rows: Int[ArrayLike, " questions"],
  passages_per_question: int,
) -> tuple[Key[Array, " questions"], Key[Array, " passages"]]:
  """Keys from (seed, step, global row): the same on any number of cores."""
  base = jax.random.fold_in(jax.random.key(seed), step)
  rows = jax.vmap(jax.random.fold_in, (None, 0))(base, global_rows)
  fold = jax.vmap(jax.random.fold_in, (0, None))
  of_passages = [fold(rows, 1 + n) for n in range(passages_per_question)]
  return fold(rows, 0), jnp.stack(of_passages, axis=1).reshape(-1)


def make_train_step(
  encoder: dual_encoder.DualEncoder,
  transformation: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  seed: int,
  temperature: float,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict]]:
  """The train step of one core, to be mapped with `parallel`.

  Args:
    encoder: the towers.
    transformation: the optimizer, clipping included.
    schedule: the learning rate, for the metrics.
    seed: of the dropout masks.
    temperature: scores are divided by it.

  Returns:
    A function of a replicated state and one core's batch (see
    `batches.BatchSource`), giving the new state and metrics of the global
    batch: loss (mean NLL), accuracy (share of questions whose own positive
    scores highest), masked_duplicates, gradient_norm (before clipping),
    learning_rate.
  """
  drops = max(
    encoder.config.hidden_dropout_prob,
    encoder.config.attention_probs_dropout_prob,
  )

  def step(state: TrainState, batch: dict[str, Array]):
    questions = batch["global_rows"].shape[0]
    keys = (None, None)
    if drops > 0:
      keys = dropout_keys(
        seed,
        state.step,
        batch["global_rows"],
        batch["passage_keys"].shape[0] // questions,
      )
    negatives = objectives.Negatives(
      question_weights=jnp.ones(questions, jnp.float32),
      passage_valid=batch["passage_valid"],
      passage_keys=batch["passage_keys"],
    )

    def loss_function(params):
      question_vectors = encoder.encode_questions(
        params,
        dual_encoder.Texts(
          batch["question_ids"], batch["question_mask"], keys[0]
        ),
      )
      passage_vectors = encoder.encode_passages(
        params,
        dual_encoder.Texts(
          batch["passage_ids"], batch["passage_mask"], keys[1]
        ),
      )
      return objectives.in_batch_loss(
        question_vectors,
        passage_vectors,
        negatives,
        temperature,
        parallel.AXIS,
      )

    (_, sums), gradients = jax.value_and_grad(loss_function, has_aux=True)(
      state.params
    )
    gradients = jax.lax.pmean(gradients, parallel.AXIS)
    updates, new_optimizer = transformation.update(
      gradients, state.optimizer, state.params
    )
    sums = jax.lax.psum(sums, parallel.AXIS)
    reported = {
      "loss": sums.loss / sums.count,
      "accuracy": sums.correct / sums.count,
      "masked_duplicates": sums.masked,
      "gradient_norm": optax.tree.norm(gradients),
      "learning_rate": schedule(state.step),
    }
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      optimizer=new_optimizer,
    )
    return new_state, reported

  return step


def train(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  overwrite: bool = False,
) -> None:
  """Stage `train`: trains the towers, or goes on from the last checkpoint."""
  stage = _stage(config, workdir)
  if stage.is_current(overwrite):
    return
  _claim(stage, overwrite)
  model = towers.start(config)
  source = make_source(config, workdir, model)
  steps, train_config = source.steps, config.train
  schedule = optimizer.learning_rate_schedule(
    train_config.learning_rate, train_config.warmup_steps, steps
  )
  transformation = optimizer.adamw(
    schedule,
    b1=train_config.adam_b1,
    b2=train_config.adam_b2,
    epsilon=train_config.adam_epsilon,
    weight_decay=train_config.weight_decay,
    clip_norm=train_config.clip_norm,
  )
  encoder = dataclasses.replace(
    model.encoder, chunk_size=train_config.chunk_size
  )
  mapped = parallel.map_train_step(
    make_train_step(
      encoder,
      transformation,
      schedule,
      seed=config.seed,
      temperature=config.model.temperature,
    )
  )
  saved = checkpoints.Checkpoints(
    workdir.training / "checkpoints", train_config.keep_checkpoints
  )
  first, params, opt_state = saved.restore_latest(
    model.params, transformation.init(model.params)
  )
  state = parallel.replicate(
    TrainState(step=np.int32(first), params=params, optimizer=opt_state)
  )
  dev = (
    validation.DevPool.make(config, workdir, model)
    if _has_dev(config)
    else None
  )
  log = metrics.MetricsLog(workdir.training / "metrics.jsonl", first, steps)
  loader = batches.in_background(source, first)
  if first:
    logging.info("train: goes on after step %d of %d", first, steps)
  else:
    logging.info(
      "train: %d steps of %d questions", steps, source.plan.batch_size
    )
  if dev is not None and first == 0:
    log.write({"step": 0, **dev.evaluate(state.params)})

  pending, last_good = None, f"step {first}" if first else "none"
  timer = metrics.Timer(source.plan.batch_size)
  try:
    for step in range(first + 1, steps + 1):
      batch = timer.wait_for(loader)
      state, reported = mapped(state, parallel.split_over_cores(batch))
      if pending is not None:
        _log_step(log, *pending, train_config.log_every, last_good)
      pending = (step, reported, timer)
      saves = _is_due(step, train_config.checkpoint_every, steps)
      evaluates = dev is not None and _is_due(
        step, train_config.dev_every, steps
      )
      if saves or evaluates:
        _log_step(log, *pending, train_config.log_every, last_good)
        pending = None
      if saves:
        saved.save(step, state.params, state.optimizer)
        last_good = f"step {step}"
      if evaluates:
        with timer.paused():
          log.write({"step": step, **dev.evaluate(state.params)})
  finally:
    saved.finish()
    log.close()
  stage.finish(
    {
      "steps": steps,
      "questions": source.plan.questions,
      "questions_seen": steps * source.plan.batch_size,
    },
    cores=jax.device_count(),
    seconds=round(timer.total(), 1),
  )


def _is_due(step: int, every: int, last: int) -> bool:
  """At every so many steps (0 = never), and at the last one."""
  return step == last or (every > 0 and step % every == 0)


def _stage(config, workdir: workdir_lib.Workdir) -> workdir_lib.Stage:
  inputs = workdir_lib.dataset_inputs(workdir, "passages", "train", "dev")
  if config.train.negatives == "bm25" or _has_dev(config):
    inputs["negatives"] = workdir_lib.manifest_fingerprint(
      workdir.negatives, "mine"
    )
  return workdir_lib.Stage(
    STAGE,
    workdir.training,
    configuration.sections(config, "model", "train") | {"seed": config.seed},
    inputs,
  )


def _claim(stage: workdir_lib.Stage, overwrite: bool) -> None:
  """Starts the folder anew, or makes sure that it is this very run's.

  Raises:
    InputError: it holds a run with other settings or other data.
  """
  claim = stage.folder / "started.json"
  identity = {"config": stage.config, "inputs": dict(stage.inputs)}
  if overwrite:
    shutil.rmtree(stage.folder, ignore_errors=True)
  elif claim.exists():
    old = workdir_lib.read_json(claim)
    if old != identity:
      changed = _differences(old, identity)
      raise errors.InputError(
        f"{stage.folder} holds a training with other settings"
        f" ({', '.join(changed)}): give another --workdir, or --overwrite to"
        " train anew"
      )
  workdir_lib.write_json(claim, identity)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
  if isinstance(old, dict) and isinstance(new, dict):
    return [
      difference
      for key in sorted({*old, *new})
      for difference in _differences(
        old.get(key), new.get(key), f"{path}.{key}" if path else key
      )
    ]
  return [] if old == new else [f"{path} was {old!r}, is {new!r}"[:160]]


def make_source(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  model: towers.Towers,
) -> batches.BatchSource:
  """The run's batches: a function of (seed, step, process)."""
  train_config = config.train
  configuration.at_least("train.batch_size", train_config.batch_size, 1)
  configuration.at_least("train.hard_negatives", train_config.hard_negatives, 0)
  cores = jax.device_count()
  if train_config.batch_size % cores:
    raise errors.InputError(
      f"config.train.batch_size={train_config.batch_size}: must be a multiple"
      f" of the {cores} cores"
    )
  questions = prepare.open_questions(workdir, "train")
  passages = prepare.open_passages(workdir)
  mined = None
  if train_config.negatives == "bm25" and train_config.hard_negatives:
    mined = mining.read_negatives(
      workdir.negatives / mining.FILES["train"], len(questions)
    )
  plan = batches.Plan(config.seed, len(questions), train_config.batch_size)
  return batches.BatchSource(
    plan=plan,
    steps=train_config.max_steps or plan.steps(train_config.epochs),
    questions=questions,
    passages=passages,
    candidates=_candidates(questions, passages, mined),
    tokenizer=dataclasses.replace(
      model.tokenizer,
      passage_length=train_config.passage_length
      or model.tokenizer.passage_length,
    ),
    negatives=train_config.hard_negatives,
    from_top=train_config.hard_negatives_from_top,
    kind=train_config.negatives,
    process=jax.process_index(),
    processes=jax.process_count(),
  )


def _candidates(
  questions, passages, mined: list[list[str]] | None
) -> list[batches.Candidate]:
  """Corpus rows of every question's gold passage and hard negatives."""
  gold, hard = [], []
  for _, block in questions.blocks(4096):
    gold += [
      question.positives[0].id if question.positives else ""
      for question in block
    ]
  rows = passages.rows_of(gold)
  for ids in mined or [[]] * len(gold):
    hard.append(passages.rows_of(ids))
  return [
    batches.Candidate(int(row), negatives)
    for row, negatives in zip(rows, hard, strict=True)
  ]


def _log_step(
  log: metrics.MetricsLog,
  step: int,
  reported: dict[str, Array],
  timer: metrics.Timer,
  every: int,
  last_good: str,
) -> None:
  """Fetches one step's metrics (waits for it), checks and writes them."""
  row = {key: float(value) for key, value in reported.items()}
  row |= timer.lap()
  metrics.check_finite(step, row, last_good)
  if step % max(every, 1) == 0 or step == 1:
    log.write({"step": step, **row})
  log.advance(row)


def _has_dev(config: ml_collections.ConfigDict) -> bool:
  return config.train.dev_questions > 0
