"""How long one image takes to score, alone and in a batch, and the share of each network; one JSON line a detector.

    python benchmarks/latency.py [-m efficientad] [-m 'efficientad network=M'] [--device cuda] [--rounds 20]

Weights do not matter for it: the detector is trained for one step on random images of its default size. On a CPU times
are those of the processor, so that other work on the machine counts little; on a GPU those of the clock. Medians.
"""

import statistics
import time

import torch
from shared import Images, command_line, detector_from, show
from torch import nn

from anomalib_med.device import choose_device
from anomalib_med.models.training import TrainedDetector


class Parts:
    """Seconds spent in each network, gathered by hooks."""

    def __init__(self, networks: dict[str, nn.Module], device: torch.device) -> None:
        self.device = device
        self.spent = dict.fromkeys(networks, 0.0)
        self.started: dict[str, float] = {}
        for name, network in networks.items():
            network.register_forward_pre_hook(lambda *_, name=name: self.started.update({name: self.now()}))
            network.register_forward_hook(lambda *_, name=name: self._stop(name))

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def _stop(self, name: str) -> None:
        self.spent[name] += self.now() - self.started[name]


def measure(text: str, device: torch.device, rounds: int) -> dict[str, object]:
    detector = detector_from(text, steps=1, batch_size=2)
    if not isinstance(detector, TrainedDetector):
        raise SystemExit(f"{detector.name} is not a trained detector")
    detector.to(device)
    images = Images(4, detector.input_size)
    detector.fit(images)
    one = images.x[:1].clone()
    with torch.inference_mode():
        networks = dict(detector.modules())
        if detector.uses_features:
            networks["backbone"] = detector.extractor.backbone.network
        weights = {key: sum(p.numel() for p in network.parameters()) for key, network in networks.items()}
        parts = Parts(networks, device)
        detector.anomaly_map(one)  # the networks' forms for scoring are made, hooks and all
        parts.spent = dict.fromkeys(networks, 0.0)
        totals = []
        for _ in range(rounds):
            x = one.clone()  # features of the same tensor would be remembered
            start = parts.now()
            detector.anomaly_map(x)
            totals.append(parts.now() - start)
        share = {key: round(spent / sum(totals), 3) for key, spent in parts.spent.items() if spent}
        batches = []
        for _ in range(rounds):
            x = images.x.clone()
            start = parts.now()
            detector.anomaly_map(x)
            batches.append((parts.now() - start) / len(x))
    return {
        "model": text,
        "size": detector.input_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "ms": round(1000 * statistics.median(totals), 1),
        "ms in a batch of four": round(1000 * statistics.median(batches), 1),
        "share": share,
        "weights": {key: count for key, count in weights.items() if count},
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("-m", "--model", action="append", default=[])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    for text in options.model or ["efficientad"]:
        show(measure(text, choose_device(options.device), options.rounds))


if __name__ == "__main__":
    main()
