"""Records that are written once and believed only while they are whole."""

import json
import time

import pytest

from dpr_jax.core import errors, manifests
from dpr_jax.core import workdir as workdir_lib
from tests.core import made


def test_manifest_fingerprint_is_of_what_was_done_not_when(
  tmp_path, monkeypatch
):
  """The time of a run does not make another input."""
  made.stage(tmp_path).finish({"rows": 3})
  first = workdir_lib.manifest_fingerprint(tmp_path, "embed")
  monkeypatch.setattr(time, "strftime", lambda *_: "later")
  made.stage(tmp_path).finish({"rows": 3})
  assert workdir_lib.read_manifest(tmp_path, "embed")["created"] == "later"
  assert workdir_lib.manifest_fingerprint(tmp_path, "embed") == first
  made.stage(tmp_path).finish({"rows": 4})
  assert workdir_lib.manifest_fingerprint(tmp_path, "embed") != first
  with pytest.raises(errors.InputError, match="run `dpr-jax embed` with this"):
    workdir_lib.manifest_fingerprint(tmp_path / "no", "embed")


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


def test_read_json_names_the_line(tmp_path):
  """Malformed JSON is the user's to mend."""
  (tmp_path / "x.json").write_text('{\n"a": }')
  with pytest.raises(errors.InputError, match="x.json is not JSON: .* line 2"):
    workdir_lib.read_json(tmp_path / "x.json")


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path):
  """One of eight bits in every byte: nothing passes for another manifest."""
  made.stage(tmp_path).finish({"rows": 3}, files={"a": "b" * 64})
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


def test_hashing_a_big_file_is_announced(tmp_path, caplog, monkeypatch):
  """With its size and an estimate: 3,000 bytes at 50 a second take a minute."""
  path = tmp_path / "big"
  path.write_bytes(bytes(3_000))
  monkeypatch.setattr(manifests, "HASHED_PER_SECOND", 50)
  with caplog.at_level("INFO"):
    workdir_lib.fingerprint_file(path)
    assert not caplog.records
    monkeypatch.setattr(manifests, "BIG_FILE", 3_000)
    workdir_lib.fingerprint_file(path)
  assert caplog.messages == [
    f"computing the sha256 of {path} (0.0 GB, about 1:00)"
  ]
