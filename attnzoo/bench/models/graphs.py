"""Models in CUDA graphs: the kernels of a call are recorded once, then launched together."""

import copy

import torch
from torch import Tensor

from attnzoo.bench.models.base import BenchModel, Outputs

CUDA_GRAPH = "attnzoo, CUDA graph"


class GraphedModel(BenchModel):
    """The same model and weights. Outputs are those of a graph of the whole forward pass; in training, forward and
    backward pass of the model are graphs (`torch.compile(model, backend="cudagraphs")`), the loss is not.

    All images must have the size of the first.
    """

    def __init__(self, eager: BenchModel):
        self.model = eager.model
        self._eager = eager
        self._training = copy.copy(eager)
        self._training.model = torch.compile(eager.model, backend="cudagraphs")  # type: ignore[assignment]
        self._graph: torch.cuda.CUDAGraph | None = None

    def predict(self, images: Tensor) -> Outputs:
        if self._graph is None:
            self._images = images.clone()
            self._eager.predict(self._images)  # warm-up: libraries allocate and choose algorithms
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = self._eager.predict(self._images)
        self._images.copy_(images)
        self._graph.replay()
        return self._outputs

    def loss(self, images: Tensor, targets: object) -> Tensor:
        return self._training.loss(images, targets)
