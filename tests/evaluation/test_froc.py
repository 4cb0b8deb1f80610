"""FROC against the slow way and against MONAI's values on the same detections."""

import json
from pathlib import Path

import numpy as np
import pytest

from anomalib_med.evaluation.froc import (
    MISSED,
    Found,
    components,
    cpm,
    found_by_overlap,
    found_by_peaks,
    froc_curve,
    peaks,
    sensitivity_at,
)
from tests.evaluation.made_up_maps import made_up_pairs

PEERS = json.loads((Path(__file__).parent / "peer_values.json").read_text())["froc"]


def blob(shape: tuple[int, int], at: list[tuple[int, int, float]]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return sum(v * np.exp(-((y - r) ** 2 + (x - c) ** 2) / 8) for r, c, v in at).astype(np.float32)


def test_a_peak_is_the_highest_of_its_neighbourhood_once() -> None:
    map = blob((40, 50), [(10, 10, 1.0), (30, 35, 0.7)])
    scores, at = peaks(map)
    assert at[:2].tolist() == [[10, 10], [30, 35]]
    assert scores[:2] == pytest.approx([1.0, 0.7], abs=1e-4)
    assert len(peaks(np.ones((20, 20)))[0]) == 1


def test_a_peak_hits_the_region_it_lies_in() -> None:
    map = blob((40, 50), [(10, 10, 1.0), (30, 35, 0.7), (5, 45, 0.5)])
    mask = np.zeros((40, 50), bool)
    mask[8:13, 8:13] = True
    mask[20:24, 5:9] = True
    found = found_by_peaks(map, mask)
    assert found.lesions[0] == pytest.approx(1.0)
    assert found.lesions[1] == MISSED
    assert found.sizes.tolist() == [25, 16]
    assert found.false[:2] == pytest.approx([0.7, 0.5], abs=1e-4)


def test_boxes_may_overlap_and_a_normal_image_has_only_false_detections() -> None:
    map = blob((40, 50), [(10, 10, 1.0)])
    assert found_by_peaks(map, [(8, 8, 5, 5), (9, 4, 10, 10)]).lesions == pytest.approx([1.0, 1.0])
    normal = found_by_peaks(map, [])
    assert normal.lesions.size == 0
    assert normal.false[0] == pytest.approx(1.0)


def test_overlap_needs_more_than_a_tenth_of_the_union() -> None:
    map = np.zeros((40, 50), np.float32)
    map[10:20, 10:20] = 0.8
    map[12, 12] = 0.9
    scores, boxes = components(map, 0.5)
    assert scores == pytest.approx([0.9])
    assert boxes.tolist() == [[10, 10, 10, 10]]
    assert found_by_overlap(map, [(10, 10, 10, 10)], 0.5).lesions == pytest.approx([0.9])
    near = found_by_overlap(map, [(18, 18, 10, 10)], 0.5)  # 4 of 196 pixels
    assert near.lesions.tolist() == [MISSED]
    assert near.false == pytest.approx([0.9])
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 10:15] = 1
    assert found_by_overlap(map, mask, 0.5).lesions == pytest.approx([0.9])


@pytest.mark.parametrize("name", sorted(PEERS))
def test_the_curve_is_monais(name: str) -> None:
    # MONAI leaves out the loosest threshold and begins with the one after it.
    expected = PEERS[name]
    curve = froc_curve([found_by_peaks(map, mask, radius=2) for map, mask in made_up_pairs(name)])
    for ours, theirs in ((curve.false_per_image, "fps"), (curve.sensitivity, "sensitivity")):
        assert ours[::-1][-expected["points"] :: expected["step"]] == pytest.approx(expected[theirs])
    assert cpm(curve, (0.25, 0.5, 1, 2, 4, 8)) == pytest.approx(expected["score"])


def test_weights_count_images_more_than_once() -> None:
    images = [found_by_peaks(map, mask) for map, mask in made_up_pairs("smooth")]
    times = np.array([2, 1, 0, 1, 3, 1, 1, 0, 1, 1, 1, 2])
    repeated = froc_curve([image for image, n in zip(images, times, strict=True) for _ in range(n)])
    weighted = froc_curve(images, np.stack([np.ones(12), times]))
    assert cpm(weighted) == pytest.approx([float(cpm(froc_curve(images))), float(cpm(repeated))])


def test_between_points_the_curve_is_straight_and_beyond_it_flat() -> None:
    images = [
        Found(np.array([0.9, 0.5]), np.ones(2), np.array([0.7, 0.3])),
        Found(np.empty(0), np.empty(0), np.ones(0)),
    ]
    curve = froc_curve(images)
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.false_per_image.tolist() == [0, 0, 0.5, 0.5, 1]
    assert float(sensitivity_at(curve, 0.25)) == 0.5
    assert float(sensitivity_at(curve, 8)) == 1


def test_lesions_of_a_size_keep_the_false_detections_of_the_image() -> None:
    found = Found(np.array([0.9, MISSED, 0.2]), np.array([10.0, 300.0, 50.0]), np.array([0.4]))
    small, large = found.of_size(0, 100), found.of_size(100, np.inf)
    assert (small.lesions.tolist(), small.sizes.tolist()) == ([0.9, 0.2], [10, 50])
    assert (large.lesions.tolist(), large.false.tolist()) == ([MISSED], [0.4])


def test_without_lesions_there_is_no_curve() -> None:
    with pytest.raises(ValueError, match="FROC needs lesions"):
        froc_curve([found_by_peaks(np.eye(5), [])])
