"""The files that `dpr-jax fetch` can download, by the names typed for them.

Addresses are those of the download list of the original DPR.  A size or a hash
is that of the file as served, and is left out where none is published: those of
NaturalQuestions' and TriviaQA's files and of the passages are from ir_datasets,
those of the embeddings from the data set `wiki_dpr` of Hugging Face.
"""

import dataclasses

BASE = "https://dl.fbaipublicfiles.com/dpr"
_LICENCE = "CC BY-NC 4.0"
_LICENCE_NQ = (
  "CC BY-NC 4.0; NaturalQuestions itself has its own, nq_license/LICENSE"
)


@dataclasses.dataclass(frozen=True)
class RemoteFile:
  """A file to download.

  Attributes:
    path: where it is on the server, below `BASE`.
    to: where it goes, below the output folder; "" = its name alone.
    size: bytes; None = not published.
    digest: "sha256:..." or "md5:..."; "" = not published.
  """

  path: str
  to: str = ""
  size: int | None = None
  digest: str = ""

  @property
  def name(self) -> str:
    """Where it goes, below the output folder."""
    return self.to or self.path.rpartition("/")[2]

  def address(self, base: str = BASE) -> str:
    """Where it comes from; `base` may be a mirror."""
    return f"{base.rstrip('/')}/{self.path}"


@dataclasses.dataclass(frozen=True)
class FileSet:
  """What one name stands for.

  Attributes:
    name: the word typed after `dpr-jax fetch`.
    what: a sentence without its full stop.
    files: what is downloaded.
    use: what to type then; "{dir}" is the output folder.
    licence: of all files.
  """

  name: str
  what: str
  files: tuple[RemoteFile, ...]
  use: str
  licence: str = _LICENCE


def _retriever(name: str, size: int | None = None, digest: str = ""):
  return RemoteFile(f"data/retriever/{name}", "", size, digest)


def _checkpoint(folder: str, path: str) -> RemoteFile:
  return RemoteFile(f"checkpoint/{path}", f"{folder}/{path.rpartition('/')[2]}")


def _data(train: str, dev: str) -> str:
  """The settings of training and dev questions."""
  return f"--config.data.train={{dir}}/{train} --config.data.dev={{dir}}/{dev}"


_NQ_LICENCE_FILES = (
  RemoteFile("nq_license/LICENSE", "nq_license/LICENSE"),
  RemoteFile("nq_license/README", "nq_license/README"),
)
# Size and sha256 of data/wiki_encoded/single/nq/wiki_passages_0 to _49.
_EMBEDDINGS = """
1324693633 c277bc2ba1ef027ee86cb24b1df7015aaa32972da88d5183f6e5a9563d8705b5
1324804738 9bcfb323ccb0c0f8ed5de949287129c630bfee52738cd2ae232a52eaa6cf6faf
1325065657 c66c771b0363ceb78e19f7fdc7348159c9b4d548837b3856da5d867811f42191
1325225044 3659fccf01a2640fcc5da35161b7afb89ea669f295b7570d78678afd32c8b9b4
1325225044 be0aeb8110c57ee72c9560b857cdac192a23c56f42f1d8bcbdc89819f665b2cc
1325225044 9a108bcc265d44c93dbbbaddddc719812749dd29d9a0a28d1947de723771ab75
1325225044 eebc7349ad3fb2fd739bc88b2032767ad2b6efefb3089118a80b1218379b17fb
1325225044 be6f7e8363a6efc79c0605b8ef0fce81d786982aa0f25b57ca906301db265771
1325225044 644d4ae3a377dd863187b87cbb060790d175eecae78f19d23a63ec3f863dc38d
1325225044 5eb67cc2317a10a7a787e3557295f5403132db57d7dcb71dde3a69af7d93a51f
1325225044 321769679debd5824333cb81e2ea0337c40b9e02c2ee7ceed8eb301d5bb5b3dc
1325225044 9dccb04ce9f274907889cc1d42beb5272704b6a894bcd3548457bfe04e54e906
1325225044 ab5c1550f2fe9af15767920b9f31c7fcb3d5f5720426a2531ee6097e598589ca
1325225044 2fffbba9459d8a6800927c24bdc167ef7217807b4bab4c811dfd86f7dc3255ef
1325225044 141451e6fc8e1dfa6bb4dc0ef915b87115e933503b762991da043e180ab06a76
1325225044 638177a8ecaa6941be2e59719d59b3b5f6494e81cefd922c39168b9b4a74d92d
1325225044 d4f6b2a67938e3c86e96d7edb524d02b209e3035118ee5edd6b2214defa037a2
1325225044 695b8c287543f67e80f9f7be32f37b75ccc66113ed9e53e24dd6f764a3a99e5a
1325225044 1009ee62bdfd873a315641fead549c65b211e8fa994c72e280fecfc0d4869ac9
1325225044 a8bcc7039c26533bb7bc503d52b214459d9a8d2a3c5ccdd8fe514dfa1f41dccf
1325225044 88c92e6c8a901e5c4d87721771b490365c19ba037e35ef46d754f20179e2523a
1325225044 74cd7c267b88c226f56b163cb18935da55feba4bcf7f170aab96c92a3c305b7e
1325225044 aa636b4ee26ee8e15bd02e47ebc8be29c3417a9b2d8c464523f9758d88426c3a
1325312389 5875f08a5a07716dd0e1aa77d434e10eb2b96c46ce7e975976c8249c3ff829c2
1325645350 dbb94b01128dd54f069f4358b56139c92cd143ae2ead3bfc3a496edd10d004d4
1325645350 cc3f67bcf59df92f8138ee9ac2691f95b01c0d0d21ac7fa609cad4b80ebc889b
1325645350 8831a3070780342f281bead5822108eaed2d1af8d99806b40c2c72d5e6a82cbf
1325645350 979d2c3ead22e144a4c5f8391021b80358c5060f9535f3beab3e5a72f8a62f73
1325645350 6f8ebd342025c77bd08e36937d8e8d5e5745756854d86a89ffd41063f0c16d2d
1325645350 e2a1df59fdc22715b0826af0efeed5019d4e84c0b2542c3cc35a1cd127052705
1325645350 3a69a8de887737783b2f1289b2d849cc1d8866a27fe1627cb725aa3cd526b240
1325645350 5f707e66d0164fda1d75621ae64ccc3af97d4d07d0f1adf7de5f307128824591
1325645350 a964d6f34f461015de096790dfef229304a730cfeb47de89ba71bee47d57403d
1325645350 5c993188956e09e694b2e63f766b0af23ded9d4be74bc0776949ea3b0ab29ce2
1325645350 8dd3d1888c751a05894176040beed7ea5ef782807585816461f708766d93b71f
1325645350 51578bc9550874d455fc193830e5bada0200509516461aeff606e3e4bf173397
1325645350 ac527cd094b87d7a0feebe395e1a76d015cd816f46c0fec6b9fc6cf81a46a7bf
1325645350 70fa0fd6b2c536bf321cbcaf0a8ac9089308d30ee64dee1fc98b8d64c3a30c21
1325645350 824bce4e5f347eb101cc1e7b8ae0e6a0c826b8bc52f8bdaa9cff306291c91c03
1325645350 bd7ed88277ba3b709c0a2a4ed6e96a86ed56ab3f7be589daa90ca4853f521737
1325645350 09cc45681ff15f3351718426987e78725176d2071b4112bb728c6c633c4a4188
1325645350 2151142c79ebf73219e324632fa60b535507c530d3ad3aa1ed9482488ac96661
1325645350 fd1b1a1d714e058c5d7380e0046a51720135965a342a0d0be79e6ee8a2c07308
1325645350 8d6f525ded1df8b6b7026ee77169e1301bc032102ac1927d6485de057bbcdedd
1325645350 479d7d37ce8ff59c16a5ff8fe6c23a3e95d293c407d06afe3952c4b27f353210
1325645350 3c10f56309521ed53a7dc617e80b0030c4e2ac82273e9a4047653c09dd8bd733
1325645350 3822cfb8fc4003d31816a568426b4d8ce5ba2bada3426938d3797a7e120b7624
1325645350 c82720464b2bf32f77c11e08981a5d02e1222780fbf7104d2301e383d0716851
1325645350 5bf11344b81fb0de80c7e729d545fd9f09c34fbdb02fe5f4ae308e2572912782
1325645350 652ebd7b0528f21ee59ab90de9a6d64a4ca12e0e9e36ce02f2fac7c1ed5587bc
"""

SETS = (
  FileSet(
    "nq",
    "NaturalQuestions: training and dev questions with passages, and the"
    " questions and answers of train, dev and test",
    (
      *_NQ_LICENCE_FILES,
      _retriever(
        "biencoder-nq-train.json.gz",
        2_314_892_908,
        "md5:a1c927b5adae71388eb064329387709f",
      ),
      _retriever(
        "biencoder-nq-dev.json.gz",
        256_239_282,
        "md5:2640483dbe0df7ae29c6da419c551a80",
      ),
      _retriever("nq-train.qa.csv"),
      _retriever("nq-dev.qa.csv"),
      _retriever("nq-test.qa.csv"),
    ),
    _data("biencoder-nq-train.json.gz", "biencoder-nq-dev.json.gz"),
    _LICENCE_NQ,
  ),
  FileSet(
    "trivia",
    "TriviaQA: training and dev questions with passages, and the questions and"
    " answers of train, dev and test",
    (
      _retriever(
        "biencoder-trivia-train.json.gz",
        1_848_559_940,
        "md5:5aa4d3577c91425cd20e239ed89a252b",
      ),
      _retriever(
        "biencoder-trivia-dev.json.gz",
        207_271_749,
        "md5:d559dffe09acfe5a6370adea55b8abf2",
      ),
      _retriever("trivia-train.qa.csv.gz"),
      _retriever("trivia-dev.qa.csv.gz"),
      _retriever("trivia-test.qa.csv.gz"),
    ),
    _data("biencoder-trivia-train.json.gz", "biencoder-trivia-dev.json.gz"),
  ),
  FileSet(
    "webq",
    "WebQuestions: training and dev questions with passages, and the questions"
    " and answers of test",
    (
      _retriever("biencoder-webquestions-train.json.gz"),
      _retriever("biencoder-webquestions-dev.json.gz"),
      _retriever("webquestions-test.qa.csv"),
    ),
    _data(
      "biencoder-webquestions-train.json.gz",
      "biencoder-webquestions-dev.json.gz",
    ),
  ),
  FileSet(
    "trec",
    "CuratedTREC: training and dev questions with passages, and the questions"
    " and answers (patterns) of test",
    (
      _retriever("biencoder-curatedtrec-train.json.gz"),
      _retriever("biencoder-curatedtrec-dev.json.gz"),
      _retriever("curatedtrec-test.qa.csv"),
    ),
    _data(
      "biencoder-curatedtrec-train.json.gz",
      "biencoder-curatedtrec-dev.json.gz",
    )
    + " --match=regex",
  ),
  FileSet(
    "squad",
    "SQuAD 1.1: training and dev questions with passages, and the questions and"
    " answers of test",
    (
      _retriever("biencoder-squad1-train.json.gz"),
      _retriever("biencoder-squad1-dev.json.gz"),
      _retriever("squad1-test.qa.csv"),
    ),
    _data("biencoder-squad1-train.json.gz", "biencoder-squad1-dev.json.gz"),
  ),
  FileSet(
    "psgs_w100",
    "Wikipedia of December 2018 in 21,015,324 passages of 100 words",
    (
      RemoteFile(
        "wikipedia_split/psgs_w100.tsv.gz",
        "",
        4_694_541_059,
        "md5:612fe66e0b6b41ee28f806140226c563",
      ),
    ),
    "--config.data.passages={dir}/psgs_w100.tsv.gz",
  ),
  FileSet(
    "dpr-single-nq",
    "The paper's two towers, trained on NaturalQuestions",
    (_checkpoint("dpr-single-nq", "retriever/single/nq/hf_bert_base.cp"),),
    "--config.model.checkpoint={dir}/dpr-single-nq/hf_bert_base.cp",
  ),
  FileSet(
    "dpr-multi",
    "The paper's two towers, trained on four question sets",
    # "retriver" is the name of the folder on the server.
    (_checkpoint("dpr-multi", "retriver/multiset/hf_bert_base.cp"),),
    "--config.model.checkpoint={dir}/dpr-multi/hf_bert_base.cp",
  ),
  FileSet(
    "dpr-reader",
    "The paper's reader, trained on NaturalQuestions",
    (_checkpoint("dpr-reader", "reader/nq-single/hf_bert_base.cp"),),
    "--config.reader.checkpoint={dir}/dpr-reader/hf_bert_base.cp",
  ),
  FileSet(
    "wikipedia-embeddings",
    "The vectors of psgs_w100 from the towers of dpr-single-nq, 50 pickles",
    tuple(
      RemoteFile(
        f"data/wiki_encoded/single/nq/wiki_passages_{number}",
        f"wikipedia-embeddings/wiki_passages_{number}",
        int(line.split()[0]),
        f"sha256:{line.split()[1]}",
      )
      for number, line in enumerate(_EMBEDDINGS.split("\n")[1:-1])
    ),
    "dpr-jax import --what=embeddings --from={dir}/wikipedia-embeddings"
    " --out=VECTORS",
  ),
)
BY_NAME = {each.name: each for each in SETS}
