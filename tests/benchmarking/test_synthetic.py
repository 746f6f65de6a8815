"""Batches of random tokens: the shapes of real ones."""

from dpr_jax.benchmarking import batch, synthetic
from dpr_jax.models import retriever_model


def test_synthetic_batches(cell_base):
  """The shapes of real ones; every passage another one; the same each time."""
  cell = batch.cell_config(cell_base, 16, "plain")
  cell.train.hard_negatives = 2
  source = synthetic.make_source(cell, retriever_model.start(cell))
  one, other = source[0], source[0]
  assert one["questions"]["ids"].shape == (16, 8)
  assert one["passages"]["ids"].shape == (48, 12)
  assert len(set(one["passage_keys"].tolist())) == 48
  assert one["passage_valid"].all()
  for kind in ("questions", "passages"):
    texts = one[kind]
    lengths = texts["mask"].sum(axis=1)
    assert lengths.min() >= texts["mask"].shape[1] // 2
    assert (texts["ids"] == other[kind]["ids"]).all()
    assert texts["ids"][texts["mask"]].min() > 0
