"""Does a passage contain an answer?  The rule behind top-k accuracy.

In come a question's answer strings and a passage's text, out comes a bool.
Mining uses it to keep answers out of the hard negatives, retrieval to mark
its hits, evaluation to count them.  The rule is the field's own (tokens, not
characters: "1, 2" is no answer in "11, 25"), so that numbers can be compared
with published ones; it imports nothing else of this package.
"""

import functools
import re
import unicodedata
import warnings
from collections.abc import Hashable, Sequence

import regex

MATCHES = ("string", "regex")

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
# A control character, so never part of a token: joining with it is reversible.
_SEPARATOR = "\n"


def answer_tokens(text: str) -> list[str]:
  """Lower-cased tokens of `text` after canonical decomposition (NFD).

  A token is a maximal run of letters, numbers and marks, or any other single
  character that is neither a separator nor a control, format, unassigned or
  surrogate character.  Accents stay: they are marks.
  """
  return [token.lower() for token in _TOKEN.findall(_decompose(text))]


def has_answer(
  answers: Sequence[str],
  text: str,
  *,
  match: str = "string",
  compat: bool = False,
) -> bool:
  """True if some answer occurs in `text`; the title is the caller's matter.

  Args:
    answers: accepted answer strings, or patterns with match="regex".
    text: the passage's text.
    match: "string": the answer's tokens are a contiguous part of the text's;
      "regex" (CuratedTREC): the pattern is found in the text, an invalid one
      never is.
    compat: an answer without a single token matches everything, as it does in
      the original; otherwise it matches nothing.

  Raises:
    ValueError: `match` is neither of the two.
  """
  matcher = AnswerMatcher(match=match, compat=compat, cache_size=0)
  return matcher.has_answer(answers, None, text)


class AnswerMatcher:
  """`has_answer` for bulk work: every passage is tokenised once.

  Attributes:
    match: "string" or "regex", as in `has_answer`.
    compat: as in `has_answer`.
  """

  def __init__(
    self,
    *,
    match: str = "string",
    compat: bool = False,
    cache_size: int = 100_000,
  ):
    """Keeps at most `cache_size` prepared passages, the oldest go first."""
    if match not in MATCHES:
      raise ValueError(f"match={match!r}: must be one of {', '.join(MATCHES)}")
    self.match = match
    self.compat = compat
    self._cache_size = cache_size
    self._cache: dict[Hashable, str] = {}

  def has_answer(
    self, answers: Sequence[str], key: Hashable, text: str
  ) -> bool:
    """As the function; `key` stands for `text` from the first call on.

    Two texts under one key would give wrong results: use the passage's row,
    or its id.
    """
    return self.hits(answers, [key], [text])[0]

  def hits(
    self,
    answers: Sequence[str],
    keys: Sequence[Hashable],
    texts: Sequence[str],
  ) -> list[bool]:
    """`has_answer` of one question's answers for many passages."""
    if isinstance(answers, str):  # would be searched letter by letter
      raise TypeError(f"answers={answers!r}: must be a list of strings")
    if self.match == "regex":
      patterns = [_pattern(_decompose(answer)) for answer in answers]
      patterns = [pattern for pattern in patterns if pattern is not None]
      return [
        any(pattern.search(prepared) for pattern in patterns)
        for prepared in self._prepared(keys, texts)
      ]
    wanted = [_joined_tokens(answer) for answer in answers]
    if self.compat and any(joined == _SEPARATOR for joined in wanted):
      return [True] * len(keys)
    wanted = [joined for joined in wanted if joined != _SEPARATOR]
    return [
      any(joined in prepared for joined in wanted)
      for prepared in self._prepared(keys, texts)
    ]

  def _prepared(self, keys: Sequence[Hashable], texts: Sequence[str]):
    prepare = _decompose if self.match == "regex" else _joined_tokens
    for key, text in zip(keys, texts, strict=True):
      prepared = self._cache.get(key)
      if prepared is None:
        prepared = prepare(text)
        if self._cache_size:
          while len(self._cache) >= self._cache_size:
            del self._cache[next(iter(self._cache))]
          self._cache[key] = prepared
      yield prepared


def answer_spans(
  answers: Sequence[str], text: str, *, match: str = "string"
) -> list[tuple[int, int]]:
  """Where the answers stand in a text that `has_answer` accepts.

  Args:
    answers: as in `has_answer`.
    text: the passage's text.
    match: as in `has_answer`.

  Returns:
    Distinct (start, end) in characters of `text` itself, in order; [] where
    `has_answer` is False.  A pattern that matches nothing but an empty string
    has no span.
  """
  if match not in MATCHES:
    raise ValueError(f"match={match!r}: must be one of {', '.join(MATCHES)}")
  decomposed, starts, ends = _places(text)
  found = set()
  if match == "regex":
    for answer in answers:
      pattern = _pattern(_decompose(answer))
      for hit in pattern.finditer(decomposed) if pattern else ():
        if hit.start() < hit.end():
          found.add((starts[hit.start()], ends[hit.end() - 1]))
    return sorted(found)
  hits = list(_TOKEN.finditer(decomposed))
  tokens = [hit[0].lower() for hit in hits]
  for wanted in map(answer_tokens, answers):
    count = len(wanted)
    for first in range(len(tokens) - count + 1 if count else 0):
      if tokens[first] == wanted[0] and tokens[first : first + count] == wanted:
        last = hits[first + count - 1]
        found.add((starts[hits[first].start()], ends[last.end() - 1]))
  return sorted(found)


def _places(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
  """NFD of a text, and where each of its characters starts and ends in it."""
  if text.isascii():
    return text, range(len(text)), range(1, len(text) + 1)
  # Decomposition may reorder marks, but never across a character that starts
  # a new cluster: cluster by cluster it gives the same.
  pieces, starts, ends, first = [], [], [], 0
  for end in range(1, len(text) + 1):
    if end < len(text) and unicodedata.combining(
      unicodedata.normalize("NFD", text[end])[0]
    ):
      continue
    piece = unicodedata.normalize("NFD", text[first:end])
    pieces.append(piece)
    starts += [first] * len(piece)
    ends += [end] * len(piece)
    first = end
  return "".join(pieces), starts, ends


def _decompose(text: str) -> str:
  return text if text.isascii() else unicodedata.normalize("NFD", text)


def _joined_tokens(text: str) -> str:
  """Tokens, each between separators: a sub-list becomes a substring.

  Lower-casing the joined string equals lower-casing each token: the one rule
  of Unicode that looks at neighbours (the final sigma) does not look across a
  control character.
  """
  tokens = _TOKEN.findall(_decompose(text))
  return _SEPARATOR.join(["", *tokens, ""] if tokens else ["", ""]).lower()


@functools.lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern[str] | None:
  """The compiled pattern; None where it is invalid."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # "possible nested set" and the like
      return re.compile(pattern, re.IGNORECASE | re.UNICODE | re.MULTILINE)
  except (re.error, OverflowError, RecursionError):
    return None
