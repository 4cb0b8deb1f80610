import hashlib
import socket
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from anomalib_med import PatchCore, Preprocessing, fit
from anomalib_med.errors import ConfigError, ModelError
from anomalib_med.features import FeatureExtractor, radlite
from anomalib_med.records import Progress, silent
from tests.conftest import normal_picture

ROOT = Path(__file__).parents[2]


def test_the_default_extractor_needs_no_network_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor = FeatureExtractor()
    assert (extractor.backbone.name, extractor.backbone.source) == ("radlite", "pretrained")
    assert extractor.backbone.strides == (8, 16)


def test_the_file_is_small_and_has_the_stated_hash() -> None:
    assert radlite.WEIGHTS.stat().st_size < 8 * 2**20
    assert hashlib.sha256(radlite.WEIGHTS.read_bytes()).hexdigest() == radlite.SHA256
    assert {tensor.dtype for tensor in load_file(radlite.WEIGHTS).values()} == {torch.float16}
    assert radlite.SHA256 in (ROOT / "models/radlite/README.md").read_text()


def test_altered_or_absent_weights_are_refused(tmp_path: Path) -> None:
    content = bytearray(radlite.WEIGHTS.read_bytes())
    content[-1] ^= 1
    (tmp_path / "altered").write_bytes(content)
    with pytest.raises(ModelError, match="altered; install anomalib-med again"):
        radlite.read_weights(tmp_path / "altered")
    with pytest.raises(ModelError, match="No such file"):
        radlite.read_weights(tmp_path / "absent")


@pytest.mark.parametrize("shape", [(16, 16), (48, 80), (224, 208), (512, 512)])
def test_grids_at_strides_8_and_16(shape: tuple[int, int]) -> None:
    outputs = radlite.RadLite().eval()(torch.zeros(1, 1, *shape))
    assert [o.shape for o in outputs] == [(1, 64, shape[0] // s, shape[1] // s) for s in (8, 16)]


def test_each_image_is_computed_alike_in_any_batch() -> None:
    extractor, x = FeatureExtractor(), torch.rand(5, 1, 224, 224)
    assert torch.equal(extractor(x), torch.cat([extractor(image[None]) for image in x]))


def test_three_windows_are_seen_as_their_mean() -> None:
    extractor, x = FeatureExtractor(), torch.rand(2, 3, 64, 64)
    assert torch.equal(extractor(x), extractor(x.mean(1, keepdim=True)))


def test_learnt_and_random_weights_differ_and_random_ones_come_from_the_seed() -> None:
    hashes = [FeatureExtractor(weights=w, seed=s).weight_hash for w, s in (("pretrained", 0), ("random", 0))]
    hashes += [FeatureExtractor(weights="random", seed=s).weight_hash for s in (0, 1)]
    assert hashes[1] == hashes[2]
    assert len(set(hashes)) == 3


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="Name the backbone it was made for"):
        FeatureExtractor(weights=str(tmp_path / "w.safetensors"))


def test_a_detector_uses_it_unless_told_otherwise() -> None:
    normals = np.stack([normal_picture(i) for i in range(12)])
    model = fit(PatchCore(bank_size=50), normals, preprocessing=Preprocessing(size=64), device="cpu")
    assert model.describe()["backbone"]["name"] == "radlite"  # type: ignore[index,call-overload]
    assert not any("random" in note for note in model.notes)


@pytest.mark.real
def test_it_predicts_its_teachers_on_images_it_never_saw(
    training: ModuleType, real_data: Path, real_weights: Path
) -> None:
    """Linear maps from radlite's features explain much of a ResNet-18's; those of the untrained network far less."""
    import cv2

    files = sorted((real_data / "nih_rsna_cxr/images/test_normal").iterdir())[:24]
    x = (
        torch.from_numpy(np.stack([cv2.resize(cv2.imread(str(f), 0), (224, 224)) for f in files]))[:, None].float()
        / 255
    )
    teacher = FeatureExtractor(
        "resnet18", weights=str(real_weights / "resnet18.tv_in1k.stages1-3.fp16.safetensors"), neighbourhood=1
    )(x)
    explained = {}
    for weights in ("pretrained", "random"):
        features = FeatureExtractor(weights=weights, neighbourhood=1)(x)
        a, b = (f.permute(0, 2, 3, 1).flatten(0, 2).double() for f in (features, teacher))
        a, b = torch.cat([a, torch.ones(len(a), 1)], 1), (b - b.mean(0)) / b.std(0).clamp_min(1e-6)
        half = len(a) // 2
        solution = torch.linalg.lstsq(a[:half], b[:half], driver="gelsd").solution
        explained[weights] = 1 - float(((a[half:] @ solution - b[half:]) ** 2).mean() / b[half:].var())
    assert explained["pretrained"] > explained["random"] + 0.1
    assert explained["pretrained"] > 0.4


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training script."""
    monkeypatch.syspath_prepend(str(ROOT / "models/radlite"))
    import train

    return train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of seconds: textures, and a ResNet-18 with random weights as the teacher."""
    folder = tmp_path_factory.mktemp("radlite")
    torch.manual_seed(0)
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), folder / "teacher.safetensors")
    (folder / "recipe.toml").write_text(
        "seed = 0\nviews = 40\nfirst = 0\nsurround = 0.0\nsize = 64\ndimensions = 64\n"
        "epochs = 2\nbatch = 8\nlearning_rate = 1e-3\n"
        'weight_decay = 0.02\n[[source]]\ngroup = "texture"\nweight = 1.0\n[[source]]\ngroup = "radiograph"\n'
        'paths = "none/*"\nweight = 1.0\n[[teacher]]\nbackbone = "resnet18"\nlayers = ["layer2", "layer3"]\n'
        'weights = "teacher.safetensors"\nweight = 1.0\n'
    )
    return folder


def run(training: ModuleType, tiny: Path, out: Path, *more: str, progress: Progress = silent) -> bytes:
    arguments = [str(tiny), str(tiny), "-o", str(out), "--recipe", str(tiny / "recipe.toml"), "--device", "cpu", *more]
    training.main(arguments, progress)
    return (out / "radlite.safetensors").read_bytes()


def test_an_interrupted_training_ends_with_the_same_weights(training: ModuleType, tiny: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int, note: str = "", /) -> None:
        if stage == "training" and done == total // 2 + 1:  # the first of two epochs is over
            raise KeyboardInterrupt

    without = ("--without", "radiograph")
    whole = run(training, tiny, tmp_path / "whole", *without)
    with pytest.raises(KeyboardInterrupt):
        run(training, tiny, tmp_path / "stopped", *without, progress=interrupt)
    assert run(training, tiny, tmp_path / "stopped", *without) == whole
    more = ("--start", str(tmp_path / "whole"), "-s", "first=40", "-s", "surround=0.5")
    assert run(training, tiny, tmp_path / "second", *without, *more) != whole
    bases = [(tmp_path / name / "basis.safetensors").read_bytes() for name in ("whole", "second")]
    assert bases[0] == bases[1]
    with pytest.raises(SystemExit, match="another recipe"):
        run(training, tiny, tmp_path / "stopped", *without, "-s", "seed=1")


def test_interrupted_teachers_go_on_with_the_same_answers(
    training: ModuleType, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import targets

    def write(out: Path, stop: int = 10**9) -> np.ndarray:
        rng = np.random.default_rng(0)
        views = rng.integers(0, 256, (24, 64, 64), dtype=np.uint8)

        def make(index: int) -> np.ndarray:
            if index >= stop:
                raise KeyboardInterrupt
            return views[index]

        table = [
            {"backbone": "resnet18", "layers": ["layer2", "layer3"], "weights": "teacher.safetensors", "weight": 1}
        ]
        targets.write_targets(
            out, make, 24, 64, 8, lambda: targets.Teachers(table, tiny, torch.device("cpu")), lambda *_: None
        )
        return np.load(out / "targets8.npy")

    # Blocks of a real run are larger than all views of this one.
    monkeypatch.setattr(targets, "BLOCK", 8)
    monkeypatch.setattr(targets, "STATISTICS", 8)
    whole = write(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped", stop=16)
    assert np.array_equal(write(tmp_path / "stopped"), whole)


def test_views_depend_on_seed_and_number_alone(training: ModuleType) -> None:
    import views

    sources = [views.Source("texture", 1.0, ()), views.Source("image", 1.0, (normal_picture(0),))]
    one, again, other = (views.view(sources, 0, i, 64) for i in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, views.view(sources, 1, 3, 64))
    cut = [views.view(sources, 0, i, 64, surround=1.0) for i in range(20)]
    assert np.mean([len(np.unique(v[[0, -1]])) == 1 for v in cut]) > 0.5


def test_folding_the_batch_norms_changes_nothing_but_rounding(training: ModuleType, tmp_path: Path) -> None:
    network = radlite.RadLite(trained=True).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        before = network(x)
        training.export(network, tmp_path / "w.safetensors")
        folded = radlite.RadLite().eval()
        folded.load_state_dict({k: v.float() for k, v in load_file(tmp_path / "w.safetensors").items()})
        after = folded(x)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
