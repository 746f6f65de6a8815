"""One global batch is one function: on any topology, in any chunks.

{1 device, 8 devices, 2 processes x 4 devices} x {plain, gradient cache in two
chunk sizes, streamed losses} x {padded, packed} x {0, 1, 2 hard negatives} x
{dropout} x {towers}: loss within 1e-5 relative, every gradient leaf within 1e-4
of its norm of what one device computes of padded texts in the plainest way.
With 2 hard negatives there is a teacher, too: every way has cells with one.
`make equivalence` computes all 360 cells, `make test` those in which every pair
of values occurs.
"""

import copy
import dataclasses
import functools
import itertools
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from dpr_jax.core import devices as devices_lib
from dpr_jax.data import packing
from dpr_jax.models import retriever_model
from dpr_jax.training import packed_batches, retriever_batches, train_step
from tests.training import equivalence, packed_sources, teachers

CORES_PER_PROCESS, PROCESSES = 4, 2


@functools.cache
def _reference(problem):
  return equivalence.compute(problem, "plain", "padded", jax.devices()[:1])


def _compare(found, wanted):
  """`found` and `wanted` are (metrics, gradients)."""
  (metrics, gradients), (wanted_metrics, wanted_gradients) = found, wanted
  taught = {"distill_loss", "distilled"} & set(wanted_metrics)
  for key in ("loss", "gradient_norm", "accuracy", *sorted(taught)):
    np.testing.assert_allclose(metrics[key], wanted_metrics[key], rtol=1e-5)
  for key in ("masked_duplicates", "masked_answers"):
    assert metrics[key] == wanted_metrics[key]
  total = wanted_metrics["gradient_norm"]
  for (path, one), other in zip(
    jax.tree.leaves_with_path(gradients),
    jax.tree.leaves(wanted_gradients),
    strict=True,
  ):
    name = jax.tree_util.keystr(path)
    if _is_zero(name):
      assert np.linalg.norm(one) <= 1e-5 * total, name
    else:
      distance = np.linalg.norm(one - other)
      assert distance <= 1e-4 * np.linalg.norm(other), name


def _is_zero(name):
  """Gradients that are 0 in exact arithmetic, and rounding in ours.

  Softmax does not see what all keys share, nor the loss what all passages do.
  """
  return name.endswith("['key']['bias']") or (
    name == "['passage']['layer_0']['output_norm']['bias']"
  )


@pytest.mark.compiles
def test_the_reference_is_not_trivial():
  """Masks, dropout and negatives all change the loss."""
  losses = {
    problem: float(_reference(problem)[0]["loss"])
    for problem in equivalence.PROBLEMS
  }
  assert len(set(losses.values())) == len(losses)
  for problem in equivalence.PROBLEMS:
    metrics, gradients = _reference(problem)
    assert metrics["masked_duplicates"] > 0
    assert metrics["masked_answers"] > 0
    if problem.negatives == 2:
      assert metrics["distill_loss"] > 0.1
      assert 0 < metrics["distilled"] < equivalence.QUESTIONS
    for path, leaf in jax.tree.leaves_with_path(gradients):
      name = jax.tree_util.keystr(path)
      assert _is_zero(name) == (np.linalg.norm(leaf) < 1e-5), name


@pytest.mark.compiles
def test_a_batch_can_be_learnt():
  """The gradient points the right way: the loss falls to a tenth."""
  problem = equivalence.Problem(1, 0.0, False)
  step, state, batch = equivalence.start(
    problem, "cache-2", "packed", optax.adam(0.01), jax.devices()[:2]
  )
  losses = []
  for _ in range(120):
    state, reported = step(state, batch)
    losses.append(float(reported["loss"]))
  assert losses[-1] < losses[0] / 10, losses


@pytest.mark.compiles
def test_a_run_in_rows_of_two_widths(
  tiny_config, mined_workdir, monkeypatch, tmp_path
):
  """Its steps have the losses of the padded run, whichever width they have.

  A teacher scores every second question's passages.
  """
  monkeypatch.setattr(packing, "_PROGRAM", 0)
  config = copy.deepcopy(tiny_config)
  config.train.chunk_size = 2
  config.train.distill_scores = teachers.write(
    tmp_path / "scores.jsonl", mined_workdir, every=2
  )
  model = retriever_model.start(config)
  padded = retriever_batches.make_source(config, mined_workdir, model)
  padded = packed_sources.cut(dataclasses.replace(padded, cores=2))
  steps = range(len(padded))
  packed = packed_batches.PackedSource.of(padded, 2, 0)
  (packed,) = packed_sources.with_shapes([packed], steps, most=2)
  assert set(packed.shapes.chosen[:-1]) == {0, 1}, packed.shapes.chosen
  devices, runs = jax.devices()[:2], []
  for source in (padded, packed):
    built = train_step.build(config, model, len(steps))
    step = built.mapped(devices)
    state = built.place(0, *built.init(model.params), devices)
    runs.append([])
    for number in steps:
      batch = devices_lib.split_over_cores(source[number], devices)
      state, reported = step(state, batch)
      names = ("loss", "distill_loss", "distilled", "gradient_norm")
      runs[-1].append([reported[name] for name in names])
  np.testing.assert_allclose(*np.array(runs), rtol=1e-5)
  _, distances, distilled, _ = np.array(runs[0]).T
  assert (distances > 0).all()
  # 6 batches of 16: an epoch of 64, of which 32 are scored, and half of one.
  assert distilled[:4].sum() == 32
  assert 0 < distilled[4:].sum() < 32


def test_every_pair_of_values_has_a_cell():
  """Of devices, way, texts, negatives, dropout, towers; so in all 360, too."""
  cells = {
    (devices, way, texts, problem.negatives, problem.dropout, problem.shared)
    for devices, way, texts, problem in equivalence.CELLS
  }
  values = [set(factor) for factor in zip(*cells, strict=True)]
  assert [len(each) for each in values] == [3, 5, 2, 3, 2, 2]
  for one, other in itertools.combinations(range(6), 2):
    found = {(cell[one], cell[other]) for cell in cells}
    assert found == set(itertools.product(values[one], values[other]))
  assert len(cells) == 360 if equivalence.FULL else len(cells) < 20


@pytest.mark.slow
@pytest.mark.parametrize(
  ("devices", "way", "texts", "problem"),
  equivalence.cells_of("1", "8"),
  ids=str,
)
def test_devices_and_ways(devices, way, texts, problem):
  """One process."""
  if (devices, way, texts) == ("1", "plain", "padded"):
    # The reference itself: computed again, it is the same to the last bit.
    again = equivalence.compute(problem, way, texts, jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, again, _reference(problem))
    return
  found = equivalence.compute(
    problem, way, texts, jax.devices()[: int(devices)]
  )
  _compare(found, _reference(problem))


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory, repository, environment):
  """What 2 real processes of 4 cores each compute together."""
  path = tmp_path_factory.mktemp("equivalence") / "cells.npz"
  result = subprocess.run(
    [
      sys.executable,
      repository / "launch" / "cpu_emulate.py",
      f"--processes={PROCESSES}",
      f"--devices={CORES_PER_PROCESS}",
      "--",
      sys.executable,
      equivalence.__file__,
      path,
    ],
    env=environment,
    capture_output=True,
    text=True,
    timeout=1500,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return np.load(path)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("devices", "way", "texts", "problem"), equivalence.cells_of("2x4"), ids=str
)
def test_processes_and_ways(of_processes, devices, way, texts, problem):
  """Two processes, started by the launcher."""
  assert devices == f"{PROCESSES}x{CORES_PER_PROCESS}"
  assert of_processes["cores"] == CORES_PER_PROCESS * PROCESSES
  wanted = _reference(problem)
  leaves, structure = jax.tree.flatten(wanted)
  found = [
    of_processes[f"{problem} {way} {texts} {n}"] for n in range(len(leaves))
  ]
  _compare(jax.tree.unflatten(structure, found), wanted)
