"""Programs that are compiled, and those that are loaded."""

import threading

import jax
import pytest

from dpr_jax.training import compilations as compilations_lib

COMPILED = "/jax/core/compile/backend_compile_duration"
TRACED = "/jax/core/compile/jaxpr_trace_duration"
HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when a test says so."""
  now = [100.0]
  monkeypatch.setattr(compilations_lib.time, "monotonic", lambda: now[0])
  return now


@pytest.fixture
def heard():
  """What a run counts; JAX's events are sent by hand."""
  heard = compilations_lib.Compilations()
  yield heard
  heard.close()


def _tell(event, seconds):
  jax.monitoring.record_event_duration_secs(event, seconds)


def test_a_hit_is_no_compilation(heard):
  """One compiled, two loaded, one of them in another thread meanwhile."""

  def load(seconds):
    jax.monitoring.record_event(HIT)
    _tell(COMPILED, seconds)

  jax.monitoring.record_event(HIT)  # this thread's program is being loaded
  other = threading.Thread(target=load, args=(0.25,))
  other.start()
  other.join()
  _tell(COMPILED, 0.5)
  _tell(COMPILED, 30.0)
  assert heard.figures() == {
    "compilations": 1,
    "compile_seconds": 30.0,
    "compilations_cached": 2,
    "cache_seconds": 0.75,
  }
  assert (heard.programs, heard.seconds_of_all()) == (3, 30.75)


def test_nested_traces_count_once(heard, clock):
  """Traced from 100 to 110, with two functions in it; compiled until 114."""
  for now, event, seconds in (
    (104, TRACED, 3.0),
    (108, TRACED, 2.0),
    (110, TRACED, 10.0),
    (114, COMPILED, 4.0),
  ):
    clock[0] = now
    _tell(event, seconds)
  assert heard.building() == 14.0


def test_an_unexpected_program_is_named(heard, clock, caplog):
  for step, expected in ((2, True), (3, False)):
    with heard.reported("train", step, expected):
      clock[0] += 20
      _tell(COMPILED, 12.25)
  with heard.reported("train", 4, expected=False):
    clock[0] += 1
    jax.monitoring.record_event(HIT)
    _tell(COMPILED, 0.5)
  with heard.reported("train", 5, expected=False):
    pass
  assert caplog.messages == [
    "train: step 3 had a new batch shape and was recompiled (12.2 s)",
    "train: step 4 had a new batch shape and was loaded from the cache (0.5 s)",
  ]
