"""Metrics of maps against an obvious slow reference, scikit-learn, and the values of two other implementations."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from anomalib_med.evaluation.pixel_metrics import (
    PixelMetrics,
    aupro,
    best_dice_of_image,
    pixel_metrics,
    region_weights,
)
from anomalib_med.evaluation.score_counts import to_keys, to_scores
from tests.evaluation.made_up_maps import made_up_pairs

PEERS = json.loads((Path(__file__).parent / "peer_values.json").read_text())


def slow_aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """Region by region and threshold by threshold."""
    labelled = [label(mask, np.ones((3, 3)))[0] for mask in masks]
    regions = [map[parts == k] for map, parts in zip(maps, labelled, strict=True) for k in range(1, parts.max() + 1)]
    normal = np.concatenate([map[mask == 0] for map, mask in zip(maps, masks, strict=True)])
    x, y = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([map.ravel() for map in maps]))[::-1]:
        x.append(float(np.mean(normal >= threshold)))
        y.append(float(np.mean([np.mean(region >= threshold) for region in regions])))
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            area += (end - x0) * (y0 + (y0 + (y1 - y0) * (end - x0) / (x1 - x0))) / 2
    return area / limit


@st.composite
def small_pairs(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A few small maps with ties and masks of several regions; both kinds of pixel are there."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([3, 20, 10**6]))
    count = draw(st.integers(1, 4))
    maps = [rng.integers(-levels, levels, (7, 9)).astype(np.float32) / 7 for _ in range(count)]
    masks = [rng.random((7, 9)) < draw(st.sampled_from([0.0, 0.1, 0.4])) for _ in range(count)]
    masks[0][0, :2] = True, False
    masks[0][1, :3] = False
    return maps, masks


@settings(deadline=None)
@given(small_pairs(), st.sampled_from([0.05, 0.3, 1.0]))
def test_aupro_is_the_slow_one(pair: tuple[list[np.ndarray], list[np.ndarray]], limit: float) -> None:
    maps, masks = pair
    metrics = PixelMetrics()
    for map, mask in zip(maps, masks, strict=True):
        metrics.add(map, mask)
    assert aupro(metrics.curve(), limit) == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-12)


@settings(deadline=None)
@given(small_pairs())
def test_the_others_are_scikit_learns_on_all_pixels(pair: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    maps, masks = pair
    y, s = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    values = pixel_metrics(zip(masks, maps, strict=True))
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(y, s))
    assert values["pixel_ap"] == pytest.approx(average_precision_score(y, s))
    assert values["best_dice (oracle)"] == pytest.approx(max(f1_score(y, s >= t) for t in np.unique(s)))


@settings(deadline=None)
@given(small_pairs(), st.sampled_from([4, 16, 64]))
def test_a_small_capacity_costs_no_more_than_its_bound(
    pair: tuple[list[np.ndarray], list[np.ndarray]], capacity: int
) -> None:
    maps, masks = pair
    exact, bounded = PixelMetrics(), PixelMetrics(capacity)
    for map, mask in zip(maps, masks, strict=True):
        exact.add(map, mask)
        bounded.add(map, mask)
    assert exact.curve().dropped_bits == 0
    assert exact.curve().aupro_error() == 0
    curve = bounded.curve()
    assert abs(aupro(curve) - aupro(exact.curve())) <= curve.aupro_error() + 1e-12


@pytest.mark.parametrize("name", sorted(PEERS["aupro"]))
def test_aupro_of_other_implementations(name: str) -> None:
    metrics = PixelMetrics()
    for map, mask in made_up_pairs(name):
        metrics.add(map, mask)
    curve = metrics.curve()
    for limit, expected in PEERS["aupro"][name]["anomalib"].items():
        assert aupro(curve, float(limit)) == pytest.approx(expected, abs=1e-6)
    # ADEval sorts scores into 1,000 strips, so it is near, not equal.
    assert aupro(curve, 0.3) == pytest.approx(PEERS["aupro"][name]["adeval"], abs=2e-3)


def test_order_of_images_and_empty_masks_do_not_matter() -> None:
    pairs = list(made_up_pairs("smooth"))
    forwards, backwards = PixelMetrics(), PixelMetrics()
    for map, mask in pairs:
        forwards.add(map, mask if mask.any() else None)
    for map, mask in reversed(pairs):
        backwards.add(map, mask)
    first, second = forwards.curve(), backwards.curve()
    assert (first.tp == second.tp).all() and (first.fp == second.fp).all() and (first.overlap == second.overlap).all()


def test_normal_images_count_among_the_background() -> None:
    map = np.array([[0.1, 0.9], [0.2, 0.3]], np.float32)
    mask = np.array([[0, 1], [0, 0]], bool)
    alone = pixel_metrics([(mask, map)])
    beside = pixel_metrics([(mask, map), (None, np.full((2, 2), 2, np.float32))])
    assert alone["pixel_auroc"] == 1
    assert beside["pixel_auroc"] == pytest.approx(3 / 7)


def test_regions_are_joined_across_corners() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]])
    assert region_weights(mask).tolist() == [[0.5, 0, 0, 1], [0, 0.5, 0, 0]]


@settings(deadline=None)
@given(small_pairs())
def test_best_dice_of_an_image_is_the_best_over_thresholds(pair: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    map, mask = pair[0][0], pair[1][0]
    expected = max(f1_score(mask.ravel(), (map >= t).ravel()) for t in np.unique(map))
    assert best_dice_of_image(map, mask) == pytest.approx(expected)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_keys_keep_the_order_of_scores(values: list[float]) -> None:
    scores = np.array(values, np.float32)
    keys = to_keys(scores)
    assert (to_scores(keys) == scores).all()
    assert ((keys[:, None] < keys) == (scores[:, None] < scores)).all()


def test_what_cannot_be_judged_is_refused() -> None:
    metrics = PixelMetrics()
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        metrics.add(np.array([[np.nan]]))
    with pytest.raises(ValueError, match=r"a mask of \(1, 2\) does not fit its map of \(2, 1\)"):
        metrics.add(np.zeros((2, 1)), np.zeros((1, 2)))
    metrics.add(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="needs normal and abnormal pixels"):
        metrics.curve()
