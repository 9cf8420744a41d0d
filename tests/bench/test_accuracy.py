"""The correctness check against a float64 reference."""

import torch

from attnzoo.bench.accuracy import check_tolerances, max_relative_error, max_relative_errors


def test_correct_function_passes():
    value = torch.randn(3, 4, dtype=torch.float64)
    grad_output = torch.randn(3, 4, dtype=torch.float64)
    expected = [value.sin(), grad_output * value.cos()]
    errors = max_relative_errors(torch.sin, ["value"], (value,), grad_output, expected)
    assert list(errors) == ["output", "gradient of value"]
    assert check_tolerances(errors, torch.float64) is None


def test_wrong_gradient_is_detected():
    value = torch.linspace(-1, 1, 12, dtype=torch.float64)

    def detached(x: torch.Tensor) -> torch.Tensor:
        return (x * x.detach()).clone()  # the output is correct, the gradient is half

    errors = max_relative_errors(detached, ["value"], (value,), torch.ones_like(value), [value**2, 2 * value])
    assert errors["output"] == 0
    assert check_tolerances(errors, torch.float64) == "gradient of value: relative error 5.0e-01, allowed 1e-10"


def test_without_a_backward_pass_the_output_alone_is_checked():
    value = torch.linspace(-1, 1, 12, dtype=torch.float64)
    expected = [value.sin(), value.cos()]
    errors = max_relative_errors(lambda x: x.detach().sin(), ["value"], (value,), value, expected, backward=False)
    assert errors == {"output": 0.0}


def test_max_relative_error():
    expected = torch.tensor([1.0, -4.0])
    assert max_relative_error(torch.tensor([1.0, -3.0]), expected) == 0.25
    assert max_relative_error(torch.tensor([1.0, torch.nan]), expected) == float("inf")
    assert max_relative_error(torch.zeros(3), expected) == float("inf")
    assert max_relative_error(torch.zeros(2), torch.zeros(2)) == 0
