"""`tools/benchmark_compare.py`: its runs are compared as those of a sweep, and the command imports no torch."""

import importlib.util
from pathlib import Path

from attnzoo.report.compare import compare

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("benchmark_compare", ROOT / "tools" / "benchmark_compare.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def test_runs_are_those_of_a_finished_sweep(tmp_path: Path) -> None:
    points = "{model.encoder.attention.points: [1, 2], model.decoder.attention.points: [1, 2]}"
    sweep = benchmark.create(tmp_path, [f"sweep.zip={points}", "sweep.seeds=[0, 1, 2]"])
    comparison = compare([sweep])
    assert [variant.seeds for variant in comparison.variants] == [(0, 1, 2)] * 2
    assert comparison.paired is not None
    assert comparison.warnings == ()
    assert {"tensorboard", "scipy"} < set(benchmark.check_imports(sweep))
    assert benchmark.measure(sweep)["cpu_seconds"] > 0
