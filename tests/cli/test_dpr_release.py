"""A release of DPR, two encoders and a reader: used as it is, and trained on.

The folders are those of transformers' DPRQuestionEncoder, DPRContextEncoder and
DPRReader, with small random weights.
"""

import copy
import json
import shutil

import numpy as np
import pytest

import dpr_jax

torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
pytestmark = [pytest.mark.slow, pytest.mark.processes]

NAMES = {
  "question": "DPRQuestionEncoder",
  "passage": "DPRContextEncoder",
  "reader": "DPRReader",
}
QUESTIONS = ["where is the river", "who was the king of the east"]
PASSAGES = [("city", "the river in the east"), ("", "a king"), ("war", "a war")]


@pytest.fixture(scope="module")
def release(tiny_checkpoint, tmp_path_factory):
  """The folder with the three, and the models."""
  import transformers

  root = tmp_path_factory.mktemp("release")
  sizes = json.loads((tiny_checkpoint / "config.json").read_text())
  sizes |= {"model_type": "dpr", "initializer_range": 0.2}
  models = {}
  for seed, (name, kind) in enumerate(NAMES.items()):
    torch.manual_seed(seed)
    config = transformers.DPRConfig(**sizes)
    models[name] = getattr(transformers, kind)(config).eval()
    models[name].save_pretrained(root / name)
    shutil.copy(tiny_checkpoint / "vocab.txt", root / name)
  return root, models


@pytest.fixture(scope="module")
def config(release, tiny_config):
  """Nothing is trained; all settings of vectors are the checkpoint's."""
  root, _ = release
  config = copy.deepcopy(tiny_config)
  config.data.train = "none"
  config.data.max_dev = 8
  config.data.max_passages = 80
  model = config.model
  model.question_checkpoint = str(root / "question")
  model.passage_checkpoint = str(root / "passage")
  model.question_length = model.passage_length = 0
  config.embed.length_step = 64
  config.retrieve.methods, config.retrieve.depth = ("dense-start",), 10
  config.read.reader = str(root / "reader")
  config.read.methods, config.read.passages = ("dense-start",), (1, 2)
  config.read.length_step = 64
  return config


def _vectors(model, folder, first, second, length):
  import transformers

  tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
  rows = [
    tokenizer(
      *((title, text) if title else (text,)),
      max_length=length,
      truncation=True,
      return_tensors="pt",
    )
    for title, text in zip(first, second, strict=True)
  ]
  with torch.no_grad():
    return np.concatenate(
      [
        model(
          input_ids=row.input_ids, attention_mask=row.attention_mask
        ).pooler_output.numpy()
        for row in rows
      ]
    )


def _same(encoder, release):
  root, models = release
  titles, texts = zip(*PASSAGES, strict=True)
  wanted = _vectors(models["passage"], root / "passage", titles, texts, 64)
  found = encoder.encode_passages(PASSAGES)
  np.testing.assert_allclose(found, wanted, atol=2e-5)
  blank = [""] * len(QUESTIONS)
  wanted = _vectors(models["question"], root / "question", blank, QUESTIONS, 32)
  found = encoder.encode_questions(QUESTIONS)
  np.testing.assert_allclose(found, wanted, atol=2e-5)
  assert encoder.settings["question_length"] == 32
  assert encoder.settings["passage_length"] == 64  # of 64 positions
  assert encoder.settings["title"] == "pair"


@pytest.fixture(scope="module")
def workdir(config, write_config, forked_call, tmp_path_factory):
  """A workdir after every stage, and the path of its config."""
  folder = tmp_path_factory.mktemp("dpr")
  file = write_config(folder / "dpr.py", config)
  where = ("--config", file, "--workdir", folder / "w", "--cpu_devices=2")
  for stage in ("prepare", "embed", "index", "retrieve", "read", "evaluate"):
    done = forked_call(stage, *where)
    assert done.returncode == 0, done.stderr
  return folder / "w", file


def test_every_stage_without_training(workdir, release, forked_call):
  """The vectors are transformers', the best passage is theirs as well."""
  folder, _ = workdir
  encoder = dpr_jax.Encoder.load(folder, "start", length_step=64)
  _same(encoder, release)
  (hits,) = dpr_jax.Retriever.load(folder, "dense-start").search(
    QUESTIONS[:1], 80
  )
  root, models = release
  wanted = (
    _vectors(
      models["passage"],
      root / "passage",
      [hit.title for hit in hits],
      [hit.text for hit in hits],
      64,
    )
    @ encoder.encode_questions(QUESTIONS[:1])[0]
  )
  np.testing.assert_allclose([hit.score for hit in hits], wanted, atol=1e-4)
  assert (np.diff(wanted) <= 1e-3).all()
  results = json.loads((folder / "results/dev.dense-start.json").read_text())
  assert len(results) == 8
  assert (folder / "answers" / "dev.dense-start.json").is_file()
  assert (folder / "evaluation" / "dev.json").is_file()
  asked = forked_call(
    "ask", "--workdir", folder, "--cpu_devices=2", QUESTIONS[0]
  )
  assert asked.returncode == 0, asked.stderr


def test_the_pair_is_stored_with_its_vectors(workdir, release, tmp_path):
  """A moved workdir opens without the release; both towers are there."""
  shutil.copytree(workdir[0], tmp_path / "moved")
  record = json.loads(
    (
      tmp_path / "moved/embeddings/passages-start/model/dpr_jax.json"
    ).read_text()
  )
  assert record["model"]["pooling"] == "cls"
  assert record["model"]["normalize"] is False
  hidden = release[0].rename(release[0].parent / "hidden")
  try:
    encoder = dpr_jax.Encoder.load(tmp_path / "moved", "start", length_step=64)
  finally:
    hidden.rename(release[0])
  _same(encoder, release)


def test_run_without_training(
  config, release, write_config, forked_call, tmp_path
):
  """`run` leaves out `mine` and `train`; dense, exact and hybrid search."""
  config = copy.deepcopy(config)
  config.retrieve.methods = ("bm25", "dense", "exact", "hybrid")
  config.read.methods = ("dense",)
  done = forked_call(
    *("run", "--config", write_config(tmp_path / "run.py", config)),
    *("--workdir", tmp_path / "w", "--cpu_devices=2"),
  )
  assert done.returncode == 0, done.stderr
  assert not (tmp_path / "w" / "negatives").exists()
  assert not (tmp_path / "w" / "training").exists()
  _same(dpr_jax.Encoder.load(tmp_path / "w", length_step=64), release)
  measured = json.loads((tmp_path / "w/evaluation/dev.json").read_text())
  assert {*config.retrieve.methods} <= {*measured}
  assert measured["exact"] == measured["dense"]
  checked = forked_call("check", "--workdir", tmp_path / "w", "--deep")
  assert checked.returncode == 0, checked.stderr + checked.stdout


def test_training_goes_on_from_the_pair(
  config, release, write_config, forked_call, tmp_path
):
  """Two steps; another workdir starts from what they gave."""
  config = copy.deepcopy(config)
  config.data.train, config.data.max_train = "sample", 16
  config.train.negatives = "random"
  config.train.batch_size, config.train.max_steps = 8, 2
  config.train.warmup_steps, config.train.dev_questions = 1, 0
  config.train.learning_rate = 1e-6
  where = ("--config", write_config(tmp_path / "a.py", config), "--workdir")
  for stage in ("prepare", "train"):
    done = forked_call(stage, *where, tmp_path / "a", "--cpu_devices=2")
    assert done.returncode == 0, done.stderr
  trained = dpr_jax.Encoder.load(tmp_path / "a", length_step=64)
  assert trained.model.step == 2
  pair = tuple(str(release[0] / name) for name in ("question", "passage"))
  start = dpr_jax.Encoder.load(pair, length_step=64)
  _same(start, release)
  assert trained.settings == start.settings
  before, after = (e.encode_passages(PASSAGES) for e in (start, trained))
  assert 0 < np.abs(before - after).max() < 1e-2
  # The trained towers of one workdir are the start of another.
  config.model.question_checkpoint = config.model.passage_checkpoint = ""
  config.model.checkpoint = str(tmp_path / "a")
  where = ("--config", write_config(tmp_path / "b.py", config), "--workdir")
  for stage in ("prepare", "embed"):
    done = forked_call(stage, *where, tmp_path / "b", "--cpu_devices=2")
    assert done.returncode == 0, done.stderr
  again = dpr_jax.Encoder.load(tmp_path / "b", "start", length_step=64)
  np.testing.assert_array_equal(again.encode_passages(PASSAGES), after)
  assert again.fingerprint == trained.fingerprint
  # Two steps more.
  done = forked_call("train", *where, tmp_path / "b", "--cpu_devices=2")
  assert done.returncode == 0, done.stderr
  more = dpr_jax.Encoder.load(tmp_path / "b", length_step=64)
  assert more.fingerprint != trained.fingerprint
