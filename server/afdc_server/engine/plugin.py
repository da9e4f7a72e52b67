"""vLLM plug-in entry point (group `vllm.general_plugins`): faster and correct LoRA on the CPU.

vLLM calls `register` in every process it starts, on every platform, so nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import logging
import os

SWITCH = "AFDC_CPU_LORA"  # "0" leaves vLLM's own CPU LoRA code in place


def register() -> None:
    """Install the CPU LoRA layer of this project where vLLM runs on a CPU; elsewhere do nothing."""
    if os.environ.get(SWITCH, "1") == "0":
        return
    from vllm.platforms import current_platform  # vLLM has loaded it before it calls a plug-in

    if not current_platform.is_cpu():
        return
    try:
        from afdc_server.engine.cpu_lora import install

        install()
    except (ImportError, AttributeError, TypeError) as exc:
        logging.getLogger("vllm.afdc").warning(
            "AFDC's CPU LoRA code does not fit this vLLM (%s): vLLM's own is used, which is several times slower "
            "and adds an adapter to base-model rows that share a batch with it",
            exc,
        )
