"""Sixty and more wrong command lines, and what the answer has to say.

A case is (arguments, words): exit status 2, and one line on stderr that holds
all the words.  COMMAND stands for a command with a config and a workdir where
nothing has run yet.  Below them calls with a setting that counts for nothing:
they are warned of, and go on.
"""

TYPOS = [
  ("--config.learning_rate=1", ["--config.train.learning_rate"]),
  ("--config.learning_rate=1", ["or --config.reader.learning_rate?"]),
  ("--batch_size=8", ["--batch_size", "--config.train.batch_size"]),
  ("--train.batch_size=8", ["did you mean --config.train.batch_size?"]),
  ("--config.train.batchsize=8", ["did you mean --config.train.batch_size?"]),
  ("--config.trian.batch_size=8", ["did you mean --config.train.batch_size?"]),
  ("--config.train.batch=8", ["did you mean --config.train.batch_size?"]),
  ("--config.train.lr=1", ["did you mean --config.train.learning_rate?"]),
  ("--lr=1", ["--config.train.learning_rate"]),
  ("--epochs=1", ["--config.train.epochs"]),
  ("--seed=1", ["did you mean --config.seed?"]),
  ("--config.train.seed=1", ["did you mean --config.seed?"]),
  ("--config.modle.pooling=cls", ["did you mean --config.model.pooling?"]),
  ("--config.model.poling=cls", ["did you mean --config.model.pooling?"]),
  ("--config.index.fatory=Flat", ["did you mean --config.index.factory?"]),
  ("--index.factory=Flat", ["did you mean --config.index.factory?"]),
  ("--config.indx.nprobe=1", ["did you mean --config.index.nprobe?"]),
  ("--config.retrieve.method=bm25", ["--config.retrieve.methods?"]),
  ("--config.train.warmup=1", ["did you mean --config.train.warmup_steps?"]),
  ("--config.train.learning-rate=1", ["--config.train.learning_rate?"]),
  ("--config.Train.Batch_Size=8", ["did you mean --config.train.batch_size?"]),
  ("--config.reader.hard_negatives=1", ["--config.train.hard_negatives?"]),
  ("--config.optimizer.lr=1", ["--config.train.learning_rate"]),
  ("--gradient_cache", ["did you mean --config.train.gradient_cache?"]),
  ("--workdri=w", ["unknown flag --workdri: did you mean --workdir?"]),
  ("--work_dir=w", ["did you mean --workdir?"]),
  ("--conifg=c", ["did you mean --config?"]),
  ("--cpu_device=2", ["did you mean --cpu_devices?"]),
  ("--overwite", ["did you mean --overwrite?"]),
  ("--config.train.length_groups=4", ["was removed: texts are packed"]),
  ("--config.fly=1", ["unknown setting --config.fly: `dpr-jax config"]),
  ("--fly", ["unknown flag --fly"]),
]
WRONG_TYPES = [
  (
    "--config.train.batch_size=many",
    ["train.batch_size=many: must be a whole"],
  ),
  ("--config.train.batch_size=8.0", ["train.batch_size=8.0: must be a whole"]),
  (
    "--config.train.batch_size=True",
    ["train.batch_size=True: must be a whole"],
  ),
  ("--config.train.epochs=one", ["config.train.epochs=one: must be a number"]),
  ("--config.model.normalize=maybe", ["must be True or False"]),
  ("--config.evaluate.ranks=1,2.5", ["evaluate.ranks=1,2.5: must be whole"]),
  ("--config.read.passages=few", ["config.read.passages=few: must be whole"]),
  ("--noconfig.train.epochs", ["only for True or False"]),
]
OUT_OF_RANGE = [
  ("--config.train.learning_rate=-1", ["config.train.learning_rate=-1: must"]),
  ("--config.train.learning_rate=0", ["must be > 0"]),
  ("--config.train.learning_rate=nan", ["must be a finite number"]),
  ("--config.train.epochs=inf", ["config.train.epochs=inf", "finite"]),
  ("--config.train.epochs=0", ["config.train.epochs=0: must be > 0"]),
  ("--config.train.max_steps=-1", ["config.train.max_steps=-1: must be >= 0"]),
  ("--config.train.batch_size=0", ["config.train.batch_size=0: must be >= 1"]),
  ("--config.train.hard_negatives=-1", ["hard_negatives=-1: must be >= 0"]),
  ("--config.train.hard_negatives=100000", ["<= 1000"]),
  ("--config.train.adam_b1=1", ["adam_b1=1: must be >= 0 and < 1"]),
  ("--config.train.adam_b2=1.5", ["adam_b2=1.5: must be >= 0 and < 1"]),
  ("--config.train.adam_epsilon=0", ["adam_epsilon=0: must be > 0"]),
  ("--config.train.weight_decay=-0.1", ["weight_decay=-0.1: must be >= 0"]),
  ("--config.train.clip_norm=-1", ["clip_norm=-1: must be >= 0"]),
  ("--config.train.checkpoint_every=-1", ["checkpoint_every=-1: must be >="]),
  ("--config.train.chunk_size=-4", ["chunk_size=-4: must be >= 0"]),
  ("--config.train.warmup_steps=-1", ["warmup_steps=-1: must be >= 0"]),
  ("--config.model.temperature=0", ["model.temperature=0: must be > 0"]),
  ("--config.model.dropout=1", ["config.model.dropout=1: must be < 1"]),
  ("--config.model.passage_length=2", ["passage_length=2: must be 0 or >= 3"]),
  ("--config.model.pooling=median", ["must be one of auto, cls, mean"]),
  (
    "--config.train.loss=rign",
    ["must be one of gathered", "did you mean ring"],
  ),
  ("--config.bm25.b=2", ["config.bm25.b=2: must be >= 0 and <= 1"]),
  ("--config.bm25.stemmer=englsh", ["did you mean english?"]),
  ("--config.embed.dtype=float61", ["did you mean float16"]),
  ("--config.retrieve.methods=bm25,dens", ["did you mean", "dense"]),
  ("--config.retrieve.methods=", ["config.retrieve.methods=: is empty"]),
  ("--config.evaluate.ranks=0", ["config.evaluate.ranks=0: must be >= 1"]),
  ("--config.reader.batch_size=0", ["config.reader.batch_size=0: must be >="]),
  ("--config.seed=-1", ["config.seed=-1: must be >= 0"]),
]
# They are seen when the whole config is, with all that `run` will do.
TOGETHER = [
  ("--config.train.negatives=bm52", ["config.train.negatives='bm52'"]),
  ("--config.train.negatives=bm25:2", ["names 2 negatives"]),
  ("--config.train.rounds=2", ["config.train.rounds=2: what the model mines"]),
  ("--config.train.best_metric=loss", ["config.train.best_metric='loss'"]),
  ("--config.train.average_checkpoints=3", ["must be <= config.train.keep"]),
  ("--config.train.accumulate_steps=2", ["accumulate_steps=2: must be 1"]),
  ("--config.train.warmup_steps=6", ["warmup_steps=6 is not below the 6"]),
  ("--config.train.profile_steps=3", ["train.profile_steps=(3,): must be"]),
  ("--config.train.batch_size=12", ["must be a multiple of the 8 devices"]),
  ("--config.train.chunk_size=3", ["chunk_size=3: does not divide"]),
  ("--config.model.checkpoint=no/model", ["there is no such folder"]),
  ("--config.model.checkpoint=strater", ["did you mean starter?"]),
  ("--config.model.passage_length=65", ["has 64 positions"]),
  ("--config.data.passages=no.tsv", ["data.passages='no.tsv': there is no"]),
  (
    "--config.data.train=none --config.reader.train=results",
    ["config.reader.train='results': config.data.train is 'none'"],
  ),
  (
    "--config.data.train=none --config.model.passage_length=65",
    ["has 64 positions"],
  ),
  ("--config.data.dev=", ["config.data.dev is empty"]),
  ("--config.index.factory=Flta", ["index.factory='Flta': could not parse"]),
  ("--config.index.factory=IVF4000,Flat", ["4000 lists", "max_passages is"]),
  ("--config.index.factory=PQ7", ["config.index.factory='PQ7'"]),
  ("--config.fusion.weight=-1 --config.retrieve.methods=hybrid", ["--tune"]),
  ("--config.reader.train=no.json", ["reader.train='no.json': there is no"]),
  (
    "--config.reader.train=results --config.reader.length=20",
    ["reader.length"],
  ),
  (
    "--config.reader.train=results --config.read.methods=exact",
    ["'exact' is not retrieved"],
  ),
  (
    "--config.reader.train=results --config.reader.method=exact",
    ["config.reader.method='exact': not retrieved for the dev"],
  ),
  ("--method=bm52", ["--method=bm52: must be one of", "did you mean bm25"]),
]
# A warning, by the key; the call goes on.
UNREAD = [
  ("--config.index.nprobe=16", "config.index.nprobe=16"),
  ("--config.index.ef_search=64", "config.index.ef_search=64"),
  ("--config.fusion.weight=2", "config.fusion.weight=2.0"),
  ("--config.exact.storage=bfloat16", "config.exact.storage='bfloat16'"),
  ("--config.train.epochs=3", "config.train.epochs=3.0"),
  ("--config.train.loss_tile=16", "config.train.loss_tile=16"),
  ("--config.reader.length=100", "config.reader.length=100"),
  ("--config.model.random_width=64", "config.model.random_width=64"),
]

# Refused as soon as the command line is read, without a config.
TYPED = [*TYPOS, *WRONG_TYPES, *OUT_OF_RANGE]
CASES = [*TYPED, *TOGETHER]
