"""Measures over judged passages (qrels): nDCG, recall, MRR, MAP.

In come a TREC run and the grades of passages, out come the field's measures as
ir-measures computes them (trec_eval's rules: questions without a hit count as
0, equal scores stand in the order of ids, backwards).
"""

import pathlib
import re
from collections.abc import Sequence

import ir_measures
from ir_measures import AP, RR, R, nDCG

from dpr_jax.core import errors
from dpr_jax.data import beir_files

GOLD = "gold"  # in place of a file: the questions' own positive passages
MEASURES = (nDCG @ 10, R @ 20, R @ 100, RR @ 10, AP @ 100)
_SPACE = re.compile(r"\s+")


def of_gold(gold: Sequence[Sequence[str]]) -> beir_files.Judgements:
  """Positive passages as judgements, by row; questions without are left out."""
  return {
    str(row): {_SPACE.sub("_", identifier): 1 for identifier in identifiers}
    for row, identifiers in enumerate(gold)
    if identifiers
  }


def measures(
  run: pathlib.Path, judgements: beir_files.Judgements, depth: int | None
) -> dict[str, float]:
  """Means over all judged questions.

  Args:
    run: in TREC's format.
    judgements: grades; 0 and below are not relevant.
    depth: passages per question in the run: measures that look deeper are left
      out; None = all that there are.

  Raises:
    InputError: no run, or none of its questions is judged.
  """
  wanted = [
    each for each in MEASURES if depth is None or each["cutoff"] <= depth
  ]
  try:
    scored = list(ir_measures.read_trec_run(str(run)))
  except (OSError, ValueError) as error:
    raise errors.InputError(f"{run} is not a TREC run: {error}") from error
  asked = {each.query_id for each in scored}
  if scored and not asked & judgements.keys():
    raise errors.InputError(
      f"{run}: none of its questions ({', '.join(sorted(asked)[:3])}, ...) is"
      f" in the judgements ({', '.join(sorted(judgements)[:3])}, ...): are they"
      " of the same question set?"
    )
  if not wanted:
    return {}
  found = ir_measures.calc_aggregate(wanted, judgements, scored)
  return {str(each): float(found[each]) for each in wanted}
