import numpy as np
import pytest
from scipy import ndimage

from anomalib_med.datasets.sample import Sample
from anomalib_med.datasets.volumes import Volume
from anomalib_med.outputs.candidates import CandidateFinder


def volume(slots, affine=None, length=None):
    samples = tuple(Sample(f"s{k}", patient="p") for k in slots)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    places = affine[:3, 3] + np.outer(slots, affine[:3, 2])
    return Volume(
        "v", "p", "", samples, tuple(slots), length or max(slots) + 1, places, affine[:3, :2], 3.0, affine, ""
    )


def found(maps, slots=None, **options):
    finder = CandidateFinder(volume(slots or range(len(maps)), **options), 0.5)
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
    assert found(np.zeros((3, 5, 5), np.float32)) == []
