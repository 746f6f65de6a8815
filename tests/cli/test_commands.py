"""The table of commands: whole, consistent, and all that there is to change."""

import dataclasses
import inspect
import sys
import types

import jax
import pytest

from dpr_jax.cli import command, commands, usage
from dpr_jax.cli import flags as cli_flags
from dpr_jax.cli import main as main_lib
from dpr_jax.core import errors, multiprocess, settings_table

ROWS = pytest.mark.parametrize(
  "row", commands.COMMANDS, ids=lambda row: row.name
)


def test_stages_in_the_order_of_run():
  """The contract's order; the reader's only where one is trained."""
  assert commands.STAGES == (
    *("prepare", "mine", "train", "embed", "index", "retrieve"),
    *("train-reader", "read", "evaluate"),
  )
  with_reader = [
    row.name for row in commands.COMMANDS if row.in_run == command.WITH_READER
  ]
  assert with_reader == ["train-reader", "read"]
  assert len(commands.BY_NAME) == len(commands.COMMANDS)


def test_who_leaves_devices_alone():
  """A TPU is one process's: what computes nothing must not ask for it."""

  def computes(line):
    call = main_lib.invocation(["dpr-jax", *line.split()])
    return call.command.needs_devices(call.flags)

  for name in (
    "prepare",
    "mine",
    "evaluate",
    "export",
    "import",
    "check",
    "sweep",
  ):
    assert not computes(name), name
  for name in ("train", "embed", "index", "retrieve", "run", "demo", "ask"):
    assert computes(name), name
  assert not computes("index --plan")
  assert not computes("mine --from=bm25")
  assert computes("mine --from=model")
  assert not computes("import --workdir=w --from=x")


def test_how_commands_run_on_several_processes():
  """Only stages that compute together run in every process."""
  ways = {
    command.FIRST: "prepare read evaluate ask export publish check fetch"
    " report",
    command.TOGETHER: "mine train embed index retrieve train-reader run teach",
    command.ONE: "demo import",
    command.APART: "plan config",
    command.STARTS: "sweep",
  }
  benches = {f"bench {kind}": command.ONE for kind in usage.bench_kinds()}
  expected = {n: way for way, names in ways.items() for n in names.split()}
  assert {
    row.name: row.processes for row in commands.COMMANDS
  } == expected | benches


@pytest.mark.parametrize(
  ("way", "number", "expected"),
  [
    (command.FIRST, 0, [("hello", 1)]),
    (command.FIRST, 1, []),
    (command.TOGETHER, 0, [("hello", 2)]),
    (command.TOGETHER, 1, [("hello", 2)]),
  ],
)
def test_a_command_is_called_as_its_row_says(
  monkeypatch, way, number, expected
):
  """In this process of two: what was called, and how many call it."""
  from dpr_jax.core import process_guard

  called, told = [], []
  module = types.ModuleType("dpr_jax.cli.hello")
  module.hello = lambda call: called.append((call, multiprocess.count()))
  monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setattr(multiprocess, "_are_several", lambda: True)
  monkeypatch.setattr(jax, "process_index", lambda: number)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(process_guard, "tell", lambda *value: told.append(value))
  monkeypatch.setattr(process_guard, "wait_for", lambda key: "null")
  row = command.Command("hello", "Say hello", "hello:hello", processes=way)
  row.call("hello")
  assert called == expected
  is_speaker = way == command.FIRST and number == 0
  assert [value for _, value in told] == ["null"] * is_speaker


@ROWS
def test_function_is_there_and_takes_an_invocation(row):
  assert len(inspect.signature(row.load()).parameters) == 1


@ROWS
def test_example_has_only_flags_that_the_row_takes(row):
  """And its config is one of ours; the usage shows no other flag either."""
  line = ["dpr-jax", *row.name.split(), *row.example.split()]
  line = [each for each in line if not each.startswith("--config")]
  call = main_lib.invocation(line)
  assert call.command is row
  usage.check_flags(row, call.flags)
  own = {flag.name for flag in (*row.flags, *cli_flags.LOG)}
  for word in (*row.example.split(), *row.usage.split()):
    name = word.lstrip("-([").partition("=")[0]
    if word.lstrip("([").startswith("--") and name:
      assert name.startswith("config.") or name in own, word


@ROWS
def test_settings_are_of_stages_that_the_table_of_settings_knows(row):
  read_by = {name for s in settings_table.ALL for name in s.stages}
  assert set(row.settings) <= read_by
  if row.in_run:
    assert row.name in read_by


def test_a_flag_is_the_same_wherever_it_is_taken():
  """Only its words, its placeholder and its limits are a row's own."""
  kinds = {}
  for flag in commands.FLAGS:
    kind = (flag.kind, flag.default, flag.choices, flag.everywhere)
    assert kinds.setdefault(flag.name, kind) == kind, flag.name
    assert flag.help.endswith("."), flag.name
  assert {"quiet", "log_json", "config", "workdir"} <= {
    flag.name for flag in commands.EVERYWHERE
  }


@ROWS
def test_help_fits_a_terminal(row):
  shown = usage.help_of(row)
  assert max(map(len, shown.splitlines())) <= 80
  assert shown.splitlines()[0].startswith(f"usage: dpr-jax {row.name} ")


def test_a_new_command_is_a_row_and_a_module(monkeypatch):
  """Help, flags, "did you mean" and the call follow."""
  said = []
  module = types.ModuleType("dpr_jax.cli.hello")
  module.hello = lambda call: said.append((call.flags["loud"], call.words))
  monkeypatch.setitem(sys.modules, module.__name__, module)
  loud = cli_flags.switch("loud", "Louder.")
  row = command.Command(
    "hello",
    "Say hello",
    "hello:hello",
    "",
    "",
    flags=(loud,),
    config=command.NONE,
  )
  rows = (*commands.COMMANDS, row)
  monkeypatch.setattr(commands, "COMMANDS", rows)
  monkeypatch.setattr(commands, "BY_NAME", {r.name: r for r in rows})
  monkeypatch.setattr(commands, "FLAGS", (*commands.FLAGS, loud))
  call = main_lib.invocation(["dpr-jax", "hello", "--loud"])
  call.command.call(call)
  assert said == [(True, ())]
  assert "\n  hello          Say hello.\n" in usage.usage()
  assert "  --loud\n      Louder." in usage.help_of(row)
  with pytest.raises(errors.InputError, match="did you mean hello"):
    usage.find(["helo"])
  train = main_lib.invocation(["dpr-jax", "train", "--loud"])
  with pytest.raises(errors.InputError, match="--loud: only for hello"):
    usage.check_flags(train.command, train.flags)


def test_json_alone_is_of_the_commands_that_print_it():
  """`--json` of `ask` needs no file; that of `bench` takes the next word."""
  call = main_lib.invocation(["dpr-jax", "ask", "--json", "Who?"])
  assert (call.flags["json"], call.words) == ("-", ("Who?",))
  call = main_lib.invocation(["dpr-jax", "--tune", "ask", "Who?", "--json"])
  assert (call.flags["json"], call.words) == ("-", ("Who?",))
  call = main_lib.invocation(["dpr-jax", "bench", "batch", "--json", "f.json"])
  assert (call.flags["json"], call.words) == ("f.json", ())


def test_values_are_of_one_call():
  """Nothing is left of the one before."""
  first = main_lib.invocation(["dpr-jax", "index", "--tune", "--workdir=w"])
  second = main_lib.invocation(["dpr-jax", "index"])
  assert (first.flags["tune"], second.flags["tune"]) == (True, False)
  assert (first.flags["workdir"], second.flags["workdir"]) == ("w", None)
  assert first.flags.typed("tune")
  assert not second.flags.typed("tune")


def test_limits_of_a_row():
  flag = cli_flags.Flag("k", kind=int, least=1)
  flag.check(1)
  with pytest.raises(errors.InputError, match="--k=0: must be at least 1"):
    flag.check(0)
  flag = cli_flags.METHOD.saying("One.", most=1)
  flag.check(("bm25",))
  flag.check(None)
  with pytest.raises(errors.InputError, match="--method=a,b: takes 1 here"):
    flag.check(("a", "b"))
  assert dataclasses.replace(flag, help="").most == 1
