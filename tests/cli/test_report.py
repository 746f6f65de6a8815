"""`dpr-jax report`, and the report at the end of `run`."""

import shutil

# It lists the fonts in a process when it is imported for the first time.
import matplotlib.font_manager  # noqa: F401
import pytest
from absl import logging

from dpr_jax.cli import main as main_lib
from dpr_jax.cli import report
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.reporting import plots


@pytest.fixture
def workdir(fresh_workdir, monkeypatch):
  """Data and negatives; figures are not drawn.

  It has no config.json: absl loads it in a way that warns.
  """
  (fresh_workdir.root / "config.json").unlink()
  for name in ("curves", "bars"):
    monkeypatch.setattr(plots, name, lambda title, *_, **__: "")
  return fresh_workdir


def _call(*arguments):
  call = main_lib.invocation(["dpr-jax", "report", *map(str, arguments)])
  call.command.call(call)


def test_its_path_is_printed(workdir, tmp_path, capsys):
  _call(f"--workdir={workdir.root}")
  path = workdir.root / "report" / "dev.html"
  assert capsys.readouterr().out == f"report: {path}\n"
  assert "the towers were not trained" in path.read_text().lower()
  other = tmp_path / "other"
  shutil.copytree(workdir.root, other)
  _call(f"--workdir={workdir.root}", f"--against={other}", "--out", tmp_path)
  path = tmp_path / "dev.against.html"
  assert capsys.readouterr().out == f"report: {path}\n"
  assert f"--against={other}" in path.read_text()


def test_of_a_workdir_in_use(workdir, tmp_path, capsys):
  """Written elsewhere it takes no lock."""
  with workdir_lib.locked(workdir):
    with pytest.raises(errors.InputError, match="is in use by"):
      _call(f"--workdir={workdir.root}")
    _call(f"--workdir={workdir.root}", f"--out={tmp_path}")
  assert (tmp_path / "dev.html").is_file()
  with pytest.raises(errors.InputError, match="no such folder"):
    _call(f"--workdir={tmp_path / 'none'}")
  assert not (tmp_path / "none").exists()


def test_a_run_does_not_fail_for_its_report(workdir, monkeypatch, capsys):
  """It prints the path; what stands in the way is a warning."""
  call = main_lib.invocation(["dpr-jax", "run", f"--workdir={workdir.root}"])
  report.at_the_end(call)
  path = workdir.root / "report" / "dev.html"
  assert capsys.readouterr().out == f"report: {path}\n"
  said = []
  monkeypatch.setattr(logging, "warning", lambda *args: said.append(args))
  path.write_text("somebody's")
  report.at_the_end(call)
  assert capsys.readouterr().out == ""
  assert "is not a report of dpr-jax" in str(said[0][1])
