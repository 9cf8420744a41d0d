"""The clause on gradients."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from attnzoo.contract.cases import Case, pyramid
from attnzoo.contract.expect import changes, require

EPS = 1e-6  # gradients below it are rounding errors
NUM_SAMPLES = 3  # random output gradients, to distinguish a gradient that cancels from a missing one


def gradients(case: Case) -> None:
    """A gradient reaches the memory, the queries if the output depends on them, and most elements of every parameter.

    Parameters whose exact gradient is zero pass, such as the bias of a key projection, which cancels in the softmax:
    the gradient is zero up to rounding, and other values do not change the output.
    """
    attention, memory = case.build().train(), pyramid(case.maps)
    queries = case.queries(memory)
    memory_tokens, query_tokens = (x.tokens.clone().requires_grad_() for x in (memory, queries))
    memory, queries = replace(memory, tokens=memory_tokens), replace(queries, tokens=query_tokens)
    output = attention(queries, memory)
    require(output.requires_grad, "the output has no gradient: something in forward detaches it")
    parameters = dict(attention.named_parameters())
    for name, parameter in parameters.items():
        require(parameter.requires_grad, f"{name} has requires_grad = False: keep constants with register_buffer")
    inputs = [memory_tokens, query_tokens, *parameters.values()]
    samples = [_gradients(output, inputs, seed) for seed in range(2, 2 + NUM_SAMPLES)]
    used_inputs = ("memory.tokens", "queries.tokens") if attention.depends_on_queries else ("memory.tokens",)
    for name, gradient in zip(used_inputs, samples[0], strict=False):
        require(
            gradient is not None and gradient.abs().max() > 1e-3,
            f"no gradient reaches {name}: forward does not use them, or something detaches it",
        )
    attention.eval()
    for index, (name, parameter) in enumerate(parameters.items(), start=2):
        _check_parameter(name, parameter, [sample[index] for sample in samples], lambda: attention(queries, memory))


def _gradients(output: Tensor, inputs: list[Tensor], seed: int) -> tuple[Tensor | None, ...]:
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(output, inputs, grad_output, retain_graph=True, allow_unused=True)


def _check_parameter(
    name: str, parameter: nn.Parameter, samples: list[Tensor | None], forward: Callable[[], Tensor]
) -> None:
    grads = [sample for sample in samples if sample is not None]
    if not grads:
        used = _changes_output(parameter, torch.ones_like(parameter), forward)
        require(
            not used, f"{name} changes the output but gets no gradient: something detaches it (detach, round, no_grad)"
        )
        require(False, f"{name} is not used: use it in forward, or remove it")
    nonzero = grads[0].abs() > EPS
    fraction = nonzero.float().mean()
    if fraction > 0.5:
        return
    elements = f"{name}: only {fraction:.0%} of the elements have a gradient"
    used = _changes_output(parameter, (~nonzero).to(parameter.dtype), forward)
    require(not used, f"{elements}, but the others change the output: something detaches it (detach, round, clamp)")
    cancels = any((grad[~nonzero] != 0).any() for grad in grads)
    require(cancels, f"{elements}, and the others do not change the output: use them in forward, or remove them")


@torch.no_grad()
def _changes_output(parameter: nn.Parameter, scale: Tensor, forward: Callable[[], Tensor]) -> bool:
    """Whether adding noise, multiplied by `scale`, to a parameter changes the output."""
    expected, original = forward(), parameter.clone()
    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)) * scale)
    actual = forward()
    parameter.copy_(original)
    return bool(changes(actual, expected).any())
