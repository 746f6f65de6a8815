"""The reader's train step: a function of one device, mapped over all devices.

The loss of a question is the cross-entropy of its positive among its passages,
by the rank head, minus the log of the summed probabilities of its answer spans
in the positive (Karpukhin et al. 2020, section 6.1).  A question's passages may
be on different devices: rank scores are gathered, and the gradient flows back
through the gather.  Span probabilities are over the passage's tokens only, not
over those of the question.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from dpr_jax.core import devices as devices_lib
from dpr_jax.models import span_reader
from dpr_jax.training import train_step

_PARTS = ("question_ends", "passages", "counts")
_FIELDS = ("ids", "lengths", *_PARTS)
_NEVER = -1e9  # score of what is masked


def span_losses(
  start: Float[Array, "inputs length"],
  end: Float[Array, "inputs length"],
  starts: Int[ArrayLike, "inputs spans"],
  ends: Int[ArrayLike, "inputs spans"],
  counts: Int[ArrayLike, " inputs"],
) -> Float[Array, " inputs"]:
  """Minus the log of the summed probabilities of each input's spans.

  Args:
    start: scores of the first token, very low outside the passage.
    end: scores of the last token, likewise.
    starts: positions of the spans' first tokens, padded.
    ends: positions of their last tokens, padded.
    counts: number of spans of each input; with 0 the loss is 0.
  """
  start, end = (jax.nn.log_softmax(x, axis=-1) for x in (start, end))
  logs = jnp.take_along_axis(start, starts, axis=1)
  logs = logs + jnp.take_along_axis(end, ends, axis=1)
  real = jnp.arange(starts.shape[1])[None] < counts[:, None]
  total = jax.nn.logsumexp(jnp.where(real, logs, _NEVER), axis=1)
  return jnp.where(counts > 0, -total, 0.0)


def rank_losses(
  ranks: Float[Array, "questions passages"],
  valid: Bool[Array, "questions passages"],
) -> tuple[Float[Array, " questions"], Bool[Array, " questions"]]:
  """Cross-entropy of passage 0, and whether it has the highest rank score."""
  ranks = jnp.where(valid, ranks, _NEVER)
  losses = -jax.nn.log_softmax(ranks, axis=1)[:, 0]
  return losses, jnp.argmax(ranks, axis=1) == 0


def _read(
  groups: dict[str, Any] | Sequence[dict[str, Array]],
  keys: Key[Array, " inputs"] | None,
) -> list[tuple[span_reader.Rows | span_reader.PackedRows, dict[str, Any]]]:
  """Packed inputs or length groups with dropout keys, and their answers."""
  if isinstance(groups, dict):
    texts = train_step.packed(groups["texts"], keys)
    return [
      (span_reader.PackedRows(texts, *(groups[f] for f in _PARTS)), groups)
    ]
  read, first = [], 0
  for group in groups:
    count = group["ids"].shape[0]
    own = None if keys is None else keys[first : first + count]
    first += count
    rows = span_reader.Rows(*(group[f] for f in _FIELDS), dropout_keys=own)
    read.append((rows, group))
  return read


def make_reader_step(
  reader: span_reader.SpanReader,
  transformation: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  seed: int,
  questions: int,
  passages: int,
) -> Callable[
  [train_step.TrainState, dict[str, Any]], tuple[train_step.TrainState, dict]
]:
  """The train step of one device, to be mapped with `core.devices`.

  Args:
    reader: structure of the model.
    transformation: optimizer, with clipping.
    schedule: function from step to learning rate, for the metrics.
    seed: seed of the dropout masks.
    questions: questions in the global batch.
    passages: passages of each question.

  Returns:
    A function from a replicated state and one device's batch (see
    `reader_batches`, `packed_reader_batches`) to the new state and metrics of
    the global batch: loss, rank_loss, span_loss (means over questions),
    accuracy (share of questions whose positive ranks highest), gradient_norm
    (before clipping), learning_rate.
  """
  config = reader.config
  drops = max(config.hidden_dropout_prob, config.attention_probs_dropout_prob)

  def step(state: train_step.TrainState, batch: dict[str, Any]):
    keys = None
    if drops > 0:
      base = jax.random.fold_in(jax.random.key(seed), state.step)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(base, batch["rows"])

    def loss_function(params):
      ranks, spans = [], []
      for rows, group in _read(batch["inputs"], keys):
        scores = reader.scores(params, rows)
        ranks.append(scores.rank)
        spans.append(
          span_losses(
            scores.start,
            scores.end,
            group["starts"],
            group["ends"],
            group["spans"],
          )
        )

      # [inputs of this device] -> [questions, passages], on all devices.
      # `rows` holds each input's position in the global batch.
      def everywhere(x):
        gathered = jax.lax.all_gather(x, devices_lib.AXIS)
        gathered = gathered.reshape(questions * passages)
        places = jax.lax.all_gather(batch["rows"], devices_lib.AXIS).reshape(-1)
        table = jnp.zeros_like(gathered).at[places].set(gathered)
        return table.reshape(questions, passages)

      rank, best = rank_losses(
        everywhere(jnp.concatenate(ranks)), everywhere(batch["valid"])
      )
      # Every device has the complete rank loss, but only the spans of its own
      # inputs.  Their sum is scaled by the number of devices, so that the mean
      # over devices is the mean over questions.
      cores = jax.lax.axis_size(devices_lib.AXIS)
      span = jnp.sum(jnp.concatenate(spans)) * cores / questions
      loss = jnp.mean(rank) + span
      return loss, {
        "loss": loss,
        "rank_loss": jnp.mean(rank),
        "span_loss": span,
        "accuracy": jnp.mean(best.astype(jnp.float32)),
      }

    (_, reported), gradients = jax.value_and_grad(loss_function, has_aux=True)(
      state.params
    )
    gradients, reported = jax.lax.pmean((gradients, reported), devices_lib.AXIS)
    updates, new_optimizer = transformation.update(
      gradients, state.optimizer, state.params
    )
    new_state = train_step.TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      optimizer=new_optimizer,
    )
    reported |= {
      "gradient_norm": optax.tree.norm(gradients),
      "learning_rate": schedule(state.step),
    }
    if "asked" in batch:  # number of a signal that a process has received
      reported["asked"] = jax.lax.pmax(
        jnp.max(batch["asked"]), devices_lib.AXIS
      )
    return new_state, reported

  return step
