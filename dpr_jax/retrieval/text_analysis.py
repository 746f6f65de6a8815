r"""Splits texts into the words that BM25 counts, in any language.

Input: a text.  Output: its words in NFKC and lower case, as runs of letters,
digits, `_` and combining marks (`[\w\p{M}]`), without stop words, stemmed.
Special cases, where spaces do not separate words:

- Scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese and the
  like), and Korean, whose words carry endings: pairs of neighbouring characters
  with their marks (bigrams); a single character is a word.
- Vowel signs of Hebrew, Arabic and Syriac, which are optional, are removed.
- Invisible characters (soft hyphens, joiners, variation selectors) are removed.
- NFKC writes powers and fractions as plain digits: after a digit they are
  separate words, so that 10² is 10 and 2, not 102.
- `I` with and without a dot: Turkish rules with the Turkish stemmer; otherwise
  the dot is dropped, so that İstanbul is istanbul.

A faster path gives the same words for texts in Latin, Greek or Cyrillic letters
without combining marks.
"""

import dataclasses
import itertools
import logging as python_logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import regex
import Stemmer
from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib

# Stored with an index, because another version may split texts differently.
VERSION = "NFKC, bigrams, 1"
INPUT = "text_analysis"  # its name among the inputs in manifests

_WORD = re.compile(r"\b\w\w+\b")
_ANY_WORD = re.compile(r"\w+")
# Characters that `_WORD` cannot handle: all but punctuation and the letters of
# Latin, Greek and Cyrillic.  They include the soft hyphen and the dotted I.
_SPECIAL = re.compile(
  "[^\0-\xac\xae-\u012f\u0131-\u02ff\u0370-\u0482\u048a-\u0530"
  "\u1e00-\u200a\u2010-\u2027\u2030-\u205e\u2070-\u20cf\u2100-\u2bff]"
)
# Invisible characters, except the zero-width space, and the zero-width
# non-joiner that Persian writes between the parts of a word.
_UNSEEN = regex.compile(
  r"[\p{Default_Ignorable_Code_Point}--[\u200b\u200c]]|(?<!\p{scx=Arabic})\u200c"
  # Vowel signs of Hebrew, Arabic and Syriac, and the Arabic elongation mark.
  r"|[[\u0591-\u074f\u0897-\u08ff\ufb1e]&&\p{M}]|\u0640|\p{Me}",
  regex.VERSION1,
)
_POWER = regex.compile(
  r"(?<=\p{Nd})(?=[\p{No}&&\p{NFKC_Quick_Check=No}])", regex.VERSION1
)
# LB=SA: Thai, Lao, Khmer, Burmese, Tai scripts.
_UNSPACED = (
  r"[[\p{LB=SA}\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Bopomofo}"
  r"\p{Hangul}\p{Yi}\p{Tangut}\p{Nushu}\p{Javanese}\p{Balinese}]"
  r"&&[\p{L}\p{Nl}\p{M}]]"
)
# First group: a run without spaces; second: a word.  Neither begins with a
# mark; a zero-width space may separate the words of the first.
_RUN = regex.compile(
  rf"([{_UNSPACED}--\p{{M}}][{_UNSPACED}\p{{M}}\u200b]*)"
  rf"|([[\p{{L}}\p{{N}}_]--{_UNSPACED}][[\p{{L}}\p{{N}}_\p{{M}}]--{_UNSPACED}]*)",
  regex.VERSION1,
)
_CHARACTER = regex.compile(r"\P{M}\p{M}*")
_TURKISH = str.maketrans({"I": "\u0131", "\u0130": "i"})


class _Stems(dict[str, str | None]):
  """Stems by word, computed at the first look-up; None for stop words."""

  def __init__(self, stem: Callable[[str], str], stopwords: Iterable[str]):
    super().__init__(dict.fromkeys(stopwords))
    self._stem = stem

  def __missing__(self, word: str) -> str:
    stem = self[word] = self._stem(word)
    return stem


class Splitter:
  """Splits texts into the words that BM25 counts."""

  def __init__(
    self, *, stopwords: str, stemmer: str, one_letter_words: bool = False
  ):
    """Loads the stemmer and the stop words.

    Args:
      stopwords: name of a bm25s stop word list; "" = none.
      stemmer: name of a Snowball stemmer; "" = none.
      one_letter_words: whether words of one letter count, as C in "the C
        language".

    Raises:
      InputError: an unknown name.
    """
    self._stemmer = stemmer
    self._turkish = stemmer == "turkish"
    self._word = _ANY_WORD if one_letter_words else _WORD
    self._least = 1 if one_letter_words else 2
    # Normalized as texts are, because the lists come from several sources.
    self._stopwords = frozenset(
      self._lower(_normalized(word)) for word in stop_words(stopwords)
    )
    self._stems = _Stems(_stemmer(stemmer), self._stopwords)

  def __getstate__(self) -> dict[str, Any]:
    """What another process needs, which then does not import bm25s."""
    return {**self.__dict__, "_stems": None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._stems = _Stems(_stemmer(self._stemmer), self._stopwords)

  def words(self, text: str) -> list[str]:
    """The words of a text, in order, with repetitions."""
    stems = self._stems
    return [s for word in self._words(text) if (s := stems[word]) is not None]

  def _lower(self, text: str) -> str:
    if self._turkish:
      text = text.translate(_TURKISH)
    return text.lower()

  def _words(self, text: str) -> Iterable[str]:
    if text.isascii():
      return self._word.findall(self._lower(text))
    if not _SPECIAL.search(text):
      return self._word.findall(self._lower(_normalized(text)))
    # Lower-casing a dotted capital I leaves i and a combining dot.
    text = self._lower(_normalized(text)).replace("i\u0307", "i")
    # Some accented letters need a combining mark only as a capital.
    text = unicodedata.normalize("NFC", text)
    return self._split(_UNSEEN.sub("", text))

  def _split(self, text: str) -> Iterator[str]:
    for run, word in _RUN.findall(text):
      if not run:
        if len(word) >= self._least:
          yield word
      elif run not in self._stopwords:
        yield from _bigrams(run)


def as_recorded(stage: workdir_lib.Stage) -> workdir_lib.Stage:
  """The stage with the text analysis of its last run, to keep its output.

  Older versions split texts differently, and did not record a version.
  """
  try:
    old = workdir_lib.read_manifest(stage.folder, stage.name)["inputs"]
  except errors.InputError:
    return stage  # it has not run, or `is_current` logs what is wrong
  if old.get(INPUT) == stage.inputs.get(INPUT):
    return stage
  inputs = {key: value for key, value in stage.inputs.items() if key != INPUT}
  if INPUT in old:
    inputs[INPUT] = old[INPUT]
  logging.info(
    "%s: keeping the output of an older text analysis (%s), because a training"
    " run uses it; `dpr-jax %s --overwrite` uses %r",
    stage.name,
    old.get(INPUT, "of an older dpr-jax"),
    stage.name,
    VERSION,
  )
  return dataclasses.replace(stage, inputs=inputs)


def library():
  """Imports bm25s, and silences its DEBUG lines.

  Importing it initialises JAX, which must not happen before the command line
  has set devices and processes.
  """
  import bm25s

  python_logging.getLogger("bm25s").setLevel(python_logging.WARNING)
  return bm25s


def _normalized(text: str) -> str:
  """NFKC, with powers and fractions after digits as separate words."""
  if unicodedata.is_normalized("NFKC", text):
    return text
  return unicodedata.normalize("NFKC", _POWER.sub(" ", text))


def _bigrams(run: str) -> list[str]:
  """Pairs of neighbouring characters with their marks; a single character."""
  characters = _CHARACTER.findall(run.replace("\u200b", ""))
  pairs = itertools.pairwise(characters)
  return [first + second for first, second in pairs] or characters


def characters_of(word: str) -> list[str]:
  """The two characters of a bigram, with their marks; [] of any other word."""
  match = _RUN.fullmatch(word)
  return _CHARACTER.findall(word) if match and match[1] else []


def stop_words(name: str) -> frozenset[str]:
  """The words of a stop word list of bm25s; "" = none; `InputError`."""
  if not name:
    return frozenset()
  try:
    splitter = library().tokenization.Tokenizer(stopwords=name)
  except ValueError as error:
    raise errors.InputError(
      f"config.bm25.stopwords={name!r}: must be '' or a list of bm25s, as"
      " 'en', 'de', 'fr', 'es', 'it', 'nl', 'pt', 'ru', 'sv', 'no', 'da',"
      " 'tr', 'zh', 'ko'"
    ) from error
  return frozenset(splitter.stopwords)


def _stemmer(name: str) -> Callable[[str], str]:
  if not name:
    return lambda word: word
  try:
    return Stemmer.Stemmer(name).stemWord
  except KeyError as error:
    raise errors.InputError(
      f"config.bm25.stemmer={name!r}: must be '' or one of"
      f" {', '.join(Stemmer.algorithms())}"
    ) from error
