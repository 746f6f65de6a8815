"""What downloads do with the disk: space, locks, other files, records.

The server is honest; others are in `test_downloads`.
"""

import json
import os
import resource
import shutil

import filelock
import pytest

from dpr_jax.core import errors
from tests.data.http_server import file, serving
from tests.data.remote_files import (
  CUT,
  DATA,
  KNOWN,
  OTHER,
  SHA256,
  UNKNOWN,
  fetch,
  names,
  ranges,
)


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
  """Known before the body is read."""
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    shutil, "disk_usage", lambda _: usage._replace(free=250_999)
  )
  with serving(file(DATA)) as server:
    with pytest.raises(
      errors.DiskError, match="251,000 bytes are needed, and 250,999 are free"
    ):
      fetch(KNOWN, tmp_path, server)
    monkeypatch.undo()
    fetch(KNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA


def test_a_disk_that_refuses_in_the_middle(tmp_path):
  """What was written stays, and the next call continues there."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with serving(file(DATA)) as server:
    resource.setrlimit(resource.RLIMIT_FSIZE, (CUT, limits[1]))
    try:
      with pytest.raises(errors.DiskError, match=r"x\.bin\.part: File too"):
        fetch(KNOWN, tmp_path, server)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = os.path.getsize(tmp_path / "x.bin.part")
    assert 0 < kept <= CUT
    fetch(KNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA
  assert ranges(server)[1] == (f"bytes={kept}-", '"v1"')


def test_two_processes(tmp_path):
  with serving(file(DATA)) as server:
    with filelock.FileLock(tmp_path / ".x.bin.lock"):
      with pytest.raises(errors.InputError, match="by another process"):
        fetch(KNOWN, tmp_path, server)
    assert server.asked == []
    fetch(KNOWN, tmp_path, server)
  assert names(tmp_path) == {"x.bin"}


def test_files_that_are_not_ours_stay(tmp_path):
  """Under the final name and under that of the part."""
  with serving(file(DATA)) as server:
    (tmp_path / "x.bin.part").write_bytes(b"mine")
    with pytest.raises(errors.InputError, match="x.bin.part is not from"):
      fetch(KNOWN, tmp_path, server)
    (tmp_path / "x.bin.part.json").write_text("{}")
    with pytest.raises(errors.InputError, match="x.bin.part is not from"):
      fetch(KNOWN, tmp_path, server)
    (tmp_path / "x.bin").write_bytes(OTHER)
    with pytest.raises(errors.InputError, match="move it away, and fetch"):
      fetch(KNOWN, tmp_path, server)
    assert server.asked == []
  assert (tmp_path / "x.bin.part").read_bytes() == b"mine"
  assert (tmp_path / "x.bin").read_bytes() == OTHER


def test_hash_of_the_first_download_is_recorded(tmp_path):
  """A later download of other bytes is refused until the record is removed."""
  with serving(file(DATA, modified="then")) as server:
    said = fetch(UNKNOWN, tmp_path, server)
    assert said == (
      "downloaded, 251,000 bytes, hash not published; recorded in"
      " x.bin.fetched.json"
    )
    record = tmp_path / "x.bin.fetched.json"
    values = json.loads(record.read_text())
    assert {key: values[key] for key in ("sha256", "size", "etag")} == {
      "sha256": SHA256,
      "size": 251_000,
      "etag": '"v1"',
    }
    assert values["last_modified"] == "then"
    assert values["address"] == f"{server.base}/a/x.bin"
    assert fetch(UNKNOWN, tmp_path, server) == (
      "was there, 251,000 bytes, sha256 as recorded (not published)"
    )
    (tmp_path / "x.bin").unlink()
    server.answers = [file(OTHER)]
    with pytest.raises(errors.InputError, match=f"has recorded {SHA256}"):
      fetch(UNKNOWN, tmp_path, server)
    assert names(tmp_path) == {"x.bin.fetched.json"}
    record.unlink()
    fetch(UNKNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == OTHER
