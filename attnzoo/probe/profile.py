"""The profile of attentions: score, steps and cost on each probe, from finished runs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnzoo.data.build import PROBES
from attnzoo.data.probes import ProbeSpec
from attnzoo.errors import UserError
from attnzoo.models.probe.config import ProbeConfig
from attnzoo.report.curves import steps_to_score
from attnzoo.report.records import RunRecord, read_records
from attnzoo.report.runs import find_plan
from attnzoo.rundir.metrics import PRIMARY_METRICS

SHARE = 0.9  # of the way from chance to the ceiling, for `steps`


@dataclass(frozen=True)
class ProbeScore:
    """One attention on one probe; means over the seeds.

    - `probe`: its name
    - `difficulty`: the option that makes it harder, and `value`: of that option
    - `is_default`: whether that is the default difficulty
    - `scores`: accuracy of each seed
    - `chance`, `ceiling`: of the best constant answer and of a model without errors
    - `steps`: median steps until 90 % of the way from chance to the ceiling; None if half of the runs do not get there
    - `mflops`: millions of multiply-accumulates for one map with its queries
    - `seconds`: median duration of a run, evaluations included; None if not recorded
    """

    attention: str
    probe: str
    difficulty: str
    value: float
    is_default: bool
    capability: str
    scores: tuple[float, ...]
    chance: float
    ceiling: float
    steps: float | None
    mflops: float
    seconds: float | None

    @property
    def label(self) -> str:
        """The name of the probe, with the difficulty if that is not the default."""
        return self.probe if self.is_default else f"{self.probe} ({self.difficulty} {self.value:g})"

    @property
    def score(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.scores)

    @property
    def normalized(self) -> float:
        """0 at chance, 1 at the ceiling; negative below chance."""
        return (self.score - self.chance) / (self.ceiling - self.chance)


def read_profile(folders: Sequence[Path]) -> list[ProbeScore]:
    """The scores of all finished runs of probes in `folders`, of runs or with a results.json.

    Of a sweep, only runs that its experiment now names. Raises UserError for folders without a finished run of a probe.
    """
    records, _ = read_records(folders)
    digests = find_plan(folders).digests
    groups: dict[tuple[str, str, float], dict[int, RunRecord]] = {}  # the runs by seed, of several the newest
    for record in records:
        if record.config.task == "probe" and record.final and (not digests or record.digest in digests):
            key = _attention(record), str(record.config.data.dataset["name"]), _difficulty(_spec(record))
            groups.setdefault(key, {})[record.config.seed] = record
    if not groups:
        raise UserError(f"{', '.join(map(str, folders))}: no finished run of task: probe")
    return [_score(attention, probe, [*runs.values()]) for (attention, probe, _), runs in groups.items()]


def _score(attention: str, probe: str, runs: Sequence[RunRecord]) -> ProbeScore:
    key = PRIMARY_METRICS["probe"].key
    spec = _spec(runs[0])
    chance = runs[0].final["val/chance"]
    goal = chance + SHARE * (spec.ceiling - chance)
    steps = [steps_to_score([(row["step"], row[key]) for row in run.metrics if key in row], goal) for run in runs]
    median = statistics.median(float("inf") if step is None else step for step in steps)
    seconds = [3600 * run.hours for run in runs if run.hours is not None]
    return ProbeScore(
        attention=attention,
        probe=probe,
        difficulty=spec.difficulty,
        value=_difficulty(spec),
        is_default=_difficulty(spec) == PROBES.options(probe)[spec.difficulty].default,
        capability=spec.capability,
        scores=tuple(run.final[key] for run in runs),
        chance=chance,
        ceiling=spec.ceiling,
        steps=None if median == float("inf") else median,
        mflops=1000 * runs[0].final["cost/gflops"],
        seconds=statistics.median(seconds) if seconds else None,
    )


def _attention(record: RunRecord) -> str:
    """The name of the variant, or of the attention."""
    model = record.config.model
    assert isinstance(model, ProbeConfig)
    return record.entry.variant or str(model.attention["name"])


def _difficulty(spec: ProbeSpec) -> float:
    value: float = getattr(spec, spec.difficulty)
    return value


def _spec(record: RunRecord) -> ProbeSpec:
    spec: ProbeSpec = PROBES.build_block(record.config.data.dataset, where="data.dataset")
    return spec
