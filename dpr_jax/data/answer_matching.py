"""Decides whether a passage contains an answer, as top-k accuracy needs it.

Input: a question's answer strings and a passage's text.  Output: a bool.
Mining uses it to keep answers out of the hard negatives, retrieval to mark
hits, evaluation to count them.  The rule is that of DPR's evaluation (it
compares tokens, not characters: "1, 2" does not match "11, 25"), so that
numbers can be compared with published ones.
"""

import functools
import re
import unicodedata
import warnings
from collections.abc import Collection, Hashable, Iterator, Sequence

import regex
from absl import logging

MATCHES = ("string", "regex")

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_ASCII_TOKEN = re.compile(r"[0-9A-Za-z]+|[!-~]")  # _TOKEN for ASCII, faster
_WORD_REST = regex.compile(r"[\p{L}\p{N}\p{M}]*")
_BLOCK = 1_000_000  # characters whose tokens are in memory at once
# Limits for users' patterns, some of which would take exponential time.
_SECONDS = 0.5  # CPU seconds on one passage
_LONGEST_PATTERN = 10_000  # characters
_NAMED = 5  # patterns named in a warning
# A control character, so never part of a token: joining with it is reversible.
_SEPARATOR = "\n"


def answer_tokens(text: str) -> list[str]:
  """Lower-cased tokens of `text` after canonical decomposition (NFD).

  A token is a maximal run of letters, numbers and marks, or any other single
  character that is neither a separator nor a control, format, unassigned or
  surrogate character.  Accents stay: they are marks.
  """
  text = _decompose(text)
  return [token.lower() for token in _tokens_of(text).findall(text)]


def has_answer(
  answers: Sequence[str],
  text: str,
  *,
  match: str = "string",
  compat: bool = False,
) -> bool:
  """True if any answer occurs in `text`; titles are not considered here.

  Args:
    answers: accepted answer strings, or patterns with match="regex".
    text: text of the passage.
    match: "string": the answer's tokens are a contiguous part of the text's;
      "regex" (CuratedTREC): the pattern of the `regex` module is found in the
      text.  A pattern that is invalid, matches the empty string or takes too
      long never matches, and a warning names it.
    compat: an answer without any token matches everything, as in DPR's code;
      False = it matches nothing.

  Raises:
    ValueError: `match` is not "string" or "regex".
  """
  matcher = AnswerMatcher(match=match, compat=compat, cache_size=0)
  answered = matcher.has_answer(answers, None, text)
  matcher.warn("has_answer")
  return answered


class AnswerMatcher:
  """`has_answer` for bulk work: every passage is tokenised at most once.

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
    """Keeps up to `cache_size` prepared passages; drops the oldest first."""
    if match not in MATCHES:
      raise ValueError(f"match={match!r}: must be one of {', '.join(MATCHES)}")
    self.match = match
    self.compat = compat
    self._cache_size = cache_size
    self._cache: dict[Hashable, str] = {}
    # Patterns that never match: the reason, and the first question with them.
    self._refused: dict[str, tuple[str, int | None]] = {}
    self._warned = 0

  def has_answer(
    self, answers: Sequence[str], key: Hashable, text: str
  ) -> bool:
    """As the function `has_answer`, with a cache.

    Args:
      answers: as in the function.
      key: identifies `text` in the cache: the passage's row or id.  Two texts
        with one key give wrong results.
      text: text of the passage.
    """
    return self.hits(answers, [key], [text])[0]

  def hits(
    self,
    answers: Sequence[str],
    keys: Sequence[Hashable],
    texts: Sequence[str],
    question: int | None = None,
  ) -> list[bool]:
    """`has_answer` of one question's answers for many passages.

    Args:
      answers: as in `has_answer`.
      keys: keys of the texts in the cache.
      texts: texts of the passages.
      question: row of the question, for `warn`; None = unknown.
    """
    if isinstance(answers, str):  # else each letter would be an answer
      raise TypeError(f"answers={answers!r}: must be a list of strings")
    if self.match == "regex":
      patterns = self._patterns(answers, question)
      return [
        any(self._finds(pattern, prepared, question) for pattern in patterns)
        for prepared in map(self._prepared, keys, texts)
      ]
    wanted = [_joined_tokens(answer) for answer in answers]
    if self.compat and any(joined == _SEPARATOR for joined in wanted):
      return [True] * len(keys)
    wanted = [joined for joined in wanted if joined != _SEPARATOR]
    tokens = [joined.split(_SEPARATOR)[1:-1] for joined in wanted]
    return [
      self._may_match(tokens, key, text)
      and _any_in(wanted, self._prepared(key, text))
      for key, text in zip(keys, texts, strict=True)
    ]

  def _may_match(
    self, answers: Sequence[Sequence[str]], key: Hashable, text: str
  ) -> bool:
    """False only if no answer's tokens occur; far faster than to tokenise."""
    if key in self._cache or not text.isascii():
      return True
    lower = text.lower()
    return any(all(token in lower for token in tokens) for tokens in answers)

  def warn(self, where: str) -> None:
    """Logs one line with the patterns that were refused since the last call.

    Args:
      where: begin of the line: the stage or file.
    """
    new = list(self._refused.items())[self._warned :]
    self._warned = len(self._refused)
    if not new:
      return
    named = [
      f"{pattern[:80]!r} ({why}"
      + ("" if question is None else f", question {question}")
      + ")"
      for pattern, (why, question) in new[:_NAMED]
    ]
    more = f", and {len(new) - _NAMED} more" if len(new) > _NAMED else ""
    logging.warning(
      "%s: %d regular expressions of answers never match: %s%s",
      where,
      len(new),
      ", ".join(named),
      more,
    )

  def _patterns(
    self, answers: Sequence[str], question: int | None
  ) -> list[regex.Pattern[str]]:
    """The compiled patterns of the answers that are valid."""
    compiled = []
    for answer in answers:
      pattern, why = _pattern(_decompose(answer))
      if pattern is None:
        self._refused.setdefault(answer, (why, question))
      else:
        compiled.append(pattern)
    return compiled

  def _finds(
    self, pattern: regex.Pattern[str], text: str, question: int | None
  ) -> bool:
    if pattern.pattern in self._refused:
      return False
    try:
      return any(
        hit.start() < hit.end()
        for hit in pattern.finditer(text, timeout=_SECONDS)
      )
    except (TimeoutError, MemoryError) as error:
      why = f"takes more than {_SECONDS} s on a passage"
      if isinstance(error, MemoryError):
        why = "takes too much memory"
      self._refused[pattern.pattern] = why, question
      return False

  def _prepared(self, key: Hashable, text: str) -> str:
    prepared = self._cache.get(key)
    if prepared is None:
      regular = self.match == "regex"
      prepared = _decompose(text) if regular else _joined_tokens(text)
      if self._cache_size:
        while len(self._cache) >= self._cache_size:
          del self._cache[next(iter(self._cache))]
        self._cache[key] = prepared
    return prepared


def _any_in(wanted: Sequence[str], prepared: str) -> bool:
  return any(joined in prepared for joined in wanted)


def answer_spans(
  answers: Sequence[str], text: str, *, match: str = "string"
) -> list[tuple[int, int]]:
  """Positions of the answers in a text.

  Args:
    answers: as in `has_answer`.
    text: text of the passage.
    match: as in `has_answer`.

  Returns:
    Distinct (start, end) in characters of `text`, in order; [] where
    `has_answer` is False.  Empty matches are left out.
  """
  if match not in MATCHES:
    raise ValueError(f"match={match!r}: must be one of {', '.join(MATCHES)}")
  decomposed = _decompose(text)
  spans = set()
  if match == "regex":
    for answer in answers:
      pattern, _ = _pattern(_decompose(answer))
      try:
        for hit in (
          pattern.finditer(decomposed, timeout=_SECONDS) if pattern else ()
        ):
          if hit.start() < hit.end():
            spans.add((hit.start(), hit.end()))
      except (TimeoutError, MemoryError):
        continue  # as in `has_answer`
  else:
    spans = _token_spans(answers, decomposed)
  if not spans or text.isascii():
    return sorted(spans)
  places = _places(text, {p for start, end in spans for p in (start, end - 1)})
  return sorted({(places[s][0], places[e - 1][1]) for s, e in spans})


def _token_spans(answers: Sequence[str], text: str) -> set[tuple[int, int]]:
  """(start, end) of the answers' tokens in a decomposed text."""
  joined = _joined_tokens(text)
  spans = set()  # indexes of the first and last token
  for wanted in {_joined_tokens(answer) for answer in answers} - {_SEPARATOR}:
    count = wanted.count(_SEPARATOR) - 1
    first = at = 0
    while (hit := joined.find(wanted, at)) >= 0:
      # A token follows each separator, so counting separators gives indexes.
      first += joined.count(_SEPARATOR, at, hit)
      spans.add((first, first + count - 1))
      first, at = first + 1, hit + 1
  if not spans:
    return set()
  numbers = {number for span in spans for number in span}
  places = {
    number: hit.span()
    for number, hit in enumerate(_tokens_of(text).finditer(text))
    if number in numbers
  }
  return {(places[first][0], places[last][1]) for first, last in spans}


def _places(text: str, wanted: Collection[int]) -> dict[int, tuple[int, int]]:
  """Maps characters of the NFD of a text to characters of the text.

  Args:
    text: the text before normalisation.
    wanted: positions in its NFD.

  Returns:
    (start, end) in `text`, by position.
  """
  origins = {}
  left = sorted(wanted, reverse=True)
  length = 0
  for first, piece in _pieces(text):
    size = len(unicodedata.normalize("NFD", piece))
    while left and left[-1] < length + size:
      starts, ends = _places_of_piece(piece)
      while left and left[-1] < length + size:
        place = left.pop()
        inside = place - length
        origins[place] = first + starts[inside], first + ends[inside]
    length += size
    if not left:
      break
  return origins


def _starts_cluster(character: str) -> bool:
  """True where a text can be cut: NFD never reorders marks across it."""
  return not unicodedata.combining(unicodedata.normalize("NFD", character)[0])


def _pieces(text: str, size: int = 1000) -> Iterator[tuple[int, str]]:
  """Yields (first character, piece); NFD of the pieces is NFD of the text."""
  first = 0
  while first < len(text):
    end = first + size
    while end < len(text) and not _starts_cluster(text[end]):
      end += 1
    yield first, text[first:end]
    first = end


def _places_of_piece(text: str) -> tuple[list[int], list[int]]:
  """Start and end in a text of each character of its NFD."""
  starts, ends, first = [], [], 0
  for end in range(1, len(text) + 1):
    if end < len(text) and not _starts_cluster(text[end]):
      continue
    size = len(unicodedata.normalize("NFD", text[first:end]))
    starts += [first] * size
    ends += [end] * size
    first = end
  return starts, ends


def _decompose(text: str) -> str:
  return text if text.isascii() else unicodedata.normalize("NFD", text)


def _tokens_of(text: str) -> re.Pattern[str] | regex.Pattern[str]:
  """The pattern that finds the tokens of a decomposed text."""
  return _ASCII_TOKEN if text.isascii() else _TOKEN


def _joined_tokens(text: str) -> str:
  """The tokens, each between separators: a sub-list becomes a substring.

  Lower-casing the joined string equals lower-casing each token: the only
  context-dependent rule of Unicode (the final sigma) does not apply across a
  control character.
  """
  text = _decompose(text)
  pieces, first = [""], 0
  while first < len(text):
    # A piece ends at the end of a word.
    end = _WORD_REST.match(text, min(first + _BLOCK, len(text))).end()
    piece = text[first:end]
    tokens = _tokens_of(piece).findall(piece)
    if tokens:
      pieces.append(_SEPARATOR.join(tokens).lower())
    first = end
  return _SEPARATOR.join([*pieces, ""]) if len(pieces) > 1 else _SEPARATOR


@functools.lru_cache(maxsize=4096)
def _pattern(pattern: str) -> tuple[regex.Pattern[str] | None, str]:
  """(compiled pattern, ""), or (None, reason) for a pattern that is refused."""
  if len(pattern) > _LONGEST_PATTERN:
    return None, f"longer than {_LONGEST_PATTERN} characters"
  flags = regex.IGNORECASE | regex.UNICODE | regex.MULTILINE | regex.VERSION0
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # "possible nested set" and the like
      compiled = regex.compile(pattern, flags)
    empty = compiled.search("", timeout=_SECONDS)
  except TimeoutError:
    return None, "takes too long"
  except Exception:  # a bad pattern can fail anywhere in its compiler
    return None, "is not a valid pattern"
  if empty:
    return None, "matches the empty string"
  return compiled, ""
