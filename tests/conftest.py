"""What all tests share: one thread, and a loud reason where the machine lacks something."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="NOT TESTED HERE: needs a CUDA GPU"))
