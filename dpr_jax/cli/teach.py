"""`dpr-jax teach`: writes a teacher's scores for `train.distill_scores`."""

from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors


def teach(call: Invocation) -> None:
  """Scores the passages of the training questions with one method."""
  from dpr_jax.data import mined_negatives, prepare
  from dpr_jax.reading import teach as teach_lib
  from dpr_jax.training import retriever_inputs

  methods, out = call.flags["method"], call.path("out")
  if not methods or not out:
    raise errors.InputError(
      "--method and --out are needed: --method=hybrid --out=scores.jsonl.gz"
    )
  (method,) = methods
  mined = []
  if method == teach_lib.READER:
    train = call.config.train
    kinds = retriever_inputs.mixture(train, 0).kinds
    count = len(prepare.open_questions(call.workdir, "train"))
    for kind in kinds:
      if kind in mined_negatives.RANKERS:
        path = retriever_inputs.mined_path(train, call.workdir, kind)
        most = max(train.hard_negatives_from_top, train.hard_negatives)
        mined.append([ids[:most] for ids in mined_negatives.read(path, count)])
  teach_lib.teach(
    call.config, call.workdir, method=method, out=out, mined=mined
  )
