"""Parts: dealt out, found again, refused, mended."""

import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from dpr_jax.core import errors, sharded_output
from dpr_jax.core import workdir as workdir_lib


def _parts(folder, inputs="a", count=5, **options):
  stage = workdir_lib.Stage(
    "embed", folder, {"rows": 7}, {"model": inputs * 20}
  )
  return sharded_output.Parts(stage, count, ("x-*.npy",), **options)


def _make(some, numbers):
  for number in numbers:
    name = f"x-{number:05d}.npy"
    path = some.stage.folder / name
    sha256 = sharded_output.write_array(path, np.arange(number + 3))
    some.finish(number, {name: sha256}, rows=number)


def _close(some):
  some.close(some.collect(), {}, more=1)
  return workdir_lib.read_manifest(some.stage.folder, "embed")


def test_processes_share_by_number(tmp_path):
  """Each its own; the first one writes the manifest, records are gone."""
  ours = [_parts(tmp_path, process=n, processes=2) for n in range(2)]
  assert [list(each.mine) for each in ours] == [[0, 2, 4], [1, 3]]
  for each in reversed(ours):
    assert not each.begin()
    _make(each, each.mine)
  manifest = _close(ours[0])
  assert ours[1].collect() is None
  assert [part["rows"] for part in manifest["parts"]] == [0, 1, 2, 3, 4]
  assert len(manifest["files"]) == 5
  assert not list(tmp_path.glob("part-*"))
  assert all(each.begin() for each in ours)


def test_what_is_there_is_found(tmp_path):
  """Whole parts are found again; damaged and missing ones are not."""
  some = _parts(tmp_path)
  some.begin()
  _make(some, (0, 1, 3))
  left = (
    "part-00002.dprjax-tmp-77.json",
    "x-00002.dprjax-tmp-77.npy",
    "manifest.dprjax-tmp-77.json",
    "part-00002.tmp-77.json",  # and of an older version
    "x-00002.tmp-77.npy",
    "manifest.tmp-77.json",
  )
  for name in left:
    (tmp_path / name).write_text("half")  # of a process that was killed
  (tmp_path / "x-00001.npy").write_bytes(b"cut")
  (tmp_path / "x-00003.npy").unlink()
  assert not some.begin()
  assert [some.find(n) is not None for n in range(5)] == [True] + [False] * 4
  assert not list(tmp_path.glob("*tmp*"))


@pytest.mark.parametrize("complete", [False, True])
def test_others_are_refused_with_the_reason(tmp_path, complete):
  """Both values are named; --overwrite and `replace` start anew."""
  some = _parts(tmp_path)
  some.begin()
  _make(some, range(5 if complete else 2))
  if complete:
    _close(some)
  other = _parts(tmp_path, "b")
  with pytest.raises(errors.InputError) as raised:
    other.begin()
  assert "other model (was aaaaaaaaaaaa…, is bbbbbbbbbbbb…)" in str(
    raised.value
  )
  assert "--overwrite" in str(raised.value)
  assert not other.begin(replace=True)
  assert [path.name for path in tmp_path.iterdir()] == ["started.json"]
  _make(other, range(5))
  _close(other)
  assert not other.begin(overwrite=True)
  assert [path.name for path in tmp_path.iterdir()] == ["started.json"]


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_replacement_is_completed(
  tmp_path, monkeypatch, complete, after
):
  """Killed after some files: the rest is still known as ours, and goes."""
  some = _parts(tmp_path)
  some.begin()
  _make(some, range(5 if complete else 2))
  if complete:
    _close(some)
  unlink, left = pathlib.Path.unlink, iter(range(after))

  def killed(path, **options):
    if next(left, None) is None:
      raise RuntimeError("killed")
    unlink(path, **options)

  other = _parts(tmp_path, "b", count=1)
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "unlink", killed)
    with pytest.raises(RuntimeError, match="killed"):
      other.begin(replace=True)
  assert not other.begin(replace=True)
  assert [path.name for path in tmp_path.iterdir()] == ["started.json"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_only_what_is_damaged_is_made_again(tmp_path, damage):
  """Found before use, named, and nothing else is lost."""
  some = _parts(tmp_path)
  some.begin()
  _make(some, range(5))
  manifest = _close(some)
  path = tmp_path / "x-00002.npy"
  data = bytearray(path.read_bytes())
  data[-3] ^= 16
  if damage == "remove":
    path.unlink()
  else:
    path.write_bytes(data if damage == "flip" else data[:-1])
  with pytest.raises(errors.InputError, match=r"x-00002.npy is .*embed` again"):
    sharded_output.check_whole(
      tmp_path, manifest["files"].items(), "dpr-jax embed"
    )
  assert not some.begin()
  assert [n for n in some.mine if some.find(n) is None] == [2]
  _make(some, [2])
  assert _close(some)["files"] == manifest["files"]
  assert some.begin()


@pytest.mark.processes
def test_a_full_disk(tmp_path):
  """One line, no half file, and what was done is kept."""
  if os.geteuid() or not shutil.which("mount"):
    pytest.skip("only root can mount a small tmpfs to fill")
  folder = tmp_path / "small"
  folder.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
    capture_output=True,
  )
  if mounted.returncode:
    pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
  try:
    some = _parts(folder)
    some.begin()
    _make(some, [0])
    with pytest.raises(errors.InputError, match="x-00001.npy: No space left"):
      sharded_output.write_array(folder / "x-00001.npy", np.zeros(1 << 20))
    assert not list(folder.glob("*tmp*"))
    assert some.find(0) is not None
  finally:
    subprocess.run(["umount", str(folder)], check=True)


def test_a_damaged_manifest_is_replaced_where_that_is_asked(tmp_path):
  """The folder stays ours when what signed it goes."""
  some = _parts(tmp_path)
  some.begin()
  _make(some, range(5))
  _close(some)
  path = some.stage.manifest
  path.write_bytes(path.read_bytes().replace(b'"embed"', b'"embee"'))
  with pytest.raises(
    errors.InputError, match="so its files cannot be identified"
  ):
    some.begin()
  assert not some.begin(replace=True)
  assert not path.exists()
  _make(some, range(5))
  _close(some)
  assert some.begin()


def test_the_manifest_of_another_run_is_not_waited_for(tmp_path, monkeypatch):
  """A process without a part of its own sees the old manifest first."""
  _parts(tmp_path, "b", count=1).begin()
  _make(_parts(tmp_path, "b", count=1), [0])
  _close(_parts(tmp_path, "b", count=1))
  first, second = (
    _parts(tmp_path, count=1, process=n, processes=2) for n in range(2)
  )
  assert list(second.mine) == []
  assert not second.begin(replace=True)
  waits = []

  def sleep(seconds):
    waits.append(seconds)
    assert not first.begin(replace=True)
    _make(first, [0])
    _close(first)

  monkeypatch.setattr(sharded_output.time, "sleep", sleep)
  assert second.collect() is None
  assert len(waits) == 1
  manifest = workdir_lib.read_manifest(tmp_path, "embed")
  assert manifest["inputs"] == {"model": "a" * 20}
