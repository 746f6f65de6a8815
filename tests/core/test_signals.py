"""Signals: raised at once, noted inside a step, never swallowed twice."""

import os
import signal

import pytest

from dpr_jax.core import signals


@pytest.fixture(autouse=True)
def listening():
  """Our handlers, for one test alone."""
  before = {each: signal.getsignal(each) for each in signals.SIGNALS}
  signals.listen()
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def _send(number):
  os.kill(os.getpid(), number)


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_the_exit_code_says_which_one(number, code):
  with pytest.raises(signals.Interrupted, match=number.name) as raised:
    _send(number)
  assert raised.value.exit_code == code


def test_the_first_is_noted_and_the_second_does_not_wait():
  with signals.deferred() as request:
    assert request.number is None
    _send(signal.SIGTERM)
    assert request.number == signal.SIGTERM
    with pytest.raises(signals.Interrupted, match="SIGINT"):
      _send(signal.SIGINT)


def test_long_work_inside_a_step_is_broken_off():
  with signals.deferred() as request:
    with pytest.raises(signals.Interrupted), signals.at_once():
      _send(signal.SIGTERM)
    assert request.number is None
    _send(signal.SIGTERM)  # outside it waits again
    assert request.number == signal.SIGTERM
