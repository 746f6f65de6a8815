"""Formats the report of `dpr-jax plan` as text."""

from collections.abc import Mapping
from typing import Any

GIB = 2**30


def table(report: Mapping[str, Any]) -> str:
  """The text of a report from `tpu_plan.plan`."""
  train = report["config"]["train"]
  lines = [
    f"{report['topology']}: {report['cores']}"
    f" device{'s' if report['cores'] > 1 else ''} on {report['hosts']}"
    f" host{'s' if report['hosts'] > 1 else ''}",
    f"train: {train['batch_size']} questions per step,"
    f" {train['batch_size'] // report['cores']} per device,"
    f" {train['hard_negatives']} hard negatives each,"
    f" {'gradient cache, ' if train['gradient_cache'] else ''}"
    f"chunks of {train['chunk_size'] or 'all'}, remat {train['remat']},"
    f" attention {report['config']['model']['attention']},"
    f" loss {train['loss']}, optimizer"
    f" {'sharded' if train['shard_optimizer'] else 'replicated'}, gradients"
    f" reduced in {train['reduce_dtype']}",
    *_texts(report["texts"]),
    *_step(report["train"]),
  ]
  if report["train"]["fits"]:
    lines += [
      _line(
        "speed", f"{report['train']['questions_per_second']:,.0f} questions/s"
      ),
      _line(
        "training",
        f"{report['train']['steps']:,} steps,"
        f" {report['train']['hours']:,.2f} h,"
        f" {report['train']['chip_hours']:,.1f} chip-hours",
      ),
    ]
  if "embed" in report:
    embed = report["embed"]
    lines += [f"embed: {embed['passages_per_step']} passages per step"]
    lines += _step(embed)
    if embed["fits"]:
      lines += [
        _line("speed", f"{embed['passages_per_second']:,.0f} passages/s"),
        _line(
          "corpus",
          f"{embed['passages']:,} passages, {embed['hours']:,.2f} h,"
          f" {embed['chip_hours']:,.1f} chip-hours",
        ),
      ]
  lines.append(
    "Times assume the chip's peak figures, and no overlap of computation and"
    " communication; a real step takes longer."
  )
  return "\n".join(lines)


def _line(name: str, value: str) -> str:
  return f"  {name:<20}{value}"


def _texts(texts: Mapping[str, Any]) -> list[str]:
  if not texts["source"]:
    return [
      _line(
        "texts",
        "all of full length: give --workdir or config.plan.lengths for real"
        " lengths",
      )
    ]
  lines = [
    _line(
      "texts",
      f"{texts['question_tokens']:.1f} tokens a question,"
      f" {texts['passage_tokens']:.1f} a passage ({texts['source']})",
    ),
    _line(
      "places",
      f"{texts['places']:,} per step for {texts['useful_tokens']:,.0f} useful"
      f" tokens, ratio {texts['places_ratio']:.3f}",
    ),
  ]
  for kind, rows in texts.get("rows", {}).items():
    tiles = ", ".join(f"{slots} x {length}" for slots, length in rows["tiles"])
    lines.append(
      _line(
        f"packed {kind}",
        f"{rows['rows']} row{'s' if rows['rows'] > 1 else ''} of"
        f" {rows['width']} places per device, attention {tiles}",
      )
    )
  return lines


def _step(step: Mapping[str, Any]) -> list[str]:
  memory, limit = step["memory"], step["hbm_limit"] / GIB
  total = memory["total"] / GIB
  if not step["fits"]:
    return [
      _line("fits", f"NO: needs {total:.2f} GiB of {limit:.2f} GiB per device")
    ]
  kinds = ", ".join(
    f"{name} {size / GIB:.2f}"
    for name, size in memory.items()
    if name != "total"
  )
  # The sum of the parts can exceed the total by which the compiler refuses.
  bound = "the compiler accepts it; at most " if total > limit else ""
  seconds, shares = step["seconds"], step["shares"]
  lines = [
    _line(
      "fits",
      f"yes: {bound}{total:.2f} of {limit:.2f} GiB per device ({kinds})",
    ),
    _line(
      "FLOPs",
      f"model {step['model_flops'] / 1e12:,.2f} T, compiled"
      f" {step['compiled_flops'] / 1e12:,.2f} T per step, ratio"
      f" {step['flops_ratio']:.3f}",
    ),
    _line(
      "HBM traffic",
      f"{step['hbm_bytes'] / 1e9:,.2f} GB per step and device",
    ),
  ]
  lines += [
    _line(
      row["kind"], f"{row['count']} x, {row['bytes'] / 1e6:,.3f} MB per step"
    )
    for row in step["collectives"]
  ]
  lines.append(
    _line(
      "roofline",
      f"{1e3 * seconds['step']:,.2f} ms per step: "
      + ", ".join(
        f"{name} {100 * share:.1f} %" for name, share in shares.items()
      ),
    )
  )
  return lines
