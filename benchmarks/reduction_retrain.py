"""Short re-training of reduced digits ViMs, as R-MeeTo does it, and of the plain one for the same budget.

    python benchmarks/reduction_retrain.py [--keep 0.35] [--samples 16000] [--seeds 2]

Starts from the shipped plain ViM. Writes the accuracy of every run on the test split to
benchmarks/results/reduction_retrain.json, beside that without re-training; what is there of other runs stays.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mscope.core.config import ModelConfig, config_for
from mscope.core.cost import stage_cost
from mscope.core.files import write_text_atomically
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import model_from_checkpoint
from mscope.model.shipped import shipped_weights
from mscope.model.training.digits import Digits
from mscope.model.training.evaluate import plain_logits, to_input
from mscope.model.training.optimizer import adamw

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "reduction_retrain.json"
BATCH, LR, WARMUP, CLIP, DECAY = 32, 2e-4, 20, 1.0, 0.05
# Seeds of the pictures: none that the shipped weights were trained on.
FIRST_SEED = 100
METHODS = ("none", "prune", "merge")


def configured(method: str, keep: float) -> ModelConfig:
    """The digits ViM, reduced by a method, or not for "none"."""
    return config_for("digits", "vim", **({} if method == "none" else {"reduce": method, "keep": keep}))


def shipped(config: ModelConfig) -> Backbone:
    """The shipped plain ViM's weights in a network of this configuration."""
    path = shipped_weights("digits", "vim")
    assert path is not None
    return model_from_checkpoint(config, path).model


def retrain(model: Backbone, samples: int, seed: int) -> float:
    """Cross-entropy on `samples` new pictures, AdamW, warm-up and cosine; returns the mean loss of the last tenth."""
    data, steps = Digits("train", FIRST_SEED + seed), samples // BATCH
    optimizer, losses = adamw(model.train(), DECAY), []
    for step in range(steps):
        share = max(0.0, step - WARMUP) / max(1, steps - WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * share)) / 2
        pictures = data.batch(step * BATCH, BATCH)
        loss = F.cross_entropy(model.forward_full(to_input(pictures.images)), torch.from_numpy(pictures.labels))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.35)
    parser.add_argument("--samples", type=int, default=16000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=4000, help="of the test split")
    options = parser.parse_args()
    torch.set_num_threads(1)
    test = Digits("test").batch(0, options.pictures)
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"runs": []}
    for seed in range(options.seeds):
        for method in METHODS:
            config = configured(method, options.keep)
            model = shipped(config)
            before = plain_logits(model, test).argmax(-1) == test.labels
            start = time.monotonic()
            loss = retrain(model, options.samples, seed)
            after = plain_logits(model, test).argmax(-1) == test.labels
            row = {
                "method": method,
                "keep": options.keep if method != "none" else 1.0,
                "seed": seed,
                "samples": options.samples,
                "pictures": options.pictures,
                "mmacs": 1e3 * stage_cost(config).full,
                "accuracy_before": float(before.mean()),
                "accuracy_after": float(after.mean()),
                "last_loss": loss,
                "seconds": round(time.monotonic() - start, 1),
                "wrong": np.flatnonzero(~after).tolist(),
            }
            key = ("method", "keep", "seed", "samples", "pictures")
            record["runs"] = [old for old in record["runs"] if any(old[name] != row[name] for name in key)] + [row]
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(RESULT, json.dumps(record) + "\n")
            print({name: value for name, value in row.items() if name != "wrong"}, flush=True)


if __name__ == "__main__":
    main()
