"""The retriever's train step: a function of one device, mapped over all.

Input: the replicated state and one device's share of a batch (`data.batches`).
Output: the new state and the global batch's metrics.  The loss is a function of
the global batch: it does not depend on the number of devices, on chunks, or on
the order of the passages.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from dpr_jax.core import config as config_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import setting_rules
from dpr_jax.models import (
  dual_encoder,
  packed_texts,
  retriever_model,
  stacked_layers,
)
from dpr_jax.training import (
  distillation,
  objectives,
  optimizer,
  optimizer_sharding,
  score_tiles,
)

LAYERS = ("auto", "scanned", "unrolled")
REDUCE_DTYPES = ("float32", "bfloat16")


@flax.struct.dataclass
class TrainState:
  """The state that a step updates; also the form of trees of axes or shapes.

  Attributes:
    step: number of steps taken, an int32.
    params: parameters of the towers, replicated over the devices.
    optimizer: optax's state, replicated; or sharded, with a leading axis of
      devices.
  """

  step: Any
  params: Any
  optimizer: Any


def dropout_keys(
  seed: int,
  step: Int[ArrayLike, ""],
  question_rows: Int[ArrayLike, " questions"],
  passage_rows: Int[ArrayLike, " passages"],
) -> tuple[Key[Array, " questions"], Key[Array, " passages"]]:
  """Dropout keys from (seed, step, row in the global batch).

  They do not depend on the number of devices or processes.
  """
  base = jax.random.fold_in(jax.random.key(seed), step)
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  of_questions = fold(jax.random.fold_in(base, 0), question_rows)
  return of_questions, fold(jax.random.fold_in(base, 1), passage_rows)


def packed(
  fields: dict[str, Any], keys: Key[Array, " texts"] | None
) -> packed_texts.PackedTexts:
  """A batch's packed texts of one kind, with their dropout keys."""
  fields = dict(fields)
  tiles = tuple(packed_texts.Tile(**tile) for tile in fields.pop("tiles"))
  if keys is not None:
    keys = keys.reshape(len(fields["token_ids"]), -1)  # [rows, texts]
  return packed_texts.PackedTexts(tiles=tiles, dropout_keys=keys, **fields)


def _texts(
  fields: dict[str, Any], keys: Key[Array, " texts"] | None
) -> dual_encoder.Texts | packed_texts.PackedTexts:
  """The padded or packed texts of one kind, with their dropout keys."""
  if "mask" in fields:
    return dual_encoder.Texts(fields["ids"], fields["mask"], keys)
  return packed(fields, keys)


def _tokens(fields: dict[str, Any]) -> Array:
  """Number of tokens of one kind of text on this device."""
  if "mask" in fields:
    return jnp.sum(fields["mask"])
  return sum(jnp.sum(tile["lengths"]) for tile in fields["tiles"])


def make_train_step(
  encoder: dual_encoder.DualEncoder,
  transformation: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  seed: int,
  temperature: float,
  loss: str = "gathered",
  loss_tile: int = 0,
  sharing: optimizer_sharding.Sharing | None = None,
  teacher: distillation.Teacher | None = None,
) -> Callable[[TrainState, dict[str, Any]], tuple[TrainState, dict]]:
  """The train step of one device, to be mapped with `core.devices`.

  Args:
    encoder: structure of the towers.
    transformation: optimizer, with clipping.
    schedule: function from step to learning rate, for the metrics.
    seed: seed of the dropout masks.
    temperature: scores are divided by it.
    loss: one of `objectives.KINDS`.
    loss_tile: passages scored at once; see `objectives.in_batch_loss`.
    sharing: sharding of the optimizer state; None = replicated.
    teacher: how scores of a teacher are learnt, of batches that have some.

  Returns:
    A function from a replicated state and one device's batch (see
    `batches.BatchSource`) to the new state and metrics of the global batch:
    loss (mean NLL), accuracy (share of questions whose positive scores
    highest), masked_duplicates (copies of a question's positive, and its other
    positives), masked_answers, without_negatives (number of questions),
    gradient_norm (before clipping), learning_rate, useful_tokens (tokens of
    all texts); with a teacher's scores also distill_loss (mean distance) and
    distilled (number of questions that have one).
  """
  config_lib.one_of("train.loss", loss, objectives.KINDS)
  sharing = sharing or optimizer_sharding.Sharing()
  drops = max(
    encoder.config.hidden_dropout_prob,
    encoder.config.attention_probs_dropout_prob,
  )

  def step(state: TrainState, batch: dict[str, Any]):
    keys = (None, None)
    if drops > 0:
      keys = dropout_keys(
        seed, state.step, batch["question_rows"], batch["passage_rows"]
      )
    competition = score_tiles.Competition(
      labels=batch["labels"],
      question_keys=batch["question_keys"],
      question_weights=jnp.ones(batch["labels"].shape, jnp.float32),
      passage_valid=batch["passage_valid"],
      passage_keys=batch["passage_keys"],
      excluded=batch.get("excluded"),
      question_positives=batch.get("question_positives"),
      candidates=batch.get("candidates"),
    )

    def loss_function(params):
      question_vectors, passage_vectors = (
        encode(params, _texts(batch[kind], own))
        for encode, kind, own in (
          (encoder.encode_questions, "questions", keys[0]),
          (encoder.encode_passages, "passages", keys[1]),
        )
      )
      return objectives.in_batch_loss(
        question_vectors,
        passage_vectors,
        competition,
        temperature,
        devices_lib.AXIS,
        kind=loss,
        tile=loss_tile,
        teacher=teacher,
        teacher_scores=batch.get("teacher_scores"),
      )

    (_, sums), gradients = jax.value_and_grad(loss_function, has_aux=True)(
      state.params
    )
    # With a sharded optimizer each device averages, updates and sends only its
    # own part; otherwise `part` and `whole` return their argument.
    gradients = sharing.mean(gradients)
    own = sharing.part(state.params)
    updates, new_optimizer = transformation.update(
      gradients, state.optimizer, own
    )
    params = sharing.whole(optax.apply_updates(own, updates), state.params)
    tokens = _tokens(batch["questions"]) + _tokens(batch["passages"])
    sums, tokens = jax.lax.psum((sums, tokens), devices_lib.AXIS)
    reported = {
      "loss": sums.loss / sums.count,
      "accuracy": sums.correct / sums.count,
      "masked_duplicates": sums.duplicates,
      "masked_answers": sums.answers,
      "without_negatives": sums.alone,
      "gradient_norm": sharing.norm(gradients, state.params),
      "learning_rate": schedule(state.step),
      "useful_tokens": tokens,
    }
    if "candidates" in batch:
      reported["distill_loss"] = sums.distill / jnp.maximum(sums.distilled, 1.0)
      reported["distilled"] = sums.distilled
    if "asked" in batch:  # number of a signal that a process has received
      reported["asked"] = jax.lax.pmax(
        jnp.max(batch["asked"]), devices_lib.AXIS
      )
    new_state = TrainState(
      step=state.step + 1,
      params=params,
      optimizer=new_optimizer,
    )
    return new_state, reported

  return step


@dataclasses.dataclass(frozen=True)
class Built:
  """A train step with its optimizer, and the layout of its state.

  Attributes:
    step: step function of one device; `mapped` maps it over the devices.
    transformation: optimizer.
    schedule: function from step to learning rate.
    sharing: sharding of the optimizer state.
    scanned: the parameters of all layers are stacked; see `stacked_layers`.
  """

  step: Callable
  transformation: optax.GradientTransformation
  schedule: optax.Schedule
  sharing: optimizer_sharding.Sharing
  scanned: bool

  def mapped(self, devices: devices_lib.Devices = None) -> Callable:
    """The step over all devices, from state and batch to state and metrics."""
    axis = 0 if self.sharing.cores else None
    return devices_lib.map_train_step(
      self.step, devices, TrainState(None, None, axis)
    )

  def init(self, params: Any) -> tuple[Any, Any]:
    """(parameters, optimizer state) of a new run, neither split nor stacked."""
    return params, self.transformation.init(params)

  def layout(self, step: Any, params: Any, optimizer: Any) -> TrainState:
    """The state in the layout of the step, on the host.

    Args:
      step: number of steps taken.
      params: parameters, not stacked.
      optimizer: state, neither split nor stacked, as in `init` and in
        checkpoints.
    """
    if self.scanned:
      params, optimizer = stacked_layers.stack((params, optimizer), np.stack)
    return TrainState(np.int32(step), params, self.sharing.cut(optimizer))

  def shapes(self, params: Any) -> TrainState:
    """Shapes of the state for parameters of these shapes; computes nothing."""

    def begin(params):
      params, optimizer = self.init(params)
      if self.scanned:
        return stacked_layers.stack((params, optimizer), jnp.stack)
      return params, optimizer

    params, optimizer = jax.eval_shape(begin, params)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, self.sharing.cut_shapes(optimizer))

  def place(
    self,
    step: Any,
    params: Any,
    optimizer: Any,
    devices: devices_lib.Devices = None,
  ) -> TrainState:
    """The state in the layout of the step, on the devices."""
    state = self.layout(step, params, optimizer)
    if not self.sharing.cores:
      return devices_lib.replicate(state, devices)
    return TrainState(
      devices_lib.replicate(state.step, devices),
      devices_lib.replicate(state.params, devices),
      devices_lib.distribute(state.optimizer, devices),
    )

  def fetch(self, state: TrainState) -> tuple[Any, Any]:
    """The inverse of `place`: (parameters, optimizer state) as NumPy arrays.

    With several processes, all of them must call it.
    """
    params, optimizer = devices_lib.fetch((state.params, state.optimizer))
    whole = jax.eval_shape(self.transformation.init, params)
    optimizer = self.sharing.join(optimizer, whole)
    return stacked_layers.unstack((params, optimizer))


def _from_start(
  schedule: optax.Schedule, starts: Sequence[int]
) -> optax.Schedule:
  """The schedule by the steps since the last start; see `build`."""
  if len(starts) == 1:
    return schedule
  begins = jnp.array(starts)

  def from_start(step):
    number = jnp.searchsorted(begins, step, side="right") - 1
    return schedule(step - begins[number])

  return from_start


def build(
  config: ml_collections.ConfigDict,
  model: retriever_model.Towers,
  steps: int,
  cores: int | None = None,
  starts: Sequence[int] = (0,),
) -> Built:
  """The step that training runs, from `config.train` and `config.model`.

  Args:
    config: configuration of the experiment.
    model: towers; only their structure is used, not their parameters.
    steps: number of steps of the whole training, for the schedule.
    cores: number of devices of all processes; None = those of this run.
    starts: steps done when the optimizer starts, again from 1 on; the first
      is 0.  The schedule covers the longest part between two of them.
  """
  train_config = config.train
  setting_rules.accumulation(train_config.accumulate_steps)
  layers = config_lib.one_of("train.layers", train_config.layers, LAYERS)
  sharing = optimizer_sharding.Sharing(
    (cores or jax.device_count()) if train_config.shard_optimizer else 0,
    jnp.dtype(
      config_lib.one_of(
        "train.reduce_dtype", train_config.reduce_dtype, REDUCE_DTYPES
      )
    ),
  )
  scanned = layers == "scanned" or (
    layers == "auto" and jax.default_backend() != "cpu"
  )
  whole = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params
  )
  if scanned:
    whole = jax.eval_shape(lambda x: stacked_layers.stack(x, jnp.stack), whole)
  transformation, schedule = optimizer.from_config(
    train_config,
    max(np.diff([*starts, steps]).tolist()),
    lambda parts: sharing.norm(parts, whole),
  )
  schedule = _from_start(schedule, starts)
  encoder = dataclasses.replace(
    model.encoder,
    chunk_size=train_config.chunk_size,
    question_chunk_size=train_config.question_chunk_size,
    gradient_cache=train_config.gradient_cache,
    remat=train_config.remat,
  )
  step = make_train_step(
    encoder,
    transformation,
    schedule,
    seed=config.seed,
    temperature=config.model.temperature,
    loss=train_config.loss,
    loss_tile=train_config.loss_tile,
    sharing=sharing,
    teacher=distillation.Teacher.of(train_config),
  )
  return Built(step, transformation, schedule, sharing, scanned)
