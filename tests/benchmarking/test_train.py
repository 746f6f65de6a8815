"""`bench train` on the tiny fixtures: agreement and structure, no seconds."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest

from dpr_jax.benchmarking import sentence_transformers_peer as peer_lib
from dpr_jax.benchmarking import train, training_texts
from dpr_jax.benchmarking import trainer as trainer_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import flops as flops_lib
from dpr_jax.models import retriever_model
from dpr_jax.training import packed_batches, retriever_batches
from tests.training import packed_sources


@pytest.fixture(scope="module")
def torch():
  """Torch and the peer's library; the tests of the peer skip without."""
  found = pytest.importorskip("torch", reason="no torch: extra `bench`")
  pytest.importorskip(
    "sentence_transformers",
    reason="no sentence-transformers: extra `bench`",
  )
  return found


def _check(report, names):
  """What every report of `bench train` holds."""
  assert set(report["contenders"]) == set(names)
  for found in report["contenders"].values():
    assert len(found["seconds"]) == len(found["losses"]) == 2
    assert all(second > 0 for second in found["seconds"])
    assert np.isfinite(found["losses"]).all()
    assert 0 <= found["padding_share"] < 1
    assert found["tokens_per_question"] <= found["padded_tokens_per_question"]
    assert found["gflops"]["useful"] <= found["gflops"]["padded"]
    speed = found["questions_per_second"]
    assert speed["least"] <= speed["median"] <= speed["greatest"]
  settings = report["settings"]
  assert settings["questions"] == 16
  assert settings["steps"] == [0, 1]
  assert set(settings["towers"]) == set(names)
  assert report["matrix_peak_gflops"] > 0
  assert report["compiled_in_rounds"] == 0


@pytest.mark.slow
def test_alone(tiny_config, mined_workdir, tmp_path, capsys):
  """Without a peer: no torch is needed, the workdir is left alone."""
  before = sorted(mined_workdir.root.rglob("*"))
  report = train.bench(
    tiny_config,
    mined_workdir,
    repeats=2,
    json_file=str(tmp_path / "report.json"),
    peak_size=64,
  )
  assert sorted(mined_workdir.root.rglob("*")) == before
  _check(report, [train.OURS])
  assert "speedup" not in report
  assert json.loads((tmp_path / "report.json").read_text()) == report
  printed = capsys.readouterr().out
  assert "16 questions per step" in printed
  assert "Towers in training: dpr-jax: 1" in printed


@pytest.mark.slow
def test_against_sentence_transformers(
  torch, tiny_config, mined_workdir, tmp_path, capsys
):
  """The losses agree; every round is timed on both; dropout is the model's."""
  config = copy.deepcopy(tiny_config)
  config.model.pooling = "mean"
  config.model.normalize = True
  config.model.temperature = 0.05
  report = train.bench(
    config,
    mined_workdir,
    against=peer_lib.NAME,
    repeats=2,
    json_file=str(tmp_path / "report.json"),
    peak_size=64,
  )
  _check(report, [train.OURS, peer_lib.NAME])
  assert report["checks"]["relative_difference"] <= 1e-4
  assert report["settings"]["peer_threads"] >= 1
  pairs = report["speedup"]["pairs"]
  ours, theirs = (report["contenders"][n] for n in (train.OURS, peer_lib.NAME))
  np.testing.assert_allclose(
    pairs, np.array(theirs["seconds"]) / ours["seconds"]
  )
  # The same tokens, padded in another way.
  assert ours["tokens_per_question"] == theirs["tokens_per_question"]
  assert json.loads((tmp_path / "report.json").read_text()) == report
  assert "times as fast as sentence-transformers" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", train.PEERS)
def test_both_sides_learn_alike(torch, tiny_config, mined_workdir, name):
  """Optimizer, clipping and decay too: losses stay together over steps."""
  config = copy.deepcopy(tiny_config)
  config.model.dropout = 0.0
  config.model.shared_towers = True
  config.train.max_steps = 50
  config.train.weight_decay = 0.1
  config.train.clip_norm = 0.5
  trainer = trainer_lib.Trainer(config, mined_workdir, 4)
  peer = train._make_peer(config, name)
  chosen = trainer.rounds
  losses = [
    (
      trainer.step(round_, mask_copies=False),
      peer.step(round_.questions, round_.columns, trainer.learning_rate),
    )
    for round_ in (*chosen, chosen[0])
  ]
  ours, theirs = np.array(losses).T
  np.testing.assert_allclose(ours, theirs, rtol=3e-5)
  assert ours[-1] < ours[0] - 100 * np.abs(ours - theirs).max()  # they learnt


@pytest.mark.slow
def test_masks_of_the_cached_peer_are_what_its_model_gets(
  torch, tiny_config, mined_workdir, monkeypatch
):
  """Each mini-batch twice: for the vectors, then for the gradients."""
  monkeypatch.setattr(peer_lib, "CACHED_TOKENS", 200)
  trainer = trainer_lib.Trainer(tiny_config, mined_workdir, 1)
  peer = train._make_peer(tiny_config, peer_lib.CACHED)
  (round_,) = trainer.rounds
  texts = (round_.questions, round_.columns)
  seen = []
  hook = peer._model.register_forward_pre_hook(
    lambda _, args: seen.append(args[0]["attention_mask"].numpy().astype(bool))
  )
  peer.step(*texts, 0.0)
  hook.remove()
  masks = peer.masks(*texts)
  assert len(masks) > 3 * 2  # three columns, of several mini-batches each
  assert all(mask.sum() <= 200 for mask in masks)
  assert len(seen) == 2 * len(masks)
  for expected, first, second in zip(
    masks, seen, seen[len(masks) :], strict=False
  ):
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)


def test_mini_batches_by_hand():
  """Lengths 2, 3, 1, 6, 2 in batches of 5: 2+3, 1, 6 although longer, 2."""
  mask = np.arange(8) < np.array([2, 3, 1, 6, 2])[:, None]
  parts = peer_lib.mini_batches(mask, 5)
  assert [part.shape for part in parts] == [(2, 3), (1, 1), (1, 6), (1, 2)]
  assert [part.sum() for part in parts] == [5, 1, 6, 2]
  whole = peer_lib.mini_batches(mask, 14)
  assert [part.shape for part in whole] == [(5, 6)]


@pytest.mark.parametrize("theirs", [2.0, 2.0 + 1e-5, 2.001, float("nan")])
def test_other_losses_are_refused(theirs, tiny_config, monkeypatch):
  """Whatever it is that differs: the bench fails, with both figures."""
  config = copy.deepcopy(tiny_config)
  config.model.dropout = 0.0
  trainer, peer = (
    object.__new__(kind) for kind in (trainer_lib.Trainer, peer_lib.Peer)
  )
  monkeypatch.setattr(trainer_lib.Trainer, "step", lambda *_, mask_copies: 2.0)
  peer.name = peer_lib.NAME
  trainer.learning_rate = 0.1
  monkeypatch.setattr(peer_lib.Peer, "step", lambda *_: theirs)
  monkeypatch.setattr(peer_lib.Peer, "restore_dropout", lambda _: None)
  place = workdir_lib.Workdir("nowhere")
  round_ = training_texts.Round(3, ["q"], [["p"]])
  arguments = (config, place, trainer, peer, round_)
  if abs(theirs - 2.0) < 1e-4:
    found = train.compare_losses(*arguments)
    assert found["first_loss"] == 2.0
  else:
    with pytest.raises(RuntimeError, match=r"the loss of batch 3 is 2.0 in"):
      train.compare_losses(*arguments)


def test_without_torch(tiny_config, mined_workdir, monkeypatch):
  """One line that names the extra, before anything is measured."""
  monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
  with pytest.raises(errors.InputError, match=r"pip install 'dpr-jax\[bench\]"):
    train.bench(tiny_config, mined_workdir, against=peer_lib.NAME)


def test_rounds_are_whole_batches_or_none(tiny_config, mined_workdir):
  """The sample's data has no negatives of its own: there is no such batch."""
  config = copy.deepcopy(tiny_config)
  config.train.negatives = "given"
  source = retriever_batches.make_source(
    config, mined_workdir, retriever_model.start(config)
  )
  with pytest.raises(errors.InputError, match="negatives=random"):
    training_texts.choose(source, 2)
  config.train.negatives = "random"
  source = retriever_batches.make_source(
    config, mined_workdir, retriever_model.start(config)
  )
  chosen = training_texts.choose(source, 8)
  assert [each.step for each in chosen] == [0, 1, 2, 3, 4, 5, 0, 1]
  for each in chosen:
    assert len(each.questions) == 16
    assert [len(column) for column in each.columns] == [16, 16]


@pytest.mark.parametrize("kind", ["given:1,random:1", "bm25:2"])
def test_texts_are_tokenized_as_for_the_stores(
  tiny_config, mined_workdir, kind
):
  """Packed batches of ids made for each batch are those of the stores."""
  config = copy.deepcopy(tiny_config)
  config.train.negatives, config.train.hard_negatives = kind, 2
  model = retriever_model.start(config)
  texts = retriever_batches.make_source(
    config, mined_workdir, model, store=False
  )
  stored = retriever_batches.with_tokens(texts, mined_workdir, model)
  made = dataclasses.replace(texts, tokens=training_texts.BatchTokens(texts))
  sources = [
    packed_batches.PackedSource.of(each, 0, 0) for each in (stored, made)
  ]
  found = packed_sources.with_shapes(sources[:1], range(2), most=1)
  shapes = found[0].shapes
  for step in range(2):
    jax.tree.map(
      np.testing.assert_array_equal,
      *(dataclasses.replace(each, shapes=shapes)[step] for each in sources),
    )


def test_random_weights_have_no_peer(tiny_config, mined_workdir):
  config = copy.deepcopy(tiny_config)
  config.model.checkpoint = "random"
  with pytest.raises(errors.InputError, match='checkpoint="random"'):
    train.bench(config, mined_workdir, against=peer_lib.NAME)


def test_figures_by_hand():
  """Two rounds of 4 questions: 2 s for 6 GFLOP of 8, then 1 s for 4 of 5."""
  giga = 10**9
  works = [
    flops_lib.Work(30, 40, 6 * giga, 8 * giga),
    flops_lib.Work(20, 60, 4 * giga, 5 * giga),
  ]
  found = train.figures([2.0, 1.0], works, 4, peak=10.0)
  assert found["gflops"] == {"useful": 3.5, "padded": 4.5}
  assert found["share_of_peak"] == {"useful": 0.35, "padded": 0.45}
  assert found["questions_per_second"]["median"] == 3.0
  assert found["step_seconds"]["median"] == 1.5
  assert found["tokens_per_question"] == 50 / 8
  assert found["padded_tokens_per_question"] == 100 / 8
  assert found["padding_share"] == 0.5
