"""Trained runs of small models, anew for each file: tests write into their folders."""

import pytest
from support.trained import train_classifier, train_detector

from attnzoo.rundir.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_detector(tmp_path_factory.mktemp("detector") / "run")


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_classifier(tmp_path_factory.mktemp("classifier") / "run")
