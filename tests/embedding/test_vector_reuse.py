"""A corpus that changes: what is new is encoded, the rest is reused."""

import copy
import importlib.resources

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare
from dpr_jax.embedding import embed, vector_reuse, vector_shards
from dpr_jax.inference import length_tiles

START = "dense-start"


@pytest.fixture
def corpora(tmp_path, tiny_config):
  """Prepares a workdir with some lines of the sample's corpus, and embeds."""
  sample = importlib.resources.files("dpr_jax.data.sample") / "passages.tsv"
  header, *lines = sample.read_text(encoding="utf-8").splitlines()
  gold_free = copy.deepcopy(tiny_config)
  gold_free.data.max_passages = 0
  gold_free.data.passages = str(tmp_path / "passages.tsv")

  def make(name, rows, changed=(), backend="jax", overwrite=False):
    gold_free.embed.backend = backend
    chosen = [lines[row] for row in rows]
    for place in changed:
      number, text, title = chosen[place].split("\t")
      chosen[place] = f"{number}\t{text} and more\t{title}"
    (tmp_path / "passages.tsv").write_text(
      "\n".join([header, *chosen]) + "\n", encoding="utf-8"
    )
    place = workdir_lib.Workdir(tmp_path / name)
    prepare.prepare(gold_free, place)
    embed.embed(gold_free, place, model=START, overwrite=overwrite)
    return vector_shards.open_vectors(place.embeddings(START))

  return make


ROWS = list(range(120))


@pytest.mark.compiles
def test_a_changed_corpus_equals_a_fresh_run(corpora, monkeypatch):
  """Passages deleted, moved, changed and added; bit by bit."""
  corpora("grown", ROWS)
  new = [*range(125, 140), *ROWS[3:60], *ROWS[70:]]
  encoded = []
  encode_rows = embed._encode_rows

  def counts(*args):
    encoded.append(int(args[-1].sum()))
    return encode_rows(*args)

  monkeypatch.setattr(embed, "_encode_rows", counts)
  grown = corpora("grown", new, changed=(30,))
  # Those that moved to a tile of another shape are encoded again.
  assert 16 <= sum(encoded) < 60
  assert grown.manifest["counts"]["encoded_in_this_run"] == sum(encoded)
  assert grown.manifest["count"] == len(new) == 122
  encoded.clear()
  fresh = corpora("fresh", new, changed=(30,))
  assert sum(encoded) == 122
  assert grown.manifest["files"] == fresh.manifest["files"]
  before = grown.folder.with_name(f"{grown.folder.name}-before")
  assert not before.exists()


@pytest.mark.compiles
def test_of_8_bits_whole_tiles_are_reused(corpora):
  """There, the scale of a tile's products depends on all of its texts."""
  pytest.importorskip("onnxruntime", reason="the extra onnx")
  new = [*range(125, 140), *ROWS[50:]]  # the second shard begins at row 50
  corpora("grown", ROWS, backend="onnx-int8")
  grown = corpora("grown", new, backend="onnx-int8")
  fresh = corpora("fresh", new, backend="onnx-int8")
  assert grown.manifest["files"] == fresh.manifest["files"]
  same = [*ROWS[:100], 101]  # two whole shards, and a third one
  grown = corpora("same", ROWS, backend="onnx-int8")
  grown = corpora("same", same, backend="onnx-int8")
  assert grown.manifest["counts"]["encoded_in_this_run"] == 1


@pytest.mark.compiles
def test_an_interrupted_run_still_reuses(corpora, monkeypatch):
  corpora("grown", ROWS)
  with monkeypatch.context() as patch:
    patch.setattr(embed, "_write_shard", None)
    with pytest.raises(TypeError):
      corpora("grown", ROWS[:100])
  encoded = []
  encode_rows = embed._encode_rows

  def counts(*args):
    encoded.append(int(args[-1].sum()))
    return encode_rows(*args)

  monkeypatch.setattr(embed, "_encode_rows", counts)
  corpora("grown", ROWS[:100])
  assert encoded == [0, 0]  # whole shards of the same passages


@pytest.mark.compiles
def test_a_corpus_that_changes_again_after_a_killed_run(corpora, monkeypatch):
  """What it began is replaced; to overwrite is to reuse nothing."""
  first = corpora("grown", ROWS)
  write_shard = embed._write_shard

  def killed(rows, **options):
    with monkeypatch.context() as patch:
      power = iter([True])

      def dies(*args):
        if not next(power, False):
          raise RuntimeError("power cut")
        write_shard(*args)

      patch.setattr(embed, "_write_shard", dies)
      with pytest.raises(RuntimeError, match="power cut"):
        corpora("grown", rows, **options)

  killed(ROWS[:110])
  killed(ROWS[:100])
  back = corpora("grown", ROWS)
  assert back.manifest["counts"]["encoded_in_this_run"] == 0
  assert back.manifest["files"] == first.manifest["files"]
  killed(ROWS[:100])
  killed(ROWS[:100], overwrite=True)
  again = corpora("grown", ROWS[:100])
  assert again.manifest["counts"]["encoded_in_this_run"] == 50


@pytest.mark.compiles
def test_processes_look_at_the_shards_before_one_is_made(corpora, monkeypatch):
  """A late one would find them complete, and skip exchanges of the others."""
  order = []
  barrier, make = embed.multiprocess.barrier, embed.token_store.make
  begin = embed.sharded_output.Parts.begin

  def noted(name, function):
    return lambda *args, **options: (
      order.append(name) or function(*args, **options)
    )

  monkeypatch.setattr(embed.multiprocess, "barrier", noted("wait", barrier))
  monkeypatch.setattr(embed.token_store, "make", noted("tokens", make))
  monkeypatch.setattr(
    embed.sharded_output.Parts, "begin", noted("begin", begin)
  )
  corpora("grown", ROWS[:40])
  assert order[:3] == ["begin", "wait", "tokens"]
  order.clear()
  corpora("grown", ROWS[:40])
  assert order == ["begin", "wait"]


@pytest.mark.compiles
@pytest.mark.parametrize("kind", ["vectors", "digests"])
def test_damaged_shards_are_not_reused(corpora, caplog, kind):
  folder = corpora("grown", ROWS).folder
  path = folder / f"{kind}-00000.npy"
  path.write_bytes(path.read_bytes()[:-8])
  grown = corpora("grown", [*ROWS[50:100], *ROWS[:50]])
  assert f"-before/{kind}-00000.npy is not the file" in caplog.text
  assert grown.manifest["counts"]["encoded_in_this_run"] == 50


@pytest.mark.compiles
def test_files_of_the_user_are_not_moved(corpora):
  folder = corpora("grown", ROWS).folder
  (folder / "notes.txt").write_text("mine")
  with pytest.raises(errors.InputError, match="other passages"):
    corpora("grown", ROWS[:100])
  assert (folder / "notes.txt").read_text() == "mine"


class _Tokens:
  def __init__(self, rows):
    self.rows = rows

  def ids(self, row):
    return np.array(self.rows[row], np.uint16)


def _tile(rows, width, size=2, full=False):
  return length_tiles.Tile(np.array(rows), size, width, full)


def test_digests_are_of_ids_and_tile_and_not_of_the_row():
  tokens = _Tokens([[1, 2], [1, 2], [1, 3], [1, 2], [1, 2]])
  tiles = [_tile([0, 2], 4), _tile([1], 8), _tile([3], 4), _tile([4], 4, 3)]
  found = vector_reuse.row_digests(tiles, tokens, 0).tolist()
  assert found[0] == found[3]
  assert len({found[0], found[1], found[2], found[4]}) == 4
  shifted = vector_reuse.row_digests([_tile([0], 4)], tokens, 2)
  assert shifted.tolist() == [found[2]]


def test_digests_of_texts_that_depend_on_their_tile():
  tokens = _Tokens([[1, 2], [3], [1, 2], [3], [3], [1, 2]])
  tiles = [_tile([0, 1], 4), _tile([2, 3], 4), _tile([4, 5], 4)]
  found = vector_reuse.row_digests(tiles, tokens, 0, False).tolist()
  assert found[:2] == found[2:4]
  assert len(set(found)) == 4


def test_tiles_of_wanted_rows_keep_their_shapes():
  tiles = [_tile([0, 1], 8), _tile([2, 3], 8), _tile([4, 5, 6], 4, 3)]
  wanted = np.array([True, False, False, True, False, True, False])
  found = length_tiles.only(tiles, wanted)
  assert [tile.rows.tolist() for tile in found] == [[0, 3], [5]]
  assert [(tile.size, tile.width) for tile in found] == [(2, 8), (3, 4)]
  assert length_tiles.only(tiles, np.zeros(7, bool)) == []
