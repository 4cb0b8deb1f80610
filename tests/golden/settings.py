"""The settings each detector is recorded with, frozen here: a test may choose others without moving the record.

A detector that is not listed is recorded as it comes. A detector that is trained takes `STEPS` steps whatever is said
here, so that its whole path is walked and rounding has not yet been blown up by training; learning rates are low for
the same reason.
"""

STEPS = 8

NARROW = {"batch_size": 4, "hidden": 16, "widths": (4, 8, 16, 16), "learning_rate": 1e-3}
DIFFUSION = {"batch_size": 4, "widths": (8, 16, 16), "learning_rate": 1e-3}

SETTINGS: dict[str, dict[str, object]] = {
    "aeu": NARROW,
    "anoddpm": DIFFUSION | {"draws": 2, "denoising_steps": 3, "longest": 250},
    "autoencoder": {"batch_size": 4, "learning_rate": 1e-4, "loss": "ssim", "pooling": "power8"},
    "autopaint": {"batch_size": 2, "width": 8, "learning_rate": 1e-3, "cell": 8, "pooling": "mean"},
    "cevae": NARROW
    | {"learning_rate": 1e-4, "latent": 16, "beta": 1e-3, "score": "combined", "image": "map", "pooling": "top10%"},
    "cvad": {"batch_size": 4, "widths": (4, 8, 16, 16), "latent": 16, "fine_latent": 16, "learning_rate": 1e-3}
    | {"augment": True},
    "dae": {"batch_size": 4, "widths": (8, 16, 32), "learning_rate": 1e-3},
    "dinomaly": {"batch_size": 4, "learning_rate": 1e-4, "blocks": 2},
    "efficientad": {"batch_size": 2, "network": "T", "learning_rate": 1e-3, "pooling": "power8"},
    "fae": {"batch_size": 4, "grid": 16, "learning_rate": 1e-4, "pooling": "top10%"},
    "fanogan": {"batch_size": 4, "widths": (8, 16, 16), "latent": 16, "critic_steps": 1, "gan_share": 0.6}
    | {"learning_rate": 1e-4, "smoothing": 0},
    "ganomaly": NARROW | {"learning_rate": 1e-4},
    "mae": {"batch_size": 4, "width": 48, "depth": 2, "decoder_width": 48, "learning_rate": 1e-3, "parts": 2}
    | {"relative": True, "pooling": "power8"},
    "memae": NARROW | {"pooling": "power8"},
    "mkd": {"batch_size": 4, "learning_rate": 1e-3, "score": "map"},
    "patchcore": {"bank_size": 200},
    "pddpm": DIFFUSION,
    "rd4ad": {"batch_size": 4, "learning_rate": 1e-4, "pooling": "power8"},
    "rdpp": {"batch_size": 4, "learning_rate": 1e-4, "projection_rate": 1e-5, "pooling": "power8"},
    "riad": {"batch_size": 2, "width": 8, "learning_rate": 1e-3, "window": 7, "cells": (4, 8, 16), "intensity": 4},
    "squid": {"batch_size": 2, "width": 8, "learning_rate": 1e-3, "augment": False, "critic": 1, "slots": 50}
    | {"score": "residual", "pooling": "max"},
    "stfpm": {"batch_size": 4, "pooling": "power8"},
    "twoview": {"bank_size": 200},
    "vae": NARROW | {"widths": (4, 8, 16), "loss": "ssim", "beta": 5e-4, "pooling": "power8"},
}

# Ways through a detector and through the preprocessing that the settings above do not take: the name of the detector,
# its settings and those of the preprocessing.
VARIANTS: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "patchcore kmeans reweighted": ("patchcore", {"sampling": "kmeans", "bank_size": 60, "reweighted": 3}, {}),
    "patchcore full faiss position": ("patchcore", {"sampling": "full", "engine": "faiss", "position": 0.5}, {}),
    "patchcore random share scales": ("patchcore", {"sampling": "random", "bank_size": 0.2, "scales": (1.0, 0.5)}, {}),
    "patchcore resnet18": (
        "patchcore",
        {"backbone": "resnet18", "layers": ("layer1", "layer2"), "weights": "random", "bank_size": 200},
        {},
    ),
    "twoview padded": ("twoview", {"bank_size": 200}, {"aspect": "pad", "windows": ("percentile",)}),
    "twoview exposed": ("twoview", {"bank_size": 5000, "neighbours": 3}, {"valid": "exposed", "windows": ((20, 200),)}),
    "spade stretched": ("spade", {"standardise": False, "window": 0}, {"aspect": "stretch", "multiple": 32}),
    "padim pca reach": ("padim", {"reduction": "pca", "dimensions": 30, "reach": 1}, {}),
    "anomalydino shots": ("anomalydino", {"fusion": "mean", "shots": 6}, {"valid": "all"}),
    "autoencoder perceptual augmented": (
        "autoencoder",
        {"batch_size": 4, "learning_rate": 1e-4, "bottleneck": "spatial", "augment": True, "schedule": "cosine"},
        {},
    ),
    "vae dirichlet": ("vae", {"batch_size": 4, "widths": (4, 8), "prior": "dirichlet", "learning_rate": 1e-4}, {}),
    "fae mse": ("fae", {"batch_size": 4, "grid": 16, "loss": "mse", "learning_rate": 1e-4, "clip_norm": 1.0}, {}),
    "mkd flat": ("mkd", {"batch_size": 4, "learning_rate": 1e-4, "score": "flat"}, {}),
}
