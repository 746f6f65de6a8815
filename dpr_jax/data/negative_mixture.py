"""The kinds and numbers of a question's negatives, as the config names them."""

import dataclasses
from typing import Any

from dpr_jax.core import errors

# Mined by `dpr-jax mine` with one of four rankers, those of the round before,
# those of the question file, random passages of the corpus.
KINDS = ("bm25", "model", "hybrid", "passage", "previous", "given", "random")
# Of these, the run mines the first two when a round begins, and the third is
# what the round before had; in the first round BM25 takes the place of each.
MINED_IN_ROUNDS = ("model", "passage")
OF_ROUNDS = (*MINED_IN_ROUNDS, "previous")


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
    if train.rounds > 1 and not mixture.of_rounds:
      raise errors.InputError(
        f"config.train.rounds={train.rounds}: what the model mines would not"
        f" be used by config.train.negatives={train.negatives!r} with"
        f" config.train.hard_negatives={train.hard_negatives}; set them to"
        " model and at least 1, or to a mixture as 'bm25:1,model:1'"
      )
    if train.rounds == 1 and "previous" in mixture.kinds:
      raise errors.InputError(
        f"config.train.negatives={train.negatives!r}: 'previous' are the"
        " negatives of the round before: set config.train.rounds=2 or more"
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

  @property
  def of_rounds(self) -> tuple[str, ...]:
    """The kinds that a run mines when a round begins."""
    return tuple(kind for kind in MINED_IN_ROUNDS if kind in self.kinds)

  def of_first_round(self) -> "Mixture":
    """The mixture with BM25 instead of the kinds of `OF_ROUNDS`."""
    parts: dict[str, int] = {}
    for kind, count in self.parts:
      kind = "bm25" if kind in OF_ROUNDS else kind
      parts[kind] = parts.get(kind, 0) + count
    return Mixture(tuple(parts.items()))
