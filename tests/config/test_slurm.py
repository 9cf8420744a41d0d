from pathlib import Path

import pytest

from attnzoo.config.experiment import ExperimentConfig, SlurmConfig
from attnzoo.config.load import digest, load
from attnzoo.config.slurm import parse_minutes
from attnzoo.errors import UserError

PROFILE = "partition: long\ntime: 2:30:00\nsetup: [module load x]\n"


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "mine.yaml").write_text(PROFILE)
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntrain: {steps: 5}\nprocesses: 4\ndata: {batch_size: 4}\n")
    return path


def slurm(experiment: Path, *overrides: str) -> SlurmConfig:
    return load(experiment, overrides).slurm


def test_all_other_keys_override_a_profile(experiment: Path) -> None:
    experiment.write_text(experiment.read_text() + "slurm: {profile: mine, partition: short}\n")
    found = slurm(experiment, "slurm.time=30", "slurm.nodes=2")
    assert (found.partition, found.time, found.nodes, found.setup) == ("short", 30, 2, ["module load x"])
    assert found.profile is None  # merged


def test_profile_is_a_name_or_a_file(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("partition: other\n")
    assert slurm(experiment, f"slurm.profile={tmp_path / 'other.yaml'}").partition == "other"
    assert slurm(experiment, "slurm.profile=mine").partition == "long"
    assert slurm(experiment, "slurm.profile=local").partition == "debug"  # ships with the checkout


def test_slurm_settings_do_not_change_the_digest(experiment: Path) -> None:
    here = load(experiment)
    there = load(experiment, ["launcher=slurm", "slurm.profile=mine", "retries=9"])
    assert digest(here) == digest(there)


@pytest.mark.parametrize(
    ("time", "expected"),
    [(90, 90), ("1:00:00", 60), ("0:00:30", 1), ("1-0", 1440), ("2-3:30", 3090), ("1-2:03:04", 1564)],
)
def test_times_are_parsed_as_in_slurm(time: int | str, expected: int) -> None:
    assert parse_minutes(time) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("slurm.profile=mein", "unknown profile 'mein'; did you mean 'mine'?"),
        ("slurm.profile=nowhere/x.yaml", "slurm.profile: 'nowhere/x.yaml': no such file"),
        ("slurm.partitoin=x", "did you mean 'slurm.partition'?"),
        ("slurm.time=1h", "slurm.time = '1h': expected minutes, HH:MM:SS or D-HH:MM:SS"),
        ("slurm.time=30:00", "expected minutes, HH:MM:SS"),  # minutes to SLURM, hours to most readers
        ("slurm.time=0", "slurm.time = 0: expected"),
        ("slurm.memory=16", "slurm.memory = 16: expected a number and K, M, G or T"),
        ("slurm.memory=16GiB", "slurm.memory = '16GiB': expected a number and K, M, G or T"),
        ("slurm.partition=two words", "expected a name without spaces"),
        ("slurm.signal_seconds=3600", "expected less than the time limit"),
        ("slurm.nodes=3", "slurm.nodes = 3: does not give processes = 4"),
        ("slurm.tasks_per_node=3", "slurm.nodes = 1 x slurm.tasks_per_node = 3: does not give processes = 4"),
        ("slurm.nodes=0", "slurm.nodes = 0: expected a number at least 1"),
        ("slurm.options={mem: 3G}", "slurm.options.mem: set slurm.memory instead"),
        ("slurm.options={array: 3}", "slurm.options.array: reserved, the sweep sets it"),
        ("slurm.options={parsable: true}", "slurm.options.parsable: reserved, the sweep sets it"),
        ("slurm.options={chdir: /}", "slurm.options.chdir: reserved, the sweep sets it"),
        ("slurm.options={uid: 5}", "slurm.options.uid: reserved, the sweep sets it"),
        ("slurm.options={gid: 5}", "slurm.options.gid: reserved, the sweep sets it"),
        ("slurm.options={export-file: x}", "slurm.options.export-file: reserved, the sweep sets it"),
        ("slurm.options={export: NONE}", "slurm.options.export = 'NONE': expected ALL or ALL,NAME=value"),
        ("slurm.options={export: HOME}", "slurm.options.export = 'HOME': expected ALL or ALL,NAME=value"),
        ("slurm.options={export: ALLOW}", "slurm.options.export = 'ALLOW': expected ALL or ALL,NAME=value"),
        ("slurm.options={export: true}", "slurm.options.export = true: expected ALL or ALL,NAME=value"),
        ("slurm.options={chd: /}", "slurm.options.chd: sbatch reads it as chdir, which cannot be set here"),
        ("slurm.options={parsab: true}", "slurm.options.parsab: sbatch reads it as parsable, which cannot be set here"),
        ("slurm.options={begin: [now]}", "slurm.options.begin = [now]: expected bool | int | str"),
        ("slurm.options={cpus_per_task: x}", "without leading dashes; did you mean 'cpus-per-task'?"),
    ],
)
def test_errors_name_their_source(experiment: Path, change: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(experiment, [change])
    assert message in str(caught.value)
    assert "command line" in str(caught.value)


@pytest.mark.parametrize("options", ["{export: ALL}", "{export: 'ALL,A=1'}", "{gpus: 1}", "{gres: x}", "{hold: true}"])
def test_other_options_of_sbatch_are_passed_on(experiment: Path, options: str) -> None:
    assert slurm(experiment, f"slurm.options={options}").options


def test_error_in_a_profile_names_its_file(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "slurm" / "mine.yaml").write_text("gpus: 4\n")
    with pytest.raises(UserError, match=r"slurm/mine\.yaml: unknown key 'slurm\.gpus'"):
        slurm(experiment, "slurm.profile=mine")
    (tmp_path / "slurm" / "mine.yaml").write_text("profile: gpu\n")
    with pytest.raises(UserError, match="a profile cannot extend another"):
        slurm(experiment, "slurm.profile=mine")


def test_every_shipped_profile_is_valid(experiment: Path) -> None:
    for path in (Path(__file__).parents[2] / "slurm").glob("*.yaml"):
        assert isinstance(
            load(experiment, [f"slurm.profile={path}", "slurm.nodes=2", "slurm.tasks_per_node=2"]), ExperimentConfig
        )
