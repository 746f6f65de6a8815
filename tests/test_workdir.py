"""Nothing appears half-written, nothing changed counts as done."""

import json

import pytest

from dpr_jax import errors, workdir


def test_replace_file_is_all_or_nothing(tmp_path):
  """A failing writer leaves the old file and no temporary one."""
  path = tmp_path / "deep" / "x.json.gz"
  with workdir.replace_file(path) as temporary:
    assert temporary.name.endswith(".json.gz")
    temporary.write_text("old")
    assert not path.exists()

  def fails():
    with workdir.replace_file(path) as temporary:
      temporary.write_text("new")
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fails()
  assert path.read_text() == "old"
  assert [p.name for p in path.parent.iterdir()] == ["x.json.gz"]


def test_replace_folder_is_all_or_nothing(tmp_path):
  """The same for folders."""
  path = tmp_path / "data"
  with workdir.replace_folder(path) as temporary:
    (temporary / "a").write_text("old")

  def fails():
    with workdir.replace_folder(path) as temporary:
      (temporary / "b").write_text("new")
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fails()
  assert [p.name for p in tmp_path.iterdir()] == ["data"]
  assert [p.name for p in path.iterdir()] == ["a"]
  with workdir.replace_folder(path) as temporary:
    (temporary / "c").write_text("newer")
  assert [p.name for p in path.iterdir()] == ["c"]
  assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_what_the_killed_left_goes_when_the_workdir_is_locked(tmp_path):
  """Temporary files and folders; a folder put aside comes back."""
  place = workdir.Workdir(tmp_path)
  for name in (
    "results/dev.dense.json",
    "results/dev.tmp-12.dense.json",
    "index/Flat.tmp-12/index",
    "index/IVF.old-12/index",
    "index/HNSW/index",
    "index/HNSW.old-7/index",
    "data/a.tmp-x.json",
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  with workdir.locked(place):
    left = {
      str(path.relative_to(tmp_path)): path.read_text()
      for path in tmp_path.rglob("*")
      if path.is_file() and not path.name.startswith(".lock")
    }
  assert left == {
    "results/dev.dense.json": "results/dev.dense.json",
    "index/IVF/index": "index/IVF.old-12/index",
    "index/HNSW/index": "index/HNSW/index",
    "data/a.tmp-x.json": "data/a.tmp-x.json",
  }


def _stage(folder, config=1, data="x"):
  return workdir.Stage("embed", folder, {"a": config}, {"data": data})


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


def test_manifest_fingerprint_is_of_what_was_done_not_when(tmp_path):
  """The time of a run does not make another input."""
  _stage(tmp_path).finish({"rows": 3})
  first = workdir.manifest_fingerprint(tmp_path, "embed")
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  manifest["created"] = "later"
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  assert workdir.manifest_fingerprint(tmp_path, "embed") == first
  _stage(tmp_path).finish({"rows": 4})
  assert workdir.manifest_fingerprint(tmp_path, "embed") != first
  with pytest.raises(errors.InputError, match="run `dpr-jax embed` with this"):
    workdir.manifest_fingerprint(tmp_path / "no", "embed")


def test_dataset_inputs_are_apart(tmp_path):
  """Other dev questions do not change the corpus's fingerprint."""
  place = workdir.Workdir(tmp_path)

  def prepared(dev):
    workdir.Stage("prepare", place.data, {}, {}).finish(
      {}, files={"passages/a": "1", "dev/a": dev}
    )
    return workdir.dataset_inputs(place, "passages", "dev")

  one, other = prepared("1"), prepared("2")
  assert one["passages"] == other["passages"]
  assert one["dev"] != other["dev"]


def test_check_files(tmp_path):
  """A changed or missing file is named, with the stage to run again."""
  (tmp_path / "a.npy").write_bytes(b"abc")
  files = {"a.npy": workdir.fingerprint_file(tmp_path / "a.npy")}
  manifest = {"files": files, "stage": "embed"}
  workdir.check_files(tmp_path, manifest)
  (tmp_path / "a.npy").write_bytes(b"abd")
  with pytest.raises(errors.InputError, match="a.npy is not .* embed --over"):
    workdir.check_files(tmp_path, manifest)
  (tmp_path / "a.npy").unlink()
  with pytest.raises(errors.InputError, match="cannot read .*a.npy"):
    workdir.check_files(tmp_path, manifest)


def test_names(tmp_path):
  """Where the contract says things are."""
  place = workdir.Workdir(tmp_path)
  assert place.embeddings() == tmp_path / "embeddings" / "passages"
  start = place.embeddings("dense-start")
  assert start == tmp_path / "embeddings" / "passages-start"
  assert place.index("Flat") == tmp_path / "index" / "Flat"
  assert place.results("dev", "bm25").name == "dev.bm25.json"


def test_read_json_names_the_line(tmp_path):
  """Malformed JSON is the user's to mend."""
  (tmp_path / "x.json").write_text('{\n"a": }')
  with pytest.raises(errors.InputError, match="x.json is not JSON: .* line 2"):
    workdir.read_json(tmp_path / "x.json")
