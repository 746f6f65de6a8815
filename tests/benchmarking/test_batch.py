"""`bench batch` with tiny sizes: structure and agreement, no seconds."""

import json
import subprocess

import pytest

from dpr_jax.benchmarking import batch, harness
from dpr_jax.core import errors


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
def test_cells_in_processes_of_their_own(
  cell_base, tmp_path, monkeypatch, capsys
):
  ways = {
    name: batch.WAYS[name] for name in ("plain", "gradient cache, ring loss")
  }
  monkeypatch.setattr(batch, "WAYS", ways)
  path = tmp_path / "report.json"
  report = batch.bench(
    cell_base,
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
def test_what_does_not_fit_is_not_run(cell_base):
  """The compiler's prediction decides."""
  cell = batch.cell_config(cell_base, 16, "plain")
  found = batch._run_cell(cell, cpu_devices=1, repeats=1, memory_share=1e-9)
  assert found["fits"] is False
  assert "seconds" not in found
  row = batch._figures(found)
  assert row[2].startswith("does not fit: ")


def test_how_a_cell_may_end(cell_base, monkeypatch):
  """Bad input ends the bench; a cell that was killed is a result."""

  def ends(code, stderr):
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(harness.subprocess, "run", lambda *_, **__: done)
    return batch.bench(cell_base, cpu_devices=2, batch_sizes=[8], repeats=1)

  with pytest.raises(errors.InputError, match="^a bad key$"):
    ends(2, "a warning\na bad key\n")
  report = ends(-9, "")
  assert {cell["fits"] for cell in report["cells"]} == {None}
  assert report["cells"][0]["failure"] == "exit -9: nothing on stderr"


@pytest.mark.parametrize("sizes", [[7], [0]])
def test_bad_sizes(cell_base, sizes):
  with pytest.raises(
    errors.InputError, match=f"--batch_sizes: {sizes[0]} must"
  ):
    batch.bench(cell_base, cpu_devices=2, batch_sizes=sizes)


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


def test_ways_change_what_they_say(cell_base):
  cell_base.train.chunk_size = cell_base.train.loss_tile = 0
  plain, cached, tiled, ring = (
    batch.cell_config(cell_base, 64, way).train for way in batch.WAYS
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
