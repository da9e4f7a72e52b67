"""Serve an adapter: load it beside the live ones, probe, activate; free the slot of the one not used for longest.

Whether an adapter was accepted is a stage of the ledger, decided once where the job goes on without it. What an engine
holds ends with its process, so loading is done again when a stage needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afdc.errors import AdapterError
from afdc_pipeline.context import JobContext
from afdc_pipeline.seams import StageKey
from afdc_pipeline.stages.runner import StageRun, run_stage

SPARE_SLOTS = 1  # left free so that a new adapter loads beside all the live ones


async def accept_adapter(ctx: JobContext, round: int, name: str, adapter: str, *, needed: bool = False) -> str:
    """Load and probe a new adapter; returns why it was refused, or "".

    Args:
        name: short name of the adapter ("m0", "r1"), which names the stage.
        adapter: the adapter's full name.
        needed: the job cannot go on without it: a refusal rises, and is not recorded, so that the next start tries it.

    Raises:
        AdapterError: a needed adapter was refused.
    """

    async def body(_run: StageRun) -> dict[str, Any]:
        try:
            await serve(ctx, adapter)
        except AdapterError as exc:
            if needed:
                raise AdapterError(exc.message, remedy=exc.remedy or "See docs/engine.md, Adapters") from exc
            return {"adapter": adapter, "refused": exc.message}
        return {"adapter": adapter, "refused": ""}

    title = f"verify and activate adapter {name}"
    result = await run_stage(ctx, StageKey(round, f"swap-{name}"), {"adapter": adapter}, body, title=title)
    return str(result["refused"])


async def serve(ctx: JobContext, name: str | None, folder: Path | None = None) -> None:
    """Make sure that the engine serves adapter `name`; None is the base model, which it always serves.

    Args:
        folder: where the adapter lies; by default the run's adapter folder of that name.

    Raises:
        AdapterError: the adapter failed verification or its probe; the live adapters are untouched.
    """
    if name is None:
        return
    if name in ctx.loaded:
        ctx.loaded[name] = ctx.loaded.pop(name)
        return
    while len(ctx.loaded) > ctx.config.engine.max_loras - 1 - SPARE_SLOTS:
        oldest = next(iter(ctx.loaded))
        await ctx.engine.unload_adapter(oldest)
        del ctx.loaded[oldest]
    path = folder or ctx.layout.adapters / name
    await ctx.engine.load_adapter(path)
    ctx.loaded[name] = path
