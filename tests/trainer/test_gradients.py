"""The pack gives the loss and the gradients of PEFT's own layers on a plain padded batch, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afdc.config import TrainConfig
from afdc.prompting import PromptCodec
from afdc_trainer.data import Example, encode_row
from afdc_trainer.gradient import Batch, Gradient
from afdc_trainer.lora import LoraWeights
from afdc_trainer.model import load_model
from afdc_trainer.ranks import Ranks
from tests.trainer.conftest import ROWS, codec_of

pytestmark = pytest.mark.trainer
CPU = torch.device("cpu")


def random_state(weights: LoraWeights) -> dict[str, Tensor]:
    """Weights in which B is not zero, so that every gradient is at work."""
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(t.shape, generator=generator) * 0.02 for name, t in weights.state().items()}


def ours(
    model: Path,
    examples: list[Example],
    codec: PromptCodec,
    config: TrainConfig,
    budget: int,
    entries: Sequence[int] = (),
) -> Any:
    """Loss and gradients of a batch of `entries` (row numbers; all rows once where there are none), as sums."""
    language_model = load_model(model, torch.float32, CPU)
    weights = LoraWeights(language_model, config, CPU)
    weights.load(random_state(weights))
    batch = Batch(entries or range(len(examples)), [examples[row] for row in entries or range(len(examples))])
    loss, _ = Gradient(language_model, codec.prefix_ids, config, Ranks()).add(batch, budget)
    loss *= len(batch.rows)
    assert weights.flat.grad is not None
    weights.flat.grad *= len(batch.rows)
    sizes = [tensor.numel() for tensor in weights.state().values()]
    named = dict(zip(weights.state(), torch.split(weights.flat.grad, sizes), strict=True))
    return loss, named, random_state(weights), weights.targets


def peft_reference(model: Path, state: dict[str, Tensor], targets: list[str], config: TrainConfig) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = {"r": config.rank, "lora_alpha": config.alpha, "use_rslora": config.rslora, "target_modules": targets}
    wrapped = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    set_peft_model_state_dict(wrapped, state)
    return wrapped


def plain_loss(wrapped: Any, codec: PromptCodec, examples: list[Example], side: str, smoothing: float) -> Tensor:
    """One sequence an answer, padded, full logits: what the pack must equal."""
    paths = [([*codec.prefix_ids, *e.prompt], b) for e in examples for b in e.branches]
    width = max(len(prompt) + len(branch.ids) for prompt, branch in paths)
    loss = torch.zeros(())
    ids, mask = torch.zeros(len(paths), width, dtype=torch.long), torch.zeros(len(paths), width, dtype=torch.long)
    starts = []
    for row, (prompt, branch) in enumerate(paths):
        length = len(prompt) + len(branch.ids)
        start = width - length if side == "left" else 0
        ids[row, start : start + length] = torch.tensor([*prompt, *branch.ids])
        mask[row, start : start + length] = 1
        starts.append(start + len(prompt))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = wrapped(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for row, (_, branch) in enumerate(paths):
        part = logits[row, starts[row] - 1 : starts[row] - 1 + len(branch.ids)]
        target = torch.tensor(branch.ids)
        entropy = torch.nn.functional.cross_entropy(part, target, reduction="sum", label_smoothing=smoothing)
        loss = loss + branch.coef * entropy
    return loss


@pytest.mark.parametrize(
    ("fixture", "side", "config", "budget"),
    [
        ("tiny", "left", TrainConfig(rank=8, contrastive=0), 4096),
        ("tiny", "right", TrainConfig(rank=16, contrastive=0, rslora=True, label_smoothing=0.1), 60),
        ("tiny", "left", TrainConfig(rank=16, contrastive=0, label_smoothing=0.2), 90),
        ("packaged", "right", TrainConfig(rank=8, contrastive=0), 4096),
    ],
)
def test_loss_and_gradients_equal_peft_on_a_padded_batch(
    request: pytest.FixtureRequest, fixture: str, side: str, config: TrainConfig, budget: int
) -> None:
    model: Path = request.getfixturevalue(fixture)
    codec = codec_of(model)
    examples = [encode_row(codec, row, 256) for row in ROWS]
    loss, gradients, state, targets = ours(model, examples, codec, config, budget)
    wrapped = peft_reference(model, state, targets, config)
    expected = plain_loss(wrapped, codec, examples, side, config.label_smoothing)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5, rel=1e-5)
    reference = {n.replace(".default", ""): p.grad for n, p in wrapped.named_parameters() if p.requires_grad}
    assert reference.keys() == gradients.keys()
    norm = torch.cat([g.flatten() for g in reference.values()]).norm()
    for name, gradient in gradients.items():
        assert (gradient.view_as(reference[name]) - reference[name]).norm() <= 1e-5 * norm, name
    assert not any("lm_head" in name or "embed" in name for name in gradients)


ENTRIES = [0, 5, 3, 1, 4, 0, 2]


def plain_contrast(wrapped: Any, codec: PromptCodec, examples: list[Example], config: TrainConfig) -> Tensor:
    """Sum over ENTRIES by the definition, one unpadded sequence a text."""
    states = {}
    for row in set(ENTRIES):
        ids = torch.tensor([[*codec.prefix_ids, *examples[row].prompt]])
        states[row] = wrapped(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
    total = torch.zeros(())
    for own in ENTRIES:
        others = [row for row in ENTRIES if row != own]
        scores = [torch.cosine_similarity(states[own], states[row], dim=0) for row in others]
        logprobs = torch.log_softmax(torch.stack(scores) / config.contrastive_temperature, dim=0)
        alike = [lp for lp, row in zip(logprobs, others, strict=True) if examples[row].label == examples[own].label]
        if alike:
            total = total - examples[own].weight * torch.stack(alike).mean()
    return config.contrastive * total


@pytest.mark.parametrize("budget", [4096, 70], ids=["one pack", "several packs"])
def test_the_contrastive_loss_and_its_gradients_are_those_of_its_definition(tiny: Path, budget: int) -> None:
    config, codec = TrainConfig(rank=8, contrastive=0.7, contrastive_temperature=0.2), codec_of(tiny)
    examples = [encode_row(codec, row, 256) for row in ROWS]
    loss, gradients, state, targets = ours(tiny, examples, codec, config, budget, ENTRIES)
    wrapped = peft_reference(tiny, state, targets, config)
    expected = plain_loss(wrapped, codec, [examples[row] for row in ENTRIES], "right", 0.0)
    contrast = plain_contrast(wrapped, codec, examples, config)
    assert float(contrast.detach()) > 1
    (expected + contrast).backward()
    assert loss == pytest.approx(float((expected + contrast).detach()), abs=1e-5, rel=1e-5)
    reference = {n.replace(".default", ""): p.grad for n, p in wrapped.named_parameters() if p.requires_grad}
    norm = torch.cat([g.flatten() for g in reference.values()]).norm()
    for name, gradient in gradients.items():
        assert (gradient.view_as(reference[name]) - reference[name]).norm() <= 1e-5 * norm, name


def test_a_batch_without_two_rows_of_a_label_has_no_contrast(tiny: Path) -> None:
    codec = codec_of(tiny)
    examples = [encode_row(codec, row, 256) for row in ROWS]
    losses = [
        ours(tiny, examples, codec, TrainConfig(rank=8, contrastive=weight), 4096, [0, 1, 2])[0]
        for weight in (0.0, 1.0)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
