"""Histograms of lengths, the rows that they give, and the report's ratios."""

import json

import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import packing
from dpr_jax.planning import chips, report, sizes, text_lengths, tpu_plan
from dpr_jax.training import packed_batches

pytestmark = pytest.mark.quick

VALUES = {"questions": {"5": 3, "9": 1}, "passages": {"10": 1, "30": 1}}


def _file(folder, values):
  path = folder / "lengths.json"
  path.write_text(json.dumps(values))
  return str(path)


def _config(**train):
  config = config_lib.base_config()
  config.model.checkpoint = "random"
  config.model.random_layers, config.model.random_width = 2, 64
  config.model.question_length, config.model.passage_length = 8, 32
  config.train.max_steps = 3
  config.train.update({"batch_size": 8, "hard_negatives": 1, **train})
  return config


def test_a_file_of_lengths(tmp_path):
  """Means (3 x 5 + 9) / 4 and 20; a question of 9 tokens is cut to 8."""
  found = text_lengths.read(_file(tmp_path, VALUES), (16, 32))
  assert found.means() == (6.0, 20.0)
  cut = text_lengths.read(_file(tmp_path, VALUES), (8, 32))
  assert cut.questions.tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 1]
  assert text_lengths.mean(cut.questions, lambda length: length**2) == 34.75


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ([], "must be a JSON object with the keys questions and passages"),
    ({"questions": {"5": 1}}, "keys questions and passages"),
    (VALUES | {"passages": {}}, "passages must be a JSON object of counts"),
    (VALUES | {"passages": {"0": 1}}, "passages: '0' must be a length"),
    (VALUES | {"questions": {"5": 0.5}}, "questions: the count of length 5"),
  ],
)
def test_a_bad_file_is_refused(tmp_path, values, words):
  path = _file(tmp_path, values)
  with pytest.raises(errors.InputError, match=words) as caught:
    text_lengths.read(path, (16, 32))
  assert str(caught.value).startswith(f"config.plan.lengths={path!r}: ")


def test_a_missing_file_is_named(tmp_path):
  path = str(tmp_path / "none.json")
  with pytest.raises(errors.InputError, match=r"plan\.lengths=.*No such file"):
    text_lengths.read(path, (16, 32))


def test_a_workdir_without_token_store_is_refused(tmp_path):
  config = _config()
  assert text_lengths.of_config(config, (8, 32)) is None
  where = workdir_lib.Workdir(tmp_path)
  with pytest.raises(errors.InputError, match="missing: `dpr-jax train`"):
    text_lengths.of_config(config, (8, 32), where)


def test_lengths_of_a_token_store(tmp_path, monkeypatch):
  """Two questions of 5 and 9 tokens, three passages: one is cut to 32."""
  where = workdir_lib.Workdir(tmp_path)
  sizes_of = {"question_length": 16, "passage_length": 64}
  manifests = {
    where.tokens: {"parts": [{"lengths": {"10": 2, "40": 1}}]},
    where.question_tokens: {"parts": [{}]},
  }
  for folder, manifest in manifests.items():
    folder.mkdir(parents=True)
    (folder / workdir_lib.MANIFEST).touch()
    manifest["config"] = sizes_of
  monkeypatch.setattr(
    workdir_lib, "read_manifest", lambda folder, stage: manifests[folder]
  )
  np.save(where.question_tokens / "ids-00000.npy", np.zeros(14, np.uint16))
  for kind, values in (
    ("ends", [0, 5, 14]),
    ("passages", []),
    ("starts", [0, 0, 0, 0, 0]),
  ):
    array = np.array(values, np.int64)
    np.save(where.question_tokens / f"{kind}-00000.npy", array)
  found = text_lengths.of_workdir(where, (16, 32))
  assert np.flatnonzero(found.questions).tolist() == [5, 9]
  assert found.means() == (7.0, 52 / 3)
  with pytest.raises(errors.InputError, match="questions are cut to 16 tokens"):
    text_lengths.of_workdir(where, (32, 32))


def test_rows_places_and_ratios_by_hand():
  """Texts of 5 and 20 tokens, 8 questions and 16 passages on 4 devices.

  A device has 2 questions, in a row of 10, so 16, places; and 4 passages, with
  chunks of 2 in two rows of 40 places.
  """
  lengths = text_lengths.Lengths(np.bincount([5]), np.bincount([20]), "here")
  config = _config(chunk_size=2)
  topology = chips.Topology.parse("v5e:2x2")
  rows = tpu_plan.packed_rows(config, topology, lengths)
  assert rows == text_lengths.Rows(
    (packed_batches.Layout(1, 2), packed_batches.Layout(2, 2)),
    (
      packing.Shapes(16, (packing.Tile(2, 8),)),
      packing.Shapes(40, (packing.Tile(2, 24),)),
    ),
    batches=3,
  )
  batch = sizes.batch(config, 4, rows)
  assert batch["passages"]["token_ids"].shape == (4, 2, 40)
  (tile,) = batch["passages"]["tiles"]
  assert tile["places"].shape == (4, 2, 2, 24)
  assert tile["lengths"].shape == (4, 2, 2)
  found = text_lengths.figures(config, (8, 32), 4, lengths, rows)
  assert found["useful_tokens"] == 8 * 5 + 16 * 20
  assert found["places"] == 4 * (16 + 2 * 40)
  assert found["places_ratio"] == 384 / 360
  shown = "\n".join(report._texts(found))
  assert "384 per step for 360 useful tokens, ratio 1.067" in shown
  assert "2 rows of 40 places per device, attention 2 x 24" in shown
  padded = text_lengths.figures(config, (8, 32), 4, lengths, None)
  assert padded["places"] == 8 * 8 + 16 * 32


def test_rows_hold_the_longest_of_unequal_texts():
  """8 of 24 passages have 30 tokens: the seed's draws, dealt to both rows."""
  lengths = text_lengths.Lengths(
    np.bincount([5]), np.bincount([10, 30, 10]), "here"
  )
  topology = chips.Topology.parse("v5e:1x1")
  config = _config(batch_size=2, max_steps=200)
  rows = tpu_plan.packed_rows(config, topology, lengths)
  assert rows.batches == 200
  # Of 4 passages all may be long: 4 x 30 places, in one tile.
  assert rows.shapes[1] == packing.Shapes(120, (packing.Tile(4, 32),))


def test_flops_are_those_of_the_useful_tokens():
  """The mean over the lengths, not the FLOPs of the mean length."""
  config = _config()
  encoder = sizes.model_of(config).encoder
  lengths = text_lengths.Lengths(
    np.bincount([5]), np.bincount([10, 30]), "here"
  )
  forward = 8 * sizes.encode_flops(encoder, 1, 5)
  forward += 8 * sizes.encode_flops(encoder, 1, 10)
  forward += 8 * sizes.encode_flops(encoder, 1, 30)
  forward += 2 * 8 * 16 * 64  # scores
  assert sizes.train_flops(config, encoder, lengths) == 3 * forward
