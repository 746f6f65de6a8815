"""ONNX graphs: the vectors of ONNX Runtime are ours."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpr_jax
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.models import (
  bert,
  dual_encoder,
  encoder_config,
  export_onnx,
  onnx_graph,
  onnx_int8,
  pooling_layers,
  retriever_model,
)
from tests import families

DENSE = (
  pooling_layers.DenseLayer(32, 24, True, "tanh"),
  pooling_layers.DenseLayer(24, 8, False, "identity"),
)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
  """Two towers with two dense layers in each."""
  config = config_lib.base_config()
  config.model.checkpoint = str(tiny_checkpoint)
  config.model.question_length = 16
  config.model.passage_length = 48
  model = retriever_model.start(config)
  rng = np.random.default_rng(3)
  dense = {
    pooling_layers.dense_name(number): {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in layer.shapes().items()
    }
    for number, layer in enumerate(DENSE)
  }
  params = {name: tree | dense for name, tree in model.params.items()}
  params["question"] = jax.tree.map(lambda x: 0.9 * x, params["question"])
  return dataclasses.replace(model, params=params)


def _batch():
  """Ids and mask of three texts, of 9, 4 and 1 tokens."""
  ids = np.random.default_rng(5).integers(5, 60, (3, 9))
  return ids, np.arange(9) < np.array([[9], [4], [1]])


def _run(path, ids, mask):
  runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime")
  session = runtime.InferenceSession(
    str(path), providers=["CPUExecutionProvider"]
  )
  assert [x.name for x in session.get_inputs()] == list(onnx_graph.INPUTS)
  inputs = ids, mask.astype(np.int64), np.zeros_like(ids)
  names = [onnx_graph.HIDDEN, onnx_graph.VECTOR]
  return session.run(names, dict(zip(onnx_graph.INPUTS, inputs, strict=True)))


@pytest.mark.compiles
@pytest.mark.parametrize("activation", sorted(encoder_config.ACTIVATIONS))
def test_hidden_states_and_vectors_are_ours(model, tmp_path, activation):
  """Of both towers: every pooling, with and without what comes after it."""
  onnx = pytest.importorskip("onnx", reason="no onnx")
  sizes = dataclasses.replace(model.encoder.config, hidden_act=activation)
  ids, mask = _batch()
  kind = "passage" if activation == "relu" else "question"
  tree = model.params[kind]
  hidden = bert.Bert(sizes).apply({"params": tree}, ids, jnp.asarray(mask))
  for number, pooling in enumerate(pooling_layers.POOLINGS):
    dense = DENSE if number % 2 else ()
    skip = 0 if number % 3 else 1
    encoder = dual_encoder.DualEncoder(
      sizes,
      pooling=pooling,
      normalize=bool(number % 2),
      dense=dense,
      question_skip=skip,
      passage_skip=skip,
    )
    wanted = pooling_layers.pool(hidden, mask, pooling, skip)
    wanted = pooling_layers.apply_dense(tree, dense, wanted)
    if encoder.normalize:
      wanted = pooling_layers.unit(wanted)
    towers = dataclasses.replace(model, encoder=encoder)
    graph = onnx_graph.build(towers, kind)
    onnx.checker.check_model(graph, full_check=True)
    assert [x.version for x in graph.opset_import] == [17]
    onnx.save(graph, str(tmp_path / "model.onnx"))
    states, vectors = _run(tmp_path / "model.onnx", ids, mask)
    assert vectors.shape == (3, encoder.dim)
    for row in range(3):  # what is at padding does not matter
      np.testing.assert_allclose(
        states[row][mask[row]], hidden[row][mask[row]], atol=2e-5
      )
    # A text of one token, which is skipped, has no vector.
    rows = slice(0, 2 if skip else 3)
    np.testing.assert_allclose(vectors[rows], wanted[rows], atol=2e-5)


@pytest.mark.compiles
@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_roberta(family, tmp_path):
  """Positions count from the padding token's; the vectors are ours."""
  pytest.importorskip("torch", reason="no torch: extra `parity`")
  onnx = pytest.importorskip("onnx", reason="no onnx")
  families.write(family, tmp_path)
  config = config_lib.base_config()
  config.model.checkpoint = str(tmp_path)
  config.model.pooling, config.model.normalize = "mean", True
  config.model.question_length = config.model.passage_length = 32
  towers = retriever_model.start(config)
  ids, mask = _batch()
  ids = np.where(mask, ids, towers.tokenizer.padding)
  tree = towers.params["passage"]
  sizes = towers.encoder.config
  hidden = bert.Bert(sizes).apply({"params": tree}, ids, jnp.asarray(mask))
  wanted = pooling_layers.unit(pooling_layers.pool(hidden, mask, "mean"))
  onnx.save(onnx_graph.build(towers, "passage"), str(tmp_path / "model.onnx"))
  states, vectors = _run(tmp_path / "model.onnx", ids, mask)
  np.testing.assert_allclose(states[mask], hidden[mask], atol=2e-5)
  np.testing.assert_allclose(vectors, wanted, atol=2e-6)
  assert np.abs(vectors[0] - vectors[1]).max() > 0.01


def test_int8_is_close(model, tmp_path):
  """The files of an export, their sizes, cosines and the same best passage."""
  pytest.importorskip("onnx", reason="no onnx")
  pytest.importorskip("onnxruntime", reason="no onnxruntime")
  towers = export_onnx.write(model, tmp_path, int8=True)
  assert towers == {
    "question": "query_0_Transformer",
    "passage": "document_0_Transformer",
  }
  ids = np.random.default_rng(6).integers(5, 60, (40, 12))
  mask = np.ones_like(ids, bool)
  vectors = {}
  for kind, folder in towers.items():
    files = [
      tmp_path / folder / x for x in (export_onnx.FILE, export_onnx.INT8)
    ]
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size
    vectors[kind] = [_run(path, ids, mask)[1] for path in files]
    cosines = np.sum(np.multiply(*vectors[kind]), axis=1) / np.prod(
      [np.linalg.norm(x, axis=1) for x in vectors[kind]], axis=0
    )
    print(f"{kind}: cosine {cosines.mean():.4f}, least {cosines.min():.4f}")
    assert cosines.min() > 0.98
  best = [
    np.argmax(questions @ passages.T, axis=1)
    for questions, passages in zip(*vectors.values(), strict=True)
  ]
  share = np.mean(best[0] == best[1])
  print(f"the same best passage for {share:.0%} of the questions")
  assert share >= 0.75


def test_weights_are_rounded_by_hand():
  """A scale per column for products, per row for tables; zeros stay zeros."""
  matrix = np.array([[6.3, 0.0, -1.01], [-0.35, 0.0, 2.0]], np.float32)
  integers, scales = onnx_int8.quantized(matrix, 0, onnx_int8.LARGEST)
  # Columns: 6.3 / 63 = 0.1; all zeros; 2 / 63, of which -1.01 is -31.8.
  np.testing.assert_allclose(scales, [0.1, 1.0, 2 / 63], rtol=1e-6)
  np.testing.assert_array_equal(integers, [[63, 0, -32], [-4, 0, 63]])
  integers, scales = onnx_int8.quantized(matrix, 1, 127)
  np.testing.assert_allclose(scales, [6.3 / 127, 2 / 127], rtol=1e-6)
  np.testing.assert_array_equal(integers, [[127, 0, -20], [-22, 0, 127]])
  # Two products of uint8 and weights in 16 bits, as without VNNI.
  assert 2 * 255 * onnx_int8.LARGEST < 2**15 < 2 * 255 * 127


def test_vectors_without_the_hidden_states(model, tmp_path):
  """The last layer of position 0 alone: the same vectors, one output."""
  onnx = pytest.importorskip("onnx", reason="no onnx")
  runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime")
  ids, mask = _batch()
  inputs = (ids, mask.astype(np.int64), np.zeros_like(ids))
  inputs = dict(zip(onnx_graph.INPUTS, inputs, strict=True))
  found = []
  for states in (True, False):
    graph = onnx_graph.build(model, "passage", states=states)
    onnx.checker.check_model(graph, full_check=True)
    assert len(graph.graph.output) == 1 + states
    session = runtime.InferenceSession(
      graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found.append(session.run([onnx_graph.VECTOR], inputs)[0])
  assert model.encoder.first_only
  np.testing.assert_allclose(found[0], found[1], atol=2e-6)


def test_weights_beyond_two_gigabytes_have_their_own_file(
  model, tmp_path, monkeypatch
):
  pytest.importorskip("onnx", reason="no onnx")
  ids, mask = _batch()
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
  export_onnx.write(model, tmp_path / "one")
  monkeypatch.setattr(export_onnx, "LARGEST", 1000)
  export_onnx.write(model, tmp_path / "two")
  paths = [
    tmp_path / x / "query_0_Transformer" / export_onnx.FILE
    for x in ("one", "two")
  ]
  assert paths[1].with_name("model.onnx_data").exists()
  one, two = (_run(path, ids, mask)[1] for path in paths)
  np.testing.assert_array_equal(one, two)


def test_without_the_library(model, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(errors.InputError, match="pip install 'dpr-jax.onnx.'"):
    export_onnx.write(model, tmp_path)
  assert not list(tmp_path.iterdir())


def test_graphs_are_not_loaded_here(model, tmp_path):
  from dpr_jax.models import model_files

  (tmp_path / "config.json").write_text("{}")
  values = {"model": model.settings, "format_name": "onnx"}
  model_files.seal(tmp_path, "towers", **values)
  with pytest.raises(errors.InputError, match="holds ONNX graphs"):
    dpr_jax.Encoder.load(tmp_path)
