"""`train.cuda_graphs`: the same training, in CUDA graphs."""

from pathlib import Path

import pytest
from support.engine import Run, results, tiny_run

from attnzoo.errors import ExitCode, UserError
from attnzoo.worker.train import train_run


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_losses_are_those_of_eager_training(cache: None, tmp_path: Path, precision: str) -> None:
    losses = {}
    for graphs in ("false", "true"):
        run = tiny_run(
            tmp_path / graphs,
            device="cuda",
            model__dropout="0.0",
            train__cuda_graphs=graphs,
            train__precision=precision,
        )
        assert train_run(run.path) == ExitCode.OK
        losses[graphs] = [row["train/loss"] for row in results(run) if "train/loss" in row]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-3 if precision == "fp32" else 2e-2)


def test_without_a_gpu_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.cuda_graphs = true: needs a GPU"):
        Run(tmp_path, cuda_graphs=True)
