"""The stage `prepare`: what is kept, what is counted, what is refused."""

import json
import subprocess
import sys

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_module
from dpr_jax.data import prepare, tfds_builders
from dpr_jax.data.records import Passage

PASSAGES = [Passage(str(2 * i), f"T{i}", f"text {i}") for i in range(1, 11)]


def question(text, *ids, answers=("a",), passage_text=None):
  """A row of DPR JSON with the passages of these ids as positives."""
  by_id = {p.id: p.text for p in PASSAGES}
  return {
    "question": text,
    "answers": list(answers),
    "positive_ctxs": [
      {"passage_id": i, "text": passage_text or by_id.get(i, "x")} for i in ids
    ],
  }


@pytest.fixture
def run(tmp_path):
  """Writes the files, runs the stage, returns the manifest's counts."""

  def run(train=None, dev=None, passages=PASSAGES, **settings):
    (tmp_path / "train.json").write_text(
      json.dumps([question("t", "2")] if train is None else train)
    )
    (tmp_path / "dev.json").write_text(
      json.dumps([question("d", "4")] if dev is None else dev)
    )
    (tmp_path / "corpus.tsv").write_text(
      "id\ttext\ttitle\n"
      + "".join(f"{p.id}\t{p.text}\t{p.title}\n" for p in passages)
    )
    prepare.prepare(run.config(**settings), run.workdir)
    manifest = workdir_module.read_manifest(run.workdir.data, "prepare")
    return manifest["counts"]

  def config(**settings):
    """Keys of `config.data`; `train_path` and so on stand for `train`."""
    config = config_lib.base_config()
    config.data.passages = str(tmp_path / "corpus.tsv")
    config.data.train = str(tmp_path / "train.json")
    config.data.dev = str(tmp_path / "dev.json")
    for key, value in settings.items():
      config.data[key.removesuffix("_path")] = value
    return config

  run.config = config
  run.folder = tmp_path
  run.workdir = workdir_module.Workdir(tmp_path / "work")
  return run


def refuses(run, match, **kwargs):
  """The stage fails and leaves nothing, not even half of something."""
  with pytest.raises(errors.InputError, match=match):
    run(**kwargs)
  left = run.workdir.root
  assert not left.exists() or list(left.iterdir()) == []


def corpus_ids(run):
  table = prepare.open_passages(run.workdir)
  return table.ids(range(len(table)))


def test_everything_kept(run):
  counts = run()
  assert (counts["passages"], counts["train"], counts["dev"]) == (10, 1, 1)
  assert corpus_ids(run) == [p.id for p in PASSAGES]
  train = prepare.open_questions(run.workdir, "train")[0]
  assert train.question == "t"
  assert train.positives == (Passage("2", "", "text 1"),)
  assert prepare.open_questions(run.workdir, "dev")[0].question == "d"
  manifest = workdir_module.read_manifest(run.workdir.data, "prepare")
  assert "passages/ids.npy" in manifest["files"]
  workdir_module.check_files(run.workdir.data, manifest)
  on_disk = {
    path.relative_to(run.workdir.data).as_posix()
    for path in run.workdir.data.rglob("*")
    if path.is_file()
  }
  assert on_disk == {*manifest["files"], "manifest.json"}


def test_rows_without_positive_or_question(run):
  rows = [
    question("no positive"),
    question(" ", "2"),
    question("kept", "2"),
    question("no positive either"),
  ]
  counts = run(train=rows, dev=rows)
  assert counts["train_read"] == counts["dev_read"] == 4
  assert (counts["train"], counts["train_without_positives"]) == (1, 2)
  assert (counts["dev"], counts["dev_without_positives"]) == (3, 2)
  assert counts["train_without_question"] == 1
  assert counts["dev_without_question"] == 1
  dev = prepare.open_questions(run.workdir, "dev")
  assert [q.question for q in dev.take(range(3))] == [
    "no positive",
    "kept",
    "no positive either",
  ]


def test_first_so_many_questions(run):
  rows = [question(f"q{i}", *["2"] * (i % 2)) for i in range(10)]
  counts = run(train=rows, dev=rows, max_train=2, max_dev=3)
  assert (counts["train"], counts["train_beyond_max"]) == (2, 3)
  assert (counts["dev"], counts["dev_beyond_max"]) == (3, 7)
  train = prepare.open_questions(run.workdir, "train").take([0, 1])
  assert [q.question for q in train] == ["q1", "q3"]


def test_gold_passages_of_kept_questions_come_first(run):
  counts = run(
    train=[question("t", "18", "6"), question("beyond", "20")],
    dev=[question("d", "14", "no such id")],
    max_passages=5,
    max_train=1,
  )
  assert corpus_ids(run) == ["2", "4", "6", "14", "18"]
  assert (counts["passages"], counts["passages_beyond_max"]) == (5, 5)
  assert counts["dev_gold_not_in_corpus"] == 1


def test_as_many_as_the_gold_passages(run):
  limits = {"train": [question("t", "18", "6")], "max_passages": 3}
  run(**limits)
  assert corpus_ids(run) == ["4", "6", "18"]


def test_max_passages_beyond_the_corpus(run):
  assert run(max_passages=100)["passages"] == 10


def test_too_few_passages_for_the_gold_ones(run):
  refuses(
    run,
    r"max_passages=2: .* have 3 different positive .* at least 3",
    train=[question("t", "18", "6", "nowhere")],
    max_passages=2,
  )


def test_answers_without_tokens(run):
  answers = ["", "\u200b", " ", "42", "?!"]
  counts = run(train=[question("t", "2", answers=answers)])
  assert counts["train_answers_without_tokens"] == 3
  train = prepare.open_questions(run.workdir, "train")[0]
  assert train.answers == ("42", "?!")


def test_gold_that_the_corpus_has_not_or_has_otherwise(run):
  nameless = {"question": "n", "positive_ctxs": [{"text": "x"}]}
  counts = run(
    train=[
      question("t", "2", "3", "5"),
      question("u", "2", "4", passage_text="another"),
      nameless,
    ]
  )
  assert counts["train"] == 3
  assert counts["train_positives"] == 6
  assert counts["train_gold_not_in_corpus"] == 2
  assert counts["train_gold_text_differs"] == 2
  assert counts["train_gold_without_id"] == 1
  assert counts["dev_gold_not_in_corpus"] == 0
  assert counts["dev_gold_text_differs"] == 0


def test_summary_says_what_is_left_out(run, monkeypatch):
  lines = []
  monkeypatch.setattr(
    prepare.logging, "info", lambda text, *args: lines.append(text % args)
  )
  run(train=[question("no"), question("t", "2")])
  (line,) = (line for line in lines if "prepare: train" in line)
  assert "1 kept of 2" in line
  assert "1 without positives" in line


def test_a_corpus_to_search_needs_no_train_questions(run):
  counts = run(train_path="none")
  assert (counts["dev"], "train" in counts) == (1, False)
  assert not (run.workdir.data / "train").exists()
  assert len(prepare.open_questions(run.workdir, "dev")) == 1
  with pytest.raises(errors.InputError, match="run `dpr-jax prepare`"):
    prepare.open_questions(run.workdir, "train")


@pytest.mark.parametrize("role", ["passages", "train", "dev"])
def test_source_not_given_or_not_there(run, role):
  missing = str(run.folder / "none.tsv")
  refuses(run, rf"config\.data\.{role} is empty", **{f"{role}_path": ""})
  refuses(run, "cannot read .*none.tsv", **{f"{role}_path": missing})


def test_limits_are_not_negative(run):
  refuses(run, r"data\.max_dev=-1: must be >= 0", max_dev=-1)


def test_empty_corpus(run):
  refuses(run, "corpus.tsv: the corpus has a header but no", passages=[])


@pytest.mark.parametrize(
  ("rows", "match"),
  [
    ([], "train.json: no questions are left for train: of 0 rows"),
    (
      [question("a"), question("", "2")],
      "of 2 rows, 1 have an empty question and 1 no positive",
    ),
    ([question("a", "2"), {"question": 1}], "train.json: row 2, question"),
  ],
)
def test_no_train_rows_or_bad_ones(run, rows, match):
  refuses(run, match, train=rows)


def test_duplicate_ids(run):
  refuses(run, "both have the id '2'", passages=[*PASSAGES, PASSAGES[0]])


def test_a_failure_keeps_what_was_there(run):
  run()
  with pytest.raises(errors.InputError):
    run(passages=[])
  assert len(prepare.open_passages(run.workdir)) == 10
  assert [p.name for p in run.workdir.root.iterdir()] == ["data"]


def test_done_once_and_again_when_something_changed(run):
  def changed():
    """When the dataset was written: it is replaced, never touched."""
    return (run.workdir.data / "train" / "features.json").stat().st_ino

  run()
  first = changed()
  run()
  assert changed() == first
  prepare.prepare(run.config(), run.workdir, overwrite=True)
  second = changed()
  assert second != first
  assert run(train=[question("other", "2")])["train"] == 1
  third = changed()
  assert third != second
  assert prepare.open_questions(run.workdir, "train")[0].question == "other"
  run(train=[question("other", "2")], max_dev=1)
  assert changed() != third


def test_sample(tmp_path):
  config = config_lib.base_config()
  for role in ("passages", "train", "dev"):
    config.data[role] = "sample"
  workdir = workdir_module.Workdir(tmp_path)
  prepare.prepare(config, workdir)
  counts = workdir_module.read_manifest(workdir.data, "prepare")["counts"]
  assert counts["passages"] == len(prepare.open_passages(workdir)) > 0
  assert counts["train_gold_not_in_corpus"] == 0
  assert counts["train_gold_text_differs"] == 0
  assert counts["dev_gold_text_differs"] == 0


def test_nothing_prepared(tmp_path):
  workdir = workdir_module.Workdir(tmp_path)
  for read in (
    lambda: prepare.open_passages(workdir),
    lambda: prepare.open_questions(workdir, "dev"),
  ):
    with pytest.raises(errors.InputError, match="run `dpr-jax prepare`"):
      read()
  with pytest.raises(ValueError, match="split 'test'"):
    prepare.open_questions(workdir, "test")


def test_dataset_of_another_run(run):
  run()
  tfds_builders.write_passages(PASSAGES[:5], run.folder / "other")
  for file in (run.folder / "other").iterdir():
    file.replace(run.workdir.data / "passages" / file.name)
  with pytest.raises(
    errors.InputError, match="is recorded.*prepare --overwrite"
  ):
    prepare.open_passages(run.workdir)


@pytest.mark.processes
@pytest.mark.slow
def test_real_data(data_folder, repository, tmp_path):
  """7,121 train and 1,355 dev questions over 99,999 passages, all kept.

  In a process of its own, where no types are checked at every call.
  """
  code = """
import sys
from dpr_jax import configuration
from dpr_jax.core import workdir
from dpr_jax.data import prepare
config = configuration.base_config()
config.data.passages = sys.argv[1] + "/nq/psgs_w100.tsv.gz"
config.data.train = sys.argv[1] + "/nq/nq-train.json.gz"
config.data.dev = sys.argv[1] + "/nq/nq-dev.json.gz"
prepare.prepare(config, workdir.Workdir(sys.argv[2]))
"""
  subprocess.run(
    [sys.executable, "-c", code, data_folder, tmp_path],
    check=True,
    cwd=repository,
  )
  workdir = workdir_module.Workdir(tmp_path)
  counts = workdir_module.read_manifest(workdir.data, "prepare")["counts"]
  assert counts["passages"] == len(prepare.open_passages(workdir)) == 99_999
  for split, size in (("train", 7_121), ("dev", 1_355)):
    questions = prepare.open_questions(workdir, split)
    assert counts[split] == len(questions) == size
    assert counts[f"{split}_gold_not_in_corpus"] == 0
    assert counts[f"{split}_gold_text_differs"] == 0


def test_a_user_s_own_data_folder_is_never_replaced(run):
  """`--workdir=.` where the sources lie in ./data, or anything else does."""
  run()  # writes the sources
  data = run.folder / "data"
  data.mkdir()
  for name in ("corpus.tsv", "train.json", "dev.json"):
    (run.folder / name).rename(data / name)
  here = workdir_module.Workdir(run.folder)
  inside = {
    f"{role}_path": str(data / name)
    for role, name in (
      ("passages", "corpus.tsv"),
      ("train", "train.json"),
      ("dev", "dev.json"),
    )
  }
  with pytest.raises(errors.InputError, match=r"data\.passages=.*is inside"):
    prepare.prepare(run.config(**inside), here)
  sample = {key: "sample" for key in inside}
  with pytest.raises(errors.InputError, match="is not empty and has no record"):
    prepare.prepare(run.config(**sample), here, overwrite=True)
  assert sorted(path.name for path in data.iterdir()) == [
    "corpus.tsv",
    "dev.json",
    "train.json",
  ]


@pytest.mark.parametrize(
  "name",
  ["passages/ids.npy", "passages/id_order.npy", "passages/dataset_info.json"]
  + ["passages/features.json", "dev/features.json", "dev/dataset_info.json"],
)
def test_what_lies_beside_the_rows_is_compared_before_use(run, name):
  """Every 37th byte, one bit: none passes, and none is a traceback."""
  run()
  path = run.workdir.data / name
  whole = path.read_bytes()
  for place in range(0, len(whole), max(1, len(whole) // 37)):
    data = bytearray(whole)
    data[place] ^= 1 << place % 8
    path.write_bytes(data)
    with pytest.raises(errors.InputError, match=f"{path.name} is not the file"):
      prepare.open_questions(run.workdir, "dev") if name.startswith(
        "dev"
      ) else prepare.open_passages(run.workdir)
  run()  # is done again, since it is no longer whole
  assert path.read_bytes() == whole
