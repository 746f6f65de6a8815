"""What every test runs under: 8 CPU devices, no downloads by accident, types.

The environment is set before jax is imported for the first time, and the
shapes in the annotations of `dpr_jax` are checked at every call (jaxtyping with
beartype) for as long as the tests run.
"""

import logging
import os
import pathlib
import sys

from tests import jax_private, programs

DEVICES = 8
pytest_plugins = [
  "tests.faults.fixtures",
  "tests.faults.table",
  "tests.kinds",
  "tests.reading_world",
  "tests.retrieval_world",
]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    *(
      flag
      for flag in os.environ.get("XLA_FLAGS", "").split()
      if "host_platform_device_count" not in flag
    ),
    f"--xla_force_host_platform_device_count={DEVICES}",
    # Tests compile much and compute little: so in half of the time.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *jax_private.xla_flags(),
  ]
)
programs.keep()
programs.write_whole()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook("dpr_jax", "beartype.beartype")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from absl import logging as absl_logging  # noqa: E402

from dpr_jax.core import errors  # noqa: E402

# As commands show it; `caplog.at_level` does not reach absl's own logger.
absl_logging.set_verbosity(absl_logging.INFO)

# How long one example takes says more of the machine than of the code.
hypothesis.settings.register_profile(
  "dpr-jax",
  deadline=None,
  suppress_health_check=[
    hypothesis.HealthCheck.too_slow,
    hypothesis.HealthCheck.function_scoped_fixture,
  ],
)
hypothesis.settings.load_profile("dpr-jax")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Every compiled program takes hundreds of memory maps; Linux gives a process
# 65,530, and XLA dies of a segmentation fault when they are used up.
MAPS_AT_MOST = 20_000


@pytest.fixture(autouse=True)
def forget_compiled_programs():
  """Keeps the number of memory maps far below the kernel's limit."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > MAPS_AT_MOST:
    jax.clear_caches()


@pytest.fixture(autouse=True)
def logging_as_before():
  """Undoes --quiet and --log_json of commands that ran in this process."""
  handler = absl_logging.get_absl_handler()
  verbosity = absl_logging.get_verbosity()
  formatter, filters = handler.python_handler.formatter, handler.filters[:]
  hook = sys.excepthook
  yield
  absl_logging.set_verbosity(verbosity)
  handler.setFormatter(formatter)
  handler.filters[:] = filters
  logging.captureWarnings(False)
  sys.excepthook = hook


def pytest_report_header() -> str:
  """Says at the top of the run what the tests run on."""
  return f"jax {jax.__version__}, {jax.device_count()} CPU devices"


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
  """The top folder of the checkout."""
  return REPOSITORY


@pytest.fixture(scope="session")
def data_folder() -> pathlib.Path:
  """Real DPR-format data outside the repository, where there is any."""
  default = REPOSITORY.parent / "shared" / "data"
  folder = pathlib.Path(os.environ.get("DPR_JAX_DATA", default))
  if not folder.is_dir():
    pytest.skip(f"no real data: {folder} is no folder (set DPR_JAX_DATA)")
  return folder


@pytest.fixture(scope="session")
def starter_folder() -> pathlib.Path:
  """The folder of the starter checkpoint, downloaded once into the cache."""
  from dpr_jax.models import checkpoint_sources

  try:
    return checkpoint_sources.checkpoint_folder("starter")
  except errors.InputError as error:
    pytest.skip(f"no starter checkpoint: {error}")


TINY = {
  "model_type": "bert",
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 48,
  "max_position_embeddings": 64,
  "hidden_dropout_prob": 0.1,
  "attention_probs_dropout_prob": 0.1,
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> pathlib.Path:
  """A small random BERT as a Hugging Face folder, made without a download.

  The vocabulary holds the words of the embedded sample.
  """
  import csv
  import json
  import re
  from importlib import resources as importlib_resources

  import safetensors.numpy

  from dpr_jax.models import bert, hf_weights

  sample = importlib_resources.files("dpr_jax.data.sample") / "passages.tsv"
  words = set()
  with sample.open(encoding="utf-8", newline="") as file:
    for row in csv.DictReader(file, delimiter="\t"):
      words |= set(
        re.findall("[a-z]+", f"{row['title']} {row['text']}".lower())
      )
  letters = "abcdefghijklmnopqrstuvwxyz0123456789"
  vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,;:!?-'()"]
  vocabulary += [*letters, *(f"##{letter}" for letter in letters)]
  vocabulary += sorted(words - set(letters))
  folder = tmp_path_factory.mktemp("tiny")
  (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
  (folder / "config.json").write_text(
    json.dumps(TINY | {"vocab_size": len(vocabulary)}), encoding="utf-8"
  )
  config = bert.BertConfig.read(folder)
  params = bert.init_params(config, jax.random.key(7))
  params = jax.tree.map(lambda x: 5 * x if x.ndim == 2 else x, params)
  safetensors.numpy.save_file(
    hf_weights.tensors_from_params(params, config),
    folder / "model.safetensors",
  )
  return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_checkpoint):
  """A config of the whole flow in seconds: sample, tiny model, 6 steps."""
  from dpr_jax.core import config as config_lib

  config = config_lib.base_config()
  config.data.passages = config.data.train = config.data.dev = "sample"
  config.data.max_train = 64
  config.data.max_dev = 24
  config.data.max_passages = 120
  config.model.checkpoint = str(tiny_checkpoint)
  config.model.question_length = 16
  config.model.passage_length = 48
  config.train.batch_size = 16
  config.train.max_steps = 6
  config.train.learning_rate = 1e-3
  config.train.warmup_steps = 2
  config.train.log_every = 1
  config.train.checkpoint_every = 2
  config.train.dev_every = 3
  config.train.dev_hard_negatives = 2
  config.train.dev_other_negatives = 2
  config.mine.keep = 5
  config.embed.rows_per_shard = 50
  config.embed.length_step = 48
  config.embed.shapes = 2
  config.embed.tokens_per_core = 192
  config.retrieve.methods = ("bm25", "dense-start", "dense")
  return config


CONFIG = """
from dpr_jax import configuration


def get_config(variant=""):
  config = configuration.base_config()
  config.update({values!r})
  return config
"""


@pytest.fixture(scope="session")
def write_config():
  """Writes a config as a file that `--config` can name."""
  from dpr_jax.core import config as config_lib

  def write(path, config) -> pathlib.Path:
    values = {
      name: {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in section.items()
      }
      if isinstance(section, dict)
      else section
      for name, section in config_lib.plain(config).items()
    }
    path.write_text(CONFIG.format(values=values))
    return path

  return write


@pytest.fixture(scope="session")
def config_file(tiny_config, write_config, tmp_path_factory) -> pathlib.Path:
  """The tiny config as a file."""
  return write_config(
    tmp_path_factory.mktemp("configs") / "tiny.py", tiny_config
  )


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
  """For processes of their own, which choose their number of devices."""
  return os.environ | {
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(programs.SITE)]),
    "XLA_FLAGS": " ".join(
      flag
      for flag in os.environ["XLA_FLAGS"].split()
      if "host_platform_device_count" not in flag
    ),
  }


@pytest.fixture(scope="session")
def start(environment):
  """Starts dpr-jax as a process of its own, with the cores it asks for."""
  import subprocess
  import sys

  def start(*arguments, cwd=None, **variables):
    return subprocess.Popen(
      [sys.executable, "-m", "dpr_jax.cli", *map(str, arguments)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=cwd,
      env=environment | variables,
    )

  return start


@pytest.fixture(scope="session")
def call(start):
  """Runs dpr-jax to its end."""
  import subprocess

  def call(*arguments, cwd=None, timeout=300, **variables):
    with start(*arguments, cwd=cwd, **variables) as process:
      try:
        stdout, stderr = process.communicate(timeout=timeout)
      finally:
        process.kill()
    return subprocess.CompletedProcess(
      process.args, process.returncode, stdout, stderr
    )

  return call


@pytest.fixture(scope="session")
def forked_call(zygote):
  """As `call`, without the seconds of imports: in a fork of what has them.

  For tests of what a command does.  Where it matters that it is a process of
  its own (kills, imports, CPU seconds), take `call` or `start`.
  """
  import subprocess

  def forked_call(*arguments, cwd=None, timeout=300, **variables):
    run = zygote.start(*arguments, cwd=cwd or os.getcwd(), env=variables)
    ended = run.wait(timeout)
    return subprocess.CompletedProcess(
      run.asked["argv"], ended.code, ended.stdout, ended.stderr
    )

  return forked_call


@pytest.fixture(scope="session")
def _untouched_workdir(tiny_config, tmp_path_factory):
  """A workdir after `prepare` and `mine`, for copies."""
  from dpr_jax.core import config as config_lib
  from dpr_jax.core import workdir as workdir_lib
  from dpr_jax.data import prepare
  from dpr_jax.retrieval import mine

  place = workdir_lib.Workdir(tmp_path_factory.mktemp("mined"))
  workdir_lib.write_json(
    place.root / "config.json", config_lib.plain(tiny_config)
  )
  prepare.prepare(tiny_config, place)
  mine.mine(tiny_config, place)
  return place


def _copy(place, folder):
  import shutil

  shutil.copytree(place.root, folder / "work")
  return type(place)(folder / "work")


@pytest.fixture(scope="session")
def mined_workdir(_untouched_workdir, tmp_path_factory):
  """A workdir after `prepare` and `mine` that tests share.

  Tokens may be added to it by whoever needs them, nothing else.
  """
  return _copy(_untouched_workdir, tmp_path_factory.mktemp("mined"))


@pytest.fixture
def fresh_workdir(_untouched_workdir, tmp_path):
  """A workdir after `prepare` and `mine`, for one test alone."""
  return _copy(_untouched_workdir, tmp_path)
