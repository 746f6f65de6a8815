"""Stacks the parameters of equal layers, so that one compiled loop runs them.

The parameters of a BERT are a dict with `layer_0`, `layer_1`, ...  Stacked, all
layers but the last (which may compute position 0 alone), and but a first one
that has fewer parameters, are one dict `layers`
whose arrays have a leading axis of layers.  `bert.Bert` takes both forms; the
program of the stacked form is as long as one layer, so that it compiles faster.
Parameters on disk and in the Python API are not stacked.
"""

from collections.abc import Callable
from typing import Any

import jax

STACK = "layers"
_FIRST = "layer_0"


def stack(tree: Any, of_layers: Callable) -> Any:
  """Stacks the layers of every BERT in a tree.

  Args:
    tree: parameters, or a tree that contains such trees, for example the state
      of an optimizer.
    of_layers: makes one array of a list: `np.stack` or `jnp.stack`.
  """

  def change(node: Any) -> Any:
    if not _is_bert(node, _FIRST) or STACK in node:
      return node
    count = sum(name.startswith("layer_") for name in node)
    names = [f"layer_{number}" for number in range(count - 1)]
    if count > 2 and set(node[_FIRST]) != set(node["layer_1"]):
      names = names[1:]  # ModernBERT's first layer has fewer parameters
    rest = {name: value for name, value in node.items() if name not in names}
    layers = [node[name] for name in names]
    if not layers:
      return rest
    stacked = jax.tree.map(lambda *x: of_layers(x), *layers)
    return rest | {STACK: stacked}

  return jax.tree.map(change, tree, is_leaf=lambda x: _is_bert(x, _FIRST))


def unstack(tree: Any) -> Any:
  """The inverse of `stack`; of NumPy arrays the layers are views."""

  def change(node: Any) -> Any:
    if not _is_bert(node, STACK):
      return node
    rest = {name: value for name, value in node.items() if name != STACK}
    count = len(jax.tree.leaves(node[STACK])[0])
    first = int(_FIRST in node)
    layers = {
      f"layer_{first + number}": jax.tree.map(
        lambda x, n=number: x[n], node[STACK]
      )
      for number in range(count)
    }
    return layers | rest

  return jax.tree.map(change, tree, is_leaf=lambda x: _is_bert(x, STACK))


def _is_bert(node: Any, name: str) -> bool:
  return isinstance(node, dict) and name in node
