"""The train step: one function for one core, mapped over all cores.

In come the replicated state and one core's share of a batch (`data/batches`);
out come the new state and the global batch's metrics.  The loss is a function
of the global batch alone: neither the number of cores nor chunks nor the order
in which passages stand changes it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from dpr_jax import parallel
from dpr_jax.models import dual_encoder, towers
from dpr_jax.training import objectives, optimizer


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


@dataclasses.dataclass(frozen=True)
class Built:
  """A train step and what belongs to it.

  Attributes:
    step: of one core, to be mapped with `parallel.map_train_step`.
    transformation: the optimizer, for its initial state.
    schedule: step to learning rate.
  """

  step: Callable
  transformation: optax.GradientTransformation
  schedule: optax.Schedule


def build(
  config: ml_collections.ConfigDict, model: towers.Towers, steps: int
) -> Built:
  """The very step that training runs, of `config.train` and `config.model`.

  Args:
    config: the experiment.
    model: the towers' structure; its parameters are not used.
    steps: of the whole training, for the schedule.
  """
  train_config = config.train
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
  step = make_train_step(
    encoder,
    transformation,
    schedule,
    seed=config.seed,
    temperature=config.model.temperature,
  )
  return Built(step, transformation, schedule)
