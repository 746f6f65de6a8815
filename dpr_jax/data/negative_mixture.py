"""The kinds and numbers of a question's negatives, as the config names them."""

import dataclasses
from typing import Any

from dpr_jax.core import errors

# Mined by BM25, mined by the model, those of the question file, random passages
# of the corpus.
KINDS = ("bm25", "model", "given", "random")


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Kinds and numbers of a question's negatives.

  Attributes:
    parts: (kind, count >= 1), each kind once, in the order of the columns.
  """

  parts: tuple[tuple[str, int], ...]

  @classmethod
  def parse(cls, text: str, count: int) -> "Mixture":
    """Reads `config.train.negatives`.

    Args:
      text: one of `KINDS`, or kinds with counts, as "bm25:1,random:1".
      count: `config.train.hard_negatives`, which the counts must sum to.

    Raises:
      InputError: an unknown or repeated kind, or counts with another sum.
    """
    where = f"config.train.negatives={text!r}"
    pieces = [piece.strip() for piece in text.split(",")]
    parts: dict[str, int] = {}
    for piece in pieces:
      kind, colon, number = piece.partition(":")
      if kind not in KINDS:
        name = "" if piece == text else f"{kind!r} "
        raise errors.InputError(
          f"{where}: {name}must be one of {', '.join(KINDS)}, or kinds with"
          " counts, as 'bm25:1,random:1'"
        )
      if kind in parts:
        raise errors.InputError(f"{where}: {kind} is repeated: name it once")
      if not colon and len(pieces) == 1:
        parts[kind] = count
      elif number.isascii() and number.isdigit() and int(number) > 0:
        parts[kind] = int(number)
      else:
        raise errors.InputError(
          f"{where}: {piece!r} needs a count of at least 1, as in"
          " 'bm25:1,random:1'"
        )
    total = sum(parts.values())
    if total != count:
      raise errors.InputError(
        f"{where} names {total} negatives, config.train.hard_negatives={count}:"
        f" set config.train.hard_negatives={total}, or change the counts"
      )
    return cls(tuple(part for part in parts.items() if part[1]))

  @classmethod
  def of(cls, train: Any) -> "Mixture":
    """The negatives of section `train` of a config.

    Raises:
      InputError: as in `parse`, or rounds whose negatives would not be used.
    """
    mixture = cls.parse(train.negatives, train.hard_negatives)
    if train.rounds > 1 and "model" not in mixture.kinds:
      raise errors.InputError(
        f"config.train.rounds={train.rounds}: what the model mines would not"
        f" be used by config.train.negatives={train.negatives!r} with"
        f" config.train.hard_negatives={train.hard_negatives}; set them to"
        " model and at least 1, or to a mixture as 'bm25:1,model:1'"
      )
    return mixture

  @property
  def count(self) -> int:
    """Negatives per question."""
    return sum(count for _, count in self.parts)

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kinds of the mixture, in order."""
    return tuple(kind for kind, _ in self.parts)

  def replace(self, old: str, new: str) -> "Mixture":
    """The mixture with kind `new` instead of `old`; adds up equal kinds."""
    parts: dict[str, int] = {}
    for kind, count in self.parts:
      kind = new if kind == old else kind
      parts[kind] = parts.get(kind, 0) + count
    return Mixture(tuple(parts.items()))
