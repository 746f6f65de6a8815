"""What MTEB asks of a model besides its vectors: batches, a description."""

from typing import Any


def texts(batches: Any, questions: bool) -> list[Any]:
  """Stub."""


def model_meta(encoder: Any) -> Any:
  """Stub."""
