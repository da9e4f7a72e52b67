"""The CPU LoRA code against vLLM's own, op for op, and the facts about vLLM's own that make it worth having."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402  # after the skips above
from vllm.lora.layers import LoRAMapping  # noqa: E402  # after the skips above
from vllm.lora.punica_wrapper import punica_cpu  # noqa: E402  # after the skips above

from afdc_server.engine import cpu_lora, plugin  # noqa: E402  # imports vllm
from afdc_server.engine.cpu_lora import GroupedPunicaWrapperCPU, PunicaWrapperCPU, row_groups  # noqa: E402  # same

SLOTS, RANK, INPUTS = 3, 8, 24
WIDTHS = (16, 4, 4)
SLOT_IDS = [11, 22, 33]  # adapter ids in slots 0, 1, 2; id 0 is the base model
CLOSE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 0.07, "rtol": 0.02}}
BATCHES = {
    "one adapter": [22] * 6,
    "neighbours": [11, 11, 22, 22, 33],
    "interleaved": [11, 22, 11, 33, 22, 11, 33],
    "one row": [33],
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def mapped(wrapper: type, ids: Sequence[int]) -> Any:
    made = wrapper(64, 16, "cpu")
    mapping = LoRAMapping(index_mapping=tuple(ids), prompt_mapping=tuple(ids), is_prefill=True)
    made.update_metadata(mapping, SLOT_IDS, SLOTS, 100)
    return made


def weights(dtype: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    a = tuple(torch.randn(SLOTS, 1, RANK, INPUTS).to(dtype) for _ in WIDTHS)
    b = tuple(torch.randn(SLOTS, 1, width, RANK).to(dtype) for width in WIDTHS)
    return a, b


def linear(wrapper: type, ids: Sequence[int], y: Any, x: Any, a: Any, b: Any) -> Any:
    out = y.clone()
    mapped(wrapper, ids).add_lora_linear(out, x, a, b, 1.0, WIDTHS)
    return out


@pytest.mark.parametrize("ids", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("dtype", CLOSE)
def test_linear_equals_stock(ids: list[int], dtype: Any) -> None:
    a, b = weights(dtype)
    x, y = torch.randn(len(ids), INPUTS).to(dtype), torch.randn(len(ids), sum(WIDTHS)).to(dtype)
    ours, stock = (linear(wrapper, ids, y, x, a, b) for wrapper in (GroupedPunicaWrapperCPU, PunicaWrapperCPU))
    assert not torch.equal(ours, y)
    torch.testing.assert_close(ours, stock, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
def test_base_rows_in_a_mixed_batch_stay_as_they_are(dtype: Any) -> None:
    ids = [0, 11, 0, 33, 11, 0]
    a, b = weights(dtype)
    x, y = torch.randn(len(ids), INPUTS).to(dtype), torch.randn(len(ids), sum(WIDTHS)).to(dtype)
    ours, stock = (linear(wrapper, ids, y, x, a, b) for wrapper in (GroupedPunicaWrapperCPU, PunicaWrapperCPU))
    base = [row for row, adapter in enumerate(ids) if not adapter]
    assert torch.equal(ours[base], y[base])
    adapted = [row for row, adapter in enumerate(ids) if adapter]
    torch.testing.assert_close(ours[adapted], stock[adapted], **CLOSE[dtype])


def test_a_batch_of_base_rows_does_no_work() -> None:
    a, b = weights(torch.float32)
    x, y = torch.randn(4, INPUTS), torch.randn(4, sum(WIDTHS))
    assert torch.equal(linear(GroupedPunicaWrapperCPU, [0] * 4, y, x, a, b), y)


def test_adapter_weights_wider_than_the_model() -> None:
    """vLLM may run an adapter in another precision than the model."""
    a, b = weights(torch.float32)
    x, y = torch.randn(5, INPUTS).bfloat16(), torch.zeros(5, sum(WIDTHS)).bfloat16()
    ours = linear(GroupedPunicaWrapperCPU, [11, 22, 11, 0, 0], y, x, a, b)
    expected = torch.cat([x[:1].float() @ a_.float()[0, 0].t() @ b_[0, 0].t() for a_, b_ in zip(a, b, strict=True)], 1)
    torch.testing.assert_close(ours[:1].float(), expected, atol=0.2, rtol=0.02)


def test_logits_equal_stock_and_base_rows_stay() -> None:
    ids = [11, 0, 33, 11]
    a, b = torch.randn(SLOTS, 1, RANK, INPUTS), torch.randn(SLOTS, 1, 50, RANK)
    x, y = torch.randn(4, INPUTS), torch.randn(4, 50)
    ours, stock = y.clone(), y.clone()
    mapped(GroupedPunicaWrapperCPU, ids).add_lora_logits(ours, x, a, b, 1.0)
    mapped(PunicaWrapperCPU, ids).add_lora_logits(stock, x, a, b, 1.0)
    torch.testing.assert_close(ours[[0, 2, 3]], stock[[0, 2, 3]], atol=1e-5, rtol=1e-5)
    assert torch.equal(ours[1], y[1])


def test_logits_of_adapters_without_an_output_layer_make_no_product() -> None:
    a, b = torch.zeros(SLOTS, 1, RANK, INPUTS), torch.zeros(SLOTS, 1, 50, RANK)
    wrapper, y = mapped(GroupedPunicaWrapperCPU, [11, 22]), torch.randn(2, 50)
    with LargestTensor() as seen:
        wrapper.add_lora_logits(y, torch.randn(2, INPUTS), a, b, 1.0)
    assert seen.matrix_products == 0


def test_row_groups() -> None:
    groups = row_groups(torch.tensor([2, 2, -1, 0, 2, -1]))
    assert [group.slot for group in groups] == [2, 0]
    assert groups[0].rows.tolist() == [0, 1, 4]
    assert groups[1].rows == slice(3, 4)
    assert row_groups(torch.tensor([-1, -1])) == ()
    assert row_groups(torch.tensor([], dtype=torch.long)) == ()


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation inside the block makes, in elements."""

    largest = 0
    matrix_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        self.matrix_products += func.overloadpacket.__name__ in {"mm", "bmm", "addmm", "addmm_"}
        return result


def test_canary_stock_gathers_a_whole_matrix_for_every_row() -> None:
    """If this fails, vLLM's own CPU code has improved: measure benchmarks/lora_decode.py again."""
    rows = 40
    a, b = weights(torch.float32)
    x, y = torch.randn(rows, INPUTS), torch.randn(rows, sum(WIDTHS))
    largest = {}
    for wrapper in (PunicaWrapperCPU, GroupedPunicaWrapperCPU):
        ready = mapped(wrapper, [11] * rows)
        with LargestTensor() as seen:
            ready.add_lora_linear(y.clone(), x, a, b, 1.0, WIDTHS)
        largest[wrapper] = seen.largest
    assert largest[PunicaWrapperCPU] >= rows * RANK * INPUTS
    assert largest[GroupedPunicaWrapperCPU] <= rows * sum(WIDTHS)


def test_canary_stock_gives_base_rows_the_last_slot() -> None:
    """If this fails, vLLM has fixed index -1."""
    a, b = weights(torch.float32)
    x, y = torch.randn(2, INPUTS), torch.zeros(2, sum(WIDTHS))
    mixed = linear(PunicaWrapperCPU, [11, 0], y, x, a, b)
    last = linear(PunicaWrapperCPU, [11, 33], y, x, a, b)
    assert torch.equal(mixed, last)
    assert mixed[1].abs().max() > 0


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punica_cpu, "PunicaWrapperCPU", PunicaWrapperCPU)


@pytest.mark.usefixtures("restored")
def test_register_installs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugin.SWITCH, raising=False)
    plugin.register()
    plugin.register()
    assert punica_cpu.PunicaWrapperCPU is GroupedPunicaWrapperCPU


@pytest.mark.usefixtures("restored")
def test_switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin.SWITCH, "0")
    plugin.register()
    assert punica_cpu.PunicaWrapperCPU is PunicaWrapperCPU


@pytest.mark.usefixtures("restored")
def test_nothing_happens_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    plugin.register()
    assert punica_cpu.PunicaWrapperCPU is PunicaWrapperCPU


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("change", ["renamed", "gone"])
def test_unknown_vllm_is_left_alone_with_one_warning(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    unknown: Any = type("Unknown", (), {})
    if change == "renamed":
        unknown = type("Unknown", (PunicaWrapperCPU,), {"add_lora_linear": lambda self, inputs: None})
    monkeypatch.setattr(cpu_lora, "PunicaWrapperCPU", unknown)
    seen = _Records()
    logger = logging.getLogger("vllm.afdc")
    logger.addHandler(seen)
    try:
        plugin.register()
    finally:
        logger.removeHandler(seen)
    assert punica_cpu.PunicaWrapperCPU is PunicaWrapperCPU
    assert len(seen.messages) == 1
    assert "does not fit this vLLM" in seen.messages[0]
