"""The schema of experiment files, composed of the config dataclasses of data, models and engine."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from attnzoo.data.config import ClassificationDataConfig, DataConfig, ProbeDataConfig
from attnzoo.engine.config import TrainConfig
from attnzoo.models.config import ModelConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.probe.config import ProbeConfig
from attnzoo.models.vit.config import ClassifierConfig
from attnzoo.schema.fields import COUNT, NON_NEGATIVE, POSITIVE, SEED, THREADS, number


@dataclass
class SweepConfig:
    """The runs of an experiment: all combinations of a variant, a row of `zip`, values of `grid`, and a seed.

    `variants`, `one_at_a_time`, `grid` and `zip` replace the blocks of the base files.
    """

    # name -> overrides, their keys dotted or nested
    variants: dict[str, dict[str, Any]] = field(default_factory=dict, metadata={"replace": True})
    # key -> values: in place of `variants`, the file's own config and each value alone
    one_at_a_time: dict[str, list[Any]] = field(default_factory=dict, metadata={"replace": True})
    grid: dict[str, list[Any]] = field(default_factory=dict, metadata={"replace": True})  # key -> values
    zip: dict[str, list[Any]] = field(default_factory=dict, metadata={"replace": True})  # lists of equal length
    exclude: list[dict[str, Any]] = field(default_factory=list)  # combinations of swept keys, `variant` and `seed`
    # empty: [seed]. {until: decided, at_most: m, at_least: n, first: 0, per_round: 1}: first, first + 1, … in rounds,
    # until every comparison with the baseline is decided
    seeds: list[int] | dict[str, int | str] = field(default_factory=list, metadata={"range": SEED})
    baseline: str | None = None  # the variant that others are compared with; null: the first
    margin: float | None = number(None, POSITIVE)  # of the primary metric: smaller differences do not matter
    # a copy of the baseline with the same data and initial weights but another order of the data and other augmentation
    # and dropout: what two equal variants differ by
    aa: bool = False
    costs: bool = True  # measure the costs of all variants after the last training, one at a time: up to a minute
    include: list[str] = field(default_factory=list)  # folders of results, whose runs count as finished runs


@dataclass
class SlurmConfig:
    """SLURM resources of one run; `profile` names a file of these keys, which the other keys override."""

    profile: str | None = None  # slurm/NAME.yaml, or the path of a file
    partition: str | None = None  # null, here and below: the cluster's default
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = number(1, COUNT)
    tasks_per_node: int | None = number(None, COUNT)  # null: processes / nodes
    gpus_per_node: int = number(0, NON_NEGATIVE)
    cpus_per_task: int = number(1, COUNT)
    memory: int | str | None = None  # of a node: 500M, 16G
    time: int | str = 60  # minutes, or HH:MM:SS, or D-HH:MM:SS
    signal_seconds: int = number(120, COUNT)  # seconds before the time limit at which a run is signalled to save
    retries: int | None = number(None, NON_NEGATIVE)  # null: the experiment's
    parallelism: int | None = number(None, COUNT)  # runs of a job array at a time; null: all
    setup: list[str] = field(default_factory=list)  # shell lines before a run starts, such as module loads
    # other options of sbatch: {reservation: name, nice: 10, exclusive: true}
    options: dict[str, bool | int | str] = field(default_factory=dict)


@dataclass
class ExperimentConfig:
    """The keys of all tasks; `task` selects the schema of `data` and `model`."""

    name: str = MISSING  # of the folder of its runs
    description: str = ""  # shown on the page of the comparison
    task: Literal["detection", "classification", "probe"] = "detection"  # selects the keys of `data` and `model`
    output: str = "runs"  # folder of the experiment's folder
    seed: int = number(0, SEED)  # of the run, unless the sweep lists seeds
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    threads: int = number(1, THREADS)  # CPU threads per process; affects results, independent of `jobs`
    processes: int = number(1, COUNT)  # of one run, through torch.distributed
    plugins: list[str] = field(default_factory=list)  # Python files or modules that register attentions
    # recorded when a run is made: the source hash of each plugin, and the version of a synthetic data set
    versions: dict[str, str] = field(default_factory=dict, metadata={"replace": True})
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    launcher: Literal["local", "slurm"] = "local"
    # local: runs at a time; auto: as many as the CPUs allow with their threads and processes, one on a GPU
    jobs: int | Literal["auto"] = number(1, THREADS)
    retries: int = number(3, NON_NEGATIVE)  # consecutive, after machine failures without a new checkpoint
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class DetectionExperiment(ExperimentConfig):
    per_class: bool = False  # evaluation also gives AP and AP50 of every class
    max_detections: int = number(100, COUNT)  # per image in evaluation, with the highest scores
    model: DetectorConfig = field(default_factory=DetectorConfig)


@dataclass
class ClassificationExperiment(ExperimentConfig):
    data: ClassificationDataConfig = field(default_factory=ClassificationDataConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)


@dataclass
class ProbeExperiment(ExperimentConfig):
    data: ProbeDataConfig = field(default_factory=ProbeDataConfig)
    model: ProbeConfig = field(default_factory=ProbeConfig)


SCHEMAS = {"detection": DetectionExperiment, "classification": ClassificationExperiment, "probe": ProbeExperiment}
PRESET_FAMILY = {"detection": "detector", "classification": "vit", "probe": None}  # None: there are no presets
