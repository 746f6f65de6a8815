"""`dpr-jax fetch`, with a small list of files and a local server."""

import hashlib
import re

import pytest

from dpr_jax.cli import main as main_lib
from dpr_jax.core import errors
from dpr_jax.data import download_list, downloads
from dpr_jax.data.download_list import FileSet, RemoteFile
from tests.data import http_server

DATA = b"0123456789" * 10
MD5 = hashlib.md5(DATA).hexdigest()
SMALL = (
  FileSet(
    "one",
    "One file",
    (RemoteFile("p/one.csv", "", 100, f"md5:{MD5}"),),
    "--config.data.dev={dir}/one.csv",
  ),
  FileSet("two", "Others", (RemoteFile("p/two"), RemoteFile("q", "r/q")), ""),
)


@pytest.fixture
def small(monkeypatch):
  """Two sets of small files in place of the real ones."""
  monkeypatch.setattr(download_list, "SETS", SMALL)
  monkeypatch.setattr(
    download_list, "BY_NAME", {each.name: each for each in SMALL}
  )


@pytest.fixture
def out(capsys):
  """Runs `dpr-jax fetch` and returns the lines that it printed."""

  def out(*arguments) -> list[str]:
    call = main_lib.invocation(["dpr-jax", "fetch", *map(str, arguments)])
    try:
      call.command.load()(call)
    finally:
      lines[:] = capsys.readouterr().out.splitlines()
    return lines

  lines: list[str] = []
  out.lines = lines
  return out


def test_list_of_names(out):
  """All that the contract names, each with its licence."""
  lines = out("--list")
  assert [line.partition(":")[0] for line in lines] == [
    *("nq", "trivia", "webq", "trec", "squad", "psgs_w100"),
    *("dpr-single-nq", "dpr-multi", "dpr-reader", "wikipedia-embeddings"),
  ]
  assert all("CC BY-NC 4.0" in line for line in lines)
  assert "(50 files, 66.3 GB)" in lines[-1]
  assert "(7 files, over 2.6 GB)" in lines[0]


def test_list_of_files(out):
  lines = out("psgs_w100", "--list")
  assert lines[1] == (
    "  psgs_w100.tsv.gz <- https://dl.fbaipublicfiles.com/dpr/wikipedia_split/"
    "psgs_w100.tsv.gz (4,694,541,059 bytes; "
    "md5:612fe66e0b6b41ee28f806140226c563)"
  )


def test_downloads_then_says_how_to_use_it(out, small, tmp_path):
  with http_server.serving(http_server.file(DATA)) as server:
    lines = out("one", "--out", tmp_path / "a b", "--from", server.base)
    assert lines == [
      "one: One file. Licence: CC BY-NC 4.0.",
      f"{tmp_path}/a b/one.csv: downloaded, 100 bytes, md5 as published",
      f"use: --config.data.dev='{tmp_path}/a b'/one.csv",
    ]
    out("two", "one", "one", f"--out={tmp_path}", f"--from={server.base}/")
  assert [path for path, _ in server.asked] == [
    *("/p/one.csv", "/p/two", "/q", "/p/one.csv")
  ]
  assert (tmp_path / "r" / "q").read_bytes() == DATA


def test_without_a_network(out, small, tmp_path, monkeypatch):
  """The files to bring, without those that are there; then one line."""
  (tmp_path / "two").write_bytes(DATA)

  def fetch(file, *_):
    if file.name == "two":
      return "was there"
    raise downloads.Unreachable("http://m/p/one.csv: no network")

  monkeypatch.setattr(downloads, "fetch", fetch)
  arguments = ("two", "one", f"--out={tmp_path}", "--from=http://m")
  with pytest.raises(errors.InputError, match="no network; without a network"):
    out(*arguments)
  assert out.lines[-3:] == [
    "Files to bring from a machine with a network, and where to:",
    f"  {tmp_path}/r/q <- http://m/q (size not published; hash not published)",
    f"  {tmp_path}/one.csv <- http://m/p/one.csv (100 bytes; md5:{MD5})",
  ]


def test_checks_what_was_brought(out, small, tmp_path):
  """Every file has its line, also after wrong ones; nothing is asked for."""
  (tmp_path / "one.csv").write_bytes(DATA[::-1])
  (tmp_path / "two").write_bytes(DATA)
  arguments = ("one", "two", f"--out={tmp_path}", "--check")
  with pytest.raises(errors.InputError, match="2 of 3 files are missing or"):
    out(*arguments)
  wrong, right, missing = out.lines
  assert re.match(rf".*one.csv has md5 \w+, .* is {MD5}; move it away", wrong)
  assert right == (
    f"{tmp_path}/two: 100 bytes, hash not published; recorded in"
    " two.fetched.json"
  )
  assert missing == (
    f"{tmp_path}/r/q is missing: bring https://dl.fbaipublicfiles.com/dpr/q"
    " (size not published; hash not published)"
  )
  (tmp_path / "one.csv").write_bytes(DATA)
  (tmp_path / "r").mkdir()
  (tmp_path / "r" / "q").write_bytes(b"")
  assert out(*arguments)[1].endswith("sha256 as recorded (not published)")
  (tmp_path / "two").write_bytes(DATA + b"!")
  with pytest.raises(errors.InputError, match="1 of 3 files"):
    out(*arguments)


def test_room_for_all_is_needed_before_the_first(
  out, small, tmp_path, monkeypatch
):
  from dpr_jax.data import fetched_files

  usage = fetched_files.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    fetched_files.shutil, "disk_usage", lambda _: usage._replace(free=99)
  )
  with pytest.raises(errors.DiskError, match="100 bytes are needed, and 99"):
    out("one", f"--out={tmp_path}/new/er")
  assert list(tmp_path.iterdir()) == []
  (tmp_path / "one.csv.part").write_bytes(DATA[:50])
  file = SMALL[0].files[0]
  assert fetched_files.missing_bytes(file, tmp_path) == 50


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ((), "fetch needs NAME ... --out=DIR, where NAME is any of nq, trivia"),
    (("nq",), "fetch needs NAME ... --out=DIR"),
    (("psgs",), "fetch psgs: unknown name: did you mean psgs_w100"),
    (("xyzzy", "--list"), "fetch xyzzy: unknown name: one of nq, trivia"),
  ],
)
def test_refusals(out, arguments, said):
  with pytest.raises(errors.InputError, match=said):
    out(*arguments)


def test_published_sizes_add_up():
  """Sum of the 50 embeddings and the passages, published with wiki_dpr."""
  sets = [
    download_list.BY_NAME[name]
    for name in ("wikipedia-embeddings", "psgs_w100")
  ]
  files = [file for each in sets for file in each.files]
  assert sum(file.size for file in files) == 70_965_697_456
  assert len(files) == 51
  assert len({file.digest for file in files}) == 51


def test_every_file_has_its_own_address_and_place():
  files = {f for each in download_list.SETS for f in each.files}
  for key in (lambda f: f.name, lambda f: f.path):
    assert len({key(file) for file in files}) == len(files)
  for file in files:
    lengths = {"md5": 32, "sha256": 64}
    if file.digest:
      algorithm, _, digest = file.digest.partition(":")
      assert re.fullmatch("[0-9a-f]+", digest)
      assert len(digest) == lengths[algorithm]
      assert file.size
