"""Guards a training: compares it with its start, and blends both if asked.

Input: the checkpoints of a training that has taken its last step, the
parameters it started from, and the ranks of the dev questions in the dev rows
of `metrics.jsonl`.  Output: the entry "verdict" of the manifest.  With
`config.train.blend=auto` the best mean of both sets of parameters on the dev
pool becomes the selected one (`checkpoints.write_blend`).

Only what the rows lack is evaluated: the start and the last step have dev rows.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from dpr_jax.evaluation import significance, verdict
from dpr_jax.models import checkpoint_files, checkpoints
from dpr_jax.training import validation

# Weights of the trained parameters that are tried; 0 = the start.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)

Evaluate = Callable[[Any], Mapping[str, Any]]


def conclude(
  folder: pathlib.Path,
  start: Any,
  evaluate: Evaluate | None,
  blend: str,
  why: str = "",
) -> dict[str, Any]:
  """Makes the verdict of a training, blends it if asked, and logs both.

  A call that is killed in between can be made again.

  Args:
    folder: `training`, with all checkpoints on disk.
    start: parameters before training, on the host.
    evaluate: function from parameters to a dev row; None = no dev questions.
    blend: "none" or "auto".
    why: why there is no `evaluate`.

  Returns:
    As `verdict.of_ranks`.  With a blend, "blend" has the chosen "share" of the
    trained weights and the "tried" ones, and "trained" the verdict of the
    training without it.

  Raises:
    InputError: a checkpoint is damaged.
    DiskError: the blend cannot be written.
  """
  saved = folder / "checkpoints"
  selected = checkpoints.read_selected(saved)
  there = (saved / checkpoint_files.BLEND).exists()
  if there or checkpoints.blend_of(selected):
    selected.pop("blend", None)
    checkpoints.write_blend(saved, selected, 1.0, None)  # of an earlier call
  if evaluate is None:
    found = {"outcome": "", "why": why}
    _log(found)
    return found
  rows = _dev_rows(folder / "metrics.jsonl")
  first = rows.get(0) or evaluate(start)
  # A mean of several checkpoints has no row of its own.
  steps = selected["steps"]
  last = rows.get(steps[0]) if len(steps) == 1 else None
  if last is None or blend == "auto":
    trained = checkpoints.load_params(saved)[1]
    last = last or evaluate(trained)
  pool = last["dev_pool"]
  ranks = {0.0: first[validation.RANKS], 1.0: last[validation.RANKS]}
  found = verdict.of_ranks(ranks[1.0], ranks[0.0], pool)
  if blend == "auto":
    for share in SHARES:
      if share not in ranks:
        logging.info("train: evaluating a blend, %g of the training", share)
        mixed = blended(start, trained, share)
        ranks[share] = evaluate(mixed)[validation.RANKS]
    share, tried = choose(ranks)
    for each in tried:
      logging.info(
        "train: blend %(share)g: reciprocal rank %(reciprocal_rank).4f, average"
        " rank %(average_rank).2f, top-1 %(top1).4f",
        each,
      )
    logging.info("train: blend %g is used", share)
    checkpoints.write_blend(
      saved, selected, share, blended(start, trained, share)
    )
    found = verdict.of_ranks(ranks[share], ranks[0.0], pool) | {
      "blend": {"share": share, "tried": tried},
      "trained": found,
    }
  _log(found)
  return found


def blended(start: Any, trained: Any, share: float) -> Any:
  """`(1 - share) * start + share * trained`, in float32.

  With a share of 0 or 1 it is one of the trees itself, bit for bit.
  """
  if share in (0, 1):
    return trained if share else start
  first, second = np.float32(1 - share), np.float32(share)
  return jax.tree.map(
    lambda a, b: first * np.asarray(a) + second * np.asarray(b), start, trained
  )


def choose(
  ranks: Mapping[float, list[int]],
) -> tuple[float, list[dict[str, float]]]:
  """The share with the best mean reciprocal rank; of equal ones the largest.

  Args:
    ranks: rank of each dev question, from 1, by share.

  Returns:
    The share, and the figures of all shares, ascending.
  """
  tried = [
    {
      "share": share,
      "reciprocal_rank": verdict.mean_reciprocal(ranks[share]),
      "average_rank": float(np.mean(ranks[share])),
      "top1": float(np.mean(np.asarray(ranks[share]) == 1)),
    }
    for share in sorted(ranks)
  ]
  best = max(tried, key=lambda each: (each["reciprocal_rank"], each["share"]))
  return best["share"], tried


def _dev_rows(path: pathlib.Path) -> dict[int, dict[str, Any]]:
  """Dev rows with ranks, by step; older versions wrote none."""
  rows = {}
  for line in path.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    if validation.RANKS in row:
      rows[row["step"]] = row
  return rows


def _log(found: Mapping[str, Any]) -> None:
  worse = found["outcome"] == significance.WORSE
  log = logging.warning if worse else logging.info
  log("train: %s", verdict.line_of_pool(found))
