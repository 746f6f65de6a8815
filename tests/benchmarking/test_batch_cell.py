"""One cell of the bench, in this process."""

import io
import json

import pytest

from dpr_jax.benchmarking import batch, batch_cell, cells
from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib


def test_bad_input_in_a_cell(cell_base, tmp_path, monkeypatch, capsys):
  """Exit status 2 and one line on stderr, as everywhere."""
  cell_base.model.pooling = "sum"
  cell = batch.cell_config(cell_base, 32, "plain")
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
    cells.main(batch_cell.run)
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert "config.model.pooling='sum': must be one of" in last
  assert not (tmp_path / "out.json").exists()
