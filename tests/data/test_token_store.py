"""The token store: the tokenizer's own ids, made once, whole after a crash."""

import copy
import dataclasses
import os

import numpy as np
import pytest

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare, token_blocks, token_store
from dpr_jax.models import retriever_model


@pytest.fixture(scope="module")
def tokenizer(tiny_config):
  """That of the tiny checkpoint, cutting at 48."""
  return retriever_model.start(tiny_config).tokenizer


@pytest.fixture
def small_blocks(monkeypatch):
  """Five blocks in 120 passages."""
  monkeypatch.setattr(token_store, "BLOCK", 25)


def _check(store, passages, tokenizer):
  wanted = tokenizer.passage_ids(passages.take(range(len(passages))))
  assert len(store) == len(wanted) == 120
  assert [store.ids(row).tolist() for row in range(120)] == wanted
  lengths = np.array([len(ids) for ids in wanted])
  for first, last in ((0, 120), (20, 80), (25, 50), (119, 120), (7, 7)):
    np.testing.assert_array_equal(
      store.lengths(first, last), lengths[first:last]
    )
  np.testing.assert_array_equal(
    store.histogram(), np.bincount(lengths, minlength=store.limit + 1)
  )


@pytest.mark.parametrize(
  "workers", [1, pytest.param(2, marks=pytest.mark.processes)]
)
def test_ids_are_the_tokenizers(
  tiny_config, fresh_workdir, tokenizer, small_blocks, workers
):
  """In one process and in several; also cut shorter; the same bytes."""
  passages = prepare.open_passages(fresh_workdir)
  store = token_store.make(fresh_workdir, passages, tokenizer, workers=workers)
  assert store.ids(3).dtype == np.uint16
  _check(store, passages, tokenizer)
  shorter = dataclasses.replace(tokenizer, passage_length=12)
  cut = token_store.make(fresh_workdir, passages, shorter)
  assert cut.manifest == store.manifest
  _check(cut, passages, shorter)


def test_only_what_is_missing_is_made(fresh_workdir, tokenizer, small_blocks):
  """A killed run, a damaged block, another tokenizer, a longer cut."""
  passages, made = prepare.open_passages(fresh_workdir), []
  power = iter([True, True, False])
  make_block = token_blocks._make_block

  def dies(work, block):
    made.append(block.number)
    if not next(power, True):
      raise RuntimeError("power cut")
    return make_block(work, block)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(token_blocks, "_make_block", dies)

    def make(tokenizer, **options):
      made.clear()
      store = token_store.make(
        fresh_workdir, passages, tokenizer, workers=1, **options
      )
      return store, list(made)

    with pytest.raises(RuntimeError, match="power cut"):
      make(tokenizer)
    store, again = make(tokenizer)
    assert again == [2, 3, 4]
    _check(store, passages, tokenizer)
    files = store.manifest["files"]
    assert make(tokenizer)[1] == []
    path = store.folder / "ids-00003.npy"
    os.truncate(path, path.stat().st_size - 2)
    store, again = make(tokenizer)
    assert again == [3]
    assert store.manifest["files"] == files
    # A shorter cut is served, a longer one and other ids need a new store.
    longer = dataclasses.replace(tokenizer, passage_length=50)
    untitled = dataclasses.replace(tokenizer, title="none", question_prefix="q")
    for other in (longer, untitled):
      store, again = make(other)
      assert sorted({*again, 2}) == [0, 1, 2, 3, 4]
      _check(store, passages, other)
    asked = dataclasses.replace(untitled, question_prefix="query: ")
    assert make(asked)[1] == []


def test_processes_deal_blocks(fresh_workdir, tokenizer, small_blocks):
  """Two processes make every block once, and end with the same store."""
  import threading

  passages, stores = prepare.open_passages(fresh_workdir), {}

  def run(process):
    stores[process] = token_store.make(
      fresh_workdir, passages, tokenizer, process=process, processes=2
    )

  threads = [threading.Thread(target=run, args=(n,)) for n in (1, 0)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert stores[0].manifest == stores[1].manifest
  _check(stores[1], passages, tokenizer)
  assert workdir_lib.read_manifest(stores[0].folder, "tokens")["count"] == 120


@pytest.mark.parametrize(
  ("texts", "share"),
  [
    # Words that the vocabulary has or can spell, and signs that it has not.
    (["Ulm is a city", "x \u20ac"] * 30, 1 / 6),
    (["Ulm is a city Ulm is a city a x"] * 2 + ["\u20ac"], 1 / 21),
    (["a city"], 0.0),
  ],
)
def test_the_share_of_unknown_words_is_told(
  tmp_path, tiny_config, tokenizer, small_blocks, caplog, texts, share
):
  """Of the tokens of texts alone; a warning where it is above 5 %."""
  caplog.set_level("INFO")
  path = tmp_path / "passages.tsv"
  rows = ["id\ttext\ttitle", *(f"{i}\t{t}\t" for i, t in enumerate(texts))]
  path.write_text("\n".join(rows) + "\n", encoding="utf-8")
  config = copy.deepcopy(tiny_config)
  config.data.passages, config.data.train = str(path), "none"
  prepare.prepare(config, place := workdir_lib.Workdir(tmp_path / "work"))
  passages = prepare.open_passages(place)
  assert len(passages) == len(texts)
  store = token_store.make(place, passages, tokenizer, workers=1)
  assert store.manifest["unknown_share"] == pytest.approx(share, abs=1e-6)
  (line,) = [r for r in caplog.records if "are [UNK]" in r.getMessage()]
  assert f"{100 * share:.2f} % of the passages' tokens" in line.getMessage()
  assert (line.levelname == "WARNING") == (share > 0.05)
