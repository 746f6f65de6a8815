"""`bench batch` with tiny sizes: structure and agreement, no seconds."""

import copy
import io
import json
import subprocess

import pytest

from dpr_jax.benchmarking import batch, batch_cell, harness, synthetic
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import retriever_model


@pytest.fixture
def config(tiny_config, starter_folder):
  """Smallest sizes; the random BERT takes the starter's tokenizer."""
  del starter_folder
  config = copy.deepcopy(tiny_config)
  config.model.random_layers = 1
  config.model.random_width = 16
  config.model.question_length = 8
  config.model.passage_length = 12
  config.train.chunk_size = 2
  config.train.loss_tile = 4
  return config


def _measured(cell):
  assert cell["fits"] is True
  assert cell["predicted_bytes"] == cell["cores"] * (
    cell["compiled_temp_bytes"] + cell["compiled_argument_bytes"]
  )
  assert cell["compiled_argument_bytes"] > 4 * 30522 * 16
  assert len(cell["seconds"]) == 1
  assert cell["questions_per_second"] > 0
  if cell["peak_bytes"] is not None:
    assert cell["peak_bytes"] >= cell["start_bytes"] > 1e7


@pytest.mark.slow
def test_cells_in_processes_of_their_own(config, tmp_path, monkeypatch, capsys):
  ways = {
    name: batch.WAYS[name] for name in ("plain", "gradient cache, ring loss")
  }
  monkeypatch.setattr(batch, "WAYS", ways)
  path = tmp_path / "report.json"
  report = batch.bench(
    config,
    cpu_devices=2,
    batch_sizes=[16],
    repeats=1,
    json_file=str(path),
  )
  assert json.loads(path.read_text()) == report
  assert [cell["way"] for cell in report["cells"]] == list(ways)
  for cell in report["cells"]:
    _measured(cell)
    assert cell["cores"] == 2
  printed = capsys.readouterr().out
  for way in ways:
    assert way in printed


@pytest.mark.slow
def test_what_does_not_fit_is_not_run(config):
  """The compiler's prediction decides."""
  cell = batch.cell_config(config, 16, "plain")
  found = batch._run_cell(cell, cpu_devices=1, repeats=1, memory_share=1e-9)
  assert found["fits"] is False
  assert "seconds" not in found
  row = batch._figures(found)
  assert row[2].startswith("does not fit: ")


def test_bad_input_in_a_cell(config, tmp_path, monkeypatch, capsys):
  """Exit status 2 and one line on stderr, as everywhere."""
  config.model.pooling = "sum"
  cell = batch.cell_config(config, 32, "plain")
  workdir_lib.write_json(tmp_path / "in.json", config_lib.plain(cell))
  spec = {
    "config": str(tmp_path / "in.json"),
    "result": str(tmp_path / "out.json"),
    "cpu_devices": 0,
    "repeats": 1,
    "memory_share": 0.8,
  }
  monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(spec)))
  with pytest.raises(SystemExit, match="2"):
    batch_cell.main()
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert "config.model.pooling='sum': must be one of" in last
  assert not (tmp_path / "out.json").exists()


def test_how_a_cell_may_end(config, monkeypatch):
  """Bad input ends the bench; a cell that was killed is a result."""

  def ends(code, stderr):
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(harness.subprocess, "run", lambda *_, **__: done)
    return batch.bench(config, cpu_devices=2, batch_sizes=[8], repeats=1)

  with pytest.raises(errors.InputError, match="^a bad key$"):
    ends(2, "a warning\na bad key\n")
  report = ends(-9, "")
  assert {cell["fits"] for cell in report["cells"]} == {None}
  assert report["cells"][0]["failure"] == "exit -9: nothing on stderr"


@pytest.mark.parametrize("sizes", [[7], [0]])
def test_bad_sizes(config, sizes):
  with pytest.raises(
    errors.InputError, match=f"--batch_sizes: {sizes[0]} must"
  ):
    batch.bench(config, cpu_devices=2, batch_sizes=sizes)


def test_losses_that_disagree_fail():
  cells = [
    {"questions": 8, "way": "plain", "fits": True, "loss": 2.0},
    {"questions": 8, "way": "ring", "fits": True, "loss": 2.0 + 1e-5},
    {"questions": 16, "way": "plain", "fits": False},
    {"questions": 16, "way": "ring", "fits": None, "failure": "exit -9"},
  ]
  batch.check_losses(cells)
  cells.append({"questions": 8, "way": "tiled", "fits": True, "loss": 2.01})
  with pytest.raises(RuntimeError, match="disagree.*8 questions.*tiled"):
    batch.check_losses(cells)


def test_ways_change_what_they_say(config):
  config.train.chunk_size = config.train.loss_tile = 0
  plain, cached, tiled, ring = (
    batch.cell_config(config, 64, way).train for way in batch.WAYS
  )
  assert (plain.gradient_cache, plain.chunk_size) == (False, 0)
  assert (cached.gradient_cache, cached.chunk_size) == (True, batch.CHUNK_SIZE)
  assert [each.loss for each in (plain, cached, tiled, ring)] == [
    "gathered",
    "gathered",
    "tiled",
    "ring",
  ]
  assert tiled.loss_tile == ring.loss_tile == batch.LOSS_TILE
  assert {each.batch_size for each in (plain, tiled, ring)} == {64}


def test_synthetic_batches(config):
  """The shapes of real ones; every passage another one; the same each time."""
  cell = batch.cell_config(config, 16, "plain")
  cell.train.hard_negatives = 2
  source = synthetic.make_source(cell, retriever_model.start(cell))
  one, other = source[0], source[0]
  assert one["questions"][0]["ids"].shape == (16, 8)
  assert one["passages"][0]["ids"].shape == (48, 12)
  assert len(set(one["passage_keys"].tolist())) == 48
  assert one["passage_valid"].all()
  for kind in ("questions", "passages"):
    group = one[kind][0]
    lengths = group["mask"].sum(axis=1)
    assert lengths.min() >= group["mask"].shape[1] // 2
    assert (group["ids"] == other[kind][0]["ids"]).all()
    assert group["ids"][group["mask"]].min() > 0
