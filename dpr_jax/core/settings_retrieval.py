"""Settings of mining, vectors, indexes, retrieval and evaluation."""

from dpr_jax.core.setting import Setting, section

METHODS = ("bm25", "dense", "dense-start", "exact", "hybrid")
STEMMERS = (
  *("", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch"),
  *("dutch_porter", "english", "esperanto", "estonian", "finnish", "french"),
  *("german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian"),
  *("lithuanian", "nepali", "norwegian", "persian", "polish", "porter"),
  *("portuguese", "romanian", "russian", "serbian", "sesotho", "spanish"),
  *("swedish", "tamil", "turkish", "yiddish"),
)
STOPWORDS = (
  *("", "en", "english", "en_plus", "english_plus", "de", "german", "nl"),
  *("dutch", "fr", "french", "es", "spanish", "pt", "portuguese", "it"),
  *("italian", "ru", "russian", "sv", "swedish", "no", "norwegian", "zh"),
  *("chinese", "tr", "turkish", "ko", "korean", "da", "danish"),
)
_SEARCH = ("index", "retrieve")
_ENCODE = ("embed", "index", "retrieve", "train")

BM25 = section(
  "bm25",
  ("mine", "retrieve"),
  [
    Setting("k1", 0.9, "how soon repeated words stop to count", least=0),
    Setting("b", 0.4, "how much long passages are held back", least=0, most=1),
    Setting(
      "stemmer", "english", 'a Snowball name, "" for none', choices=STEMMERS
    ),
    Setting("stopwords", "en", 'a bm25s list, "" for none', choices=STOPWORDS),
    Setting("one_letter_words", False, "words of one letter count: vitamin C"),
  ],
)

MINE = section(
  "mine",
  ("mine", "train"),
  [
    Setting("depth", 100, "searched for hard negatives", "passages", least=1),
    Setting("keep", 30, "hard negatives per question", "passages", least=1),
  ],
)

EMBED = section(
  "embed",
  ("embed", "train"),
  [
    Setting(
      "rows_per_shard",
      50_000,
      "of a file",
      "vectors",
      least=1,
      when=("the corpus is embedded",),
    ),
    Setting(
      "dtype",
      "float32",
      "of the vectors on disk",
      choices=("float32", "float16", "bfloat16"),
      when=("the corpus is embedded",),
    ),
    Setting(
      "shapes",
      12,
      "widths that a corpus's passages are padded to, at most",
      "widths",
      least=1,
      when=("the corpus is embedded",),
    ),
    Setting(
      "tokens_per_core",
      0,
      "encoded at once on a core; 0 = as fits the device",
      "tokens",
      least=0,
      stages=(*_ENCODE, "plan"),
    ),
    Setting(
      "length_step",
      32,
      "questions etc. are padded to a multiple of it",
      "tokens",
      least=1,
      stages=_ENCODE,
    ),
  ],
)

INDEX = section(
  "index",
  ("index",),
  [
    Setting(
      "factory",
      "Flat",
      'a FAISS factory string, or "dpr" (the paper\'s HNSW)',
      stages=("index", "retrieve", "mine"),
    ),
    Setting(
      "threads",
      0,
      "that build and search use; 0 = all",
      "threads",
      least=0,
      stages=_SEARCH,
    ),
    Setting(
      "train_sample",
      262_144,
      "that quantisers learn from, at most",
      "vectors",
      least=1,
      when=("index.factory learns from vectors",),
    ),
    Setting(
      "ef_construction",
      200,
      "HNSW: neighbours looked at while building",
      "vectors",
      least=1,
      when=("index.factory has HNSW, and is not dpr",),
    ),
    Setting(
      "ef_search",
      0,
      "HNSW: neighbours looked at; 0 = as the index's manifest says",
      "vectors",
      least=0,
      stages=(*_SEARCH, "mine"),
      when=("index.factory has HNSW",),
    ),
    Setting(
      "nprobe",
      0,
      "IVF: lists searched; 0 = as the index's manifest says",
      "lists",
      least=0,
      stages=(*_SEARCH, "mine"),
      when=("index.factory has IVF",),
    ),
    Setting(
      "refine_factor",
      0.0,
      "Refine: hits looked at per hit; 0 = as the index's manifest says",
      "hits",
      least=0,
      stages=(*_SEARCH, "mine"),
      when=("index.factory has Refine",),
    ),
    Setting(
      "rescore",
      True,
      "hits of a compressed index are scored by their own vectors",
      stages=("retrieve",),
      when=("index.factory compresses",),
    ),
    Setting(
      "mmap", True, "vectors stay in the file, where FAISS can", stages=_SEARCH
    ),
    Setting(
      "shards", 1, "index files, each of a range of rows", "files", least=1
    ),
    Setting(
      "memory_gb",
      0.0,
      "that a build may take; 0 = what is free",
      "GB",
      least=0,
      when=("index.allow_too_large is False",),
    ),
    Setting("allow_too_large", False, "build what is predicted not to fit"),
    Setting(
      "recall_questions",
      500,
      "of the dev set, for recall and speed; 0 = they are not measured",
      "questions",
      least=0,
    ),
    Setting(
      "recall_target",
      0.98,
      "recall@20 that `index --tune` looks for",
      least=0,
      most=1,
    ),
  ],
  when=("an index is used",),
)

RETRIEVE = section(
  "retrieve",
  ("retrieve",),
  [
    Setting(
      "methods",
      ("bm25", "dense"),
      '"dense-start": towers untrained; "exact": on the cores, without an'
      ' index; "hybrid": bm25 and dense together, see `fusion`',
      item=str,
      choices=METHODS,
      filled=True,
      stages=("embed", "index", "retrieve"),
    ),
    Setting("depth", 100, "per question", "passages", least=1),
    Setting("pyserini", False, "also in Pyserini's format"),
  ],
)

EXACT = section(
  "exact",
  ("retrieve",),
  [
    Setting(
      "storage",
      "float32",
      '"bfloat16": half of the memory, hits are scored again',
      choices=("float32", "bfloat16"),
    ),
    Setting("approximate", False, "lax.approx_max_k: on a TPU"),
    Setting(
      "recall_target",
      0.95,
      "of `approximate`",
      above=0,
      most=1,
      when=("exact.approximate is True",),
    ),
    Setting(
      "core_gb",
      4.0,
      "of each core's memory, for vectors; more are streamed",
      "GB",
      least=0,
    ),
  ],
  when=("the method exact is used",),
)

FUSION = section(
  "fusion",
  ("retrieve",),
  [
    Setting(
      "method",
      "linear",
      'scores as they are (paper), "minmax" (Pyserini), "reciprocal" (ranks)',
      choices=("linear", "minmax", "reciprocal"),
    ),
    Setting(
      "weight",
      1.1,
      "of dense; negative: as `retrieve --tune` stored it",
    ),
    Setting("depth", 2000, "hits of each that are joined", "passages", least=1),
    Setting(
      "rank_constant",
      60,
      'of "reciprocal": 1 / (it + rank)',
      "ranks",
      least=0,
      when=("fusion.method is reciprocal",),
    ),
  ],
  when=("the method hybrid is used",),
)

EVALUATE = section(
  "evaluate",
  ("evaluate",),
  [
    Setting(
      "match",
      "string",
      'how answers are looked for in a passage; "regex": they are patterns',
      choices=("string", "regex"),
      stages=("mine", "train", "retrieve", "train-reader", "evaluate"),
    ),
    Setting(
      "ranks",
      (1, 5, 20, 100),
      "the k of top-k",
      "passages",
      item=int,
      least=1,
      filled=True,
      stages=("evaluate", "train"),
    ),
    Setting(
      "drop_self",
      "auto",
      "of judged measures: drop the hit that is the question itself, by its"
      ' id; "auto": where questions have ids of their own, as BEIR does',
      choices=("auto", "on", "off"),
    ),
  ],
)

PLAN = section(
  "plan",
  ("plan",),
  [
    Setting(
      "train_questions",
      58_880,
      "reckoned with; NaturalQuestions as DPR trains on it",
      "questions",
      least=1,
    ),
    Setting(
      "passages",
      21_015_324,
      "reckoned with; Wikipedia in blocks of 100 words",
      "passages",
      least=1,
    ),
  ],
)
