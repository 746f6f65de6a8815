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
    Setting(
      "k1",
      0.9,
      "saturation of term frequency: repeated words count more with larger k1",
      least=0,
    ),
    Setting(
      "b",
      0.4,
      "length normalization: 0 = none, 1 = in full proportion",
      least=0,
      most=1,
    ),
    Setting(
      "stemmer", "english", 'Snowball stemmer; "" = none', choices=STEMMERS
    ),
    Setting(
      "stopwords", "en", 'stopword list of bm25s; "" = none', choices=STOPWORDS
    ),
    Setting("one_letter_words", False, "index words of one letter: vitamin C"),
  ],
)

MINE = section(
  "mine",
  ("mine", "train"),
  [
    Setting(
      "depth",
      100,
      "retrieved passages per question to mine from",
      "passages",
      least=1,
    ),
    Setting(
      "keep", 30, "hard negatives kept per question", "passages", least=1
    ),
    Setting(
      "range_min",
      0,
      "best ranks that are left out; less than `mine.depth`",
      "ranks",
      least=0,
    ),
    Setting(
      "max_score",
      "none",
      "largest score of a hard negative, on the ranker's scale",
      words=("none",),
    ),
    Setting(
      "min_score",
      "none",
      "smallest score of a hard negative, on the ranker's scale",
      words=("none",),
    ),
    Setting(
      "absolute_margin",
      "none",
      "a hard negative scores at least this much less than the question's best"
      " positive",
      least=0,
      words=("none",),
    ),
    Setting(
      "relative_margin",
      "none",
      "as `mine.absolute_margin`, in proportion to the positive's score: 0.05 ="
      " at most 95 % of it",
      least=0,
      most=1,
      words=("none",),
    ),
    Setting(
      "sampling",
      "top",
      'which of the passages that remain are kept: "top": the best, "random":'
      ' any, "score": drawn, those with a higher score more often',
      choices=("top", "random", "score"),
    ),
  ],
)

EMBED = section(
  "embed",
  ("embed", "train"),
  [
    Setting(
      "rows_per_shard",
      50_000,
      "rows per vector file",
      "vectors",
      least=1,
      when=("the corpus is embedded",),
    ),
    Setting(
      "dtype",
      "float32",
      "dtype of the vectors on disk",
      choices=("float32", "float16", "bfloat16"),
      when=("the corpus is embedded",),
    ),
    Setting(
      "backend",
      "jax",
      'what encodes the corpus: "jax" on the devices; "onnx-int8": ONNX Runtime'
      " on the CPUs with weights in 8 bits, which needs the extra onnx",
      choices=("jax", "onnx-int8"),
      stages=("embed",),
      when=("the corpus is embedded",),
    ),
    Setting(
      "shapes",
      12,
      "number of different lengths that passages are padded to, at most",
      "lengths",
      least=1,
      when=("the corpus is embedded",),
    ),
    Setting(
      "tokens_per_core",
      0,
      "tokens encoded at once per device; 0 = as fits the device",
      "tokens",
      least=0,
      stages=(*_ENCODE, "plan"),
    ),
    Setting(
      "length_step",
      32,
      "questions and other texts are padded to a multiple of it",
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
      'FAISS factory string, or "dpr" (the paper\'s HNSW)',
      stages=("index", "retrieve", "mine"),
    ),
    Setting(
      "backend",
      "",
      'search engine that holds the vectors instead: "milvus:URI",'
      ' "qdrant:URI" or "lancedb:PATH", with #COLLECTION; "" = a FAISS index',
      stages=_SEARCH,
    ),
    Setting(
      "threads",
      0,
      "CPU threads of build and search; 0 = all",
      "threads",
      least=0,
      stages=_SEARCH,
    ),
    Setting(
      "train_sample",
      262_144,
      "vectors that quantizers are trained on, at most",
      "vectors",
      least=1,
      when=("index.factory learns from vectors",),
    ),
    Setting(
      "ef_construction",
      200,
      "HNSW: candidate list while building",
      "vectors",
      least=1,
      when=("index.factory has HNSW, and is not dpr",),
    ),
    Setting(
      "ef_search",
      0,
      "HNSW: candidate list while searching; 0 = that of the index's manifest",
      "vectors",
      least=0,
      stages=(*_SEARCH, "mine"),
      when=("index.factory has HNSW",),
    ),
    Setting(
      "nprobe",
      0,
      "IVF: lists searched; 0 = that of the index's manifest",
      "lists",
      least=0,
      stages=(*_SEARCH, "mine"),
      when=("index.factory has IVF",),
    ),
    Setting(
      "refine_factor",
      0.0,
      "Refine: candidates per hit; 0 = that of the index's manifest",
      "hits",
      least=0,
      stages=(*_SEARCH, "mine"),
      when=("index.factory has Refine",),
    ),
    Setting(
      "rescore",
      True,
      "score hits of a compressed index again with the stored vectors",
      stages=("retrieve",),
      when=("index.factory compresses",),
    ),
    Setting(
      "mmap",
      True,
      "memory-map the index file instead of loading it, if FAISS can",
      stages=_SEARCH,
    ),
    Setting(
      "shards",
      1,
      "number of index files, each of a range of rows",
      "files",
      least=1,
    ),
    Setting(
      "memory_gb",
      0.0,
      "memory that a build may use; 0 = the free memory",
      "GB",
      least=0,
      when=("index.allow_too_large is False",),
    ),
    Setting(
      "allow_too_large",
      False,
      "build even if the index is predicted not to fit into memory",
    ),
    Setting(
      "recall_questions",
      500,
      "dev questions to measure recall and speed with; 0 = not measured",
      "questions",
      least=0,
    ),
    Setting(
      "recall_target",
      0.98,
      "recall@20 that `index --tune` aims for",
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
      'retrieval methods; "dense-start": towers before training; "exact": on'
      ' the devices, without an index; "hybrid": bm25 and dense fused, see'
      " `fusion`",
      item=str,
      choices=METHODS,
      filled=True,
      stages=("embed", "index", "retrieve"),
    ),
    Setting("depth", 100, "passages per question", "passages", least=1),
    Setting("pyserini", False, "also write results in Pyserini's format"),
  ],
)

EXACT = section(
  "exact",
  ("retrieve",),
  [
    Setting(
      "storage",
      "float32",
      'dtype of vectors in device memory; "bfloat16": half of the memory, hits'
      " are scored again in float32",
      choices=("float32", "bfloat16"),
    ),
    Setting(
      "approximate", False, "use lax.approx_max_k, which is faster on a TPU"
    ),
    Setting(
      "recall_target",
      0.95,
      "recall that `approximate` aims for",
      above=0,
      most=1,
      when=("exact.approximate is True",),
    ),
    Setting(
      "core_gb",
      4.0,
      "memory for vectors per device; the rest is streamed",
      "GB",
      least=0,
    ),
  ],
  when=("the method exact is used",),
)

FUSION = section(
  "fusion",
  ("retrieve", "mine"),
  [
    Setting(
      "method",
      "linear",
      'fusion of BM25 and dense: "linear": sum of scores (paper), "minmax": of'
      ' normalized scores (Pyserini), "reciprocal": of reciprocal ranks',
      choices=("linear", "minmax", "reciprocal"),
    ),
    Setting(
      "weight",
      1.1,
      "weight of dense; negative: the weight that `retrieve --tune` stored",
    ),
    Setting(
      "depth",
      2000,
      "hits of each method that are fused",
      "passages",
      least=1,
    ),
    Setting(
      "rank_constant",
      60,
      'c in 1 / (c + rank) of "reciprocal"',
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
      'how answers are matched in passages; "regex": answers are patterns',
      choices=("string", "regex"),
      stages=("mine", "train", "retrieve", "train-reader", "evaluate"),
    ),
    Setting(
      "ranks",
      (1, 5, 20, 100),
      "values of k for top-k",
      "passages",
      item=int,
      least=1,
      filled=True,
      stages=("evaluate", "train"),
    ),
    Setting(
      "drop_self",
      "auto",
      "for measures with judgements: drop the hit whose id is the question's;"
      ' "auto": if questions have ids, as in BEIR',
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
      "assumed training questions; default: Natural Questions as in DPR",
      "questions",
      least=1,
    ),
    Setting(
      "passages",
      21_015_324,
      "assumed corpus; default: Wikipedia in blocks of 100 words",
      "passages",
      least=1,
    ),
    Setting(
      "lengths",
      "",
      "JSON file with the number of training questions and passages of each"
      ' length in tokens, {"questions": {"9": 120}, "passages": {"134": 80}};'
      ' "": those of the token store of `--workdir`, or full length',
      path=True,
    ),
  ],
)
