"""Folders of Sentence-Transformers: the installed version's, and older ones."""

import json
import shutil

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.models import checkpoint_layouts, tower_files
from tests.models import layout_writers

pytestmark = pytest.mark.compiles  # torch and its libraries take seconds


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """The modules of the installed library, and a base model for them."""
  library = layout_writers.sentence_transformers_library()
  base = tmp_path_factory.mktemp("base")
  layout_writers.write_bert(base)
  try:
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer import modules
  except ImportError:
    modules = library.models
    Router = modules.Router
  modules.Router = Router
  return modules, str(base)


@pytest.mark.parametrize(
  ("written", "ours"),
  [
    ("cls_token", "cls"),
    ("mean_tokens", "mean"),
    ("max_tokens", "max"),
    ("mean_sqrt_len_tokens", "mean_sqrt_len"),
    ("weightedmean_tokens", "weightedmean"),
    ("lasttoken", "lasttoken"),
  ],
)
def test_old_layout(tmp_path, written, ours):
  state = layout_writers.old_sentence_transformers(tmp_path, written)
  opened = checkpoint_layouts.open_(str(tmp_path))
  assert opened.layout == "Sentence-Transformers"
  assert opened.shared
  use = tower_files.Use(ours, False, length=24, title="joined")
  assert opened.question.use == opened.passage.use == use
  layout_writers.assert_tensors(opened.question.tensors(), state)


def test_old_lengths(tmp_path):
  """The settings' number, else the tokenizer's; never beyond the positions."""
  layout_writers.old_sentence_transformers(tmp_path, max_seq_length=None)

  def length():
    return checkpoint_layouts.open_(str(tmp_path)).passage.use.length

  assert length() == 40
  settings = tmp_path / "tokenizer_config.json"
  layout_writers.write_json(settings, {"model_max_length": 30})
  assert length() == 30
  layout_writers.write_json(settings, {"model_max_length": int(1e30)})
  assert length() == 40
  settings = tmp_path / "sentence_bert_config.json"
  layout_writers.write_json(settings, {"max_seq_length": 512})
  assert length() == 40
  layout_writers.write_json(settings, {"max_seq_length": "512"})
  with pytest.raises(errors.InputError, match="max_seq_length is '512'"):
    length()


@pytest.mark.parametrize(
  ("prompts", "default", "ours"),
  [
    ({"query": "q: ", "document": "d: "}, None, ("q: ", "d: ")),
    ({"query": "q: ", "passage": "p: "}, None, ("q: ", "p: ")),
    ({"query": "q: ", "document": "", "corpus": "c: "}, None, ("q: ", "c: ")),
    ({"query": "q: "}, "query", ("q: ", None)),
    ({"search": "s: "}, "search", ("s: ", "s: ")),
    ({"search": "s: "}, None, (None, None)),
    ({}, None, (None, None)),
  ],
)
def test_prompts(tmp_path, prompts, default, ours):
  layout_writers.old_sentence_transformers(tmp_path)
  layout_writers.write_json(
    tmp_path / "config_sentence_transformers.json",
    {"prompts": prompts, "default_prompt_name": default},
  )
  opened = checkpoint_layouts.open_(str(tmp_path))
  assert (opened.question.use.prefix, opened.passage.use.prefix) == ours
  assert opened.shared  # the weights are one encoder's, whatever the prompts


def test_dense_layers_and_prompts(tmp_path, parts):
  """Weights, activations and order, as the installed library writes them."""
  modules, base = parts
  torch = layout_writers.torch_library()
  dense = [
    modules.Dense(8, 6, activation_function=torch.nn.Tanh()),
    modules.Dense(6, 5, bias=False, activation_function=torch.nn.Identity()),
  ]
  pooling = modules.Pooling(8, "cls")
  pooling.include_prompt = False
  layout_writers.save_modules(
    tmp_path,
    [modules.Transformer(base), pooling, *dense, modules.Normalize()],
    prompts={"query": "query: ", "document": "passage: "},
  )
  opened = checkpoint_layouts.open_(str(tmp_path))
  assert opened.shared
  use = opened.passage.use
  assert (use.pooling, use.normalize, use.pools_prefix) == ("cls", True, False)
  assert (opened.question.use.prefix, use.prefix) == ("query: ", "passage: ")
  assert [layer.activation for layer in use.dense] == ["tanh", "identity"]
  for layer, module in zip(use.dense, dense, strict=True):
    weight = module.linear.weight.detach().numpy()
    np.testing.assert_array_equal(layer.kernel, weight.T)
  np.testing.assert_array_equal(
    use.dense[0].bias, dense[0].linear.bias.detach().numpy()
  )
  assert use.dense[1].bias is None


@pytest.mark.parametrize("shared", [False, True])
def test_router(tmp_path, parts, shared):
  """A list of modules per kind of text, and a module after the router."""
  modules, base = parts
  routes = [[modules.Transformer(base), modules.Pooling(8, "max")]]
  routes.append(
    [routes[0][0] if shared else modules.Transformer(base)]
    + [modules.Pooling(8, "max"), modules.Dense(8, 4)]
  )
  for number, route in enumerate(routes):
    for parameter in route[0].parameters():
      parameter.data += number
  routes[0].append(modules.Dense(8, 4))
  router = modules.Router.for_query_document(*routes)
  layout_writers.save_modules(tmp_path, [router, modules.Normalize()])
  opened = checkpoint_layouts.open_(str(tmp_path))
  assert not opened.shared  # the dense layers differ
  for files, route in zip(
    (opened.question, opened.passage), routes, strict=True
  ):
    assert (files.use.pooling, files.use.normalize) == ("max", True)
    np.testing.assert_array_equal(
      files.use.dense[0].kernel, route[2].linear.weight.detach().numpy().T
    )
    state = {
      name.partition("model.")[2]: value.numpy()
      for name, value in route[0].state_dict().items()
    }
    layout_writers.assert_tensors(files.tensors(), state)


def _router(root, structure, **parameters):
  """A router of the layout of `Asym`, over two routes of one BERT each."""
  layout_writers.old_modules(root, "Asym")
  for route in ("x", "y"):
    layout_writers.old_sentence_transformers(root / f"{route}_0_Transformer")
    shutil.move(root / f"{route}_0_Transformer" / "1_Pooling", root / route)
  types = {f"{route}_0_Transformer": "Transformer" for route in "xy"}
  types |= {route: "Pooling" for route in "xy"}
  types = {k: f"sentence_transformers.models.{v}" for k, v in types.items()}
  layout_writers.write_json(
    root / "config.json",
    {"types": types, "structure": structure, "parameters": parameters},
  )


X, Y = ["x_0_Transformer", "x"], ["y_0_Transformer", "y"]


@pytest.mark.parametrize(
  ("structure", "parameters", "folders"),
  [
    ({"query": X, "document": Y}, {}, "xy"),
    ({"query": X, "corpus": Y}, {}, "xy"),
    ({"question": X, "passage": Y}, {}, "xy"),
    ({"query": Y, "other": X}, {"default_route": "other"}, "yx"),
    (
      {"a": X, "b": Y},
      {
        "route_mappings": {
          "('query', 'text')": "b",
          "('document', None)": "a",
        }
      },
      "yx",
    ),
    ({"query": X, "document": X}, {}, "xx"),
  ],
)
def test_routes(tmp_path, structure, parameters, folders):
  _router(tmp_path, structure, **parameters)
  opened = checkpoint_layouts.open_(str(tmp_path))
  towers = (opened.question, opened.passage)
  assert "".join(files.folder.name[0] for files in towers) == folders
  assert opened.shared == (folders == "xx")


def test_a_router_without_a_route(tmp_path):
  _router(tmp_path, {"query": X, "image": Y})
  with pytest.raises(errors.InputError, match="no route for a 'document'"):
    checkpoint_layouts.open_(str(tmp_path))


@pytest.mark.parametrize(
  ("file", "value", "message"),
  [
    ("modules.json", {}, "is not a list of modules"),
    (
      "modules.json",
      [{"path": "../x", "type": "sentence_transformers.models.Pooling"}],
      "'../x' is not a folder inside of",
    ),
    (
      "modules.json",
      [{"path": "", "type": "sentence_transformers.models.CNN"}],
      "'sentence_transformers.models.CNN' is not supported",
    ),
    (
      "modules.json",
      [{"path": "", "type": "custom_st.Transformer"}],
      "'custom_st.Transformer' is not supported",
    ),
    (
      "modules.json",
      [{"path": "", "type": "sentence_transformers.models.Transformer"}],
      "modules in the order Transformer: an encoder of one vector",
    ),
    (
      "1_Pooling/config.json",
      {"pooling_mode": ["cls", "mean"]},
      "pooling by cls and mean: it must be one of cls, lasttoken, max",
    ),
    (
      "1_Pooling/config.json",
      {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
      "pooling by pooling_mode_cls_token and pooling_mode_max_tokens",
    ),
    (
      "sentence_bert_config.json",
      {"transformer_task": "text-generation"},
      "transformer_task is 'text-generation': only 'feature-extraction'",
    ),
    (
      "config_sentence_transformers.json",
      {"prompts": {"query": 3}},
      "prompts must map names to texts",
    ),
  ],
)
def test_refusals(tmp_path, file, value, message):
  """One line that names the file and the value."""
  layout_writers.old_sentence_transformers(tmp_path)
  layout_writers.write_json(tmp_path / file, value)
  with pytest.raises(errors.InputError) as caught:
    checkpoint_layouts.open_(str(tmp_path))
  assert message in str(caught.value)
  assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (
      {"activation_function": "torch.nn.modules.activation.ReLU"},
      "activation_function 'torch.nn.modules.activation.ReLU'",
    ),
    ({"use_residual": True}, "use_residual is 'True': only False"),
    ({"module_input_name": "token_embeddings"}, "module_input_name is"),
  ],
)
def test_refused_dense_layers(tmp_path, parts, settings, message):
  modules, base = parts
  layout_writers.save_modules(
    tmp_path,
    [modules.Transformer(base), modules.Pooling(8), modules.Dense(8, 4)],
  )
  path = tmp_path / "2_Dense" / "config.json"
  layout_writers.write_json(path, json.loads(path.read_text()) | settings)
  with pytest.raises(errors.InputError) as caught:
    checkpoint_layouts.open_(str(tmp_path))
  assert f"{path}: {message}" in str(caught.value)
