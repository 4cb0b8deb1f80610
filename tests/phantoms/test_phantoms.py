"""What the synthetic images promise: the same for a seed, different between seeds, lesions where their mask says."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anomalib_med.datasets.folder import discover
from anomalib_med.errors import ConfigError, OutputError
from anomalib_med.phantoms import (
    add_ct_lesion,
    add_lesion,
    chest_phantom,
    ct_slice_phantom,
    digit_anatomy,
    write_chest_dataset,
    write_ct_dataset,
    write_digit_anatomy,
)
from anomalib_med.phantoms.digit_anatomy import CELL, handwriting
from anomalib_med.phantoms.digit_anatomy import KINDS as DIGIT_KINDS
from anomalib_med.phantoms.lesions import CT_KINDS, KINDS, MASK_SHARE

DENSE = tuple(kind for kind in KINDS if kind != "pneumothorax")


def contrast_to_ring(pixels, mask, healthy):
    """How far the lesion moved away from its own surroundings, against the same place before."""
    ring = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~mask

    def step(image):
        return float(image[mask].mean() - image[ring].mean())

    return step(pixels) - step(healthy)


# Chest phantoms


@pytest.mark.parametrize("size", [64, 130, 256])
def test_a_seed_gives_the_same_chest_every_time(size):
    first, second = chest_phantom(5, size), chest_phantom(5, size)
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.lungs, second.lungs)
    assert first.pixels.shape == first.lungs.shape == first.body.shape == (size, size)


def test_another_seed_gives_another_chest():
    images = [chest_phantom(seed).pixels for seed in range(6)]
    gaps = [np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]]
    assert min(gaps) > 0.03


def test_a_chest_is_float32_between_0_and_1_with_lungs_darker_than_the_body_around_them():
    for seed in range(12):
        phantom = chest_phantom(seed)
        assert phantom.pixels.dtype == np.float32
        assert phantom.pixels.min() >= 0
        assert phantom.pixels.max() <= 1
        assert 0.08 < phantom.lungs.mean() < 0.45
        assert (phantom.lungs & ~phantom.body).mean() < 0.002
        assert (
            np.median(phantom.pixels[phantom.lungs]) < np.median(phantom.pixels[phantom.body & ~phantom.lungs]) - 0.05
        )


def test_both_lungs_are_there():
    for seed in range(12):
        count, _, stats, _ = cv2.connectedComponentsWithStats(chest_phantom(seed).lungs.astype(np.uint8))
        assert sum(stats[1:, cv2.CC_STAT_AREA] > 1500) == 2, f"seed {seed}: {count - 1} parts"


@pytest.mark.parametrize("draw", [chest_phantom, ct_slice_phantom])
def test_what_cannot_be_drawn_is_refused_by_name(draw):
    with pytest.raises(ConfigError, match="seed: -1"):
        draw(-1)
    with pytest.raises(ConfigError, match="size: 32"):
        draw(0, 32)


# Lesions


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_is_visible_where_its_mask_says_and_nowhere_else(kind):
    for seed in range(8):
        phantom = chest_phantom(seed)
        before = phantom.pixels.copy()
        pixels, mask = add_lesion(phantom.pixels, phantom.lungs, kind, np.random.default_rng(seed))
        change = np.abs(pixels - before)
        assert np.array_equal(phantom.pixels, before), "the input was changed"
        assert pixels.dtype == np.float32
        assert mask.dtype == np.bool_
        assert mask.shape == pixels.shape
        assert 10 < mask.sum() < 0.25 * mask.size
        assert np.array_equal(mask, change > MASK_SHARE * change.max())
        assert pixels.min() >= before.min()
        assert pixels.max() <= before.max()
        step = contrast_to_ring(pixels, mask, before)
        assert step > 0.03 if kind in DENSE else step < -0.015, f"seed {seed}: {step:.3f}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_repeats_for_a_seed_and_moves_with_another(kind):
    phantom = chest_phantom(3)
    masks = [add_lesion(phantom.pixels, phantom.lungs, kind, np.random.default_rng(seed))[1] for seed in (1, 1, 2)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


@pytest.mark.parametrize("kind", KINDS)
def test_contrast_scales_the_change(kind):
    phantom = chest_phantom(4)
    faint, plain = (
        np.abs(
            add_lesion(phantom.pixels, phantom.lungs, kind, np.random.default_rng(0), contrast=c)[0] - phantom.pixels
        )
        for c in (0.3, 1.0)
    )
    assert 0 < faint.sum() < 0.6 * plain.sum()


def test_size_scales_the_extent():
    phantom = chest_phantom(4)
    small, large = (
        add_lesion(phantom.pixels, phantom.lungs, "nodule", np.random.default_rng(0), size=s)[1].sum()
        for s in (0.7, 1.4)
    )
    assert 2.5 * small < large


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_does_not_depend_on_the_unit_of_the_pixels(kind):
    phantom = chest_phantom(7)
    pixels, _ = add_lesion(phantom.pixels, phantom.lungs, kind, np.random.default_rng(0))
    scaled, _ = add_lesion(phantom.pixels * 4095 + 100, phantom.lungs, kind, np.random.default_rng(0))
    assert np.allclose(scaled, pixels * 4095 + 100, atol=1.0)


@pytest.mark.parametrize("shape", [(200, 320), (320, 200)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_need_not_be_square(kind, shape):
    phantom = chest_phantom(7, 320)
    pixels, lungs = (np.ascontiguousarray(a[: shape[0], : shape[1]]) for a in (phantom.pixels, phantom.lungs))
    changed, mask = add_lesion(pixels, lungs, kind, np.random.default_rng(0))
    assert changed.shape == mask.shape == shape
    assert mask.any()


def test_what_cannot_be_planted_is_refused_by_name():
    phantom = chest_phantom(0)
    rng = np.random.default_rng(0)
    for arguments, said in [
        ((phantom.pixels, phantom.lungs, "tumor"), "kinds: tumor.*nodule"),
        ((phantom.pixels, np.zeros_like(phantom.lungs), "nodule"), "lungs: the mask covers 0.0%"),
        ((phantom.pixels, phantom.lungs[:-1], "nodule"), r"lungs: mask \(255, 256\)"),
        ((np.zeros_like(phantom.pixels), phantom.lungs, "nodule"), "pixels: nothing in the image"),
    ]:
        with pytest.raises(ConfigError, match=said):
            add_lesion(*arguments, rng)
    with pytest.raises(ConfigError, match="contrast and size"):
        add_lesion(phantom.pixels, phantom.lungs, "nodule", rng, contrast=0)


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_lesions_can_be_planted_into_real_radiographs(kind, real_data):
    images = sorted((real_data / "covid_cxr_lesions" / "images").glob("*.jpg"))[:4]
    assert images
    for index, path in enumerate(images):
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32)
        lungs = cv2.imread(str(path.parents[1] / "lungs" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) > 0
        changed, mask = add_lesion(pixels, lungs, kind, np.random.default_rng(index))
        assert 10 < mask.sum() < 0.25 * mask.size
        assert changed.min() >= pixels.min()
        assert changed.max() <= pixels.max()


# CT slices


def test_a_ct_slice_has_air_fat_muscle_bone_and_lung_at_their_hounsfield_units():
    for seed in range(8):
        phantom = ct_slice_phantom(seed)
        assert np.array_equal(phantom.pixels, ct_slice_phantom(seed).pixels)
        assert phantom.pixels.dtype == np.float32
        assert np.array_equal(phantom.pixels, np.round(phantom.pixels))
        assert -1010 < np.median(phantom.pixels[~phantom.body]) < -980
        assert -900 < np.median(phantom.pixels[phantom.lungs]) < -750
        assert ((phantom.pixels > 20) & (phantom.pixels < 90)).mean() > 0.03
        assert phantom.pixels.max() > 300
        assert 0.08 < phantom.lungs.mean() < 0.4


@pytest.mark.parametrize(("kind", "low", "high"), [("nodule", -150, 90), ("ground_glass", -750, -250)])
def test_a_ct_lesion_has_its_density_and_its_mask(kind, low, high):
    for seed in range(8):
        phantom = ct_slice_phantom(seed)
        pixels, mask = add_ct_lesion(phantom.pixels, phantom.lungs, kind, np.random.default_rng(seed))
        change = pixels - phantom.pixels
        assert np.array_equal(mask, np.abs(change) > MASK_SHARE * np.abs(change).max())
        core = mask & (change > 0.6 * change.max())
        assert low < np.median(pixels[core]) < high
        assert change.min() >= 0
        assert 4 < mask.sum() < 0.1 * mask.size


# DigitAnatomy


def cells(image):
    return image.reshape(3, CELL, 3, CELL).transpose(0, 2, 1, 3).reshape(9, CELL, CELL)


@pytest.mark.parametrize("kind", DIGIT_KINDS)
def test_only_the_masked_cells_of_a_digit_image_change(kind):
    for seed in range(20):
        normal, clean = digit_anatomy(seed, split="test")
        pixels, mask = digit_anatomy(seed, kind=kind, split="test")
        assert pixels.shape == (96, 96)
        assert 0 <= pixels.min() <= pixels.max() <= 1
        assert not clean.any()
        marked = cells(mask).reshape(9, -1)
        assert np.array_equal(marked.all(1), marked.any(1)), "a mask covers whole cells"
        changed = [i for i in range(9) if not np.array_equal(cells(pixels)[i], cells(normal)[i])]
        assert changed == list(np.nonzero(marked.any(1))[0])
        assert len(changed) == (2 if kind == "misordered" else 1)


def test_each_digit_anomaly_is_what_its_name_says():
    for seed in range(20):
        normal = cells(digit_anatomy(seed, split="test")[0])
        drawn = {kind: digit_anatomy(seed, kind=kind, split="test") for kind in DIGIT_KINDS}
        changed = {kind: np.nonzero(cells(mask).any((1, 2)))[0] for kind, (_, mask) in drawn.items()}
        images = {kind: cells(pixels) for kind, (pixels, _) in drawn.items()}
        assert not images["missing"][changed["missing"][0]].any()
        a, b = changed["misordered"]
        assert np.array_equal(images["misordered"][a], normal[b])
        assert np.array_equal(images["misordered"][b], normal[a])
        index = changed["flipped"][0]
        assert index + 1 not in (1, 8)
        assert np.array_equal(images["flipped"][index], normal[index][:, ::-1])
        zero = images["zero"][changed["zero"][0]]
        middle = zero[12:20, 13:19].mean()
        assert zero.max() > 0.8
        assert middle < 0.75 * zero.max(), "a 0 is open in its middle"


def test_train_and_test_digits_are_disjoint_handwriting():
    for digit in range(10):
        train = {image.tobytes() for image in handwriting(digit, "train")}
        test = {image.tobytes() for image in handwriting(digit, "test")}
        assert len(train) > len(test) > 60
        assert not train & test


def test_an_unknown_digit_anomaly_is_refused():
    with pytest.raises(ConfigError, match="kind: 'upside'"):
        digit_anatomy(0, kind="upside")


# Data sets on disk

WRITERS = [(write_chest_dataset, 4), (write_ct_dataset, len(CT_KINDS)), (write_digit_anatomy, 4)]


def manifest(root):
    with (root / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("write", "kinds"), WRITERS)
def test_a_data_set_has_its_layout_and_its_manifest(write, kinds, tmp_path):
    seen = []
    write(
        tmp_path / "set",
        train=3,
        normal=2,
        abnormal=8,
        progress=lambda _, done, total, *note: seen.append((done, total)),
    )
    root = tmp_path / "set"
    rows = manifest(root)
    assert len(rows) == 13
    assert seen == [(i, 13) for i in range(1, 14)]
    assert {str(p.relative_to(root)) for p in root.rglob("*.png")} == {r["path"] for r in rows} | {
        r["mask"] for r in rows if r["mask"]
    }
    assert [p.name for p in sorted((root / "test/masks").iterdir())] == [
        p.name for p in sorted((root / "test/abnormal").iterdir())
    ]
    for row in rows:
        image = cv2.imread(str(root / row["path"]), cv2.IMREAD_UNCHANGED)
        assert image.ndim == 2
        assert (row["label"] == "1") == bool(row["mask"]) == bool(row["kind"]) == ("abnormal" in row["path"])
        if row["mask"]:
            mask = cv2.imread(str(root / row["mask"]), cv2.IMREAD_UNCHANGED)
            assert mask.shape == image.shape
            assert set(np.unique(mask)) == {0, 255}
    found = [row["kind"] for row in rows if row["kind"]]
    assert {found.count(kind) for kind in set(found)} == {8 // kinds}
    assert len({row["seed"] for row in rows}) == len({row["patient"] for row in rows}) == 13
    assert not [path for path in tmp_path.iterdir() if path != root], "nothing is left beside it"


def test_no_two_images_share_a_seed_within_a_data_set_or_between_two(tmp_path):
    for seed in (0, 1):
        write_digit_anatomy(tmp_path / str(seed), train=30, normal=30, abnormal=30, seed=seed)
    seeds = [row["seed"] for seed in (0, 1) for row in manifest(tmp_path / str(seed))]
    assert len(set(seeds)) == len(seeds) == 180


def test_a_second_run_writes_nothing_and_a_fresh_one_writes_the_same(tmp_path):
    arguments = {"train": 2, "normal": 1, "abnormal": 4, "size": 64}
    write_chest_dataset(tmp_path / "a", **arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    write_chest_dataset(tmp_path / "a", **arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before
    write_chest_dataset(tmp_path / "b", **arguments)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "dataset.json").read_text())["size"] == 64


def test_two_writers_at_once_leave_one_complete_data_set(tmp_path):
    def write(_):
        write_digit_anatomy(tmp_path / "set", train=20, normal=10, abnormal=8)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(manifest(tmp_path / "set")) == 38
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interrupted_run_leaves_nothing_that_looks_complete(tmp_path):
    def stop(stage, done, total, note=""):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_digit_anatomy(tmp_path / "set", train=5, normal=1, abnormal=1, progress=stop)
    assert not list(tmp_path.iterdir())


def test_the_folder_appears_only_when_it_is_complete(tmp_path):
    seen = []
    write_digit_anatomy(
        tmp_path / "set", train=3, normal=1, abnormal=1, progress=lambda *_: seen.append((tmp_path / "set").exists())
    )
    assert seen == [False] * 5
    assert (tmp_path / "set" / "dataset.json").is_file()


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_nothing(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match=r"set: cannot be written \(No space left on device\); free space"):
        write_digit_anatomy(tmp_path / "set", train=1, normal=1, abnormal=1)
    assert not list(tmp_path.iterdir())


def test_the_manifest_is_a_table_that_fit_and_score_take(tmp_path):
    write_digit_anatomy(tmp_path / "set", train=2, normal=1, abnormal=4)
    samples = discover(tmp_path / "set" / "manifest.csv")
    assert [sample.label for sample in samples] == [0, 0, 0, 1, 1, 1, 1]
    assert [sample.meta.get("kind") for sample in samples[3:]] == list(DIGIT_KINDS)
    assert all(sample.mask and sample.mask.is_file() for sample in samples[3:])
    assert len({sample.patient for sample in samples}) == 7


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    write_digit_anatomy(tmp_path / "set", train=1, normal=1, abnormal=1)
    with pytest.raises(OutputError, match="other arguments"):
        write_digit_anatomy(tmp_path / "set", train=2, normal=1, abnormal=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(OutputError, match="holds other files"):
        write_chest_dataset(tmp_path / "mine", train=1, normal=1, abnormal=1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(OutputError, match="is a file"):
        write_chest_dataset(tmp_path / "mine" / "notes.txt")


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="kinds: tumor"):
        write_chest_dataset(tmp_path / "set", kinds=("nodule", "tumor"))
    with pytest.raises(ConfigError, match="train: -1"):
        write_ct_dataset(tmp_path / "set", train=-1)
    assert not list(tmp_path.iterdir())


def test_hounsfield_units_survive_the_png(tmp_path):
    write_ct_dataset(tmp_path / "set", train=1, normal=0, abnormal=0, size=96)
    stored = cv2.imread(str(tmp_path / "set/train/normal/00000.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert np.array_equal(stored / 16 - 1024, ct_slice_phantom(0, 96).pixels)


def test_the_difference_to_the_mean_image_does_not_find_the_lesions(tmp_path):
    write_chest_dataset(tmp_path / "set", train=60, normal=30, abnormal=30, size=128)
    rows = manifest(tmp_path / "set")
    pixels = np.stack([cv2.imread(str(tmp_path / "set" / r["path"]), cv2.IMREAD_UNCHANGED) / 65520 for r in rows])
    train = np.array([row["split"] == "train" for row in rows])
    label = np.array([int(row["label"]) for row in rows])[~train]
    difference = np.abs(pixels[~train] - pixels[train].mean(0)).reshape(len(label), -1)
    top = np.sort(difference, axis=1)[:, -difference.shape[1] // 100 :].mean(1)
    for score in (difference.mean(1), difference.max(1), top):
        assert roc_auc_score(label, score) < 0.75
    masks = [cv2.imread(str(tmp_path / "set" / r["mask"]), 0) > 0 if r["mask"] else np.zeros((128, 128)) for r in rows]
    truth = np.stack(masks)[~train].astype(bool)
    assert roc_auc_score(truth.ravel(), difference.ravel()) < 0.75
