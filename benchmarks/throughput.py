"""Images a second from the file to score and map with several backbones, in turn in one process; ratios to the first.

    python benchmarks/throughput.py NORMALS IMAGES -b radlite -b mobilenetv2_100=FILE -b resnet18=FILE [--rounds 5]

A backbone is a name, or NAME=WEIGHTS; ``resnet50v2_gluon`` is the ResNet-50 v2 trunk of models/radlite/teachers.py.
With ``--alternatives`` also the bare network of radlite, in milliseconds an image: as it is, compiled by torch.compile
(needs a C++ compiler), and in ONNX Runtime (needs the packages onnx, onnxscript and onnxruntime).
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shared import backbone_from, command_line, show

from anomalib_med import FittedModel, Preprocessing, fit
from anomalib_med.datasets import discover
from anomalib_med.features import radlite
from anomalib_med.models.registry import detector_class

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "radlite"))
import teachers  # noqa: F401 - makes resnet50v2_gluon known to timm


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("normals")
    parser.add_argument("images")
    parser.add_argument("-b", "--backbone", action="append", required=True, metavar="NAME[=WEIGHTS]")
    parser.add_argument("-m", "--model", default="patchcore")
    parser.add_argument("--count", type=int, default=60, help="normals to fit on")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alternatives", action="store_true")
    options = parser.parse_args()
    normals, images = discover(options.normals)[: options.count], discover(options.images)
    models: dict[str, FittedModel] = {}
    for backbone in options.backbone:
        settings = backbone_from(backbone)
        detector = detector_class(options.model)(**settings)
        models[settings["backbone"]] = fit(
            detector, normals, calibration=0, preprocessing=Preprocessing(size=options.size)
        )
    passes: dict[str, list[float]] = {name: [] for name in models}
    whole: dict[str, list[float]] = {name: [] for name in models}
    maps: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(options.rounds):
        for name, model in models.items():
            maps[name].append(_detector_ms(model, options.size))
            passes[name].append(_network_ms(model, options.size))
            whole[name].append(_rate(model, images))
    first = next(iter(models))
    for name in models:
        line = {
            "backbone": name,
            "channels": models[name].detector.extractor.channels,
            "images_s": round(statistics.median(whole[name]), 1),
            "network_ms": round(statistics.median(passes[name]), 2),
            "detector_ms": round(statistics.median(maps[name]), 2),
            f"{first} is faster by": round(
                statistics.median(a / b for a, b in zip(whole[first], whole[name], strict=True)), 2
            ),
        }
        show(line)
    show({"threads": torch.get_num_threads(), "images": len(images), "rounds": options.rounds})
    if options.alternatives:
        for name, function in _alternatives(options.size).items():
            show({"radlite": name, "network_ms": round(_milliseconds(function, 4), 2)})


def _rate(model: FittedModel, images: list) -> float:
    start = time.perf_counter()
    for result, _ in model.score_each(images):
        assert result.anomaly_map().size > 0
    return len(images) / (time.perf_counter() - start)


def _detector_ms(model: FittedModel, size: int) -> float:
    """Map and score of an image whose features are there."""
    detector = model.detector
    x = torch.rand(detector.extractor.batch_size, 1, size, size)
    valid = torch.ones(len(x), size, size, dtype=torch.bool)
    with torch.inference_mode():
        detector.features(x)  # those of the last inputs are kept
        return _milliseconds(lambda: detector.image_score(x, detector.anomaly_map(x), valid), len(x))


def _network_ms(model: FittedModel, size: int) -> float:
    extractor = model.detector.extractor
    x = torch.rand(extractor.batch_size, 1, size, size)
    return _milliseconds(lambda: extractor(x), len(x))


def _milliseconds(function: Callable[[], object], images: int, repeats: int = 15) -> float:
    """Median time an image."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(times[3:]) / images * 1000


def _alternatives(size: int) -> dict[str, Callable[[], object]]:
    network = radlite.RadLite().eval()
    network.load_state_dict(radlite.read_weights())
    x = torch.rand(4, 1, size, size)
    last = x.contiguous(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], object]] = {}
    planar = radlite.RadLite().eval()
    planar.load_state_dict(network.state_dict())
    network.to(memory_format=torch.channels_last)
    ways["as it is, channels last"] = lambda: network(last)
    ways["planes"] = lambda: planar(x)
    compiled = torch.compile(network)
    ways["torch.compile"] = lambda: compiled(last)
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/radlite.onnx"
        torch.onnx.export(planar, (x,), path, dynamo=True, external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: x.numpy()}
    ways["ONNX Runtime"] = lambda: session.run(None, inputs)
    return ways


if __name__ == "__main__":
    main()
