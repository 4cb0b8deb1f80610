"""AUROC against its definition: the share of pairs of a normal and an abnormal that are in order, ties counted half."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_med.evaluation import image_auroc, pixel_auroc


def share_of_pairs(labels: list[int], scores: list[float]) -> float:
    """The slow way."""
    normal = [s for s, label in zip(scores, labels, strict=True) if not label]
    abnormal = [s for s, label in zip(scores, labels, strict=True) if label]
    return sum((a > n) + 0.5 * (a == n) for a in abnormal for n in normal) / (len(abnormal) * len(normal))


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Labels of both kinds and scores with ties."""
    labels = [0, 1, *draw(st.lists(st.integers(0, 1), max_size=30))]
    scores = draw(st.lists(st.integers(-5, 5).map(float), min_size=len(labels), max_size=len(labels)))
    return labels, scores


@given(labelled())
def test_it_is_the_share_of_pairs_in_order(pair: tuple[list[int], list[float]]) -> None:
    assert image_auroc(*pair) == pytest.approx(share_of_pairs(*pair), abs=1e-12)


@given(labelled())
def test_turned_scores_turn_it(pair: tuple[list[int], list[float]]) -> None:
    labels, scores = pair
    assert image_auroc(labels, [-s for s in scores]) == pytest.approx(1 - image_auroc(labels, scores), abs=1e-12)


@given(labelled())
def test_only_the_order_of_scores_counts(pair: tuple[list[int], list[float]]) -> None:
    labels, scores = pair
    assert image_auroc(labels, np.exp(scores)) == pytest.approx(image_auroc(labels, scores), abs=1e-12)


def test_perfect_inverse_and_blind_scores() -> None:
    assert image_auroc([0, 0, 1, 1], [1, 2, 3, 4]) == 1
    assert image_auroc([1, 1, 0, 0], [1, 2, 3, 4]) == 0
    assert image_auroc([0, 1, 0, 1], [7, 7, 7, 7]) == 0.5


def test_one_kind_of_image_is_refused() -> None:
    for labels in ([0, 0], [1, 1]):
        with pytest.raises(ValueError, match="needs normal and abnormal images"):
            image_auroc(labels, [0.1, 0.2])


def test_an_image_that_was_not_scored_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="a score is NaN: leave out"):
        image_auroc([0, 1, 1], [0.1, float("nan"), 0.3])


def test_pixels_of_all_images_count_together() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(shape) > 0.7 for shape in ((3, 4), (5, 2))] + [np.zeros((2, 2), bool)]
    maps = [rng.integers(0, 4, mask.shape).astype(np.float32) for mask in masks]
    labels = [int(v) for mask in masks for v in mask.ravel()]
    scores = [float(v) for map in maps for v in map.ravel()]
    assert pixel_auroc(masks, maps) == pytest.approx(share_of_pairs(labels, scores))


def test_masks_of_any_number_type_mean_the_same() -> None:
    mask = np.array([[0, 1], [1, 0]])
    map = np.array([[0.1, 0.9], [0.2, 0.3]], np.float32)
    expected = pixel_auroc([mask.astype(bool)], [map])
    assert pixel_auroc([(mask * 255).astype(np.uint8)], [map]) == expected == 0.75


def test_a_mask_that_does_not_fit_its_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a mask of \(2, 3\) does not fit its map of \(3, 2\)"):
        pixel_auroc([np.zeros((2, 3), bool)], [np.zeros((3, 2))])


def test_a_map_for_each_mask_is_needed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        pixel_auroc([np.eye(2) > 0, np.eye(2) > 0], [np.eye(2)])
