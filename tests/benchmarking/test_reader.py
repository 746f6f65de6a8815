"""`bench reader`: both sides learn from the same, and are read alike.

Torch is an extra (`bench`): without it these tests skip and say so.
"""

import copy
import json

import pytest

from dpr_jax.benchmarking import reader as bench
from dpr_jax.benchmarking import transformers_reader_peer as peer_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib

LONG = " ".join("abcdefghijklmnopqrstuvwxyz" * 3)


@pytest.fixture
def config(tiny_config, tmp_path):
  texts = ["The city of Ulm is old.", f"{LONG} and Ulm", "Was Ulm a town?"]
  paragraphs = [
    {
      "context": text,
      "qas": [
        {
          "id": str(number),
          "question": "Which city?",
          "answers": [{"text": "Ulm", "answer_start": text.index("Ulm")}],
        }
      ],
    }
    for number, text in enumerate(texts * 4)
  ]
  path = tmp_path / "squad.json"
  data = [{"title": "T", "paragraphs": paragraphs}]
  path.write_text(json.dumps({"data": data}))
  config = copy.deepcopy(tiny_config)
  reader = config.reader
  reader.train = reader.dev = str(path)
  reader.length, reader.question_length, reader.overlap = 64, 16, 8
  reader.passages, reader.batch_size, reader.max_steps = 1, 8, 2
  reader.dev_questions, reader.dropout = 3, 0.0
  config.read.length_step = 64
  return config


@pytest.mark.compiles
def test_contest(config, tmp_path, capsys):
  pytest.importorskip("torch", reason="no torch: extra `bench`")
  report = bench.bench(
    config, workdir_lib.Workdir(tmp_path), json_file=str(tmp_path / "r.json")
  )
  assert set(report["seconds"]) == {"dpr-jax", "transformers"}
  assert len(report["speedup"]["pairs"]) == 2
  for scores in report["scores"].values():
    assert scores["dev_questions"] == 3
    assert 0 <= scores["dev_em"] <= scores["dev_f1"] <= 1
  assert json.loads((tmp_path / "r.json").read_text())["steps"] == 2
  assert "times as fast as transformers" in capsys.readouterr().out


def test_peer_takes_the_window_of_the_answer(config, tiny_checkpoint):
  pytest.importorskip("torch", reason="no torch: extra `bench`")
  peer = peer_lib.Peer(
    peer_lib.Settings(tiny_checkpoint, 64, 8, 0.0, 0.0, 0.0, 0)
  )
  text = f"{LONG} and Ulm is a town"
  start = text.index("Ulm")
  features = peer.features([peer_lib.Row("city?", text, start, start + 3)])
  ids = features["input_ids"][0].tolist()
  first, last = (
    int(features[f"{side}_positions"][0]) for side in ("start", "end")
  )
  words = peer._tokenizer.convert_ids_to_tokens(ids[first : last + 1])
  assert "".join(words).replace("##", "") == "ulm"


def test_needs_squad(config, tmp_path):
  config.reader.passages = 2
  with pytest.raises(errors.InputError, match="needs config.reader.train in"):
    bench.bench(config, workdir_lib.Workdir(tmp_path))
