"""Uploads to a server that stands for the hub."""

import huggingface_hub
import pytest

from dpr_jax.core import errors
from dpr_jax.models import hub_upload
from tests.models import hub_server


@pytest.fixture
def hub(monkeypatch):
  constants = huggingface_hub.constants
  with hub_server.serving() as server:
    monkeypatch.setattr(constants, "ENDPOINT", server.base)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server


@pytest.fixture
def folder(tmp_path):
  contents = {
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "query/model.safetensors": bytes(range(256)) * 40,
    "query/config.json": b'{"hidden_size": 8}\n',
    "query/onnx/model.onnx": b"\0onnx",
  }
  for name, content in contents.items():
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return tmp_path / "model", contents


# Of the client itself.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("private", [True, False])
def test_a_folder_arrives_as_it_is(hub, folder, private):
  path, contents = folder
  address = hub_upload.upload(path, "me/model", private=private)
  assert address == f"{hub.base}/me/model/commit/1"
  assert hub.files == contents
  assert [each["name"] for each in hub.created] == ["model"]
  assert hub.created[0]["organization"] == "me"
  visibility = hub.created[0].get("visibility")
  assert (hub.created[0].get("private"), visibility) in (
    [(True, None), (None, "private")]
    if private
    else [(False, None), (None, None), (None, "public")]
  )
  assert hub.tokens == {"Bearer hf_secret"}


def test_the_hub_refuses(hub, folder):
  hub.refusal = 403
  with pytest.raises(errors.InputError, match="hf:me/model: .*127.*403.*check"):
    hub_upload.upload(folder[0], "me/model", private=False)
  assert not hub.files


def test_no_network(hub, folder, monkeypatch):
  """A port on which nobody listens, and offline mode."""
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
  with pytest.raises(errors.InputError, match="127.0.0.1:1 cannot be used"):
    hub_upload.upload(folder[0], "me/model", private=False)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(errors.InputError, match="(?i)offline"):
    hub_upload.upload(folder[0], "me/model", private=False)


def test_no_token(monkeypatch, tmp_path):
  monkeypatch.delenv("HF_TOKEN", raising=False)
  monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
  with pytest.raises(errors.InputError, match="set HF_TOKEN, or run"):
    hub_upload.token()


@pytest.mark.parametrize(
  "to", [None, "", "me/model", "hf:model", "hf:me/a/b", "hf:me/..", "hf:me/a b"]
)
def test_names_of_repositories(to):
  with pytest.raises(errors.InputError, match="must be hf:OWNER/NAME"):
    hub_upload.repository(to)
  assert hub_upload.repository("hf:me/my-model_1.0") == "me/my-model_1.0"


def test_files_and_sizes(folder):
  sizes = {name: len(content) for name, content in sorted(folder[1].items())}
  assert hub_upload.files(folder[0]) == sizes
