"""The table of methods and measures, as people see it."""

import io

from dpr_jax.evaluation import tables


def test_table_is_plain_and_unwrapped_off_a_terminal():
  measures = {f"top{k}": 0.5 for k in (1, 5, 20, 100)}
  measures |= {f"gold_{key}": 0.25 for key in list(measures)}
  measures["questions"] = 7
  table = tables.comparison_table(
    {"a-method-with-quite-a-long-name": measures, "[dense]": {"top1": 1.0}},
    "dev",
  )
  file = io.StringIO()
  tables.print_table(table, file)
  text = file.getvalue()
  assert "\x1b" not in text
  lines = text.splitlines()
  assert "questions" not in text
  header = next(line for line in lines if "method" in line)
  for name in ("answer top-1 ", "answer top-100", "gold top-1 "):
    assert name in header
  assert header.index("top-5") < header.index("top-20")
  assert header.index("answer top-100") < header.index("gold top-1")
  (row,) = [line for line in lines if "quite-a-long-name" in line]
  assert row.count("50.0") == row.count("25.0") == 4
  (row,) = [line for line in lines if "[dense]" in line]
  assert "100.0" in row
