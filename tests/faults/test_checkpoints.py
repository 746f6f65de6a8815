"""Row 6: a checkpoint that is damaged is never used, and never unnoticed.

One bit flipped, files cut, zeroed or gone, checksums gone, `selected.json` cut:
the file is named, and the step before is used, or the command is refused.
"""

import copy
import json
import random
import re
import shutil

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoints
from dpr_jax.training import train_retriever
from tests.faults.amounts import amount
from tests.training import power_cuts

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def config(tiny_config):
  """Six steps, a checkpoint after every second one, all of them kept."""
  config = copy.deepcopy(tiny_config)
  config.train.keep_checkpoints = 3
  config.train.best_metric = "dev_loss"
  return config


@pytest.fixture(scope="module")
def finished(config, mined_workdir, tmp_path_factory):
  """The workdir of a training without faults."""
  place = workdir_lib.Workdir(tmp_path_factory.mktemp("finished") / "w")
  shutil.copytree(mined_workdir.root, place.root)
  train_retriever.train(config, place)
  return place


@pytest.fixture(scope="module")
def broken_off(config, mined_workdir, tmp_path_factory):
  """The workdir of a training that died after step 5; 2, 3 and 4 are saved."""
  place = workdir_lib.Workdir(tmp_path_factory.mktemp("broken") / "w")
  shutil.copytree(mined_workdir.root, place.root)
  with pytest.MonkeyPatch.context() as patch:
    power_cuts.dies_after(5, patch, lambda run: run.saved.wait())
    with pytest.raises(RuntimeError, match="power cut"):
      train_retriever.train(config, place)
  return place


@pytest.fixture
def copied(tmp_path):
  """Copies a workdir."""

  def copied(place, name="w"):
    shutil.copytree(place.root, tmp_path / name)
    return workdir_lib.Workdir(tmp_path / name)

  return copied


def _flip(path, chance):
  data = bytearray(path.read_bytes())
  data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
  path.write_bytes(data)


def _cut(path, chance):
  data = path.read_bytes()
  path.write_bytes(data[: chance.randrange(len(data))])


def _zero(path, chance):
  data = bytearray(path.read_bytes())
  first = chance.randrange(len(data))
  data[first:] = bytes(len(data) - first)
  path.write_bytes(data)


def _delete(path, chance):
  del chance
  path.unlink()


def _add(path, chance):
  del chance
  path.with_name("another").write_bytes(b"x")


DAMAGES = {
  "flipped": (_flip, amount(20, 4)),
  "cut": (_cut, amount(10, 2)),
  "zeroed": (_zero, amount(10, 2)),
  "added": (_add, 1),
}


def _trials(folder, step):
  """(name, function, path) of every damage to one checkpoint."""
  chance = random.Random(6)
  files = sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())
  files = [path for path in files if path.stat().st_size]
  for what, (function, count) in DAMAGES.items():
    for _ in range(count):
      yield what, function, chance.choice(files)
  gone = amount(len(files), 2)
  for path in chance.sample(files, gone):
    yield "deleted", _delete, path
  sums = folder / f"{step}.sha256.json"
  for what, function in (
    ("deleted", _delete),
    ("cut", _cut),
    ("zeroed", _zero),
  ):
    yield f"sums {what}", function, sums
  for _ in range(amount(8, 1)):
    yield "sums flipped", _flip, sums


def test_every_damage_is_seen_named_and_passed_over(
  broken_off, tmp_path, tally
):
  """The newest of three is damaged: the one before is used."""
  rows = tally(6)
  source = broken_off.training / "checkpoints"
  for number, (what, function, path) in enumerate(_trials(source, 4)):
    folder = tmp_path / str(number)
    shutil.copytree(source, folder)
    (folder / checkpoints.SELECTED).unlink()
    path = folder / path.relative_to(source)
    before = path.read_bytes()
    function(path, random.Random(number))
    if (
      path.exists() and what.startswith("sums") and _says_the_same(path, before)
    ):
      continue  # one blank for another
    if path.exists() and path.read_bytes() == before and what != "added":
      continue  # a file that ends in zeros
    with rows.trial(f"{what} {path.relative_to(folder)} {number}"):
      _check_damage(folder, what, path, source)
    shutil.rmtree(folder)
  assert rows.passed + len(rows.failed) >= amount(40, 8)


def _check_damage(folder, what, path, source):
  """That a damage is seen, named with both hashes, and passed over.

  The optimizer's state is compared where it is read, in training: who reads the
  parameters beside it gets those that were saved.
  """
  name = "another" if what == "added" else path.name
  saved = checkpoints.Checkpoints(folder)
  problem = str(saved.wrong())
  assert name in problem or path.parent.name in problem, problem
  if what in ("flipped", "cut", "zeroed"):
    hashes = re.findall("[0-9a-f]{64}", problem)
    assert len(hashes) == 2, problem
    assert hashes[0] != hashes[1], problem
  assert saved.steps() == [2, 3]
  saved.close()
  way = "complete checkpoints: 2, 3; `dpr-jax train` resumes from step 3"
  refused = ""
  try:
    found = checkpoints.load_params(folder)[1]
  except errors.InputError as error:
    refused = str(error)
  if refused:
    assert way in refused
    return
  assert "4 is damaged: optimizer/" in problem
  wanted = checkpoints.load_params(source, 4)[1]
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def _says_the_same(path, before):
  if not path.exists():
    return False
  if path.suffix != ".json":
    return path.read_bytes() == before
  try:
    return json.loads(path.read_bytes()) == json.loads(before)
  except ValueError:
    return False


def _assert_equal(place, finished):
  """Parameters, metrics and selection are those of the undisturbed run."""
  folders = [each.training / "checkpoints" for each in (place, finished)]
  found, wanted = (checkpoints.load_params(folder, 6)[1] for folder in folders)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  selected = [checkpoints.read_selected(folder) for folder in folders]
  assert selected[0] == selected[1]
  keys = ("step", "loss", "dev_loss")
  rows = [
    [
      {key: json.loads(line).get(key) for key in keys}
      for line in (each.training / "metrics.jsonl").read_text().splitlines()
    ]
    for each in (place, finished)
  ]
  assert rows[0] == rows[1]


def _largest(folder):
  files = [path for path in folder.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.fault_row(6)
def test_training_goes_on_from_the_step_before(
  config, broken_off, finished, copied, caplog
):
  """With a line that names the file, to the very same end."""
  place = copied(broken_off)
  path = _largest(place.training / "checkpoints" / "4")
  _flip(path, random.Random(1))
  train_retriever.train(config, place)
  assert path.name in caplog.text
  assert "resuming after step 3" in caplog.text
  _assert_equal(place, finished)


@pytest.mark.fault_row(6)
def test_no_whole_checkpoint_is_refused_and_nothing_is_lost(
  config, broken_off, copied
):
  """It does not begin at step 0 over them."""
  place = copied(broken_off)
  folder = place.training / "checkpoints"
  for step in (2, 3, 4):
    _flip(_largest(folder / str(step)), random.Random(step))
  metrics = (place.training / "metrics.jsonl").read_bytes()
  with pytest.raises(errors.InputError) as refused:
    train_retriever.train(config, place)
  said = str(refused.value)
  assert "\n" not in said
  assert "all 3 of the checkpoints there must not be used" in said
  assert len(re.findall("[0-9a-f]{64}", said)) == 6
  assert "`dpr-jax train --overwrite`" in said
  assert (place.training / "metrics.jsonl").read_bytes() == metrics
  assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [
    "2",
    "3",
    "4",
  ]
  for step in (2, 3, 4):
    shutil.rmtree(folder / str(step))
  with pytest.raises(
    errors.InputError, match="its checkpoints are missing, though"
  ):
    train_retriever.train(config, place)
  train_retriever.train(config, place, overwrite=True)
  assert checkpoints.load_params(folder, 6)[0] == 6


@pytest.mark.fault_row(6)
def test_the_only_one_without_checksums_is_kept(config, broken_off, copied):
  """It is not used, and nobody removes it."""
  place = copied(broken_off)
  folder = place.training / "checkpoints"
  for step in (2, 3):
    shutil.rmtree(folder / str(step))
  (folder / "4.sha256.json").unlink()
  with pytest.raises(errors.InputError, match=r"only one .* 4.sha256.json is"):
    train_retriever.train(config, place)
  assert (folder / "4").is_dir()


@pytest.mark.fault_row(6)
@pytest.mark.parametrize("damage", ["cut", "flipped", "zeroed", "deleted"])
def test_the_selection_is_written_again(
  config, broken_off, finished, copied, caplog, damage
):
  """By the training that goes on, and by one that is finished."""
  damages = {"cut": _cut, "flipped": _flip, "zeroed": _zero, "deleted": _delete}
  wanted = checkpoints.read_selected(finished.training / "checkpoints")
  place = copied(finished)
  folder = place.training / "checkpoints"
  damages[damage](folder / checkpoints.SELECTED, random.Random(3))
  assert checkpoints.load_params(folder)[0] == wanted["steps"][-1]
  assert checkpoints.SELECTED in caplog.text
  train_retriever.train(config, place)
  assert "restored from the manifest" in caplog.text
  assert checkpoints.read_selected(folder) == wanted
  if damage != "cut":
    return
  place = copied(broken_off, "other")
  folder = place.training / "checkpoints"
  _cut(folder / checkpoints.SELECTED, random.Random(3))
  with pytest.raises(errors.InputError, match="`dpr-jax train` writes it"):
    checkpoints.load_params(folder)
  train_retriever.train(config, place)
  _assert_equal(place, finished)


@pytest.mark.fault_row(6)
@pytest.mark.parametrize("gone", [False, True])
def test_a_finished_run_is_not_done_when_its_end_is_damaged(
  config, finished, copied, caplog, gone
):
  """It says so, and makes the last steps again."""
  place = copied(finished)
  folder = place.training / "checkpoints"
  if gone:
    shutil.rmtree(folder / "6")
  else:
    _flip(_largest(folder / "6"), random.Random(2))
  train_retriever.train(config, place)
  assert "the run is finished, but checkpoint" in caplog.text
  _assert_equal(place, finished)
  made = (place.training / "manifest.json").stat().st_mtime_ns
  train_retriever.train(config, place)
  assert (place.training / "manifest.json").stat().st_mtime_ns == made


def test_metrics_with_a_damaged_row(
  config, broken_off, finished, copied, caplog
):
  """The row is dropped and named; nothing else comes of it."""
  place = copied(broken_off)
  path = place.training / "metrics.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  lines[2] = lines[2].replace(b'"step"', b'"stfp"')
  lines[3] = b"\xff" + lines[3]
  path.write_bytes(b"".join(lines))
  train_retriever.train(config, place)
  for number in (3, 4):
    said = f"metrics.jsonl, line {number} is not a row of metrics: removed"
    assert said in caplog.text
  params = checkpoints.load_params(place.training / "checkpoints", 6)[1]
  wanted = checkpoints.load_params(finished.training / "checkpoints", 6)[1]
  jax.tree.map(np.testing.assert_array_equal, params, wanted)
