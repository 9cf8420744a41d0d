"""The table of metrics: a third task is one entry in it."""

import subprocess
import sys
from pathlib import Path

from attnzoo.rundir import metrics

ENTRY = '    "depth": (Metric("val/delta1", "δ1"), Metric("val/delta2", "δ2")),\n'

# Everything below runs with one more entry in the source of the table, and nothing else changed.
PROGRAM = """
import sys, types
from pathlib import Path
folder, source = Path(sys.argv[1]), sys.argv[2]
module = types.ModuleType("attnzoo.rundir.metrics")
sys.modules[module.__name__] = module
exec(source, module.__dict__)

from attnzoo.__main__ import main
from attnzoo.report import hparams
from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.statistics import mean_ci95
from attnzoo.report.table import markdown, to_csv
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger
from support.engine import Regression, Run

class Depth(Regression):
    name = "depth"

    def evaluate(self, forward, heartbeat):
        self.evaluations += 1
        return {"delta1": 1 / self.evaluations, "delta2": 0.5}

run = Run(folder / "depth", Depth(), steps=4, eval_every=2)
run.train()
assert run.checkpoints.best().name.startswith("best-00000002"), run.checkpoints.best()
run.trainer.progress.update(force=True, state="done")
assert run.dir.read_status()["delta1"] == 0.5
run.dir.config.write_text("name: depth\\n")
with Ledger(folder).update() as content:
    content["runs"] = {"depth": {}}
assert main(["status", str(folder)]) == 0
assert main(["status", str(folder), "--json"]) == 0

metrics = module.final_values(run.dir.read_status(), run.dir.read_metrics())
estimates = {metric.key: mean_ci95([metrics[metric.key]] if metric.key in metrics else []) for metric in module.METRICS}
comparison = Comparison([], [Variant({}, estimates, (0,), ())], [], frozenset({"depth"}))
print(markdown(comparison), to_csv(comparison))
hparams.write_hparams(folder, {"depth": {"a": 1}}, {"depth": "x"})
assert any(b"val/delta1" in path.read_bytes() for path in folder.glob("*.hparams"))
"""


def test_new_task_needs_one_entry(tmp_path: Path) -> None:
    """Its primary metric selects the best checkpoint; status, table, JSON, comparison and HParams have its metrics."""
    source = Path(metrics.__file__).read_text()
    changed = source.replace('    "classification": (', ENTRY + '    "classification": (')
    assert changed != source
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), changed]
    paths = [str(Path(__file__).parents[1]), *sys.path]
    result = subprocess.run(arguments, text=True, capture_output=True, env={"PYTHONPATH": ":".join(paths)}, timeout=120)
    assert result.returncode == 0, result.stderr
    table, rest = result.stdout.split("[", 1)
    assert "δ1" in table
    assert "0.500" in table
    assert '"delta1": 0.5' in rest
    assert "| δ1 | δ2 | params |" in rest
    assert "delta1,delta1_ci95,delta2" in rest
    assert "AP" not in result.stdout
