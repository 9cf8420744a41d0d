"""Hungarian matching against transformers, and on examples with a known solution."""

import itertools

import pytest
import torch
from support.losses import CLASSES, loss_config, random_output, random_targets

from attnzoo.models.detr.matcher import hungarian_match


@pytest.mark.parametrize("counts", [(4, 1, 6), (3, 0, 5), (2, 11, 0), (0, 0, 0)])
@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_pairs_equal_transformers(kind, counts):
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    config = loss_config(kind)
    cls = DeformableDetrHungarianMatcher if kind == "focal" else HungarianMatcher
    reference = cls(class_cost=config.match_class, bbox_cost=config.match_l1, giou_cost=config.match_giou)
    for seed in range(5):
        output, targets = random_output(kind, seed=seed), random_targets(*counts, seed=seed + 100)
        matching = hungarian_match(output.logits, output.boxes, targets, config)
        starts = torch.tensor([0, *itertools.accumulate(counts)])
        labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
        for layer in range(len(output.logits)):
            pairs = reference({"logits": output.logits[layer], "pred_boxes": output.boxes[layer]}, labels)
            for image, (queries, objects) in enumerate(pairs):
                of_image = matching.images == image
                assert matching.queries[layer, of_image].tolist() == queries.tolist()
                assert (matching.targets[layer, of_image] - starts[image]).tolist() == objects.tolist()


def test_layers_are_matched_independently():
    output, targets = random_output("focal"), random_targets(4, 3, 6)
    matching = hungarian_match(output.logits, output.boxes, targets, loss_config("focal"))
    assert not torch.equal(matching.queries[0], matching.queries[1])
    assert matching.queries.shape == matching.targets.shape == (3, 13)


def test_perfect_predictions_match_their_targets():
    """Each target is predicted by one query, in shuffled order; the other queries predict nothing."""
    targets = random_targets(5, 3)
    logits = torch.full((1, 2, 9, CLASSES), -6.0)
    boxes = torch.tensor([0.9, 0.9, 0.05, 0.05]).repeat(1, 2, 9, 1)
    order = torch.tensor([7, 2, 5, 0, 4])
    for image, target in enumerate(targets):
        for query, label, box in zip(order, target["labels"], target["boxes"], strict=False):
            logits[0, image, query, label] = 6
            boxes[0, image, query] = box
    matching = hungarian_match(logits, boxes, targets, loss_config("focal"))
    expected = sorted((0, int(order[i]), i) for i in range(5)) + sorted((1, int(order[i]), 5 + i) for i in range(3))
    matched = zip(matching.images.tolist(), matching.queries[0].tolist(), matching.targets[0].tolist(), strict=True)
    assert list(matched) == expected


def test_cost_weights_determine_the_matching():
    """Two queries and two targets, where class and box suggest opposite matchings."""
    targets = [{"labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])}]
    boxes = targets[0]["boxes"].clone()[None, None]
    logits = torch.zeros(1, 1, 2, CLASSES)
    logits[0, 0, 0, 1] = logits[0, 0, 1, 0] = 3  # the classes of the other target
    by_box, by_class = loss_config("focal"), loss_config("focal")
    by_box.match_class = 0.0
    by_class.match_l1 = by_class.match_giou = 0.0
    assert hungarian_match(logits, boxes, targets, by_box).targets.tolist() == [[0, 1]]
    assert hungarian_match(logits, boxes, targets, by_class).targets.tolist() == [[1, 0]]
