"""`publish` from the command line, to a server that stands for the hub."""

import hashlib

import huggingface_hub
import pytest

from dpr_jax.cli import main
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import model_files
from tests.models import hub_server

pytestmark = [
  pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # hub
  pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]


@pytest.fixture
def workdir(fresh_workdir, monkeypatch):
  """A workdir whose towers before training can be published."""
  monkeypatch.setenv("HF_TOKEN", "hf_secret")
  return fresh_workdir.root


def _publish(*flags):
  from dpr_jax.cli import publish

  call = main.invocation(["dpr-jax", "publish", *map(str, flags)])
  publish.publish(call)


def test_every_file_arrives(workdir, monkeypatch, capsys):
  """Those that --dry_run lists, with the sha256 that the export records."""
  where = f"--workdir={workdir}", "--model=dense-start"
  _publish(*where, "--to=hf:me/model", "--format=hf", "--dry_run")
  *rows, total = capsys.readouterr().out.splitlines()
  sizes = {name: int(size.replace(",", "")) for size, name in map(_two, rows)}
  assert total.split(" ", 1)[-1].strip().endswith("files for me/model")
  constants = huggingface_hub.constants
  with hub_server.serving() as hub:
    monkeypatch.setattr(constants, "ENDPOINT", hub.base)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    _publish(*where, "--to=hf:me/model", "--format=hf", "--private")
    address = f"{hub.base}/me/model/commit/1"
  assert capsys.readouterr().out.splitlines()[-1] == address
  assert {name: len(content) for name, content in hub.files.items()} == sizes
  assert {"README.md", "question/model.safetensors"} <= set(sizes)
  path = workdir / "record.json"
  path.write_bytes(hub.files[model_files.FILE])
  record = workdir_lib.read_record(path)
  assert {
    name: hashlib.sha256(content).hexdigest()
    for name, content in hub.files.items()
    if name != model_files.FILE
  } == record["files"]
  card = hub.files["README.md"].decode()
  assert 'Encoder.load("hf:me/model")' in card
  everything = b"".join(hub.files.values())
  assert str(workdir).encode() not in everything
  assert b"hf_secret" not in everything
  assert hub.tokens == {"Bearer hf_secret"}


def _two(row):
  size, name = row.split()
  return size, name


def test_a_bad_name_and_no_token(workdir, monkeypatch, tmp_path):
  """Refused before anything is exported."""
  with pytest.raises(ValueError, match="--to=model: must be hf:OWNER/NAME"):
    _publish(f"--workdir={workdir}", "--to=model")
  monkeypatch.delenv("HF_TOKEN")
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
  with pytest.raises(ValueError, match="needs a token"):
    _publish(f"--workdir={workdir}", "--to=hf:me/model")
