"""Evaluating a fitted model: what is measured follows from what is known, and every number has an interval."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomalib_med import FittedModel, Sample
from anomalib_med.errors import InputError
from anomalib_med.evaluation import image_auroc
from anomalib_med.evaluation.evaluate import evaluate_model
from anomalib_med.evaluation.pixel_metrics import PIXEL_METRICS, pixel_metrics
from tests.conftest import abnormal_picture, normal_picture


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Eight normal and eight abnormal files, two of each patient, with masks."""
    folder = tmp_path_factory.mktemp("labelled")
    made = []
    for i in range(8):
        normal, abnormal, mask = (folder / f"{kind}{i}.png" for kind in ("n", "a", "m"))
        cv2.imwrite(str(normal), normal_picture(700 + i))
        picture, where = abnormal_picture(800 + i)
        cv2.imwrite(str(abnormal), picture)
        cv2.imwrite(str(mask), where.astype(np.uint8) * 255)
        made.append(Sample(normal.name, normal, patient=f"n{i // 2}", label=0))
        made.append(Sample(abnormal.name, abnormal, patient=f"a{i // 2}", label=1, mask=mask))
    return made


def test_values_are_those_of_the_scores_and_maps(small_model: FittedModel, samples: list[Sample]) -> None:
    evaluation = evaluate_model(small_model, samples, replicates=50)
    scores = small_model.score(samples)
    labels = np.array([sample.label for sample in samples])
    assert evaluation.ids == scores.ids
    assert evaluation.scores.tolist() == scores.scores.tolist()
    assert evaluation.metrics["auroc"].value == pytest.approx(image_auroc(labels, scores.scores))
    flagged = scores.flagged
    assert evaluation.metrics["sensitivity"].value == pytest.approx(flagged[labels == 1].mean())
    assert evaluation.metrics["false_alarm_rate"].value == pytest.approx(flagged[labels == 0].mean())
    masks = [None if s.mask is None else cv2.imread(str(s.mask), cv2.IMREAD_GRAYSCALE) for s in samples]
    for name, value in pixel_metrics(zip(masks, scores.maps, strict=True)).items():
        assert evaluation.metrics[name].value == pytest.approx(value), name
    assert {"patient_auroc", "ptp_ap", "froc_cpm", "dice_img (oracle)", *PIXEL_METRICS} <= set(evaluation.metrics)
    assert evaluation.seconds > 0


def test_intervals_hold_their_values(small_model: FittedModel, samples: list[Sample]) -> None:
    for name, interval in evaluate_model(small_model, samples, replicates=200).metrics.items():
        assert interval.low - 0.02 <= interval.value <= interval.high + 0.02, name
        assert "oracle" in name or 0 <= interval.low <= interval.high <= 1, name


def test_replicates_of_pooled_pixels_follow_the_exact_value(small_model: FittedModel, samples: list[Sample]) -> None:
    evaluation = evaluate_model(small_model, samples, replicates=200)
    for name in PIXEL_METRICS:
        drawn, value = evaluation.measured[name].replicates, evaluation.metrics[name].value
        assert abs(np.median(drawn) - value) < 0.05 + 2 * drawn.std(), name


def test_an_evaluation_can_be_repeated(small_model: FittedModel, samples: list[Sample]) -> None:
    first, second = (evaluate_model(small_model, samples, replicates=20) for _ in range(2))
    assert first.metrics == second.metrics


def test_without_masks_or_patients_there_are_image_metrics_alone(
    small_model: FittedModel, samples: list[Sample]
) -> None:
    bare = [replace(s, mask=None, patient=s.id) for s in samples]
    names = set(evaluate_model(small_model, bare, replicates=20).metrics)
    assert not {n for n in names if n.startswith(("pixel", "patient", "ptp", "aupro", "froc"))}


def test_boxes_alone_give_froc(small_model: FittedModel, samples: list[Sample]) -> None:
    boxed = [s if s.label == 0 else replace(s, mask=None, boxes=((5.0, 5.0, 60.0, 70.0),)) for s in samples]
    evaluation = evaluate_model(small_model, boxed, tasks=("image", "box"), replicates=20)
    assert 0 <= evaluation.metrics["froc_cpm"].value <= 1
    assert "pixel_auroc" not in evaluation.metrics


def test_an_unreadable_image_is_left_out_and_named(
    small_model: FittedModel, samples: list[Sample], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    evaluation = evaluate_model(small_model, [*samples, Sample("broken.png", broken, label=1)], replicates=20)
    assert list(evaluation.failures) == ["broken.png"]
    assert len(evaluation.ids) == len(samples)


def test_a_map_whose_mask_is_unreadable_is_left_out_and_named(
    small_model: FittedModel, samples: list[Sample], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    first = next(i for i, sample in enumerate(samples) if sample.label == 1)
    others = [sample for i, sample in enumerate(samples) if i != first]
    evaluation = evaluate_model(small_model, [*others, replace(samples[first], mask=broken)], replicates=20)
    assert list(evaluation.failures) == [samples[first].id]
    assert evaluation.failures[samples[first].id].startswith("left out of the metrics of maps: ")
    assert len(evaluation.ids) == len(samples)
    without = evaluate_model(small_model, others, replicates=20)
    assert evaluation.metrics["pixel_auroc"].value == without.metrics["pixel_auroc"].value


def test_what_cannot_be_evaluated_is_refused(small_model: FittedModel, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match=r"1 images have no label, first n0\.png"):
        evaluate_model(small_model, [replace(samples[0], label=None), *samples[1:]])
    with pytest.raises(InputError, match="normal and abnormal images are needed"):
        evaluate_model(small_model, [s for s in samples if s.label == 0])
