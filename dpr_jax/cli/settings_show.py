"""The settings as text: `dpr-jax config`, and the reference page.

  python -m dpr_jax.cli.settings_show > docs/reference/config.md

writes the page again (also: `make reference`).
"""

import dataclasses
import json
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

from dpr_jax.core.setting import Setting
from dpr_jax.core.settings_table import ALL, SECTIONS, value_of

DEFAULT = "default"
_SECTIONS = {
  "data": "What `prepare` reads",
  "model": "The towers",
  "train": "Training of the retriever",
  "bm25": "BM25",
  "mine": "Hard negatives",
  "embed": "Vectors of the corpus",
  "index": "FAISS indexes",
  "retrieve": "Retrieval",
  "exact": "Exact search on the devices",
  "fusion": "BM25 and dense together",
  "reader": "Training of the reader",
  "read": "Reading",
  "evaluate": "Evaluation",
  "plan": "Sizes that `plan` assumes",
}
_HEAD = """# Settings

Generated from the table of settings (`dpr_jax/core/settings_table.py`) by
`make reference`: change it there.

A config file (`configs/*.py`) starts from `configuration.base_config()`,
which holds the defaults below, and changes some of them.  The command line
overrides the file: `--config.train.batch_size=64`.  A tuple is written as
`bm25,dense`, a boolean as True or False, yes or no.  `dpr-jax config --print`
shows the values that a call would use and where each comes from; `--diff`
shows only those that differ from the default.

Every value that a command needs is checked before the command starts.  A
warning names settings that were changed but that this call does not read (see
"Read by").
"""


@dataclasses.dataclass(frozen=True)
class Row:
  """One setting of a config.

  Attributes:
    key: key of the setting.
    value: its value in this config.
    origin: "default", "config file", "command line" or "workdir".
  """

  key: str
  value: Any
  origin: str


def rows(config: Any, typed: Collection[str], file: str) -> list[Row]:
  """All settings of a config, and where each value comes from.

  Args:
    config: the experiment.
    typed: keys of settings that the command line overrides.
    file: where the config comes from, "config file" or "workdir"; the origin
      of values that are neither typed nor the default.
  """
  found = []
  for setting in ALL:
    value = value_of(config, setting.key)
    origin = DEFAULT if value == setting.default else file
    if setting.key in typed:
      origin = "command line"
    found.append(Row(setting.key, value, origin))
  return found


def differing(found: Sequence[Row]) -> list[Row]:
  """The rows whose values differ from the default."""
  defaults = {each.key: each.default for each in ALL}
  return [row for row in found if row.value != defaults[row.key]]


def text(found: Sequence[Row]) -> str:
  """One line per row: key, value, origin, in aligned columns."""
  values = [repr(row.value) for row in found]
  keys = max((len(row.key) for row in found), default=0)
  # Wider values (long paths) are not aligned, so that origins stay in view.
  width = min(max(map(len, values), default=0), 40)
  return "\n".join(
    f"{row.key:<{keys}}  {value:<{width}}  {row.origin}"
    for row, value in zip(found, values, strict=True)
  )


def as_json(found: Sequence[Row]) -> str:
  """{key: {"value": ..., "from": ...}}, indented."""
  return json.dumps(
    {row.key: {"value": row.value, "from": row.origin} for row in found},
    indent=2,
  )


def page() -> str:
  """The text of docs/reference/config.md."""
  parts = [_HEAD]
  for section in ("", *SECTIONS):
    rows = [each for each in ALL if each.section == section]
    if section:
      parts.append(f"## {section}\n\n{_SECTIONS[section]}.\n")
    parts.append("\n".join(_entry(each) for each in rows) + "\n")
  return "\n".join(parts)


def _entry(setting: Setting) -> str:
  """A list item: key, default, allowed values, meaning, stages that read it."""
  kind = setting.item or setting.kind
  allowed = {int: "integer", float: "number", bool: "", str: ""}[kind]
  if setting.choices:
    choices = (f"`{each}`" if each else '`""`' for each in setting.choices)
    allowed = f"one of {', '.join(choices)}"
  if setting.or_auto:
    allowed = "True, False or `auto`"
  if setting.range:
    allowed += f" {setting.range}"
  if setting.words:
    allowed += f", or {' or '.join(f'`{each}`' for each in setting.words)}"
  if setting.item:
    many = "one or more" if setting.filled else "none or more"
    allowed = f"{many}, each {allowed}".removesuffix(", each ")
  parts = [f"`{setting.default!r}`", allowed.strip(), setting.unit]
  facts = ", ".join(part for part in parts if part)
  read_by = ", ".join(setting.stages)
  if setting.when:
    read_by += f"; where {', and '.join(setting.when)}"
  line = (
    f"- **`{setting.key}`** = {facts}: {setting.meaning}. Read by: {read_by}."
  )
  return textwrap.fill(
    line,
    80,
    subsequent_indent="  ",
    break_long_words=False,
    break_on_hyphens=False,
  )


if __name__ == "__main__":
  print(page(), end="")
