"""What `evaluate` has measured of one model, for its model card."""

from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import staleness
from dpr_jax.evaluation.ranked_results import sidecar_of
from dpr_jax.models import model_card

_SUFFIX = ".manifest.json"


def of_workdir(
  where: workdir_lib.Workdir, method: str
) -> list[model_card.Evaluated]:
  """Measures of the retriever, by question set.

  Measures of results that are older than the model are left out, and named in
  a warning.

  Args:
    where: the workdir.
    method: "dense" = the trained towers, "dense-start" = before training.
  """
  folder = where.evaluation("").parent
  measured = []
  for manifest in sorted(folder.glob(f"*{_SUFFIX}")):
    name = manifest.name.removesuffix(_SUFFIX)
    try:
      record = workdir_lib.read_record(manifest)
      values = workdir_lib.read_json(where.evaluation(name)).get(method)
      if not values:
        continue
      results = sidecar_of(where.results(name, method))
      staleness.check_results(where, name, method, results)
    except errors.InputError as error:
      logging.warning("export: measures of %s are left out: %s", name, error)
      continue
    counts = record.get("counts", {})
    measured.append(
      model_card.Evaluated(
        name=name,
        source=_source(where, results, name),
        questions=counts.get(f"{method}_questions", 0),
        values={
          measure: value
          for measure, value in values.items()
          if isinstance(value, float)
        },
      )
    )
  return measured


def _source(where: workdir_lib.Workdir, results: dict, name: str) -> str:
  """The file that the questions are from; "" = it was not recorded."""
  path = where.data / workdir_lib.MANIFEST
  if "dev" not in results.get("inputs", {}) or not path.exists():
    return name if name != "dev" else ""
  named = workdir_lib.read_record(path).get("config", {}).get("data", {})
  return model_card.source_name(named["dev"]) if named.get("dev") else ""
