"""Serve an adapter: load it beside the live ones, probe, activate; free the slot of the one not used for longest.

Loading is not a stage of the ledger: what an engine holds ends with its process, so it is done again when needed.
"""

from __future__ import annotations

from pathlib import Path

from afdc_pipeline.context import JobContext

SPARE_SLOTS = 1  # left free so that a new adapter loads beside all the live ones


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
    started = ctx.clock()
    await ctx.engine.load_adapter(path)
    ctx.loaded[name] = path
    ctx.ledger.add_event("adapter_activated", {"adapter": name, "seconds": ctx.clock() - started})
