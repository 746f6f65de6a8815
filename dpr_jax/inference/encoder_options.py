"""Keyword arguments of `encode` and its relatives, checked in one place.

The names are those of sentence-transformers and MTEB.  A name or value that
would change the vectors and is not supported is refused by name.
"""

import dataclasses
import enum
import reprlib
from collections.abc import Mapping
from typing import Any

from dpr_jax.core import errors
from dpr_jax.data import arguments
from dpr_jax.models.dual_encoder import PASSAGE, QUESTION

# What libraries and services call the two kinds of text.
_KINDS = {
  **dict.fromkeys(("query", "queries", "question", "questions"), QUESTION),
  **dict.fromkeys(("search_query", "retrieval_query"), QUESTION),
  **dict.fromkeys(("document", "documents", "passage", "passages"), PASSAGE),
  **dict.fromkeys(("corpus", "search_document"), PASSAGE),
  **dict.fromkeys(("retrieval_document", "retrieval_passage"), PASSAGE),
}
# Keywords that say which of the two the texts are, besides `prompt_name`.
_NAMES_OF_KIND = ("task", "task_type", "input_type", "prompt_type")
_OF_MTEB = ("task_metadata", "hf_split", "hf_subset")
_FLAGS = {
  "convert_to_numpy": True,
  "convert_to_tensor": False,
  "normalize_embeddings": False,
}
# Keywords with one supported value, and what to do instead of another.
_FIXED = {
  "output_value": ("sentence_embedding", "there are no vectors of tokens"),
  "precision": ("float32", "quantize the vectors afterwards"),
  "device": (None, "all devices of this process are used; see JAX_PLATFORMS"),
  "pool": (None, "all devices of this process are used"),
  "chunk_size": (None, "all devices of this process are used"),
}
_KNOWN = (
  *("batch_size", "show_progress_bar", "truncate_dim", "sentences"),
  *(*_NAMES_OF_KIND, *_FLAGS, *_FIXED, *_OF_MTEB),
)


@dataclasses.dataclass(frozen=True)
class Options:
  """How to encode, and in which form to return the vectors.

  `batch_size` is checked and not kept: texts are grouped by their tokens
  (`length_tiles.py`), and no vector depends on it.

  Attributes:
    kind: "question" or "passage"; None = not said.
    prompt: text before every text; None = the model's prefix.
    show_progress_bar: True = a bar on a terminal, elsewhere a log line every 10
      seconds; None = only for long calls on a terminal.
    convert_to_numpy: False = a list of vectors instead of a matrix.
    convert_to_tensor: a torch tensor instead of NumPy.
    normalize_embeddings: scale the vectors to length 1.
    truncate_dim: number of leading dimensions to keep; None = all.
    of_mteb: the texts are in MTEB's batches.
  """

  kind: str | None
  prompt: str | None
  show_progress_bar: bool | None
  convert_to_numpy: bool
  convert_to_tensor: bool
  normalize_embeddings: bool
  truncate_dim: int | None
  of_mteb: bool

  def check_dim(self, dim: int) -> None:
    """Raises `InputError` where `truncate_dim` exceeds the vectors' width."""
    if self.truncate_dim is not None and self.truncate_dim > dim:
      raise errors.InputError(
        f"truncate_dim={self.truncate_dim}: the vectors have {dim} dimensions"
      )


def read(
  prompt_name: arguments.Text,
  prompt: arguments.Text,
  options: Mapping[str, Any],
  kind: str | None = None,
) -> Options:
  """Checks the arguments of a call.

  Args:
    prompt_name: name of a kind of text, or None.
    prompt: text before every text, or None.
    options: the other keyword arguments.
    kind: kind of text that the called method encodes; None = either.

  Raises:
    InputError: an unknown name, a bad value, or two that contradict each other.
  """
  for name in options:
    if name not in _KNOWN:
      raise errors.InputError(
        f"{name}: not an argument of encode; it has inputs, prompt_name,"
        f" prompt, {', '.join(_KNOWN)}"
      )
  for name, (value, reason) in _FIXED.items():
    if name in options and options[name] != value:
      raise errors.InputError(
        f"{name}={reprlib.repr(options[name])}: must be {value!r}; {reason}"
      )
  names = {name: options.get(name) for name in _NAMES_OF_KIND}
  for name, value in {"prompt_name": prompt_name, **names}.items():
    kind = _kind(name, value, kind)
  arguments.count("batch_size", options.get("batch_size", 32))
  flags = {
    name: arguments.switch(name, options.get(name, default))
    for name, default in _FLAGS.items()
  }
  bar = options.get("show_progress_bar")
  shorter = options.get("truncate_dim")
  return Options(
    kind=kind,
    prompt=None if prompt is None else arguments.text("prompt", prompt),
    show_progress_bar=None
    if bar is None
    else arguments.switch("show_progress_bar", bar),
    truncate_dim=None
    if shorter is None
    else arguments.count("truncate_dim", shorter),
    of_mteb=any(name in options for name in _OF_MTEB),
    **flags,
  )


def _kind(name: str, value: Any, before: str | None) -> str | None:
  """The kind of text that an argument names; `before` if it is None."""
  if value is None:
    return before
  if isinstance(value, enum.Enum):  # MTEB's PromptType
    value = value.value
  word = arguments.text(name, value)
  kind = _KINDS.get(word.lower().replace(".", "_").replace("-", "_"))
  if kind is None:
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be 'query' or 'document'"
    )
  if before not in (None, kind):
    raise errors.InputError(
      f"{name}={value!r}: these texts are {before}s, because of the called"
      " method or another argument"
    )
  return kind
