"""Words in the scripts of the world, and that English is as it was."""

import re
import unicodedata

import hypothesis
import pytest
from hypothesis import strategies

from dpr_jax.core import errors
from dpr_jax.data import records
from dpr_jax.retrieval import text_analysis
from tests import retrieval_world

ENGLISH = {"stopwords": "en", "stemmer": "english"}
PLAIN = {"stopwords": "", "stemmer": ""}
# By language: settings other than English ones, passages, and questions with
# the row of the passage that answers them.
WORLD = {
  "Chinese": (
    {},
    [
      "北京是中华人民共和国的首都",
      "上海有很多高楼",
      "长江流入东海",
      "他喝绿茶",
    ],
    {"北京": 0, "中国的首都在哪里": 0, "上海": 1, "东海": 2, "茶": 3},
  ),
  "Japanese": (
    {},
    [
      "日本の首都は東京です",
      "京都には古いお寺がある",
      "コーヒーを飲む",
      "猫が好き",
    ],
    {"東京": 0, "京都の寺": 1, "ｺｰﾋｰ": 2, "「猫」とは": 3},
  ),
  "Korean": (
    {},
    ["서울은 한국의 수도이다", "부산에는 항구가 있다", "물을 마신다"],
    {"서울": 0, "한국 수도": 0, "부산": 1, "물": 2},
  ),
  "Korean: stop words": (
    {"stopwords": "ko", "stemmer": ""},
    ["서울은 한국의 수도이다", "그리고 부산에는 항구가 있다"],
    {"서울": 0, "그리고 항구": 1},
  ),
  "Thai": (
    {},
    ["กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "เชียงใหม่อยู่ทางเหนือ", "ฉันดื่มน้ำชา"],
    {"กรุงเทพ": 0, "เมืองหลวง": 0, "เชียงใหม่": 1, "น้ำชา": 2},
  ),
  "Lao": (
    {},
    ["ວຽງຈັນເປັນນະຄອນຫຼວງ", "ແມ່ນ້ຳຂອງຍາວຫຼາຍ"],
    {"ວຽງຈັນ": 0, "ແມ່ນ້ຳ": 1},
  ),
  "Khmer": (
    {},
    [
      "ភ្នំពេញជារាជធានី",
      "ទន្លេ\u200bមេគង្គ\u200bវែង",
    ],  # one with spaces of no width
    {"ភ្នំពេញ": 0, "រាជ\u200bធានី": 0, "ទន្លេមេគង្គ": 1},
  ),
  "Burmese": (
    {},
    ["နေပြည်တော်သည်မြို့တော်ဖြစ်သည်", "ရန်ကုန်မြို့ကြီး"],
    {"နေပြည်တော်": 0, "ရန်ကုန်": 1},
  ),
  "Hindi": (
    {},
    ["भारत की राजधानी दिल्ली है", "गंगा एक नदी है", "मेरी माँ घर पर है"],
    {"दिल्ली": 0, "नदी": 1, "माँ": 2},
  ),
  "Hindi: stemmed": (
    {"stopwords": "", "stemmer": "hindi"},
    ["लड़कियाँ पढ़ती हैं", "गंगा एक नदी है"],
    {"लड़की": 0, "नदियों": 1, "ल\u095cकी": 0},
  ),
  "Bengali": (
    {},
    ["ঢাকা বাংলাদেশের রাজধানী", "পদ্মা একটি নদী"],
    {"ঢাকা": 0, "নদী": 1},
  ),
  "Tamil": (
    {},
    ["சென்னை தமிழ்நாட்டின் தலைநகரம்", "காவிரி ஒரு ஆறு"],
    {"சென்னை": 0, "காவிரி": 1, "தலைநகரம்": 0},
  ),
  "Arabic": (
    {},
    ["القَاهِرَةُ عَاصِمَةُ مِصْرَ", "النيل نهر طويل", "كتـــاب جديد"],
    {"القاهرة": 0, "عاصمة مصر": 0, "نَهْر": 1, "كتاب": 2},
  ),
  "Persian": (
    {},
    ["او کتاب می\u200cخواند", "تهران پایتخت ایران است"],
    {"می خواند": 0, "تهران": 1},
  ),
  "Hebrew": (
    {},
    ["שָׁלוֹם עוֹלָם", "ירושלים היא עיר"],
    {"שלום": 0, "יְרוּשָׁלַיִם": 1},
  ),
  "Turkish": (
    {"stopwords": "", "stemmer": "turkish"},
    ["İstanbul büyük bir şehirdir", "Isparta güller şehridir"],
    {"istanbul": 0, "İSTANBUL": 0, "ısparta": 1, "ISPARTA": 1},
  ),
  "Turkish: English stemmer": (
    {},
    ["İstanbul is large", "Ankara is the capital"],
    {"istanbul": 0, "ISTANBUL": 0, "Istanbul": 0, "I\u0307stanbul": 0},
  ),
  "German": (
    {"stopwords": "de", "stemmer": "german"},
    ["Die Straße nach Köln", "Der Fluss heißt Donau"],
    {"STRASSE": 0, "Ko\u0308ln": 0, "ﬂuss": 1},
  ),
  "Greek": (
    {},
    ["Η Αθήνα είναι πόλη", "Ο Όλυμπος είναι βουνό"],
    {"ΌΛΥΜΠΟΣ": 1, "Αθη\u0301να": 0},
  ),
  "Russian": (
    {"stopwords": "ru", "stemmer": "russian"},
    ["Москва стоит на реке", "Чай пьют горячим"],
    {"река Москвы": 0, "ча\u0438\u0306": 1},
  ),
  "English": (
    {},
    ["Beyonce\u0301 sings", "It is 5 km² wide", "A co\u00adoperative bank"],
    {"Beyonc\u00e9": 0, "km2": 1, "cooperative": 2, "ＢＡＮＫ": 2},
  ),
}


def _index(make_table, texts, **settings):
  passages = make_table(records.Passage("", "", text) for text in texts)
  return retrieval_world.bm25_index(passages, k1=0.9, b=0.4, **settings)


@pytest.mark.parametrize("language", WORLD)
def test_the_right_passage_comes_first(make_table, language):
  settings, texts, questions = WORLD[language]
  # Behind them stand the passages of all other languages.
  others = [
    text
    for name, row in WORLD.items()
    if name.partition(":")[0] != language.partition(":")[0]
    for text in row[1]
  ]
  index = _index(make_table, texts + others, **(settings or ENGLISH))
  rows, _ = index.search(list(questions), 3)
  assert dict(zip(questions, rows[:, 0].tolist(), strict=True)) == questions


def _words(text, **settings):
  return text_analysis.Splitter(**(PLAIN | settings)).words(text)


WORDS = [
  ("日本の首都", ["日本", "本の", "の首", "首都"]),
  ("ガ\u30ab\u3099", ["ガガ"]),  # a mark of its own is composed
  ("iPhone手机2020年", ["iphone", "手机", "2020", "年"]),
  ("พ.ศ. ๒๕๖๓", ["พ", "ศ", "๒๕๖๓"]),
  ("รู้จัก", ["รู้จั", "จัก"]),  # a character has its marks with it
  ("葛\U000e0100城", ["葛城"]),  # the form of a character is not its meaning
  ("한국어", ["한국", "국어"]),
  ("\u1112\u1161\u11ab\u1100\u116e\u11a8", ["한국"]),
  ("10² 10½ km² x²", ["10", "10", "km2", "x2"]),
  ("\u0301 \u0301x", []),  # a mark without a letter is no word
  ("1\ufe0f\u20e3 ❤\ufe0f", []),
  ("a\u0330b", ["a\u0330b"]),
  ("क्\u200dष क्ष", ["क्ष", "क्ष"]),  # a joiner changes the looks alone
  ("می\u200cخواند", ["می", "خواند"]),
  ("J\u030cX \u01f0x", ["\u01f0x", "\u01f0x"]),
  ("Ⅷ ﬁn ㎏", ["viii", "fin", "kg"]),
  ("1\u0a36 1ﬁ", ["1\u0a38\u0a3c", "1fi"]),  # no power, though NFKC changes it
  ("a\u02c7b", ["a\u02c7b"]),  # a tone, of Bopomofo too
]


@pytest.mark.parametrize(("text", "words"), WORDS)
def test_words_of_a_question(text, words):
  assert _words(text) == words


def test_a_single_character_is_looked_for_in_bigrams(make_table):
  """Only where a question has nothing else; passages with more come first."""
  texts = ["他喝绿茶", "茶馆里的茶叶和茶具", "猫", "喝水"]
  index = _index(make_table, texts, **ENGLISH)
  rows, _ = index.search(["茶", "猫", "茶 喝水", "的", "犬"], 3)
  assert rows.tolist() == [
    [1, 0, -1],
    [2, -1, -1],
    [3, -1, -1],
    [1, -1, -1],
    [-1, -1, -1],
  ]


def test_words_of_one_letter_are_a_setting(make_table):
  texts = ["the C language", "Vitamin K is fat-soluble", "the B side"]
  kept = _index(make_table, texts, **ENGLISH, one_letter_words=True)
  rows, _ = kept.search(["C", "K", "b"], 1)
  assert rows.tolist() == [[0], [1], [2]]
  rows, _ = _index(make_table, texts, **ENGLISH).search(["C", "K", "b"], 1)
  assert rows.tolist() == [[-1], [-1], [-1]]


def test_stop_words_go_in_every_form():
  words = _words("Ulm été, e\u0301te\u0301, ÉTÉ", stopwords="fr")
  assert words == ["ulm"]
  assert _words("그리고 서울", stopwords="ko") == ["서울"]
  assert _words("一切 北京", stopwords="zh") == ["北京"]


@hypothesis.given(strategies.text(strategies.characters(max_codepoint=127)))
def test_ascii_words_are_runs_of_two_characters_or_more(text):
  assert _words(text) == re.findall(r"\b\w\w+\b", text.lower())
  every = _words(text, one_letter_words=True)
  assert every == re.findall(r"\w+", text.lower())


@hypothesis.given(
  strategies.text(strategies.characters(max_codepoint=0x2BFF)),
  strategies.booleans(),
)
@hypothesis.example("\u00b4a \u037aa \u00bda", True)
def test_the_short_cut_gives_the_same_words(text, single):
  """A Chinese word behind a text makes it take the long way."""
  settings = {"one_letter_words": single}
  assert _words(text + " 中", **settings) == [*_words(text, **settings), "中"]


@hypothesis.given(strategies.text())
def test_the_encoding_of_letters_makes_no_difference(text):
  forms = [unicodedata.normalize(f, text) for f in ("NFC", "NFD")]
  assert _words(forms[0]) == _words(forms[1]) == _words(text)


def test_unknown_names_are_refused():
  with pytest.raises(errors.InputError, match="config.bm25.stemmer='x'"):
    text_analysis.Splitter(stopwords="", stemmer="x")
  with pytest.raises(errors.InputError, match="config.bm25.stopwords='x'"):
    text_analysis.Splitter(stopwords="x", stemmer="")
