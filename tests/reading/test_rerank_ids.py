"""Questions with ids of their own, reordered by the reader."""

import copy
import dataclasses
import json

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import reader_model
from dpr_jax.reading import read as read_lib
from dpr_jax.reading import rerank


def test_reranked_questions_keep_their_ids(tiny_config, tmp_path, monkeypatch):
  config = copy.deepcopy(tiny_config)
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap = 8
  config.read.tokens_per_core, config.read.length_step = 128, 64
  reader = dataclasses.replace(reader_model.start(config), ranks=True)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: reader)
  place = workdir_lib.Workdir(tmp_path)
  path = place.results("dev", "bm25")
  path.parent.mkdir(parents=True)
  hits = [{"id": str(n), "text": "Ulm", "score": "1.0"} for n in range(2)]
  row = {"question": "Which city?", "answers": [], "ctxs": hits}
  path.write_text(json.dumps([row, row | {"ctxs": []}]))
  name = path.with_suffix(".manifest.json").name
  stage = workdir_lib.Stage("retrieve", path.parent, {}, {}, name)
  files = {path.name: workdir_lib.fingerprint_file(path)}
  beside = {"match": "string", "depth": 2, "gold": [[], []]}
  stage.finish({}, files=files, ids=["q 7", "q8"], **beside)
  rerank.rerank(config, place, name="dev", method="bm25")
  path = place.results("dev", "bm25-reader")
  run = path.with_suffix(".trec").read_text().splitlines()
  assert [line.split()[0] for line in run] == ["q_7", "q_7"]
  manifest = json.loads(path.with_suffix(".manifest.json").read_text())
  assert manifest["ids"] == ["q 7", "q8"]
