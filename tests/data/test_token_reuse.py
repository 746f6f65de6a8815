"""A corpus that changes: only new and changed passages are tokenized."""

import copy
import dataclasses
import importlib.resources

import pytest

from dpr_jax.core import earlier_output
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare, token_blocks, token_store, tokenization
from dpr_jax.models import retriever_model

ROWS = list(range(120))
# Moved to the front: 50 to 59. Gone: 0 to 2 and 60 to 69. New: 125 to 139.
NEW = [*ROWS[50:60], *range(125, 140), *ROWS[3:50], *ROWS[70:]]
CHANGED = (30, 100)  # places in it


@pytest.fixture(scope="module")
def tokenizer(tiny_config):
  return retriever_model.start(tiny_config).tokenizer


@pytest.fixture
def corpora(tmp_path, tiny_config, tokenizer, monkeypatch):
  """Prepares a corpus in a workdir; makes its store of five blocks or so."""
  monkeypatch.setattr(token_store, "BLOCK", 25)
  sample = importlib.resources.files("dpr_jax.data.sample") / "passages.tsv"
  header, *lines = sample.read_text(encoding="utf-8").splitlines()
  config = copy.deepcopy(tiny_config)
  config.data.max_passages = 0
  config.data.train = "none"
  config.data.passages = str(tmp_path / "passages.tsv")
  passage_ids = tokenization.TextTokenizer.passage_ids

  def counted(self, passages):
    corpora.tokenized += len(passages)
    return passage_ids(self, passages)

  monkeypatch.setattr(tokenization.TextTokenizer, "passage_ids", counted)

  def corpora(name, rows=None, changed=(), **options):
    place = workdir_lib.Workdir(tmp_path / name)
    if rows is not None:
      chosen = [lines[row] for row in rows]
      if len(set(rows)) < len(rows):  # copies have ids of their own
        chosen = [
          "\t".join([str(9000 + place), *line.split("\t")[1:]])
          for place, line in enumerate(chosen)
        ]
      for row in changed:
        number, text, title = chosen[row].split("\t")
        chosen[row] = f"{number}\t{text} and more\t{title}"
      (tmp_path / "passages.tsv").write_text(
        "\n".join([header, *chosen]) + "\n", encoding="utf-8"
      )
      prepare.prepare(config, place)
    corpora.tokenized = 0
    corpora.place = place
    return token_store.make(
      place,
      prepare.open_passages(place),
      options.pop("tokenizer", tokenizer),
      workers=1,
      **options,
    )

  return corpora


def _files(store):
  return {
    path.name: path.read_bytes()
    for path in store.folder.iterdir()
    if path.name != "manifest.json"
  }


def _parts(store):
  return store.manifest["files"], store.manifest["parts"]


@pytest.mark.compiles
def test_a_changed_corpus_equals_a_fresh_run(corpora, tokenizer, caplog):
  """Passages removed, moved, changed and added; byte by byte; also killed."""
  caplog.set_level("INFO")
  corpora("grown", ROWS)
  assert corpora.tokenized == 120
  make_block, power = token_blocks._make_block, iter([True, True, False])

  def dies(work, block):
    if not next(power):
      raise RuntimeError("power cut")
    return make_block(work, block)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(token_blocks, "_make_block", dies)
    with pytest.raises(RuntimeError, match="power cut"):
      corpora("grown", NEW, CHANGED)
  # Rows 10 to 24 are new; row 30 was changed.
  assert corpora.tokenized == 16
  grown = corpora("grown")
  assert corpora.tokenized == 1  # row 100
  assert grown.manifest["counts"]["tokenized_in_this_run"] == 1
  assert "71 are those of the earlier corpus" in caplog.text
  before = grown.folder.with_name("passages-before")
  assert not before.exists()
  fresh = corpora("fresh", NEW, CHANGED)
  assert corpora.tokenized == len(NEW) == 122
  assert len(_files(fresh)) == 3 * 5
  assert _files(grown) == _files(fresh)
  assert _parts(grown) == _parts(fresh)

  # A shorter cut reuses a longer one, and has the bytes of a fresh store.
  shorter = dataclasses.replace(tokenizer, passage_length=12)
  grown = corpora("grown", ROWS, tokenizer=shorter)
  assert corpora.tokenized == 15  # 13 that had been removed, 2 changed back
  fresh = corpora("fresh", ROWS, tokenizer=shorter, overwrite=True)
  assert corpora.tokenized == 120
  assert _files(grown) == _files(fresh)
  # What is longer, or of another text format, is made again.
  longer = dataclasses.replace(tokenizer, passage_length=50)
  corpora("grown", ROWS[1:], tokenizer=longer)
  assert corpora.tokenized == 119
  untitled = dataclasses.replace(longer, title="none")
  corpora("grown", ROWS, tokenizer=untitled)
  assert corpora.tokenized == 120
  assert not before.exists()


def test_what_cannot_be_reused(corpora, caplog):
  """A damaged store, and files of the user in the folder."""
  store = corpora("grown", ROWS[:50])
  note = store.folder / "notes.txt"
  note.write_text("mine")
  corpora("grown", ROWS[:60])
  assert corpora.tokenized == 60
  assert note.read_text() == "mine"
  note.unlink()
  path = store.folder / "ids-00001.npy"
  path.write_bytes(path.read_bytes()[:-2])
  corpora("grown", ROWS[10:70])
  assert corpora.tokenized == 60
  assert "tokens: not reused" in caplog.text
  assert "passages-before/ids-00001.npy" in caplog.text
  assert not path.with_name("passages-before").exists()


def test_what_was_set_aside_goes_with_the_next_start(corpora):
  """A run that was killed after the manifest, while it removed the rest."""
  store = corpora("grown", ROWS[:50])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(earlier_output, "discard", lambda stage: None)
    corpora("grown", ROWS[:60])
    assert corpora.tokenized == 10
  before = store.folder.with_name("passages-before")
  (before / "ids-00000.npy").unlink()
  corpora("grown")
  assert corpora.tokenized == 0
  assert not before.exists()


def test_blocks_of_an_older_version_have_no_digests(corpora):
  """Of these, one was made again by this version; none is reused."""
  store = corpora("grown", ROWS[:50])
  manifest = dict(store.manifest)
  del manifest["files"]["digests-00001.npy"]
  workdir_lib.write_record(store.folder / "manifest.json", manifest)
  (store.folder / "digests-00001.npy").unlink()
  corpora("grown", ROWS[:60])
  assert corpora.tokenized == 60


def test_a_corpus_that_changes_twice_and_back(corpora):
  """Runs are killed; to overwrite is to forget what was set aside."""
  corpora("grown", ROWS[:50])
  make_block = token_blocks._make_block

  def killed(*args, **options):
    with pytest.MonkeyPatch.context() as patch:
      power = iter([True])

      def dies(work, block):
        if not next(power, False):
          raise RuntimeError("power cut")
        return make_block(work, block)

      patch.setattr(token_blocks, "_make_block", dies)
      with pytest.raises(RuntimeError, match="power cut"):
        corpora(*args, **options)

  killed("grown", ROWS[:60])
  killed("grown", ROWS[5:70])
  store = corpora("grown", ROWS[:50])
  assert corpora.tokenized == 0
  assert _files(store) == _files(corpora("fresh", ROWS[:50]))
  killed("grown", ROWS[:60])
  killed("grown", overwrite=True)
  corpora("grown")
  assert corpora.tokenized == 60 - 25  # a block is done


def test_a_corpus_of_one_passage_then_of_copies(corpora):
  """Other ids, equal texts: nothing is tokenized."""
  corpora("grown", ROWS)
  store = corpora("grown", [7])
  assert (len(store), corpora.tokenized) == (1, 0)
  copies = corpora("grown", [7] * 30)
  assert (len(copies), corpora.tokenized) == (30, 0)
  assert len({tuple(copies.ids(row).tolist()) for row in range(30)}) == 1


def test_a_store_on_another_disk_stays_there(corpora, tmp_path):
  """The folder is a symbolic link."""
  store = corpora("grown", ROWS[:50])
  store.folder.rename(tmp_path / "disk")
  store.folder.symlink_to(tmp_path / "disk")
  corpora("grown", ROWS[:60])
  assert corpora.tokenized == 10
  assert store.folder.is_symlink()
  assert (tmp_path / "disk" / "manifest.json").exists()
  assert not (tmp_path / "disk-before").exists()
  corpora("grown")
  assert corpora.tokenized == 0


def test_processes_ask_the_first_one_equally_often(corpora, monkeypatch):
  """One that comes later finds the store of the others complete."""
  asked = []
  monkeypatch.setattr(
    token_store.multiprocess, "first_alone", lambda do: asked.append(do())
  )
  corpora("grown", ROWS[:30])
  assert len(asked) == 1
  corpora("grown")
  assert len(asked) == 2
