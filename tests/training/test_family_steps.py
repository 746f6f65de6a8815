"""A train step of every family of encoders: loss and gradients are torch's.

Both towers are one encoder with mean pooling and two dense layers.  With SGD
and a rate of 1, a step subtracts the gradient.
"""

import jax
import numpy as np
import optax
import pytest

from dpr_jax.core import devices as devices_lib
from dpr_jax.models import (
  dual_encoder,
  hf_weights,
  pooling_layers,
  retriever_model,
)
from dpr_jax.training import train_step
from tests import families
from tests.models import bert_folders

torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
pytestmark = pytest.mark.compiles

TEMPERATURE = 2.0
DENSE = (
  pooling_layers.DenseLayer(48, 20, True, "tanh"),
  pooling_layers.DenseLayer(20, 12, False, "identity"),
)


def _texts(generator, lengths, padding):
  """Random ids, padded as the family does."""
  mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
  ids = generator.integers(5, 40, mask.shape)
  return np.where(mask, ids, padding).astype(np.int32), mask


def _batch(questions, passages):
  """Three questions, and a positive and another passage of each."""
  rows, others = np.arange(3, dtype=np.int32), np.arange(6, dtype=np.int32)
  batch = {
    "questions": dict(zip(("ids", "mask"), questions, strict=True)),
    "passages": dict(zip(("ids", "mask"), passages, strict=True)),
    "question_rows": rows,
    "question_keys": 2 * rows,
    "labels": 2 * rows,
    "passage_rows": others,
    "passage_valid": np.ones(6, bool),
    "passage_keys": others,
  }
  return jax.tree.map(lambda x: x[None], batch)  # of one device


def _torch_gradients(folder, dense, texts):
  """Loss and gradients: (loss, of the encoder by name, of dense kernels...)."""
  import transformers

  model = transformers.AutoModel.from_pretrained(folder).eval()
  layers = [
    {name: torch.tensor(x, requires_grad=True) for name, x in layer.items()}
    for layer in dense.values()
  ]

  def encode(ids, mask):
    mask = torch.tensor(mask)
    hidden = model(
      input_ids=torch.tensor(ids, dtype=torch.long),
      attention_mask=mask.long(),
    ).last_hidden_state
    weights = mask.float()[:, :, None]
    vectors = (hidden * weights).sum(1) / weights.sum(1)
    first, second = layers
    vectors = torch.tanh(vectors @ first["kernel"] + first["bias"])
    return vectors @ second["kernel"]

  questions, passages = (encode(*each) for each in texts)
  scores = questions @ passages.T / TEMPERATURE
  loss = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 2, 4]))
  loss.backward()
  named = {
    name: x.grad.numpy()
    for name, x in model.named_parameters()
    if x.grad is not None
  }
  return (
    loss.item(),
    named,
    [{name: x.grad.numpy() for name, x in layer.items()} for layer in layers],
  )


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_loss_and_gradients(family, tmp_path):
  families.write(family, tmp_path)
  config, tower = bert_folders.load_bert(tmp_path)
  generator = np.random.default_rng(1)
  dense = {
    pooling_layers.dense_name(number): {
      name: generator.normal(size=shape).astype(np.float32) / 4
      for name, shape in layer.shapes().items()
    }
    for number, layer in enumerate(DENSE)
  }
  encoder = dual_encoder.DualEncoder(
    retriever_model.with_dropout(config, 0.0),
    pooling="mean",
    shared=True,
    dense=DENSE,
  )
  before = encoder.towers(tower | dense)
  padding = _padding(tmp_path)
  texts = [
    _texts(generator, lengths, padding)
    for lengths in ((9, 4, 7), (12, 3, 10, 12, 5, 8))
  ]
  transformation = optax.sgd(1.0)
  step = devices_lib.map_train_step(
    train_step.make_train_step(
      encoder,
      transformation,
      lambda step: 1.0,
      seed=0,
      temperature=TEMPERATURE,
    ),
    jax.devices()[:1],
    train_step.TrainState(None, None, None),
  )
  state = train_step.TrainState(
    np.int32(0), before, transformation.init(before)
  )
  before = jax.tree.map(np.array, before)
  state, metrics = step(
    devices_lib.replicate(state, jax.devices()[:1]), _batch(*texts)
  )
  after = jax.tree.map(np.asarray, state.params)
  found = jax.tree.map(np.subtract, before, after)["shared"]
  loss, wanted, layers = _torch_gradients(tmp_path, dense, texts)
  np.testing.assert_allclose(float(metrics["loss"]), loss, rtol=1e-5)
  for name, layer in zip(dense, layers, strict=True):
    for key, gradient in layer.items():
      np.testing.assert_allclose(found[name][key], gradient, atol=2e-5)
      assert np.abs(gradient).max() > 1e-2
  ours = hf_weights.tensors_from_params(found, config)
  for name, gradient in ours.items():
    np.testing.assert_allclose(
      gradient, wanted.pop(name), atol=1e-4, err_msg=name
    )
  assert not any(np.abs(gradient).max() for gradient in wanted.values())
  assert max(np.abs(gradient).max() for gradient in ours.values()) > 0.1


def _padding(folder):
  """The token that transformers pads with."""
  import transformers

  return transformers.AutoConfig.from_pretrained(folder).pad_token_id
