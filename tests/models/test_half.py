"""Models of half precision, as after .half() and .bfloat16(), run on the CPU."""

import pytest
import torch
from support.models import padded_images, perturbed, tiny

from attnzoo import models
from attnzoo.attention import ATTENTIONS
from attnzoo.geometry import Role


def names(role: Role) -> list[str]:
    return [name for name in ATTENTIONS.names() if role in ATTENTIONS.get(name).roles]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", names(Role.ENCODER))
def test_detectors_of_half_precision(name: str, dtype: torch.dtype) -> None:
    decoder = name if name in names(Role.DECODER) else "dense"
    model = perturbed(tiny(encoder={"attention": {"name": name}}, decoder={"attention": {"name": decoder}}))
    images, mask = padded_images(64, 48)
    with torch.no_grad():
        expected = model(images, mask).boxes
        boxes = model.to(dtype)(images.to(dtype), mask).boxes
        of_float32 = model(images, mask).boxes
    torch.testing.assert_close(of_float32, boxes, rtol=0, atol=0)
    assert (boxes.float() - expected).abs().mean() < 0.1
    assert boxes.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("preset", ["swin_pico", "dat_pico"])
def test_classifiers_of_half_precision(preset: str, dtype: torch.dtype) -> None:
    model = models.create(preset, num_classes=4).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        logits = model.to(dtype)(images.to(dtype))
        of_float32 = model(images)
    torch.testing.assert_close(of_float32, logits, rtol=0, atol=0)
    assert (logits.float() - expected).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", names(Role.ENCODER))
def test_detectors_of_half_precision_have_gradients(name: str, dtype: torch.dtype) -> None:
    model = tiny(encoder={"attention": {"name": name}}).to(dtype).train()
    images, mask = padded_images(64, 48)
    output = model(images, mask)
    (output.boxes.float().square().mean() + output.logits.float().square().mean()).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("preset", ["swin_pico", "dat_pico"])
def test_features_of_half_precision_have_gradients(preset: str, dtype: torch.dtype) -> None:
    model = models.features(preset).to(dtype).train()
    maps = model(torch.rand(1, 3, 64, 64))
    assert {each.dtype for each in maps} == {dtype}
    sum(each.float().square().mean() for each in maps).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
