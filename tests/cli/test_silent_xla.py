"""Where XLA's error lines are hidden, and where they tell what nobody else."""

import pytest

from dpr_jax.cli import start

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@pytest.mark.parametrize(
  ("cpu_devices", "plugins", "coordinator", "hidden"),
  [
    (8, {"libtpu"}, "", True),
    (0, set(), "", True),
    (0, {"libtpu"}, "", False),
    (0, {"jax_plugins"}, "", False),
    (8, set(), "127.0.0.1:1234", False),
  ],
)
def test_one_process_on_a_cpu_is_silent(
  monkeypatch, cpu_devices, plugins, coordinator, hidden
):
  monkeypatch.setenv(LEVEL, "0")  # so that it is restored
  monkeypatch.delenv(LEVEL)
  monkeypatch.setenv("DPR_JAX_COORDINATOR", coordinator)
  monkeypatch.setattr(
    start.importlib.util,
    "find_spec",
    lambda name: name if name in plugins else None,
  )
  start._silence_xla(cpu_devices)
  assert (start.os.environ.get(LEVEL) == "3") == hidden


def test_the_users_level_stays(monkeypatch):
  monkeypatch.setenv(LEVEL, "0")
  start._silence_xla(8)
  assert start.os.environ[LEVEL] == "0"
