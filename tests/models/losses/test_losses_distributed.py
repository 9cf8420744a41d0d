"""Losses of two processes equal those of one process with all images."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.losses import CLASSES, loss_config, random_output, random_targets

from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.detr.output import DetectorOutput

COUNTS = (5, 3, 0, 1)  # two images per process: eight objects and one object


def _images(output: DetectorOutput, part: slice) -> DetectorOutput:
    return DetectorOutput(
        output.logits[:, part], output.boxes[:, part], output.encoder_logits[part], output.encoder_boxes[part]
    )


def _losses(kind: str, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Total loss and the gradient of the logits for some of the images."""
    output, targets = random_output(kind, images=4, tokens=20), random_targets(*COUNTS)
    total = SetCriterion(loss_config(kind), CLASSES)(_images(output, part), targets[part]).total
    return total.detach(), torch.autograd.grad(total, output.logits)[0]


def _worker(rank: int, store: str, queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for kind in ("cross_entropy", "focal"):
        total, grad = _losses(kind, slice(2 * rank, 2 * rank + 2))
        dist.all_reduce(total)
        dist.all_reduce(grad)
        if rank == 0:
            queue.put((kind, total.item() / 2, (grad / 2).tolist()))
    dist.destroy_process_group()


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_processes(tmp_path):
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = mp.spawn(_worker, (str(tmp_path / "store"), queue), nprocs=2, join=False)
    results = [queue.get(timeout=300) for _ in range(2)]  # both processes import torch
    while not workers.join():
        pass
    for kind, total, grad in results:
        expected, expected_grad = _losses(kind, slice(None))
        assert abs(total - expected.item()) < 1e-5 * expected.item()
        torch.testing.assert_close(torch.tensor(grad), expected_grad, rtol=1e-5, atol=1e-7)
