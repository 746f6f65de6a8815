"""Training that dies in the middle, as by a power cut."""

from dpr_jax.training import loop


def dies_after(step, monkeypatch, last=lambda run: None):
  """Makes training die when a step, and what is due after it, has been done.

  Args:
    step: after which.
    monkeypatch: undoes it.
    last: called with the loop just before.
  """
  end = loop.Loop._end_if_asked

  def dies(run, number, *others):
    end(run, number, *others)
    if number == step:
      last(run)
      raise RuntimeError("power cut")

  monkeypatch.setattr(loop.Loop, "_end_if_asked", dies)
