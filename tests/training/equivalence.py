"""The cells of the equivalence matrix, and how one is computed.

A cell is (devices, way, texts, problem).  `CELLS` are all of them in
`make equivalence`, else those that hold every pair of values.

`test_equivalence.py` imports this; `python equivalence.py OUT` is one of
several processes that compute their cells together; process 0 writes OUT.
"""

import dataclasses
import itertools
import os
import sys

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpr_jax.core import devices as devices_lib
from dpr_jax.models import bert, dual_encoder, packed_texts
from dpr_jax.training import distillation, train_step
from tests import pairwise

FULL = os.environ.get("DPR_JAX_EQUIVALENCE") == "full"
TOPOLOGIES = ("1", "8", "2x4")  # devices; the last are those of two processes
QUESTIONS = 16
TEXTS = ("packed", "padded")
WAYS = {
  "plain": {},
  "cache-1": {"chunk_size": 1, "gradient_cache": True},
  "cache-2": {
    "chunk_size": 2,
    "question_chunk_size": 1,
    "gradient_cache": True,
  },
  "tiled": {"loss": "tiled", "loss_tile": 2},
  "ring": {"loss": "ring", "chunk_size": 2, "remat": "layer"},
}


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is computed, however it is."""

  negatives: int
  dropout: float
  shared: bool

  def __str__(self):
    towers = "shared" if self.shared else "separate"
    return f"{self.negatives}-negatives-dropout-{self.dropout}-{towers}"


_rows = itertools.product if FULL else pairwise.rows
CELLS = [
  (devices, way, texts, Problem(*problem))
  for devices, way, texts, *problem in _rows(
    TOPOLOGIES, WAYS, TEXTS, [0, 1, 2], [0.1, 0.0], [False, True]
  )
]
PROBLEMS = list(dict.fromkeys(problem for *_, problem in CELLS))


def cells_of(*topologies: str) -> list[tuple[str, str, str, Problem]]:
  """The cells on these devices."""
  return [cell for cell in CELLS if cell[0] in topologies]


def _encoder(problem, **settings):
  config = bert.BertConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=12,
    hidden_dropout_prob=problem.dropout,
    attention_probs_dropout_prob=problem.dropout,
  )
  return dual_encoder.DualEncoder(
    config,
    # With one layer: [CLS] takes the path of a last layer, the mean of another.
    pooling="mean" if problem.shared else "cls",
    shared=problem.shared,
    **settings,
  )


def _params(encoder):
  tower = bert.init_params(encoder.config, jax.random.key(0))
  tower = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, tower)
  params = encoder.towers(tower)
  # Two towers that differ, so that mixing them up shows.
  if not encoder.shared:
    params["passage"] = jax.tree.map(lambda x: 0.9 * x, params["passage"])
  return params


def batch(problem):
  """A global batch with padding, copies of positives and masked answers.

  With 2 negatives it has a teacher, too, who knows most of the passages.
  """
  generator = np.random.default_rng(problem.negatives)
  each = 1 + problem.negatives
  count = QUESTIONS * each

  def texts(rows, length):
    lengths = generator.integers(2, length + 1, rows)
    mask = np.arange(length)[None] < lengths[:, None]
    ids = generator.integers(1, 40, (rows, length)).astype(np.int32)
    return {"ids": ids * mask, "mask": mask}

  valid = generator.random(count) > 0.2
  valid[::each] = True
  keys = generator.integers(-1, 2 * count, count).astype(np.int32)
  keys[5 * each] = keys[0] = 3  # two questions with one positive
  excluded = generator.random((QUESTIONS, count)) > 0.95
  labels = each * np.arange(QUESTIONS, dtype=np.int32)
  teacher = {}
  if problem.negatives == 2:
    own = labels[:, None] + np.arange(each, dtype=np.int32)
    known = valid[own] & (generator.random(own.shape) > 0.1)
    teacher = {
      "candidates": np.where(known, own, np.int32(-1)),
      "teacher_scores": generator.normal(size=own.shape).astype(np.float32),
    }
  return {
    **teacher,
    "questions": texts(QUESTIONS, 6),
    "passages": texts(count, 10),
    "question_rows": np.arange(QUESTIONS, dtype=np.int32),
    "question_keys": keys[::each],
    "labels": labels,
    "passage_rows": np.arange(count, dtype=np.int32),
    "passage_valid": valid,
    "passage_keys": keys,
    "excluded": excluded,
  }


def _deal(texts, per_row):
  """Packs padded texts: (fields of the packed texts, order of their texts).

  Dealt by length over the rows of all devices: the n-th slot has the n-th
  longest text of a row.  Tiles: the first slot, and the others.
  """
  lengths = texts["mask"].sum(axis=1)
  order = np.argsort(-lengths, kind="stable").reshape(per_row, -1).T
  first, *others = lengths[order].max(axis=0).tolist()
  packed = packed_texts.pack(
    [[texts["ids"][n, : lengths[n]] for n in row] for row in order],
    # So that every row has an unused place.
    1 + int(lengths[order].sum(axis=1).max()),
    [(1, first), *([(len(others), others[0])] if others else [])],
  )
  fields = dataclasses.asdict(packed)
  assert fields.pop("dropout_keys") is None
  return fields, order.ravel()


def _pack(batch, settings, devices):
  """The same batch packed: its texts are on other devices, in other places."""
  questions, passages = batch["questions"], batch["passages"]
  size = settings.get("chunk_size", 0)
  per_question_row = settings.get("question_chunk_size", size)
  asked, question_order = _deal(
    questions, per_question_row or len(questions["ids"]) // devices
  )
  read, order = _deal(passages, size or len(passages["ids"]) // devices)
  places = np.argsort(order).astype(np.int32)  # where a passage has gone
  teacher = {}
  if "candidates" in batch:
    candidates = batch["candidates"][question_order]
    teacher = {
      "candidates": np.where(candidates < 0, candidates, places[candidates]),
      "teacher_scores": batch["teacher_scores"][question_order],
    }
  return {
    **teacher,
    "questions": asked,
    "passages": read,
    "labels": places[batch["labels"][question_order]],
    "excluded": batch["excluded"][question_order][:, order],
    **{
      name: batch[name][question_order]
      for name in ("question_rows", "question_keys")
    },
    **{
      name: batch[name][order]
      for name in ("passage_rows", "passage_valid", "passage_keys")
    },
  }


def start(problem, way, texts, transformation, devices=None):
  """The mapped step, a state to begin with, and this process's batch."""
  settings = dict(WAYS[way])
  loss = {
    key: settings.pop(key) for key in ("loss", "loss_tile") if key in settings
  }
  encoder = _encoder(problem, **settings)
  step = devices_lib.map_train_step(
    train_step.make_train_step(
      encoder,
      transformation,
      optax.schedules.constant_schedule(0.1),
      seed=3,
      temperature=0.5,
      teacher=distillation.Teacher("kl", 0.5, 2.0),
      **loss,
    ),
    devices,
  )
  params = _params(encoder)
  state = devices_lib.replicate(
    train_step.TrainState(np.int32(7), params, transformation.init(params)),
    devices,
  )
  whole = batch(problem)
  if texts == "packed":
    whole = _pack(whole, settings, len(devices or jax.devices()))

  def share(x):  # this process's
    return np.split(x, jax.process_count())[jax.process_index()]

  own = jax.tree.map(share, whole)
  return step, state, devices_lib.split_over_cores(own, devices)


def compute(problem, way, texts, devices=None):
  """Loss and gradients of one cell, as NumPy arrays."""
  keep_gradients = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradients, state, params: (
      jax.tree.map(jnp.zeros_like, gradients),
      gradients,
    ),
  )
  step, state, batch = start(problem, way, texts, keep_gradients, devices)
  state, reported = step(state, batch)
  return jax.tree.map(np.asarray, (reported, state.optimizer))


def main(path):
  """Computes the cells of two processes together with the other process."""
  jax.config.update(
    "jax_num_cpu_devices", int(os.environ["DPR_JAX_CPU_DEVICES"])
  )
  jax.distributed.initialize(
    os.environ["DPR_JAX_COORDINATOR"],
    int(os.environ["DPR_JAX_NUM_PROCESSES"]),
    int(os.environ["DPR_JAX_PROCESS_ID"]),
    coordinator_bind_address=os.environ["DPR_JAX_COORDINATOR"],
  )
  found = {}
  for _, way, texts, problem in cells_of("2x4"):
    leaves = jax.tree.leaves(compute(problem, way, texts))
    found |= {f"{problem} {way} {texts} {n}": x for n, x in enumerate(leaves)}
  if jax.process_index() == 0:
    np.savez(path, cores=jax.device_count(), **found)


if __name__ == "__main__":
  main(sys.argv[1])
