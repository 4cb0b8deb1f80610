import numpy as np
import pytest
from scipy import ndimage

from anomalib_med.calibration import VolumeRule
from anomalib_med.calibration.candidates import CandidateFinder
from anomalib_med.records import Sample, Volume


def volume(slots, affine=None, length=None):
    samples = tuple(Sample(f"s{k}", patient="p") for k in slots)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    places = affine[:3, 3] + np.outer(slots, affine[:3, 2])
    return Volume(
        "v", "p", "", samples, tuple(slots), length or max(slots) + 1, places, affine[:3, :2], 3.0, affine, ""
    )


def found(maps, slots=None, background=None, **options):
    finder = CandidateFinder(
        volume(slots or range(len(maps)), **options), VolumeRule(threshold=0.5, background=background)
    )
    for k, map in zip(slots or range(len(maps)), maps, strict=True):
        finder.add(f"s{k}", map)
    return finder.found()


@pytest.mark.parametrize("seed", range(20))
def test_regions_are_those_of_a_search_in_the_whole_volume(seed):
    rng = np.random.default_rng(seed)
    maps = ndimage.gaussian_filter(rng.normal(size=(9, 20, 24)), 1.2)
    maps = (maps / maps.std() * 0.4).astype(np.float32)
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True
    touching[:, 1, 1] = True
    labels, count = ndimage.label(maps > 0.5, touching)
    candidates = found(maps)
    assert len(candidates) == count
    numbers = range(1, count + 1)
    assert [c.peak for c in candidates] == pytest.approx(sorted(ndimage.maximum(maps, labels, numbers), reverse=True))
    cores = [maps[labels == n] for n in numbers]
    sizes = [(core >= (0.5 + core.max()) / 2).sum() * 1 * 2 * 3 / 1000 for core in cores]
    assert sorted(c.ml for c in candidates) == pytest.approx(sorted(sizes), rel=0.1)
    best = labels == labels[np.unravel_index(int(np.argmax(maps)), maps.shape)]
    weights = np.where(best, maps - 0.5, 0).astype(float)
    k, r, c = (float((weights * at).sum() / weights.sum()) for at in np.indices(maps.shape))
    assert candidates[0].centre == pytest.approx((c, 2 * r, 3 * k), abs=1e-4)


def test_a_missing_slice_parts_a_region():
    maps = np.zeros((3, 5, 5), np.float32)
    maps[:, 2, 2] = [1, 2, 3]
    assert len(found(maps)) == 1
    first, second, third = (c.at for c in found(maps, [0, 2, 4]))
    assert (first, second, third) == (("s4", 2, 2), ("s2", 2, 2), ("s0", 2, 2))


def test_nothing_above_the_threshold_is_no_candidate():
    assert found(np.zeros((3, 5, 5), np.float32)) == ()


def hills(*hills, floor=0.0, shape=(9, 40, 60)):
    """Round hills ``(slice, row, column, height)`` on a floor."""
    k, r, c = np.indices(shape)
    every = [height * np.exp(-(((k - a) * 2) ** 2 + (r - b) ** 2 + (c - d) ** 2) / 50) for a, b, d, height in hills]
    return np.maximum(floor, np.max(every, axis=0)).astype(np.float32)


def test_regions_that_run_together_are_parted():
    maps = hills((4, 20, 15, 3.0), (4, 20, 45, 2.0), (2, 8, 30, 2.5), floor=0.7)
    assert len(found(maps)) == 1
    three = found(maps, background=0.0)
    assert [c.at for c in three] == [("s4", 20, 15), ("s2", 8, 30), ("s4", 20, 45)]
    assert [c.peak for c in three] == pytest.approx([3, 2.5, 2])
    for c, (x, y, z) in zip(three, [(15, 40, 12), (30, 16, 6), (45, 40, 12)], strict=True):
        assert np.linalg.norm(np.subtract(c.centre, (x, y, z))) < 1.5
    alone = found(hills((4, 20, 15, 3.0)))[0]
    assert three[0].ml == pytest.approx(alone.ml, rel=0.2)


def test_a_low_bump_on_the_slope_of_a_region_is_no_candidate_of_its_own():
    maps = hills((4, 20, 20, 3.0), floor=0.0)
    maps[4, 20, 30] += 0.1
    assert len(found(maps, background=0.0)) == 1


def test_a_ridge_between_equal_hills_is_parted_only_where_it_sags_enough():
    for sag, count in ((1.95, 1), (1.0, 2)):
        maps = np.zeros((1, 5, 9), np.float32)
        maps[0, 2] = [0, 1, 2, sag, sag, sag, 2, 1, 0]
        assert len(found(maps, background=0.0)) == count


@pytest.mark.parametrize("seed", range(10))
def test_parted_regions_are_those_of_a_search_in_the_whole_volume(seed):
    maps = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(9, 30, 30)), 1.2).astype(np.float32)
    maps = maps / maps.std()
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True
    touching[:, 1, 1] = True
    thresholds = [0.5 * 1.1**k for k in range(24)]

    def parted(region, level):
        if level + 2 >= 24:
            return [region]
        labels, count = ndimage.label(region & (maps > thresholds[level + 1]), touching)
        rising = [labels == n for n in range(1, count + 1) if maps[labels == n].max() > thresholds[level + 2]]
        pieces = [piece for one in rising for piece in parted(one, level + 1)]
        return pieces if len(pieces) > 1 else [region]

    labels, count = ndimage.label(maps > 0.5, touching)
    expected = [piece for n in range(1, count + 1) for piece in parted(labels == n, 0)]
    candidates = found(maps, background=0.0)
    assert [c.peak for c in candidates] == pytest.approx(sorted((maps[p].max() for p in expected), reverse=True))
    assert sorted(c.slices for c in candidates) == sorted(int(p.any(axis=(1, 2)).sum()) for p in expected)
