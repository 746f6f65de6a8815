"""Parameters of alike layers as one array each, so that a loop runs over them.

A BERT's parameters are a dict with `layer_0`, `layer_1`, ...  Side by side, all
layers but the last (which may compute position 0 alone) are one dict `layers`
whose arrays have a leading axis of layers.  `bert.Bert` takes either; stacked,
its program is as long as one layer, and compiles that much faster for a TPU.
Whatever is written to disk or handed out is not stacked.
"""

from collections.abc import Callable
from typing import Any

import jax

STACK = "layers"
_FIRST = "layer_0"


def stack(tree: Any, of_layers: Callable) -> Any:
  """Puts layers side by side in every BERT of a tree.

  Args:
    tree: parameters, or anything that holds trees like them, as an optimizer's
      state does.
    of_layers: makes one array of a list, as `np.stack` or `jnp.stack`.
  """

  def change(node: Any) -> Any:
    if not _is_bert(node, _FIRST):
      return node
    count = sum(name.startswith("layer_") for name in node)
    names = [f"layer_{number}" for number in range(count - 1)]
    rest = {name: value for name, value in node.items() if name not in names}
    layers = [node[name] for name in names]
    if not layers:
      return rest
    stacked = jax.tree.map(lambda *x: of_layers(x), *layers)
    return rest | {STACK: stacked}

  return jax.tree.map(change, tree, is_leaf=lambda x: _is_bert(x, _FIRST))


def unstack(tree: Any) -> Any:
  """The inverse of `stack`; parts of arrays are views where NumPy's are."""

  def change(node: Any) -> Any:
    if not _is_bert(node, STACK):
      return node
    rest = {name: value for name, value in node.items() if name != STACK}
    count = len(jax.tree.leaves(node[STACK])[0])
    layers = {
      f"layer_{number}": jax.tree.map(lambda x, n=number: x[n], node[STACK])
      for number in range(count)
    }
    return layers | rest

  return jax.tree.map(change, tree, is_leaf=lambda x: _is_bert(x, STACK))


def _is_bert(node: Any, name: str) -> bool:
  return isinstance(node, dict) and name in node
