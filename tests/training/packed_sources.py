"""Shapes of packed sources as several processes find them; texts of lengths."""

import dataclasses

import numpy as np

from dpr_jax.data import run_texts
from dpr_jax.training import row_counts


def with_shapes(shares, steps, most):
  """The sources of all processes, with the shapes that they find together.

  Args:
    shares: the sources, of each process.
    steps: steps to count.
    most: number of shapes at most.
  """
  counted = row_counts.joined(
    [row_counts.of_mine(source, steps) for source in shares]
  )
  shapes = row_counts.StepShapes.of(counted, shares[0].rows, most)
  return [dataclasses.replace(source, shapes=shapes) for source in shares]


class _Cut(run_texts.RunTexts):
  """Passages of many lengths, from those that all have the longest."""

  def passage_lengths(self, texts):
    return np.maximum(super().passage_lengths(texts) - 8 * (texts % 5), 4)

  def passage(self, text):
    (length,) = self.passage_lengths(np.array([text]))
    return super().passage(text)[:length]


def cut(source):
  """A source of the sample with passages of five lengths."""
  tokens = source.tokens
  tokens = _Cut(tokens.corpus, tokens.questions, tokens.empty)
  return dataclasses.replace(source, tokens=tokens)
