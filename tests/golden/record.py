"""Records what the package computes, so that a change of the code that should change no result can be proved to.

    python -m tests.golden.record             renews golden.json on purpose
    python -m tests.golden.record --check     says what differs from golden.json, and exits with 1 then

Names of parts limit either to these. The parts on real images are renewed and checked where ANOMED_TEST_DATA and
ANOMED_TEST_WEIGHTS name their folders, and left as they are elsewhere.
"""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import threadpoolctl
import torch

from anomalib_med import detectors
from tests.golden import generated, real
from tests.golden.compare import differences
from tests.golden.settings import VARIANTS

FILE = Path(__file__).with_name("golden.json")
COMPUTING = ("torch", "numpy", "opencv-python-headless", "faiss-gpu", "faiss-cpu")
# Shares of the spread of a field by which its numbers may differ on another machine. Kernels for processors without
# AVX-512, and without AVX, moved closed forms by up to 5e-4. Training moved further, by up to 0.022 in these few steps,
# as Adam's first steps follow the sign of the smallest gradient; the bound is twice that. Which patches TwoView
# keeps of many real images hangs on comparisons so close that rounding decides them: other patches moved its numbers by
# up to 0.08, and p-values by up to 0.14.
CLOSED_FORM, TRAINED, CLOSE_CHOICES = 1e-3, 0.05, 0.2

NAMES = [name for name, kind in detectors().items() if kind.__module__.startswith("anomalib_med.")]

GENERATED: dict[str, Callable[[], dict[str, object]]] = {
    **{f"detector {name}": partial(generated.of_detector, name) for name in NAMES},
    **{f"variant {name}": partial(generated.of_variant, name) for name in VARIANTS},
    "folder": generated.of_folder,
    "volumes plain": partial(generated.of_volumes, "plain"),
    "volumes lung": partial(generated.of_volumes, "lung"),
    "volumes volume": partial(generated.of_volumes, "volume"),
    "evaluation": generated.of_evaluation,
    "merging": generated.of_merging,
}
REAL: dict[str, Callable[[], dict[str, object]]] = {
    **{
        f"real {name} {kind}": partial(real.of_set, name, kind)
        for name in real.SETS
        for kind in ("twoview", "patchcore")
    },
    "real resnet18": real.of_resnet18,
}
PARTS = GENERATED | REAL


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.record", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help="parts to renew or to check; by default all that can be computed here")
    parser.add_argument("--check", action="store_true", help="say what differs from golden.json and write nothing")
    parser.add_argument("--exact", action="store_true", help="with --check: ask for equal bits on any machine")
    parser.add_argument("--list", action="store_true", help="name the parts")
    chosen = parser.parse_args(arguments)
    names = chosen.parts or [name for name in PARTS if name not in REAL or has_real()]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"no part is called {unknown[0]!r}; see --list")
    if chosen.list:
        print("\n".join(PARTS))
        return 0
    return _check(names, exact=chosen.exact) if chosen.check else _renew(names)


def has_real() -> bool:
    """Whether the folders of real images and weights are named."""
    return all(os.environ.get(name) for name in ("ANOMED_TEST_DATA", "ANOMED_TEST_WEIGHTS"))


def compute(name: str) -> dict[str, object]:
    """The values of a part, as they look after a turn through JSON."""
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few held-out patients
        return json.loads(json.dumps(PARTS[name]()))


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are added up in one order whatever the number of cores."""
    import faiss  # noqa: F401 - its threads can be limited only once it is there

    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)


def load() -> dict[str, dict[str, object]]:
    """What golden.json holds: "parts", the "machine" they were made on, and "elsewhere" those of other machines."""
    empty = {"machine": {}, "elsewhere": {}, "parts": {}}
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else empty


def machine_of(golden: dict[str, dict[str, object]], name: str) -> dict[str, object]:
    """Where a part was made."""
    return golden["elsewhere"].get(name, golden["machine"])


def compared(name: str, found: dict[str, object], *, exact: bool = False) -> list[str]:
    """What differs between a part as it is recorded and as it is now, one line each."""
    golden = load()
    if name not in golden["parts"]:
        return ["not recorded: `make golden` records it"]
    return differences(golden["parts"][name], found, None if exact else tolerance(name, machine_of(golden, name)))


def tolerance(name: str, recorded_on: dict[str, object]) -> float | None:
    """None on a machine that computes the same bits, elsewhere the share of a spread that rounding explains."""
    if not other_machine(recorded_on):
        return None
    kind, _, rest = name.partition(" ")
    of = {"detector": rest, "variant": rest.partition(" ")[0]}.get(kind, "")
    if name in REAL:
        return CLOSED_FORM if name.endswith("patchcore") else CLOSE_CHOICES
    return TRAINED if of and generated.is_trained(of) else CLOSED_FORM


def other_machine(recorded_on: dict[str, object]) -> str:
    """What of this machine is another than where the record was made, so that bits may differ; "" for nothing."""
    here = machine()
    return ", ".join(
        f"{k} {recorded_on.get(k)!r} there, {v!r} here" for k, v in here.items() if recorded_on.get(k) != v
    )


def how(*names: str) -> str:
    """How parts are compared here, in words."""
    golden = load()
    other = {other_machine(machine_of(golden, name)) for name in names} - {""}
    return f"within a tolerance, as the machine is another: {'; '.join(sorted(other))}" if other else "to the last bit"


def machine() -> dict[str, object]:
    """All that rounding depends on."""
    packages: dict[str, object] = {}
    for name in COMPUTING:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"processor": _processor(), **packages, "threads": 1}


def _processor() -> str:
    """The name with family and model, as virtual machines give very different processors one name."""
    known: dict[str, str] = {}
    if (info := Path("/proc/cpuinfo")).exists():
        for line in info.read_text(encoding="utf-8").partition("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            known[key.strip()] = value.strip()
    if "model name" not in known:
        return f"{platform.processor() or platform.machine()} {platform.system()}"
    return f"{known['model name']}, family {known.get('cpu family')}, model {known.get('model')}"


def _check(names: Sequence[str], *, exact: bool) -> int:
    failed = 0
    print("compared to the last bit" if exact else f"compared {how(*names)}")
    for name in names:
        start = time.process_time()
        lines = compared(name, compute(name), exact=exact)
        failed += bool(lines)
        print(f"{'DIFFERS' if lines else 'equal  '} {name} ({time.process_time() - start:.1f} s)", flush=True)
        for line in lines:
            print(f"    {line}", flush=True)
    print(f"{failed} of {len(names)} parts differ")
    return int(failed > 0)


def _renew(names: Sequence[str]) -> int:
    """Compute parts anew and keep the others; each stays compared with the machine that it was made on."""
    golden, now = load(), machine()
    kept = {name: part for name, part in golden["parts"].items() if name in PARTS and name not in names}
    main = golden["machine"] if kept else now
    elsewhere = {name: machine_of(golden, name) for name in kept}
    for name in names:
        start = time.process_time()
        kept[name], elsewhere[name] = compute(name), now
        print(f"recorded {name} ({time.process_time() - start:.1f} s)", flush=True)
    elsewhere = {name: made_on for name, made_on in elsewhere.items() if made_on != main}
    head = f'"machine": {json.dumps(main)}, "elsewhere": {json.dumps(elsewhere)}'
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in PARTS if name in kept)
    FILE.write_text(f'{{{head}, "parts": {{\n{lines}\n}}}}\n', encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
