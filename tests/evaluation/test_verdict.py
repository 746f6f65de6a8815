"""The verdict on a training: its rule, its lines, and its file."""

import json

import pytest

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import significance, verdict


def test_mean_reciprocal_rank_has_no_order():
  """(1 + 1/3 + 1/7) / 3 to the last bit, in any order."""
  found = {
    verdict.mean_reciprocal(ranks)
    for ranks in ([1, 3, 7], [7, 3, 1], [3, 7, 1])
  }
  assert len(found) == 1
  assert found.pop() == pytest.approx(31 / 63, rel=1e-15)


@pytest.mark.parametrize(
  ("trained", "start", "outcome", "p"),
  [
    # Eight questions, all from second to first: 2 of 2^8 signs are as far.
    ([1] * 8, [2] * 8, "better", 2 / 256),
    ([2] * 8, [1] * 8, "worse", 2 / 256),
    # Five: 2 of 2^5, over the level of 0.05.
    ([1] * 5, [2] * 5, "even", 2 / 32),
    ([3, 1], [3, 1], "even", 1.0),
  ],
)
def test_the_rule(trained, start, outcome, p):
  """The exact permutation test of the reciprocal rank, at 0.05."""
  found = verdict.of_ranks(trained, start, 40)
  assert found["outcome"] == outcome
  assert found["reciprocal_rank"]["p"] == pytest.approx(p)
  assert found["top1"]["p"] == pytest.approx(p)  # McNemar's, here the same
  assert found["questions"] == len(trained)


def test_top_1_alone_does_not_decide():
  """Six questions gain the first rank, six lose far less: both tests differ.

  1 - 1/2 six times against 1/2 - 1 six times is no change of the mean; and
  twenty changes from rank 50 to 2 leave top-1 as it was, and are an advance.
  """
  found = verdict.of_ranks([1] * 6 + [2] * 6, [2] * 6 + [1] * 6, 40)
  assert found["outcome"] == "even"
  found = verdict.of_ranks([2] * 20, [50] * 20, 60)
  assert found["top1"]["p"] == 1.0
  assert found["outcome"] == "better"


def test_lines_of_the_pool():
  """Before and after, both tests, and the word."""
  found = verdict.of_ranks([1] * 8, [2] * 8, 40)
  said = (
    "verdict on dev, 8 questions, pool of 40 passages: reciprocal rank"
    " 0.500 -> 1.000 (p = 0.0078), average rank 2.0 -> 1.0, top-1 0.0 ->"
    " 100.0 % (p = 0.0078): better than the start"
  )
  assert verdict.line_of_pool(found) == said
  blended = found | {"blend": {"share": 0.25, "tried": []}}
  assert verdict.line_of_pool(blended) == (
    f"{said} (blended: 0.25 of the training, 0.75 of the start)"
  )
  assert verdict.line_of_pool(found | {"blend": {"share": 1.0}}) == said
  worse = verdict.line_of_pool(verdict.of_ranks([2] * 8, [1] * 8, 40))
  assert ": worse than the start; this training made retrieval worse" in worse
  even = verdict.line_of_pool(verdict.of_ranks([1] * 2, [2] * 2, 40))
  assert even.endswith(": no difference from the start")
  none = {"outcome": "", "why": "config.train.dev_questions is 0"}
  assert verdict.line_of_pool(none) == (
    "no verdict: config.train.dev_questions is 0"
  )


def _write(place, method, rank, questions=8):
  """Results whose answer is at a rank from 0, of other software."""
  ctxs = [
    {
      "id": str(number),
      "title": "",
      "text": "Ulm." if number == rank else "Berlin.",
      "score": "1.0",
    }
    for number in range(4)
  ]
  row = {"question": "where", "answers": ["Ulm"], "ctxs": ctxs}
  path = place.results("dev", method)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps([row] * questions))


def test_of_results(tmp_path):
  """BM25 first, the start last; read again only if a file changed."""
  place = workdir_lib.Workdir(tmp_path)
  _write(place, "dense", 0)
  assert verdict.of_results(place, "dev", "string") == []
  _write(place, "dense-start", 1)
  _write(place, "bm25", 0)
  place.evaluation("dev").parent.mkdir()
  found = verdict.of_results(place, "dev", "string")
  assert [(each["other"], each["outcome"]) for each in found] == [
    ("bm25", "even"),
    ("dense-start", "better"),
  ]
  assert [verdict.line_of_results(each, "dev") for each in found] == [
    "verdict on dev, 8 questions, whole corpus: answer reciprocal rank 1.000"
    " (bm25), 1.000 (dense; p = 1): no difference from bm25",
    "verdict on dev, 8 questions, whole corpus: answer reciprocal rank 0.500"
    " (the start (dense-start)), 1.000 (dense; p = 0.0078): better than the"
    " start (dense-start)",
  ]
  # From its file.
  file = tmp_path / "evaluation" / "dev.verdict.json"
  record = workdir_lib.read_record(file)
  record["verdicts"][0]["outcome"] = "from the file"
  workdir_lib.write_record(file, record)
  found = verdict.of_results(place, "dev", "string")
  assert found[0]["outcome"] == "from the file"
  # Made again: other results, another match, a damaged file.
  assert verdict.of_results(place, "dev", "regex")[0]["outcome"] == "even"
  _write(place, "dense", 2)
  found = verdict.of_results(place, "dev", "string")
  assert [each["outcome"] for each in found] == ["worse", "worse"]
  last = verdict.line_of_results(found[-1], "dev")
  assert "worse than the start (dense-start); this training made" in last
  assert "this training" not in verdict.line_of_results(found[0], "dev")
  file.write_text("{")
  assert verdict.of_results(place, "dev", "string") == found
  # Of other questions: not compared.
  _write(place, "bm25", 0, questions=7)
  found = verdict.of_results(place, "dev", "string")
  assert [each["other"] for each in found] == ["dense-start"]


def test_gold_passages_decide_where_no_question_has_answers():
  """And answers where both are known."""
  ranks = [0] * 8, [1] * 8
  both = significance.compare(("a", "b"), ranks, ranks, [1])
  assert significance.decisive(both) == "reciprocal_rank"
  gold = significance.compare(("a", "b"), ([], []), ranks, [1])
  assert significance.decisive(gold) == "gold_reciprocal_rank"
  with pytest.raises(ValueError, match="no verdict"):
    significance.decisive(
      significance.compare(("a", "b"), ([], []), ([], []), [])
    )
