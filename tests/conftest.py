"""What every test runs under: 8 CPU devices, no downloads by accident, types.

The environment is set before jax is imported for the first time, and the
shapes in the annotations of `dpr_jax` are checked at every call (jaxtyping with
beartype) for as long as the tests run.
"""

import os
import pathlib

DEVICES = 8

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    *(
      flag
      for flag in os.environ.get("XLA_FLAGS", "").split()
      if "host_platform_device_count" not in flag
    ),
    f"--xla_force_host_platform_device_count={DEVICES}",
  ]
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook("dpr_jax", "beartype.beartype")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from dpr_jax import errors  # noqa: E402

# How long one example takes says more of the machine than of the code.
hypothesis.settings.register_profile("dpr-jax", deadline=None)
hypothesis.settings.load_profile("dpr-jax")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def pytest_report_header() -> str:
  """Says at the top of the run what the tests run on."""
  return f"jax {jax.__version__}, {jax.device_count()} CPU devices"


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
  """The top folder of the checkout."""
  return REPOSITORY


@pytest.fixture(scope="session")
def data_folder() -> pathlib.Path:
  """Real DPR-format data outside the repository, where there is any."""
  default = REPOSITORY.parent / "shared" / "data"
  folder = pathlib.Path(os.environ.get("DPR_JAX_DATA", default))
  if not folder.is_dir():
    pytest.skip(f"no real data: {folder} is no folder (set DPR_JAX_DATA)")
  return folder


@pytest.fixture(scope="session")
def starter_folder() -> pathlib.Path:
  """The folder of the starter checkpoint, downloaded once into the cache."""
  from dpr_jax.data import resources

  try:
    return resources.checkpoint_folder("starter")
  except errors.InputError as error:
    pytest.skip(f"no starter checkpoint: {error}")
