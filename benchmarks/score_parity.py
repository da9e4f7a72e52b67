"""Label scores of the engine against transformers and PEFT teacher forcing, base model and adapter.

    python -m benchmarks.score_parity --data DIR [--texts 200] [--adapter DIR] [--model NAME]

DIR holds test.jsonl and task.json. Without --adapter, a LoRA adapter with random weights is made, large enough to
change the answers. The reference runs in float32: each label's whole token sequence behind the prompt, whose keys and
values are computed once a text; on the first texts it is checked against one full forward pass a label. Prints, in
float32 and in bfloat16, the largest and mean difference of the log-probabilities and the share of texts with the same
best label.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from afdc.engine_config import EngineConfig
from afdc.inputs import read_examples, read_task
from afdc.prompting import PromptCodec
from afdc_server.engine.build import load_tokenizer, make_engine
from afdc_server.models import ModelRef, detect_device, resolve_model
from tests.reference import load_base, save_adapter, teacher_forced

CHECKED = 2  # texts on which the reference itself is checked
SEED = 0


@torch.inference_mode()
def reference_scores(network: Any, codec: PromptCodec, texts: Sequence[str]) -> NDArray[np.float64]:
    """log P(label's token sequence | text), float64 [n_texts, n_labels]."""
    paths = codec.scored_ids
    longest = max(map(len, paths))
    padded = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths])
    lengths = torch.tensor([len(path) for path in paths])
    counted = torch.arange(longest)[None, :] < lengths[:, None]
    rows = []
    for text in texts:
        prompt = torch.tensor([codec.prompt_ids(text)])
        head = network(input_ids=prompt, use_cache=True)
        head.past_key_values.batch_repeat_interleave(len(paths))
        tail = network(input_ids=padded[:, :-1], past_key_values=head.past_key_values) if longest > 1 else None
        first = head.logits[:, -1:].expand(len(paths), -1, -1)
        logits = torch.cat([first, tail.logits], dim=1) if tail is not None else first
        chosen = logits.double().log_softmax(-1).gather(-1, padded[..., None])[..., 0]
        rows.append((chosen * counted).sum(-1).numpy())
    return np.array(rows)


def compare(served: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, float]:
    gap = np.abs(served - expected)
    same = float((served.argmax(1) == expected.argmax(1)).mean())
    return {"max_abs_dlogp": float(gap.max()), "mean_abs_dlogp": float(gap.mean()), "argmax_agreement": same}


async def serve(
    model: ModelRef, dtype: Any, device: str, rank: int, texts: list[str], codec: PromptCodec, adapter: Path
) -> list[NDArray[np.float64]]:
    """The engine's scores of the base model and of the adapter."""
    config = EngineConfig(device=device, dtype=dtype, max_lora_rank=rank, label_floor=0)
    with tempfile.TemporaryDirectory() as logs:
        engine = make_engine(model, config, Path(logs))
        await engine.start()
        try:
            base = (await engine.score(texts, codec.task)).logprobs
            name = (await engine.load_adapter(adapter)).name
            return [base, (await engine.score(texts, codec.task, name)).logprobs]
        finally:
            await engine.close()


def references(network: Any, codec: PromptCodec, texts: list[str], adapter: Path) -> list[NDArray[np.float64]]:
    """Reference scores of the base model and of the adapter, after a check of the reference."""
    base = reference_scores(network, codec, texts)
    np.testing.assert_allclose(base[:CHECKED], teacher_forced(network, codec, texts[:CHECKED]), atol=1e-4)
    tuned = PeftModel.from_pretrained(network, adapter).eval()
    adapted = reference_scores(tuned, codec, texts)
    tuned.unload()
    return [base, adapted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--model", default="")
    arguments = parser.parse_args()
    device = detect_device("auto")
    model = resolve_model(arguments.model, device)
    task = read_task(arguments.data / "task.json")
    texts = [example.text for example in read_examples(arguments.data / "test.jsonl")]
    texts = [texts[i] for i in np.random.default_rng(SEED).permutation(len(texts))[: arguments.texts]]
    codec = PromptCodec(load_tokenizer(model.path), task)
    network = load_base(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "adapter"
        adapter = arguments.adapter or save_adapter(folder, network, model, codec, texts[:2], rank=16)
        rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
        expected = references(network, codec, texts, adapter)
        result: dict[str, Any] = {
            "texts": len(texts),
            "labels": len(task.labels),
            "model": model.name,
            "device": device,
        }
        for dtype in ("float32", "bfloat16"):
            served = asyncio.run(serve(model, dtype, device, rank, texts, codec, adapter))
            result[dtype] = {
                who: compare(have, want) for who, have, want in zip(("base", "adapter"), served, expected, strict=True)
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
