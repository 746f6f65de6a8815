"""A plan as a table for people."""

from dpr_jax.planning import report, tpu_plan


def test_the_table_says_what_the_report_holds(compile_plan):
  step = compile_plan("v5e:1x1", 2)
  found = {
    "topology": "v5e:1x1",
    "cores": 1,
    "hosts": 1,
    "config": {
      "model": {"attention": "plain"},
      "train": {
        "batch_size": 2,
        "hard_negatives": 1,
        "gradient_cache": False,
        "chunk_size": 0,
        "remat": "none",
        "loss": "gathered",
        "shard_optimizer": False,
        "reduce_dtype": "float32",
      },
    },
    "texts": {"source": ""},
    "train": tpu_plan._figures(step)
    | {"questions_per_second": 5.0, "steps": 7, "hours": 1, "chip_hours": 2},
  }
  text = report.table(found)
  assert "v5e:1x1: 1 device on 1 host\n" in text
  assert "fits                yes" in text
  assert "all of full length: give --workdir or config.plan.lengths" in text
  assert "7 steps, 1.00 h, 2.0 chip-hours" in text
  found["train"] = tpu_plan._figures(
    tpu_plan.Step(False, {"total": 2**35}, 2**34, 1)
  )
  assert "NO: needs 32.00 GiB of 16.00 GiB per device" in report.table(found)
