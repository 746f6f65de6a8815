"""Finds places where a text can be cut without changing the ids before them.

Between two words, that is, at a single white space between two letters or
digits, a tokenizer of the kinds in `_LOCAL_STEPS` and `_SPLITS` cannot look
across: its normalizer changes characters by themselves or with their combining
marks, its pre-tokenizer separates words at white space, and its model sees one
word at a time.  So the tokens before the place are those of the whole text.
For any other tokenizer no place is known.
"""

import functools
import json
from typing import Any

import regex
import tokenizers

# Letters and digits that cannot combine with what is beside them.
_LETTER = r"[[\p{L}\p{N}]--[\p{GCB=Prepend}\p{GCB=Extend}\p{GCB=SpacingMark}]]"
_BETWEEN = regex.compile(rf"(?<={_LETTER})[ \n\t](?={_LETTER})", regex.VERSION1)
_TRIED = 100  # places of a text
# Normalizers and pre-tokenizers that do not look across such a place.
_LOCAL_STEPS = {
  *("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"),
  *("Lowercase", "StripAccents", "Strip", "Prepend", "Punctuation", "Digits"),
}
# Pre-tokenizers that separate words at white space as well; of these with a
# setting, its name and the value with which they do.
_SPLITS: dict[str, tuple[str, Any] | None] = {
  "BertPreTokenizer": None,
  "Whitespace": None,
  "WhitespaceSplit": None,
  "ByteLevel": ("use_regex", True),
  "Metaspace": ("split", True),
}
_LOCAL_PATTERNS = ({"Regex": " {2,}"}, {"Regex": "\\s+"})


class TextCuts:
  """Finds the places for one tokenizer."""

  def __init__(self, backend: tokenizers.Tokenizer):
    self._backend = backend

  @functools.cached_property
  def known(self) -> bool:
    """True if the tokenizer is of a kind that cannot look across a place."""
    backend = self._backend
    splits = [_splits(step) for step in _steps(backend.pre_tokenizer)]
    added = backend.get_added_tokens_decoder().values()
    return (
      all(map(_is_local, _steps(backend.normalizer)))
      and any(splits)
      and None not in splits
      and not getattr(backend.model, "dropout", None)
      and not any(regex.search(r"\s", token.content) for token in added)
    )

  def between_words(self, text: str, start: int) -> int | None:
    """The first place from `start`; None = there is none near, or not known.

    The character at the place is the white space.
    """
    if not self.known:
      return None
    places = _BETWEEN.finditer(text, start)
    for match, _ in zip(places, range(_TRIED), strict=False):
      place = match.start()
      if self._stays(text[place - 1 : place + 2]):
        return place
    return None

  def _stays(self, around: str) -> bool:
    """True if the normalizer leaves a white space between two characters."""
    if self._backend.normalizer is None:
      return True
    normal = self._backend.normalizer.normalize_str(around)
    return regex.fullmatch(r"\S+\s\S+", normal) is not None


def _steps(part: Any) -> list[dict[str, Any]]:
  """Settings of the steps of a normalizer or pre-tokenizer; None has none."""
  if part is None:
    return []
  settings = json.loads(part.__getstate__())
  return _flat(settings)


def _flat(settings: dict[str, Any]) -> list[dict[str, Any]]:
  if settings["type"] != "Sequence":
    return [settings]
  parts = settings.get("normalizers") or settings.get("pretokenizers") or []
  return [step for part in parts for step in _flat(part)]


def _is_local(step: dict[str, Any]) -> bool:
  if step["type"] != "Replace":
    return step["type"] in _LOCAL_STEPS
  text = step["pattern"].get("String", "")
  # One character, or a text that contains no white space.
  local = len(text) == 1 or (text and not regex.search(r"\s", text))
  return bool(local) or step["pattern"] in _LOCAL_PATTERNS


def _splits(step: dict[str, Any]) -> bool | None:
  """Whether a pre-tokenizer splits at white space; None = it is not known."""
  kind = step["type"]
  if kind not in _SPLITS:
    return False if kind in _LOCAL_STEPS else None
  condition = _SPLITS[kind]
  if condition is None:
    return True
  # Older files lack the settings, whose default is True.
  return step.get(condition[0], True) == condition[1]
