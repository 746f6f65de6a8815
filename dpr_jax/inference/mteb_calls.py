"""What MTEB asks of an encoder besides vectors: its batches, its description.

MTEB 2 hands over an iterable of batches, mappings from a field to a list; a
batch of a corpus has `title` and `body` besides `text`, which joins the two.
"""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from dpr_jax.core import errors


def texts(batches: Any) -> list[Any]:
  """The texts of MTEB's batches; a {"title", "text"} where there are titles.

  Args:
    batches: MTEB's data loader.

  Raises:
    InputError: a batch has no texts.
  """
  if not isinstance(batches, Iterable) or isinstance(batches, str | Mapping):
    raise errors.InputError(
      f"inputs={reprlib.repr(batches)}: must be MTEB's batches, because of"
      " task_metadata; leave that out for plain texts"
    )
  rows: list[Any] = []
  for number, batch in enumerate(batches):
    if not isinstance(batch, Mapping) or "text" not in batch:
      raise errors.InputError(
        f"inputs: batch {number} has no 'text': only tasks of text are"
        " supported"
      )
    if "body" in batch and "title" in batch:
      rows += [
        {"title": title or "", "text": body}
        for title, body in zip(batch["title"], batch["body"], strict=True)
      ]
    else:
      rows += batch["text"]
  return rows


def model_meta(encoder: Any) -> Any:
  """MTEB's `ModelMeta` of an encoder.

  MTEB stores results under its name and revision, which come from the
  fingerprint of the model.

  Raises:
    AttributeError: mteb is not installed, so `hasattr` is False.
  """
  try:
    from mteb.models import model_meta as meta_lib
  except ImportError as error:
    raise AttributeError(
      "mteb_model_meta: needs mteb, which is not installed"
    ) from error
  leaves = jax.tree.leaves(encoder.model.params)
  tokenizer = encoder.model.tokenizer
  return meta_lib.ModelMeta.create_empty(
    overwrites={
      "name": f"dpr-jax/{encoder.fingerprint[:12]}",
      "revision": encoder.fingerprint,
      "n_parameters": sum(leaf.size for leaf in leaves),
      "max_tokens": encoder.max_seq_length,
      "embed_dim": encoder.dim,
      "framework": ["JAX"],
      "similarity_fn_name": meta_lib.ScoringFunction(
        encoder.similarity_fn_name
      ),
      "use_instructions": bool(
        tokenizer.question_prefix or tokenizer.passage_prefix
      ),
    }
  )
