"""Models on the Hugging Face Hub, or in a folder of its layout. Needs `pip install 'attnzoo[hub]'`.

HubModel.of(detector).save_pretrained("folder")  # or .push_to_hub("user/name")
detector = HubModel.from_pretrained("folder").model
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from attnzoo import models
from attnzoo.errors import UserError
from attnzoo.models import presets
from attnzoo.models.detr.detector import Detector
from attnzoo.models.vit.classifier import Classifier
from attnzoo.paths import user_path

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as error:
    raise ImportError("attnzoo.interop.hub needs huggingface_hub: pip install 'attnzoo[hub]'") from error


class HubModel(nn.Module, PyTorchModelHubMixin, library_name="attnzoo", tags=["attnzoo"]):
    """A detector or classifier, `model`, with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    `settings` has the fields of DetectorConfig or ClassifierConfig; `family` is "detector" or "classifier".
    `class_names`, one per class, and `augment`, the settings at `data.augment`, are for `attnzoo.load_model`.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        num_classes: int,
        family: str,
        class_names: list[str] | None = None,
        augment: dict[str, Any] | None = None,
    ):
        super().__init__()
        build = presets.detector_config if family == "detector" else presets.classifier_config
        self.model = models.build(build(None, settings), num_classes)

    @classmethod
    def of(
        cls,
        model: Detector | Classifier,
        class_names: Sequence[str] | None = None,
        augment: Mapping[str, Any] | None = None,
    ) -> "HubModel":
        """A copy of a model of attnzoo.

        With `class_names` and `augment`, such as `settings.data.augment` of what `attnzoo.load_model` returns, the
        folder says what the classes are called and how images are resized and normalised. Raises UserError for another
        number of names than classes.
        """
        names = None if class_names is None else list(class_names)
        if names is not None and len(names) != model.num_classes:
            raise UserError(f"class_names has {len(names)} names, but the model has {model.num_classes} classes")
        settings = dataclasses.asdict(model.config) | {"preset": None, "weights": None}
        if isinstance(model, Detector):
            settings["backbone"]["weights"] = None
        family = "detector" if isinstance(model, Detector) else "classifier"
        told: dict[str, Any] = {"class_names": names, "augment": None if augment is None else dict(augment)}
        hub_model = cls(settings=settings, num_classes=model.num_classes, family=family, **told)
        hub_model.model.load_state_dict(model.state_dict())
        return hub_model.train(model.training)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """As of the Hub's other models; `~` is expanded."""
        return super().save_pretrained(user_path(save_directory), **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "HubModel":
        """From a folder, whose `~` is expanded, or "user/name" on the Hub.

        Raises UserError unless HubModel.save_pretrained wrote its config.json.
        """
        return super().from_pretrained(str(user_path(pretrained_model_name_or_path)), **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "HubModel":
        if not {"settings", "num_classes", "family"} <= options.keys():
            others = "attnzoo.load_model reads run folders and folders of transformers"
            raise UserError(f"{model_id}: no config.json that HubModel.save_pretrained wrote; {others}")
        return super()._from_pretrained(model_id=model_id, **options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `model`."""
        return self.model(*args, **kwargs)
