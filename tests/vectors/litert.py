"""Writer of the small LiteRT models of the runtime's tests: `python -m tests.vectors.litert` (some 30 s).

They compute `tests.device.worlds.reference` for its spec, with one signature per list size. `split.tflite` names its inputs as
the contract does, `self_contained.tflite` names them `args_0`, `args_1`, …
"""

from pathlib import Path
from typing import Any

import litert_torch
import torch

from pocketrank.device.contract import FeatureSpec, Form
from pocketrank.device.runtimes import INPUT_NAMES
from tests.device.worlds import SPEC, weights, widths

FOLDER = Path(__file__).parent


class Linear(torch.nn.Module):
    """`reference` in torch."""

    def __init__(self, spec: FeatureSpec, form: Form) -> None:
        super().__init__()
        self.names = INPUT_NAMES[form]
        for name, matrix in weights(spec).items():
            self.register_buffer(name, torch.from_numpy(matrix))

    def forward(self, *args: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(self.names, args, strict=False)) | named
        sums: dict[str, Any] = {"candidate": 0.0, "event": 0.0, "rest": 0.0}
        for name in self.names:
            if name.endswith("_mask"):
                continue
            x = inputs[name]
            y = (torch.exp(-x / 100) if name == "event_gap" else x.float()) @ getattr(self, name)
            if name.startswith("event_"):
                y = (y * inputs["event_mask"].unsqueeze(-1)).sum(1, keepdim=True)
            group = name.split("_")[0] if name.startswith(("candidate_", "event_")) else "rest"
            sums[group] = sums[group] + (y.unsqueeze(1) if y.dim() == 2 else y)
        total = sums["candidate"] * (1 + sums["event"]) + sums["rest"]
        return torch.sigmoid(total) * inputs["candidate_mask"].unsqueeze(-1)


def zeros(form: Form, size: int) -> dict[str, torch.Tensor]:
    axes = {"N": size, "T": SPEC.events_max}
    return {
        name: torch.zeros(
            [1, *[axes[d] if isinstance(d, str) else d for d in widths(SPEC)[name]]],
            dtype=torch.int32 if name.endswith("_category") else torch.float32,
        )
        for name in INPUT_NAMES[form]
    }


def main() -> None:
    for form in ("split", "self_contained"):
        model = Linear(SPEC, form).eval()
        converter: Any = litert_torch
        for size in SPEC.list_sizes:
            sample = zeros(form, size)
            keys: dict[str, Any] = {"sample_kwargs": sample} if form == "split" else {"sample_args": tuple(sample.values())}
            converter = converter.signature(f"n{size}", model, **keys)
        converter.convert().export(str(FOLDER / f"{form}.tflite"))


if __name__ == "__main__":
    main()
