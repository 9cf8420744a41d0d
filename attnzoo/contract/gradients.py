"""The clause on gradients."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from attnzoo.contract.cases import Case, pyramid
from attnzoo.contract.expect import changes, require

SMALL = 1e-6  # of a gradient: rounding
PROBES = 3  # random gradients of the output, to tell a gradient that cancels from none


def gradients(case: Case) -> None:
    """A gradient reaches the attended tokens, the queries, and most elements of every parameter.

    Excepted are parameters whose true gradient is zero, such as the bias of a key projection, which cancels in the
    softmax: the gradient is zero but for rounding, and other values do not change the output.
    """
    attention, memory = case.build().train(), pyramid(case.maps)
    queries = case.queries(memory)
    memory_tokens, query_tokens = (x.tokens.clone().requires_grad_() for x in (memory, queries))
    memory, queries = replace(memory, tokens=memory_tokens), replace(queries, tokens=query_tokens)
    output = attention(queries, memory)
    require(output.requires_grad, "no gradient reaches anything: something in forward detaches it")
    parameters = dict(attention.named_parameters())
    for name, parameter in parameters.items():
        require(parameter.requires_grad, f"{name} has requires_grad = False: keep constants with register_buffer")
    inputs = [memory_tokens, query_tokens, *parameters.values()]
    probes = [_gradients(output, inputs, seed) for seed in range(2, 2 + PROBES)]
    for name, gradient in zip(("memory.tokens", "queries.tokens"), probes[0], strict=False):
        require(
            gradient is not None and gradient.abs().max() > 1e-3,
            f"no gradient reaches {name}: forward does not use them, or something detaches it",
        )
    attention.eval()
    for index, (name, parameter) in enumerate(parameters.items(), start=2):
        _check_parameter(name, parameter, [probe[index] for probe in probes], lambda: attention(queries, memory))


def _gradients(output: Tensor, inputs: list[Tensor], seed: int) -> tuple[Tensor | None, ...]:
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(output, inputs, grad_output, retain_graph=True, allow_unused=True)


def _check_parameter(
    name: str, parameter: nn.Parameter, probes: list[Tensor | None], forward: Callable[[], Tensor]
) -> None:
    found = [probe for probe in probes if probe is not None]
    if not found:
        used = _changes_output(parameter, torch.ones_like(parameter), forward)
        require(
            not used, f"{name} changes the output but gets no gradient: something detaches it (detach, round, no_grad)"
        )
        require(False, f"{name} is not used: use it in forward, or remove it")
    live = found[0].abs() > SMALL
    share = live.float().mean()
    if share > 0.5:
        return
    elements = f"{name}: only {share:.0%} of the elements have a gradient"
    used = _changes_output(parameter, (~live).to(parameter.dtype), forward)
    require(not used, f"{elements}, though the others change the output: something detaches it (detach, round, clamp)")
    cancels = any((probe[~live] != 0).any() for probe in found)
    require(cancels, f"{elements}, and the others change nothing: use them in forward, or remove them")


@torch.no_grad()
def _changes_output(parameter: nn.Parameter, scale: Tensor, forward: Callable[[], Tensor]) -> bool:
    """Whether random steps of the size of `scale` in a parameter change the output."""
    expected, before = forward(), parameter.clone()
    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)) * scale)
    actual = forward()
    parameter.copy_(before)
    return bool(changes(actual, expected).any())
