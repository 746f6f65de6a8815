"""Counts the programs that XLA compiles, and the seconds they take."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging


def announce(stage: str, shapes: int) -> None:
  """Logs that the first step will take longer.

  Args:
    stage: name of the stage.
    shapes: number of batch shapes that the step is compiled for; 0 = unknown.
  """
  kept = "kept for next time"
  if not jax.config.jax_compilation_cache_dir:
    kept = "set JAX_COMPILATION_CACHE_DIR to keep it for next time"
  logging.info(
    "%s: compiling the step for %d devices%s (may take minutes; %s)",
    stage,
    jax.device_count(),
    f" and {shapes} batch shapes" if shapes > 1 else "",
    kept,
  )


class Compilations:
  """Programs that this process compiles or loads, from now on.

  A program that the compilation cache has is loaded, not compiled.

  Attributes:
    count: programs compiled.
    seconds: seconds of their compilation.
    loaded: programs loaded from the cache.
    load_seconds: seconds of loading them.
  """

  # JAX measures a "compilation" of either kind, and tells of a hit during it.
  _COMPILED = "/jax/core/compile/backend_compile_duration"
  _HIT = "/jax/compilation_cache/cache_hits"
  _BUILDING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    _COMPILED,
  )

  def __init__(self):
    """Starts listening; `building` is of the thread that calls this."""
    self.count, self.seconds = 0, 0.0
    self.loaded, self.load_seconds = 0, 0.0
    self._this = threading.local()  # programs compile in several threads
    self._thread = threading.get_ident()
    self._built: list[tuple[float, float]] = []  # (beginning, seconds)
    self._built_seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._hear)
    jax.monitoring.register_event_listener(self._hear_hit)

  def _hear_hit(self, event: str, **_: Any) -> None:
    if event == self._HIT:
      self._this.hit = True

  def _hear(self, event: str, seconds: float, **_: Any) -> None:
    if event in self._BUILDING and threading.get_ident() == self._thread:
      self._add(time.monotonic() - seconds, seconds)
    if event != self._COMPILED:
      return
    if getattr(self._this, "hit", False):
      self._this.hit = False
      self.loaded += 1
      self.load_seconds += seconds
    else:
      self.count += 1
      self.seconds += seconds

  def _add(self, begin: float, seconds: float) -> None:
    """Adds a span that ends now; those within it do not count twice.

    A function is traced within the one that calls it, and ends before it.
    """
    while self._built and self._built[-1][0] >= begin:
      self._built_seconds -= self._built.pop()[1]
    self._built.append((begin, seconds))
    self._built_seconds += seconds

  def building(self) -> float:
    """Seconds of tracing, lowering, compiling and loading in this thread."""
    return self._built_seconds

  @contextlib.contextmanager
  def reported(self, name: str, step: int, expected: bool) -> Iterator[None]:
    """A step of stage `name`; warns if it needs a program unexpectedly."""
    programs, compiled, seconds = self.programs, self.count, self.building()
    yield
    if self.programs > programs and not expected:
      logging.warning(
        "%s: step %d had a new batch shape and was %s (%.1f s)",
        name,
        step,
        "recompiled" if self.count > compiled else "loaded from the cache",
        self.building() - seconds,
      )

  def seconds_of_all(self) -> float:
    """Seconds of compiling and loading, in all threads."""
    return self.seconds + self.load_seconds

  @property
  def programs(self) -> int:
    """Programs compiled or loaded."""
    return self.count + self.loaded

  def figures(self) -> dict[str, float | int]:
    """Metrics columns: totals since this process began training."""
    return {
      "compilations": self.count,
      "compile_seconds": round(self.seconds, 3),
      "compilations_cached": self.loaded,
      "cache_seconds": round(self.load_seconds, 3),
    }

  def close(self) -> None:
    """Stops listening."""
    jax.monitoring.unregister_event_duration_listener(self._hear)
    jax.monitoring.unregister_event_listener(self._hear_hit)
