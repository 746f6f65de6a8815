"""The has_answer rule of docs/formats: tokens, contiguity, regexes."""

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies

from dpr_jax.data import answer_matching

E_ACUTE = "\u00e9"  # one character; NFD makes two of it
PARIS = "The capital of France is Paris."


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("", []),
    ("  \t\n\u00a0\u2003\u2028", []),
    ("Paris is Big", ["paris", "is", "big"]),
    ("U.S.A.", ["u", ".", "s", ".", "a", "."]),
    ("1,000.5%", ["1", ",", "000", ".", "5", "%"]),
    ("well-known", ["well", "-", "known"]),
    ("O'Brien\u2019s", ["o", "'", "brien", "\u2019", "s"]),
    ("snake_case", ["snake", "_", "case"]),
    ("a--b", ["a", "-", "-", "b"]),
    ("B2B 4th \u00bd \u2163", ["b2b", "4th", "\u00bd", "\u2173"]),
    (f"caf{E_ACUTE}", ["cafe\u0301"]),
    ("\u6771\u4eac\u90fd", ["\u6771\u4eac\u90fd"]),
    ("\u6771\u4eac\u3001\u5927", ["\u6771\u4eac", "\u3001", "\u5927"]),
    ("\uac00", ["\u1100\u1161"]),  # Hangul is decomposed too
    (
      "\u0939\u093f\u0928\u094d\u0926\u0940",
      ["\u0939\u093f\u0928\u094d\u0926\u0940"],
    ),
    ("a\u200bb", ["a", "b"]),  # zero width space: \p{Cf}, splits
    ("a\u00adb", ["a", "b"]),  # soft hyphen: \p{Cf}
    ("a\u0000b\u0007", ["a", "b"]),
    ("a\ud800b", ["a", "b"]),  # a lone surrogate is \p{Cs}
    ("a\U000e0000b\ue000", ["a", "b"]),  # unassigned, private use
    ("\U0001f600\U0001f600", ["\U0001f600", "\U0001f600"]),
    ("10\u20ac", ["10", "\u20ac"]),
    ("\u0301", ["\u0301"]),  # a mark alone is a token
    ("\u0130", ["i\u0307"]),
    ("\u039f\u0394\u039f\u03a3 \u03a3", ["\u03bf\u03b4\u03bf\u03c2", "\u03c3"]),
    ("\ufb01n", ["\ufb01n"]),  # NFD is canonical: ligatures stay
    ("\u212b", ["a\u030a"]),  # Angstrom sign
  ],
)
def test_answer_tokens(text, tokens):
  assert answer_matching.answer_tokens(text) == tokens


@pytest.mark.parametrize(
  ("answer", "text", "expected"),
  [
    ("Paris", PARIS, True),
    ("paris", "PARIS", True),
    ("capital of France", PARIS, True),
    ("France capital", PARIS, False),
    ("capital France", PARIS, False),  # not contiguous
    ("Paris .", PARIS, True),  # white space means nothing
    ("Pari", PARIS, False),  # partial words do not match
    ("aris", PARIS, False),
    ("ran", PARIS, False),
    ("1, 2", "11, 25", False),
    ("1, 2", "11, 1,2", True),
    ("1,000", "about 1,000 men", True),
    ("1,000", "about 1000 men", False),
    ("1000", "about 1,000 men", False),
    ("000", "about 1,000 men", True),  # a token of its own
    ("2", "1.2", True),
    ("2", "12", False),
    ("well-known", "a well - known man", True),
    ("well known", "a well-known man", False),
    ("O'Brien", "o'brien's", True),
    ("O'Brien", "O\u2019Brien", False),  # apostrophes stay what they are
    ("new york", "in New\nYork City", True),
    ("new york", "in New \u2028\u00a0 York", True),
    ("new york", "in New\u200bYork", True),
    ("newyork", "in New\u200bYork", False),
    (f"Beyonc{E_ACUTE}", "Beyonce\u0301 sang", True),
    ("Beyonce\u0301", f"Beyonc{E_ACUTE} sang", True),
    ("Beyonce", f"Beyonc{E_ACUTE} sang", False),  # accents are kept
    (f"Beyonc{E_ACUTE}", "Beyonce sang", False),
    ("\u6771\u4eac", "\u6771\u4eac\u90fd", False),  # runs are not split
    ("\u6771\u4eac", "\u6771\u4eac\u3001\u5927\u962a", True),
    ("\u5927\u962a", "\u6771\u4eac\u3001\u5927\u962a", True),
    ("$5", "costs $ 5", True),
    ("C++", "in C++ and C", True),
    ("C++", "in C+ + and C", True),
    ("C++", "in C+", False),
    (".", "a.b", True),
    ("the answer is longer than this", "the answer", False),
    ("a", "", False),
    ("", "", False),
    ("", "anything", False),
    (" \u200b\n", "anything", False),
    ("a b", "a a b", True),
    ("a a b", "a b a a", False),
    ("a b a", "a b b a b a", True),
    ("STRASSE", "stra\u00dfe", False),  # lower case, not case folding
    (".*", PARIS, False),  # no patterns in string matching
  ],
)
def test_string_match(answer, text, expected):
  assert answer_matching.has_answer([answer], text) is expected


def test_any_answer_is_enough():
  assert answer_matching.has_answer(["Lyon", "", "Paris"], PARIS)
  assert not answer_matching.has_answer(["Lyon", "", "Nice"], PARIS)
  assert not answer_matching.has_answer([], PARIS)


@pytest.mark.parametrize("empty", ["", " ", "\u200b", "\u0000"])
def test_answer_without_tokens_matches_everything_only_with_compat(empty):
  for text in (PARIS, ""):
    assert not answer_matching.has_answer([empty], text)
    assert answer_matching.has_answer([empty], text, compat=True)
  assert not answer_matching.has_answer(["Lyon"], PARIS, compat=True)
  assert not answer_matching.has_answer([], PARIS, compat=True)


@pytest.mark.parametrize(
  ("pattern", "text", "expected"),
  [
    ("par[ix]s", PARIS, True),
    ("^the", PARIS, True),
    ("^capital", PARIS, False),
    ("^capital", "The\ncapital", True),  # MULTILINE
    ("the$", "the\ncapital", True),
    ("ari", PARIS, True),  # characters, not tokens
    ("capital.france", "capital\nfrance", False),  # no DOTALL
    (f"beyonc{E_ACUTE}", "BEYONCE\u0301", True),
    ("beyonce\u0301", f"Beyonc{E_ACUTE}", True),
    (r"\u00c9", E_ACUTE, False),  # the text is decomposed, the escape is not
    ("(", "(", False),  # invalid
    ("*", "*", False),
    ("[", "[", False),
    ("a{99999999999999999999}", "a", False),
    ("[[a]", "[", True),  # warns in Python, here it must not
    ("", "anything", False),  # it says nothing
    ("x*", "anything", False),
    (r"\b", "anything", False),
    (r"\bany|x*", "anything", False),
    (r"(?=any)|thing", "anything", True),
    (r"\p{Lu}lm", "Ulm", True),
    (r"\p{Nd}{4}", "in 1990", True),
    ("(a+)+$", "a" * 40 + "!", False),  # would take for ever
    ("(a+)+$", "a" * 40, True),
  ],
)
def test_regex_match(pattern, text, expected):
  assert answer_matching.has_answer([pattern], text, match="regex") is expected


def test_invalid_regex_does_not_hide_a_valid_one():
  assert answer_matching.has_answer(["(", "paris"], PARIS, match="regex")


def test_unknown_match_is_refused():
  with pytest.raises(ValueError, match="match='fuzzy': must be one of string"):
    answer_matching.has_answer(["a"], "a", match="fuzzy")


def _plain_has_answer(wanted, text):
  """The rule word by word, slowly."""
  tokens = answer_matching.answer_tokens(text)
  for answer in wanted:
    part = answer_matching.answer_tokens(answer)
    for start in range(len(tokens) - len(part) + 1):
      if part and tokens[start : start + len(part)] == part:
        return True
  return False


# Few characters, so that answers do occur; every class of the rule among them.
_TEXT = strategies.text(
  alphabet="aAb1 ,.'-\n\u200b\u0301\u00e9\u03a3\u0391\u6771\u0130\ud800",
  max_size=12,
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
  questions=strategies.lists(strategies.lists(_TEXT, max_size=3), max_size=4),
  texts=strategies.lists(_TEXT | strategies.text(max_size=8), max_size=5),
  cache_size=strategies.integers(0, 3),
)
def test_matcher_equals_the_plain_rule(questions, texts, cache_size):
  matcher = answer_matching.AnswerMatcher(cache_size=cache_size)
  for wanted in questions:
    expected = [_plain_has_answer(wanted, text) for text in texts]
    assert matcher.hits(wanted, range(len(texts)), texts) == expected
    assert [
      answer_matching.has_answer(wanted, text) for text in texts
    ] == expected
    for key, text in enumerate(texts):
      assert matcher.has_answer(wanted, key, text) == expected[key]


@hypothesis.given(text=strategies.text(max_size=30))
def test_normal_form_and_case_do_not_matter(text):
  tokens = answer_matching.answer_tokens(text)
  for form in ("NFC", "NFD"):
    assert (
      answer_matching.answer_tokens(unicodedata.normalize(form, text)) == tokens
    )
  if tokens:
    assert answer_matching.has_answer([text], f"before {text} after")


def test_matcher_caches_by_key_and_forgets_the_oldest():
  matcher = answer_matching.AnswerMatcher(cache_size=2)
  assert matcher.has_answer(["a"], 0, "a")
  assert matcher.has_answer(["a"], 0, "the text of a known key is not read")
  # Texts with the letters of an answer are tokenised and kept, others not.
  matcher.hits(["a"], [1, 2], ["b", "c"])
  assert matcher.has_answer(["a"], 0, "b")
  matcher.hits(["a"], [1, 2], ["ab", "ac"])
  assert not matcher.has_answer(["a"], 0, "b")  # 0 was the oldest


def test_a_single_string_is_not_a_list_of_answers():
  with pytest.raises(TypeError, match="must be a list"):
    answer_matching.AnswerMatcher().hits("Paris", [0], [PARIS])


TEXTS = strategies.text(
  alphabet=strategies.sampled_from(
    [
      *"aAbB \n.-,\u0301\u0327\u00e9\u00c5\u212b\u0344\u0f73",
      *"\u0130\u03a3\u03c2\uac00\u00df\u2060",
    ]
  ),
  max_size=24,
)


@hypothesis.given(text=TEXTS, accepted=strategies.lists(TEXTS, max_size=3))
def test_spans_are_there_where_there_is_an_answer(text, accepted):
  """In characters of the text itself, whatever marks and forms it has."""
  spans = answer_matching.answer_spans(accepted, text)
  assert bool(spans) == answer_matching.has_answer(accepted, text)
  wanted = [answer_matching.answer_tokens(answer) for answer in accepted]
  for start, end in spans:
    assert 0 <= start < end <= len(text)
    found = answer_matching.answer_tokens(text[start:end])
    # A mark may stand on punctuation, and then comes with it.
    assert any(" ".join(one) in " ".join(found) for one in wanted if one)


def test_spans_of_the_original_text():
  text = "Zu\u0308rich, Z\u00fcrich or ZURICH; U.S. and u.s."
  spans = answer_matching.answer_spans(["z\u00fcrich", "U.S."], text)
  assert [text[start:end] for start, end in spans] == [
    *("Zu\u0308rich", "Z\u00fcrich"),
    *("U.S.", "u.s."),
  ]
  assert answer_matching.answer_spans(["richo"], text) == []
  found = answer_matching.answer_spans([r"z.{1,2}rich|("], text, match="regex")
  assert found == []  # an invalid pattern
  found = answer_matching.answer_spans([r"zu.rich", "x*"], text, match="regex")
  assert [text[start:end] for start, end in found] == [
    *("Zu\u0308rich", "Z\u00fcrich"),
  ]


def test_the_rule_rests_on_spaces_between_words():
  """In scripts without spaces patterns find answers, and strings do not."""
  for answer, text in (
    ("\u5317\u4eac", "\u5317\u4eac\u662f\u9996\u90fd"),  # Chinese
    ("\uc11c\uc6b8", "\uc11c\uc6b8\uc740 \uc218\ub3c4"),  # Korean
    (
      "\u0e44\u0e17\u0e22",
      "\u0e1b\u0e23\u0e30\u0e40\u0e17\u0e28\u0e44\u0e17\u0e22",
    ),  # Thai
  ):
    assert not answer_matching.has_answer([answer], text)
    assert answer_matching.has_answer([answer], text, match="regex")
