"""Names that there are not, and the nearest ones that there are."""

import pytest

from dpr_jax.cli import settings_hints
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from tests.faults import settings_cases

# Flags by name; True where one needs no value.
KNOWN = {
  **dict.fromkeys(
    ("config", "workdir", "cpu_devices", "name", "method", "batch_sizes", "k"),
    False,
  ),
  **dict.fromkeys(("overwrite", "tune", "deep"), True),
}


@pytest.mark.parametrize(("argument", "words"), settings_cases.TYPED)
def test_refused_by_its_name(argument, words):
  """One line, with the name that was typed and the right one."""
  with pytest.raises(errors.InputError) as caught:
    settings_hints.normalised(["dpr-jax", "run", argument], KNOWN)
  line = str(caught.value)
  assert "\n" not in line
  for word in words:
    assert word in line, line


def test_enough_cases():
  """Sixty wrong lines at least."""
  assert len(settings_cases.CASES) >= 60
  assert len({line for line, _ in settings_cases.CASES}) >= 60


@pytest.mark.parametrize(
  ("typed", "read"),
  [
    (["--config.train.epochs=1"], ["--config.train.epochs=1"]),
    (["-config.train.epochs=1"], ["--config.train.epochs=1"]),
    (["--config.train.epochs", "1"], ["--config.train.epochs=1"]),
    (["--config.train.weight_decay", "0"], ["--config.train.weight_decay=0"]),
    (["--config.index.mmap"], ["--config.index.mmap=True"]),
    (["--config.index.mmap=no"], ["--config.index.mmap=False"]),
    (["--noconfig.index.mmap"], ["--config.index.mmap=False"]),
    (
      ["--config.retrieve.methods=bm25"],
      ["--config.retrieve.methods=('bm25',)"],
    ),
    (["--config.bm25={'k1': 1.2}"], ["--config.bm25={'k1': 1.2}"]),
    (["--name", "-x", "--tune"], ["--name", "-x", "--tune"]),
    (["--nooverwrite", "--tune", "ask"], ["--nooverwrite", "--tune", "ask"]),
    (["Who?", "-", "--", "--fly"], ["Who?", "-", "--", "--fly"]),
    (["--k=3", "- what?"], ["--k=3", "- what?"]),
  ],
)
def test_what_is_right_stays(typed, read):
  """Other flags and words as they were, settings as ml_collections reads."""
  found = settings_hints.normalised(["dpr-jax", "ask", *typed], KNOWN)
  assert found == ["dpr-jax", "ask", *read]


def test_a_value_is_missing():
  with pytest.raises(errors.InputError, match="config.train.epochs needs a"):
    settings_hints.normalised(["dpr-jax", "--config.train.epochs"], KNOWN)


@pytest.mark.parametrize("flag", ["--tune", "--name=x", "--notune"])
def test_what_stands_behind_a_whole_flag_is_looked_at(flag):
  """It is no value of it."""
  with pytest.raises(errors.InputError, match="unknown flag --fly"):
    settings_hints.normalised(["dpr-jax", flag, "--fly"], KNOWN)


def test_a_section_is_no_setting():
  with pytest.raises(errors.InputError, match="config.train is a section"):
    settings_hints.normalised(["dpr-jax", "--config.train=3"], KNOWN)


@pytest.mark.parametrize(
  ("word", "nearest"),
  [
    ("trian", ["train"]),
    ("retreive", ["retrieve"]),
    ("evalute", ["evaluate"]),
    ("Index", ["index"]),
    ("fly", []),
    ("", []),
  ],
)
def test_closest_command(word, nearest):
  """For any words, commands too."""
  words = ("prepare", "train", "embed", "index", "retrieve", "evaluate")
  assert settings_hints.closest(word, words)[:1] == nearest


@pytest.mark.parametrize(
  ("names", "end"),
  [
    ([], ""),
    (["a"], ": did you mean a?"),
    (["a", "b"], ": did you mean a or b?"),
    (["a", "b", "c"], ": did you mean a, b or c?"),
  ],
)
def test_did_you_mean(names, end):
  assert settings_hints.did_you_mean(names) == end


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (
      lambda config: setattr(config.train, "batchsize", 3),
      "there is no setting 'batchsize': did you mean config.train.batch_size or"
      " config.reader.batch_size?",
    ),
    (
      lambda config: config.update({"index": {"fatory": "Flat"}}),
      "there is no setting 'fatory': did you mean config.index.factory?",
    ),
    (
      lambda config: setattr(config.train, "length_groups", 4),
      "config.train.length_groups was removed: texts are packed into rows"
      " without padding (config.train.packing); leave it out",
    ),
    (
      lambda config: config.trian.batch_size,
      "there is no setting 'trian': did you mean config.train?",
    ),
    (lambda config: {}["HOME"], "'HOME'"),  # no setting of ours
    (lambda config: [][3], "list index out of range"),
  ],
)
def test_mistakes_in_a_config_file(change, says):
  """Ml_collections would list every other key."""
  with pytest.raises((KeyError, AttributeError, IndexError)) as caught:
    change(config_lib.base_config())
  assert settings_hints.in_a_file(caught.value).splitlines() == [says]
