"""Nothing appears half-written, nothing changed counts as done."""

import errno
import json
import os
import pickle
import subprocess
import time

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib


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


def test_replace_folder_is_all_or_nothing(tmp_path):
  """The same for folders."""
  path = tmp_path / "data"

  def write(name, text):
    with workdir_lib.replace_folder(path, "embed") as temporary:
      (temporary / name).write_text(text)
      sha256 = workdir_lib.fingerprint_file(temporary / name)
      _stage(path).finish({}, folder=temporary, files={name: sha256})
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
    errors.InputError, match="nothing .* is of `dpr-jax index"
  ):
    workdir_lib.replace_folder(path, "index").__enter__()
  (path / "notes").write_text("mine")
  with pytest.raises(errors.InputError, match="did not put there: notes; move"):
    write("d", "newest")
  assert {p.name for p in path.iterdir()} == {"c", "manifest.json", "notes"}


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
    with pytest.raises(errors.InputError, match="is not empty and holds"):
      function(path, "prepare")
  assert (path / name).exists()


def test_a_linked_folder_is_replaced_where_it_is(tmp_path):
  """An index on another disk stays there."""
  (tmp_path / "big").mkdir()
  path = tmp_path / "index"
  path.symlink_to(tmp_path / "big")
  for text in ("1", "2"):
    with workdir_lib.replace_folder(path, "embed") as temporary:
      _stage(path).finish({"n": int(text)}, folder=temporary)
  assert path.is_symlink()
  manifest = workdir_lib.read_manifest(tmp_path / "big", "embed")
  assert manifest["counts"] == {"n": 2}
  assert {p.name for p in tmp_path.iterdir()} == {"big", "index"}


def test_the_old_folder_comes_back_where_renaming_fails(tmp_path, monkeypatch):
  """The second of two renames: nothing is lost, and one line says why."""
  path = tmp_path / "data"
  with workdir_lib.replace_folder(path, "embed") as temporary:
    _stage(path).finish({"n": 1}, folder=temporary)
  real, calls = os.replace, []

  def fails(source, target):
    if ".dprjax-old-" not in str(source) and str(target) == str(path):
      calls.append(source)
      raise OSError(errno.EIO, "")
    real(source, target)

  def write():
    with workdir_lib.replace_folder(path, "embed") as temporary:
      _stage(path).finish({"n": 2}, folder=temporary)
      monkeypatch.setattr(os, "replace", fails)

  with pytest.raises(errors.DiskError, match="cannot write .*data: Input/out"):
    write()
  assert calls
  assert workdir_lib.read_manifest(path, "embed")["counts"] == {"n": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["data"]


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


def test_what_the_killed_left_goes_when_the_workdir_is_locked(tmp_path):
  """Temporary files and folders; a folder put aside comes back."""
  place = workdir_lib.Workdir(tmp_path)
  kept = (  # a user's own, or a question set of that name
    "results/nq.tmp-1.bm25.json",
    "results/nq.old-2024.bm25.json",
    "data/a.dprjax-tmp-x.json",
    "notes/a.dprjax-tmp-1.txt",
    "x.tmp-12.json",
  )
  for name in (
    "results/dev.dense.json",
    "results/dev.dprjax-tmp-12.dense.json",
    "index/Flat.dprjax-tmp-12/index",
    "index/IVF.dprjax-old-12/index",
    "index/HNSW/index",
    "index/HNSW.dprjax-old-7/index",
    "index/bm25.dprjax-old-8.x/index",
    "data.dprjax-tmp-9/index",
    ".dprjax-tmp-9.lock.json",
    "config.dprjax-tmp-9.json",
    *kept,
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  with workdir_lib.locked(place):
    left = {
      str(path.relative_to(tmp_path)): path.read_text()
      for path in tmp_path.rglob("*")
      if path.is_file() and not path.name.startswith(".lock")
    }
  assert left == {
    "results/dev.dense.json": "results/dev.dense.json",
    "index/IVF/index": "index/IVF.dprjax-old-12/index",
    "index/HNSW/index": "index/HNSW/index",
    "index/bm25.x/index": "index/bm25.dprjax-old-8.x/index",
    **{name: name for name in kept},
  }


def test_names_that_would_be_taken_for_leftovers_are_refused():
  """As names of question sets, say."""
  assert workdir_lib.check_name("--name", "nq.tmp-1") == "nq.tmp-1"
  for name in ("../x", "a/b", "", "a b"):
    with pytest.raises(errors.InputError, match="--name=.*must be letters"):
      workdir_lib.check_name("--name", name)
  for name in ("nq.dprjax-tmp-1", "dprjax-old-1"):
    with pytest.raises(errors.InputError, match="--name=.*must not contain"):
      workdir_lib.check_name("--name", name)


def _stage(folder, config=1, data="x"):
  return workdir_lib.Stage("embed", folder, {"a": config}, {"data": data})


def test_a_stage_is_current_only_while_nothing_changed(tmp_path):
  """Config and inputs count; overwrite asks for it again."""
  assert not _stage(tmp_path).is_current()
  _stage(tmp_path).finish({"rows": 3})
  assert _stage(tmp_path).is_current()
  assert not _stage(tmp_path).is_current(overwrite=True)
  assert not _stage(tmp_path, config=2).is_current()
  assert not _stage(tmp_path, data="y").is_current()
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert manifest["counts"] == {"rows": 3}
  assert manifest["inputs"] == {"data": "x"}


def test_manifest_fingerprint_is_of_what_was_done_not_when(
  tmp_path, monkeypatch
):
  """The time of a run does not make another input."""
  _stage(tmp_path).finish({"rows": 3})
  first = workdir_lib.manifest_fingerprint(tmp_path, "embed")
  monkeypatch.setattr(time, "strftime", lambda *_: "later")
  _stage(tmp_path).finish({"rows": 3})
  assert workdir_lib.read_manifest(tmp_path, "embed")["created"] == "later"
  assert workdir_lib.manifest_fingerprint(tmp_path, "embed") == first
  _stage(tmp_path).finish({"rows": 4})
  assert workdir_lib.manifest_fingerprint(tmp_path, "embed") != first
  with pytest.raises(errors.InputError, match="run `dpr-jax embed` with this"):
    workdir_lib.manifest_fingerprint(tmp_path / "no", "embed")


def test_dataset_inputs_are_apart(tmp_path):
  """Other dev questions do not change the corpus's fingerprint."""
  place = workdir_lib.Workdir(tmp_path)

  def prepared(dev):
    workdir_lib.Stage("prepare", place.data, {}, {}).finish(
      {}, files={"passages/a": "1", "dev/a": dev}
    )
    return workdir_lib.dataset_inputs(place, "passages", "dev")

  one, other = prepared("1"), prepared("2")
  assert one["passages"] == other["passages"]
  assert one["dev"] != other["dev"]


def test_check_files(tmp_path):
  """A changed or missing file is named, with the stage to run again."""
  (tmp_path / "a.npy").write_bytes(b"abc")
  files = {"a.npy": workdir_lib.fingerprint_file(tmp_path / "a.npy")}
  manifest = {"files": files, "stage": "index"}
  workdir_lib.check_files(tmp_path, manifest)
  (tmp_path / "a.npy").write_bytes(b"abd")
  with pytest.raises(errors.InputError, match="a.npy is not .* index --over"):
    workdir_lib.check_files(tmp_path, manifest)
  (tmp_path / "a.npy").unlink()
  with pytest.raises(errors.InputError, match="a.npy is missing"):
    workdir_lib.check_files(tmp_path, manifest)


def test_names(tmp_path):
  """Where the contract says things are."""
  place = workdir_lib.Workdir(tmp_path)
  assert place.embeddings() == tmp_path / "embeddings" / "passages"
  start = place.embeddings("dense-start")
  assert start == tmp_path / "embeddings" / "passages-start"
  assert place.index("Flat") == tmp_path / "index" / "Flat"
  assert place.results("dev", "bm25").name == "dev.bm25.json"


def test_read_json_names_the_line(tmp_path):
  """Malformed JSON is the user's to mend."""
  (tmp_path / "x.json").write_text('{\n"a": }')
  with pytest.raises(errors.InputError, match="x.json is not JSON: .* line 2"):
    workdir_lib.read_json(tmp_path / "x.json")


def test_outputs_that_are_gone_or_damaged_count(tmp_path):
  """A stage is done while every file that it lists is whole."""
  path = tmp_path / "a.json"

  def make():
    path.write_text("abc")
    files = {"a.json": workdir_lib.fingerprint_file(path)}
    _stage(tmp_path).finish({}, files=files)

  make()
  assert _stage(tmp_path).is_current()
  path.write_text("abd")
  assert not _stage(tmp_path).is_current()
  path.unlink()
  assert not _stage(tmp_path).is_current()
  make()
  (tmp_path / "manifest.json").write_text("{")
  assert not _stage(tmp_path).is_current()


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path):
  """One of eight bits in every byte: nothing passes for another manifest."""
  _stage(tmp_path).finish({"rows": 3}, files={"a": "b" * 64})
  path = tmp_path / "manifest.json"
  whole, before = (
    path.read_bytes(),
    workdir_lib.read_manifest(tmp_path, "embed"),
  )
  harmless = 0
  for place in range(len(whole)):
    data = bytearray(whole)
    data[place] ^= 1 << place % 8
    path.write_bytes(data)
    try:
      found = workdir_lib.read_manifest(tmp_path, "embed")
    except errors.InputError:
      continue
    assert found == before
    assert whole[place : place + 1].isspace()
    harmless += 1
  assert harmless < len(whole) / 20
  for size in range(0, len(whole) - 1, 7):
    path.write_bytes(whole[:size])
    with pytest.raises(errors.InputError, match="manifest.json"):
      workdir_lib.read_manifest(tmp_path, "embed")


def test_manifests_of_older_versions_are_read(tmp_path):
  """They have no checksum; what they lack is named."""
  values = {"stage": "embed", "config": {}, "inputs": {}, "counts": {}}
  path = tmp_path / "manifest.json"
  path.write_text(json.dumps(values | {"files": {}}))
  assert workdir_lib.read_manifest(tmp_path, "embed")["stage"] == "embed"
  path.write_text(json.dumps(values | {"files": ["a"]}))
  with pytest.raises(errors.InputError, match=r"damaged: files is \['a'\]"):
    workdir_lib.read_manifest(tmp_path, "embed")
  path.write_text(json.dumps(values))
  with pytest.raises(errors.InputError, match="damaged: no files"):
    workdir_lib.read_manifest(tmp_path, "embed")
  path.write_text(json.dumps(values | {"files": {}}))
  with pytest.raises(errors.InputError, match="is of `dpr-jax embed`, not of"):
    workdir_lib.read_manifest(tmp_path, "index")


def test_files_in_a_shared_folder_are_claimed_first(tmp_path):
  """What a killed run left is replaced, a user's own file is not."""
  stage = _stage(tmp_path)
  mine = tmp_path / "dev.bm25.json"
  mine.write_text("from elsewhere")
  with pytest.raises(errors.InputError, match="dev.bm25.json is there, and"):
    stage.begin([mine])
  mine.unlink()
  stage.begin([mine])
  mine.write_text("half")
  assert not stage.is_current()
  with pytest.raises(errors.InputError, match="begun and not finished: run"):
    workdir_lib.read_manifest(tmp_path, "embed")
  stage.begin([mine])
  stage.finish({}, files={mine.name: workdir_lib.fingerprint_file(mine)})
  assert stage.is_current()


@pytest.mark.parametrize(
  ("error", "reason"),
  [
    (OSError(errno.ENOSPC, "x"), "No space left on device"),
    (
      OSError(errno.EFBIG, "x", "/elsewhere/b"),
      r"File too large \(/elsewhere/b",
    ),
    (OSError("100 requested and 3 written"), "the disk is full"),
    (RuntimeError("in C++: write failed: Input/output error"), "Input/output"),
    (
      ExceptionGroup("two", [KeyError("a"), OSError(errno.EROFS, "")]),
      "Read-o",
    ),
  ],
)
def test_what_the_disk_refuses_is_one_line(tmp_path, error, reason):
  """Whatever library it comes from, and however deep it lies."""
  path = tmp_path / "a.bin"

  def write():
    with workdir_lib.replace_file(path) as temporary:
      temporary.write_text("half")
      try:
        raise error
      except (OSError, RuntimeError, ExceptionGroup) as inner:
        raise ValueError("of the library") from inner

  with pytest.raises(errors.DiskError, match=f"cannot write {path}: {reason}"):
    write()
  assert not list(tmp_path.iterdir())


def test_other_errors_are_no_disk_errors(tmp_path):
  """A bug stays a bug, and what is said already is not said again."""
  with pytest.raises(KeyError), workdir_lib.writing(tmp_path):
    raise KeyError("x")
  with pytest.raises(errors.InputError, match="^bad row$"):
    with workdir_lib.writing(tmp_path):
      raise errors.InputError("bad row")
  with pytest.raises(pickle.PicklingError), workdir_lib.writing(tmp_path):
    raise pickle.PicklingError("x")


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
  _stage(path).finish({}, files={"a": workdir_lib.fingerprint_file(path / "a")})
  manifest = path / "manifest.json"
  manifest.write_bytes(content(manifest.read_bytes()))
  if ours:
    workdir_lib.check_ours(path, "embed")
  else:
    with pytest.raises(errors.InputError, match="manifest.json is damaged"):
      workdir_lib.check_ours(path, "embed")
