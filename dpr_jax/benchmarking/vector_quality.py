"""How far vectors with fewer bits are from those in float32."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RANK = 20


def quality(
  wanted: Float[np.ndarray, "passages dim"],
  vectors: Float[np.ndarray, "passages dim"],
  questions: Float[np.ndarray, "questions dim"],
) -> dict[str, float]:
  """Cosines of passages, and what questions in float32 find among them.

  Args:
    wanted: vectors in float32.
    vectors: those to judge, of the same passages.
    questions: vectors of questions in float32; may be none.

  Returns:
    `mean_cosine`, `least_cosine`; with questions `top20_recall`, the share of
    the first 20 passages (or of all, if fewer) that are the same, and
    `same_top1`, the share of questions with the same first passage.
  """
  cosines = np.sum(wanted * vectors, axis=1) / (
    np.linalg.norm(wanted, axis=1) * np.linalg.norm(vectors, axis=1)
  )
  found = {
    "mean_cosine": float(cosines.mean()),
    "least_cosine": float(cosines.min()),
  }
  if len(questions):
    first, second = (_top(questions @ each.T) for each in (wanted, vectors))
    shares = [np.isin(*pair).mean() for pair in zip(first, second, strict=True)]
    found["top20_recall"] = float(np.mean(shares))
    found["same_top1"] = float(np.mean(first[:, 0] == second[:, 0]))
  return found


def _top(
  scores: Float[np.ndarray, "questions passages"],
) -> Int[np.ndarray, "questions rank"]:
  return np.argsort(-scores, axis=1, kind="stable")[:, :RANK]


def line(name: str, found: Mapping[str, Any]) -> str:
  """A result of `quality` as a sentence."""
  text = (
    f"{name}: cosines to float32 {found['mean_cosine']:.4f} on average,"
    f" {found['least_cosine']:.4f} at least"
  )
  if "top20_recall" in found:
    text += (
      f"; {100 * found['top20_recall']:.1f} % of the first {RANK} passages and"
      f" {100 * found['same_top1']:.1f} % of the first ones are the same"
    )
  return text + "."
