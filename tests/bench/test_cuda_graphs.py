"""`bench models` on a GPU: our models in CUDA graphs give the same outputs and losses."""

import pytest
import torch

from attnzoo.bench.models import benchmark
from attnzoo.bench.models.graphs import CUDA_GRAPH

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("name", ["detr_r50", "deformable_detr_r50", "dat_tiny"])
def test_graphs_agree_with_eager_models(name: str) -> None:
    size = 224 if name == "dat_tiny" else 64
    record = benchmark.run(
        torch.device("cuda"), [name], seconds=0, tiny=True, forward=(1, size, size), training=(1, size, size)
    )
    assert benchmark.failures(record) == []
    assert all(CUDA_GRAPH in row["implementations"] for row in record["rows"])
    assert all(row["error"] <= benchmark.TOLERANCE for row in record["rows"] if row["error"] is not None)
