"""What was loaded before fork() says so in the child; BM25 works there."""

import json

import pytest

from dpr_jax.core import forks
from tests.core import fork_calls

pytestmark = [pytest.mark.compiles, pytest.mark.processes]
_HOOK = (
  "from tests.core import fork_calls\nfork_calls.main({config!r}, {workdir!r})"
)


@pytest.fixture(scope="module")
def messages(zygote, config_file, mined_workdir):
  """What the use of each object gives in a forked child, by its name."""
  hook = _HOOK.format(config=str(config_file), workdir=str(mined_workdir.root))
  outcome = zygote.run("--version", hook=hook)
  assert outcome.code == 0, outcome.stderr
  return json.loads(outcome.stdout.splitlines()[0])


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("Encoder", "Encoder"),
    ("Encoder of others", "Encoder"),
    ("PassageReader", "PassageReader"),
    ("DenseRanker", "DenseRanker"),
    ("ExactRanker", "ExactRanker"),
    ("Retriever", "DenseRanker"),
    ("Answerer", "PassageReader"),
  ],
)
def test_used_in_a_child(messages, name, kind):
  """At once and clearly, where it would hang."""
  assert f"this {kind} was loaded in process" in messages[name]
  assert "load it in the child, or start processes with" in messages[name]


def test_bm25_works_in_a_child(messages):
  assert messages["bm25"] == fork_calls.USED


def test_the_same_process_may_go_on():
  """Also a thread of it."""
  import threading

  home, errors = forks.Home(), []

  def check():
    try:
      home.check(home)
    except forks.ForkError as error:
      errors.append(error)

  thread = threading.Thread(target=check)
  thread.start()
  thread.join()
  assert not errors
