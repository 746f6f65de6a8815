"""Dev figures against brute force, and on 1 and 8 devices."""

import copy
import dataclasses
import gzip
import json

import jax
import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, setting_rules
from dpr_jax.data import answer_matching, mined_negatives, prepare, records
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model
from dpr_jax.training import validation


def test_gold_losses_and_ranks():
  """Ranks start at 1, a tie counts against the gold passage."""
  scores = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 2.0], [0.0, 0.0, 5.0]])
  own = scores[np.arange(3), [0, 1, 0]]
  assert validation.gold_rank(own, scores).tolist() == [1, 2, 3]
  shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(
    validation.gold_losses(own, scores),
    -np.log(shares[np.arange(3), [0, 1, 0]]),
  )


def test_a_model_of_nan_ranks_last():
  """It must not win a comparison."""
  scores = np.full((2, 5), np.nan)
  assert validation.gold_rank(scores[:, 0], scores).tolist() == [5, 5]


def test_the_best_positive_counts_and_the_others_are_no_rivals():
  """Columns 0 and 2 are positives: rank 2 behind column 3, then rank 1.

  Of the third question the two positives tie, and column 1 with both: rank 2.
  """
  scores = np.array(
    [[1.0, 0.0, 3.0, 4.0], [9.0, 2.0, 8.0, 7.0], [5.0, 5.0, 5.0, 1.0]]
  )
  gold = np.array([0, 0, 0])
  others = [np.array([2])] * 3
  everything = np.arange(4)
  ranks = validation.positive_ranks(scores, gold, others, everything)
  assert ranks.tolist() == [2, 1, 2]
  # Among columns 0, 1 and 3 the first positive is the only one.
  few = np.array([0, 1, 3])
  ranks = validation.positive_ranks(scores, gold, others, few)
  assert ranks.tolist() == [2, 1, 2]
  masked = validation.without(scores, others)
  assert masked[0].tolist() == [1.0, 0.0, -np.inf, 4.0]
  assert scores[0, 2] == 3.0


@pytest.mark.parametrize("depth", [1, 3, 7, 50])
def test_best_first(depth):
  """As a full stable sort, ties over the edge included."""
  scores = np.random.default_rng(depth).integers(0, 6, 30).astype(np.float32)
  wanted = np.argsort(-scores, kind="stable")[:depth]
  found = validation.best_first(scores, depth)
  np.testing.assert_array_equal(found, wanted)


def test_sub_corpus_takes_gold_then_ranks_then_others():
  """Shallow ranks of all questions before the deep ranks of any."""
  gold = np.array([10, 11, 10])
  mined = [np.array([1, 2, 3]), np.array([4, 11]), np.array([], np.int64)]
  others = np.array([2, 30, 20])
  order = [10, 11, 1, 4, 2, 3, 30, 20]
  for size in range(2, 9):
    rows = validation.sub_corpus_rows(gold, mined, others, size)
    assert rows.tolist() == sorted(order[:size])
  rows = validation.sub_corpus_rows(gold, mined, others, 100)
  assert rows.tolist() == sorted(order)
  with pytest.raises(
    errors.InputError, match="passages=1: the 3 dev questions have 2 gold"
  ):
    validation.sub_corpus_rows(gold, mined, others, 1)


class _Vectors(encoder_lib.Encoder):
  """Gives fixed vectors and counts what it encodes."""

  def __init__(self, questions, passages):
    self.questions, self.passages, self.encoded = questions, passages, 0

  def with_params(self, params):
    return self

  def encode_questions(self, questions):
    return self.questions

  def encode_passages(self, passages):
    self.encoded += len(passages)
    return self.passages


@pytest.mark.parametrize("scores_at_once", [1, 100, 2**24])
@pytest.mark.parametrize("match", answer_matching.MATCHES)
def test_evaluate_against_brute_force(monkeypatch, scores_at_once, match):
  """All figures, whatever the size of the blocks."""
  monkeypatch.setattr(validation, "_SCORES", scores_at_once)
  generator = np.random.default_rng(1)
  questions = generator.standard_normal((9, 4), np.float32)
  passages = generator.standard_normal((40, 4), np.float32)
  texts = [
    " ".join(generator.choice(list("abcdefghijkl"), 3)) for _ in range(40)
  ]
  asked = [
    records.Question(f"q{n}", (letter,)) for n, letter in enumerate("abcdefgh")
  ]
  asked.append(records.Question("without answers"))
  gold = generator.integers(0, 20, 9)
  pool = np.unique(np.concatenate([gold, np.arange(0, 40, 3)]))
  members = np.unique(np.concatenate([gold, np.arange(1, 40, 2)]))
  encoder = _Vectors(questions, passages)
  dev = validation.DevPool(
    asked,
    gold,
    [records.Passage(str(n), "", text) for n, text in enumerate(texts)],
    pool,
    validation.SubCorpus(
      members, (1, 3, 10), answer_matching.AnswerMatcher(match=match)
    ),
    encoder,
    0.5,
  )
  figures = dev.evaluate(None)
  assert encoder.encoded == 40

  scores = (questions.astype(np.float64) @ passages.T) / 0.5
  losses, ranks, golds, found = [], [], [], []
  for n, row in enumerate(scores):
    losses.append(np.log(np.exp(row[pool]).sum()) - row[gold[n]])
    ranks.append(1 + sum(row[p] > row[gold[n]] for p in pool))
    order = sorted(members, key=lambda p, row=row: -row[p])
    golds.append(order.index(gold[n]))
    found.append(
      [any(a in texts[p].split() for a in asked[n].answers) for p in order]
    )
  assert figures.pop("dev_pool") == len(pool)
  assert figures.pop("dev_ranks") == ranks
  assert figures.pop("dev_topk_passages") == len(members)
  wanted = {
    "dev_loss": np.mean(losses),
    "dev_average_rank": np.mean(ranks),
    "dev_top1": np.mean(np.array(ranks) == 1),
  }
  for k in (1, 3, 10):
    wanted[f"dev_gold_top{k}"] = np.mean([g < k for g in golds])
    wanted[f"dev_answer_top{k}"] = np.mean([any(f[:k]) for f in found])
  assert 0 < wanted["dev_answer_top1"] < wanted["dev_answer_top3"] < 1
  assert figures == pytest.approx(wanted, rel=1e-5)


def _with_top_k(config, passages):
  config = copy.deepcopy(config)
  config.train.dev_topk_passages = passages
  config.evaluate.ranks = (20, 1, 5)
  return config


def test_figures_are_equal_on_1_and_8_devices(
  tiny_config, mined_workdir, monkeypatch
):
  """In other batches, too; top-k on or off leaves the other figures alone."""
  config = _with_top_k(tiny_config, 70)
  model = retriever_model.start(config)
  params = devices_lib.replicate(model.params)
  eight = validation.DevPool.make(config, mined_workdir, model)
  assert len(eight.sub_corpus.members) == 70
  assert len(eight.passages) < 70 + len(eight.pool)
  wanted = eight.evaluate(params)
  names = setting_rules.metric_names(config)
  ranks = wanted.pop("dev_ranks")
  assert len(ranks) == len(eight.questions)
  assert np.mean(ranks) == pytest.approx(wanted["dev_average_rank"])
  assert set(wanted) == {*names, "dev_pool", "dev_topk_passages"}

  without = validation.DevPool.make(tiny_config, mined_workdir, model)
  figures = without.evaluate(params)
  assert figures.pop("dev_ranks") == ranks
  assert [key for key in figures if key != "dev_pool"] == list(
    setting_rules.metric_names(tiny_config)
  )
  assert figures == pytest.approx(
    {key: wanted[key] for key in figures}, rel=1e-5
  )

  device = jax.devices()[:1]
  monkeypatch.setattr(jax, "local_devices", lambda: device)
  config.embed.tokens_per_core = 5
  one = validation.DevPool.make(config, mined_workdir, model)
  found = one.evaluate(devices_lib.replicate(model.params, device))
  moved = np.abs(np.subtract(found.pop("dev_ranks"), ranks))
  assert moved.sum() <= 1
  # Other tiles round otherwise: a question's gold passage may change places
  # with one that scores the same to a millionth.
  place = 1.01 / len(one.questions)
  rank = found.pop("dev_average_rank")
  assert rank == pytest.approx(wanted.pop("dev_average_rank"), abs=place)
  assert found == pytest.approx(wanted, rel=1e-5)
  # Random towers: else this would compare ones with ones.
  assert 1 < rank < found["dev_pool"] / 2
  assert found["dev_gold_top1"] < found["dev_gold_top20"]


def test_sub_corpus_of_a_workdir(tiny_config, mined_workdir):
  """Exactly as many passages as asked, gold and mined ones first."""
  model = retriever_model.start(tiny_config)
  corpus = prepare.open_passages(mined_workdir)
  table = prepare.open_questions(mined_workdir, "dev")
  gold = {q.positives[0].id for q in table.take(range(len(table)))}
  mined = mined_negatives.read(
    mined_workdir.negatives / mined_negatives.FILES["dev"]
  )
  first = {ids[0] for ids in mined if ids}
  size = len(gold | first)

  def members(size):
    dev = validation.DevPool.make(
      _with_top_k(tiny_config, size), mined_workdir, model
    )
    return {dev.passages[n].id for n in dev.sub_corpus.members}

  assert members(len(gold)) == gold
  assert members(size) == gold | first
  assert members(size) < members(100)
  assert len(members(100)) == 100
  assert members(100) == members(100)  # by seed
  assert len(members(10_000)) == len(corpus) == 120
  with pytest.raises(errors.InputError, match=f"at least {len(gold)}, or"):
    members(len(gold) - 1)


def test_questions_without_a_gold_passage_are_left_out(
  tiny_config, mined_workdir, monkeypatch
):
  """The others keep their own negatives; with none left there is no pool."""
  model = retriever_model.start(tiny_config)
  whole = validation.DevPool.make(tiny_config, mined_workdir, model)
  table = prepare.open_questions(mined_workdir, "dev")
  blocks = table.blocks

  def make(has_gold):
    def some(size):
      for first, block in blocks(size):
        yield (
          first,
          [
            question
            if has_gold(first + n)
            else dataclasses.replace(
              question, positives=(records.Passage("elsewhere", "", ""),)
            )
            for n, question in enumerate(block)
          ],
        )

    monkeypatch.setattr(table, "blocks", some)
    monkeypatch.setattr(prepare, "open_questions", lambda *_: table)
    return validation.DevPool.make(tiny_config, mined_workdir, model)

  dev = make(lambda row: row % 2)
  assert dev.questions == whole.questions[1::2]
  found = [dev.passages[row].id for row in dev.gold]
  assert found == [whole.passages[row].id for row in whole.gold[1::2]]
  assert make(lambda row: False) is None


def test_negatives_of_another_corpus_are_refused(tiny_config, fresh_workdir):
  """With file, line and fix."""
  path = fresh_workdir.negatives / mined_negatives.FILES["dev"]
  lines = [json.loads(line) for line in gzip.open(path, "rt")]
  lines[2]["hard_negatives"][0] = "elsewhere"
  with gzip.open(path, "wt") as file:
    file.writelines(json.dumps(line) + "\n" for line in lines)
  (fresh_workdir.negatives / "manifest.json").unlink()
  with pytest.raises(
    errors.InputError, match="line 3: passage 'elsewhere' is not in the corpus"
  ):
    validation.DevPool.make(
      tiny_config, fresh_workdir, retriever_model.start(tiny_config)
    )


def test_metric_names():
  """The contract with the choice of the best checkpoint."""
  config = config_lib.base_config()
  pool = ("dev_loss", "dev_average_rank", "dev_top1")
  assert setting_rules.metric_names(config) == pool
  config.train.dev_topk_passages = 1000
  assert setting_rules.metric_names(config) == (
    *pool,
    *(f"dev_gold_top{k}" for k in (1, 5, 20, 100)),
    *(f"dev_answer_top{k}" for k in (1, 5, 20, 100)),
  )
  assert set(validation.LOWER_IS_BETTER) < set(pool)
  config.evaluate.ranks = ()
  with pytest.raises(errors.InputError, match="evaluate.ranks is empty"):
    setting_rules.metric_names(config)
  config.evaluate.ranks = (0, 5)
  with pytest.raises(errors.InputError, match="evaluate.ranks=0: must be >= 1"):
    setting_rules.metric_names(config)
  config.train.dev_topk_passages = -1
  with pytest.raises(errors.InputError, match="dev_topk_passages=-1: must be"):
    setting_rules.metric_names(config)
  config.train.dev_questions = 0
  assert setting_rules.metric_names(config) == ()
