"""Nothing appears half-written, and only what is ours is replaced."""

import errno
import os
import subprocess

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from tests.core import made


def test_replace_file_is_all_or_nothing(tmp_path):
  """A failing writer leaves the old file and no temporary one."""
  path = tmp_path / "deep" / "x.json.gz"
  with workdir_lib.replace_file(path) as temporary:
    assert temporary.name.endswith(".json.gz")
    temporary.write_text("old")
    assert not path.exists()

  def fails():
    with workdir_lib.replace_file(path) as temporary:
      temporary.write_text("new")
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fails()
  assert path.read_text() == "old"
  assert [p.name for p in path.parent.iterdir()] == ["x.json.gz"]


@pytest.mark.parametrize("what", ["file", "manifest", "link"])
def test_a_folder_that_is_not_ours_is_kept(tmp_path, what):
  """Whatever of the user's is in it; also a manifest of another program."""
  path = tmp_path / "data"
  (tmp_path / "elsewhere").mkdir()
  if what == "link":
    path.symlink_to(tmp_path / "elsewhere")
  else:
    path.mkdir()
  name = {"manifest": "manifest.json"}.get(what, "psgs.tsv")
  (path / name).write_text('{"stage": "prepare", "version": 3}')
  for function in (
    workdir_lib.remove_folder,
    lambda *args: workdir_lib.replace_folder(*args).__enter__(),
  ):
    with pytest.raises(errors.InputError, match="is not empty and has"):
      function(path, "prepare")
  assert (path / name).exists()


@pytest.mark.processes
def test_what_was_left_beside_an_export_goes(tmp_path):
  """Of a process that is gone; what a living one has is left alone."""
  gone = subprocess.Popen(["true"])
  gone.wait()
  path = tmp_path / "out"
  for name in (
    f"out.dprjax-old-{gone.pid}000001",
    f"out.dprjax-tmp-{gone.pid}000001",
    f"out.dprjax-tmp-{os.getpid()}000001",
    f"out2.dprjax-tmp-{gone.pid}000001",
  ):
    (tmp_path / name).mkdir()
  with workdir_lib.replace_folder(path, "export"):
    assert path.is_dir()  # what had been put aside is back, to be replaced
  assert {p.name for p in tmp_path.iterdir()} == {
    "out",
    f"out.dprjax-tmp-{os.getpid()}000001",
    f"out2.dprjax-tmp-{gone.pid}000001",
  }


def test_inputs_inside_what_is_replaced_are_refused(tmp_path):
  """By links too, and the folder itself."""
  (tmp_path / "data").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "data")
  for name in ("data/x.tsv", "data", "link/x.tsv"):
    with pytest.raises(
      errors.InputError, match=f"data.train={tmp_path}/{name}"
    ):
      workdir_lib.refuse_inside(
        "config.data.train", tmp_path / name, tmp_path / "data"
      )
  workdir_lib.refuse_inside("x", tmp_path / "data.tsv", tmp_path / "data")


def test_names_that_would_be_taken_for_leftovers_are_refused():
  """As names of question sets, say."""
  assert workdir_lib.check_name("--name", "nq.tmp-1") == "nq.tmp-1"
  for name in ("../x", "a/b", "", "a b"):
    with pytest.raises(errors.InputError, match="--name=.*must be a letter"):
      workdir_lib.check_name("--name", name)
  for name in ("nq.dprjax-tmp-1", "dprjax-old-1"):
    with pytest.raises(errors.InputError, match="--name=.*must not contain"):
      workdir_lib.check_name("--name", name)


def test_replace_folder_is_all_or_nothing(tmp_path):
  """The same for folders."""
  path = tmp_path / "data"

  def write(name, text):
    with workdir_lib.replace_folder(path, "embed") as temporary:
      (temporary / name).write_text(text)
      sha256 = workdir_lib.fingerprint_file(temporary / name)
      made.stage(path).finish({}, folder=temporary, files={name: sha256})
      if text == "new":
        raise RuntimeError

  write("a", "old")
  with pytest.raises(RuntimeError):
    write("b", "new")
  assert [p.name for p in tmp_path.iterdir()] == ["data"]
  assert {p.name for p in path.iterdir()} == {"a", "manifest.json"}
  write("c", "newer")
  assert {p.name for p in path.iterdir()} == {"c", "manifest.json"}
  assert [p.name for p in tmp_path.iterdir()] == ["data"]
  with pytest.raises(
    errors.InputError, match="has no record of `dpr-jax index"
  ):
    workdir_lib.replace_folder(path, "index").__enter__()
  (path / "notes").write_text("mine")
  with pytest.raises(errors.InputError, match="did not put there: notes; move"):
    write("d", "newest")
  assert {p.name for p in path.iterdir()} == {"c", "manifest.json", "notes"}


def test_a_linked_folder_is_replaced_where_it_is(tmp_path):
  """An index on another disk stays there."""
  (tmp_path / "big").mkdir()
  path = tmp_path / "index"
  path.symlink_to(tmp_path / "big")
  for text in ("1", "2"):
    with workdir_lib.replace_folder(path, "embed") as temporary:
      made.stage(path).finish({"n": int(text)}, folder=temporary)
  assert path.is_symlink()
  manifest = workdir_lib.read_manifest(tmp_path / "big", "embed")
  assert manifest["counts"] == {"n": 2}
  assert {p.name for p in tmp_path.iterdir()} == {"big", "index"}


def test_the_old_folder_comes_back_where_renaming_fails(tmp_path, monkeypatch):
  """The second of two renames: nothing is lost, and one line says why."""
  path = tmp_path / "data"
  with workdir_lib.replace_folder(path, "embed") as temporary:
    made.stage(path).finish({"n": 1}, folder=temporary)
  real, calls = os.replace, []

  def fails(source, target):
    if ".dprjax-old-" not in str(source) and str(target) == str(path):
      calls.append(source)
      raise OSError(errno.EIO, "")
    real(source, target)

  def write():
    with workdir_lib.replace_folder(path, "embed") as temporary:
      made.stage(path).finish({"n": 2}, folder=temporary)
      monkeypatch.setattr(os, "replace", fails)

  with pytest.raises(errors.DiskError, match="cannot write .*data: Input/out"):
    write()
  assert calls
  assert workdir_lib.read_manifest(path, "embed")["counts"] == {"n": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
  ("content", "ours"),
  [
    (lambda data: data.replace(b'"embed"', b'"embee"'), True),
    (lambda data: data.replace(b'"a":', b'"b":'), True),
    (lambda data: data[: len(data) // 2], True),
    (lambda data: data[:5], False),
    (lambda data: b"", False),
  ],
)
def test_a_folder_with_a_damaged_manifest(tmp_path, content, ours):
  """It is ours while that can be seen; else the manifest is named."""
  path = tmp_path / "out"
  path.mkdir()
  (path / "a").write_text("1")
  made.stage(path).finish(
    {}, files={"a": workdir_lib.fingerprint_file(path / "a")}
  )
  manifest = path / "manifest.json"
  manifest.write_bytes(content(manifest.read_bytes()))
  if ours:
    workdir_lib.check_ours(path, "embed")
  else:
    with pytest.raises(errors.InputError, match="manifest.json is damaged"):
      workdir_lib.check_ours(path, "embed")
