"""Which base model a run uses: a local folder, a hub id, or the default of the device.

Everything ends in a local folder of safetensors that vLLM, transformers and PEFT all load, and in a revision that
changes whenever the weights do. Nothing here imports torch or runs code from a model folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from afdc.errors import ModelError, UsageError
from afdc.files import canonical_json, sha256_bytes, user_path
from afdc_server.fingerprint import content_hash
from afdc_server.packaged import PACKAGED_NAME, is_converted, packaged_model

Device = Literal["cpu", "cuda"]

DEFAULT_MODEL: dict[Device, str] = {"cpu": PACKAGED_NAME, "cuda": "Qwen/Qwen3-4B-Instruct-2507"}
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
HUB_SKIPPED = ["*/*", "consolidated*.safetensors"]  # copies of the same weights in other layouts
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
ANOTHER_MODEL = "Name another model with --model: a folder, or a hub id such as Qwen/Qwen3-4B-Instruct-2507"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class ModelRef:
    """A base model on this machine's disk.

    Attributes:
        name: as the user would name it: hub id, folder, or the packaged model's name.
        path: folder with config.json, safetensors and tokenizer.
        revision: hub commit, or a SHA-256 over config and weights for a folder.
        parameters: stored weights, counted from the safetensors headers.
    """

    name: str
    path: Path
    revision: str
    parameters: int


def resolve_model(name: str, device: Device) -> ModelRef:
    """Find, fetch or convert the model `name` ("" is the default of `device`) and check that it can be used.

    A hub id may carry a revision: `owner/name@revision`.

    Raises:
        ModelError: no such model, no network, no safetensors, no tokenizer, or not a causal language model.
    """
    name = name or DEFAULT_MODEL[device]
    here = local_model(name, device)
    if here is not None:
        return here
    if name == PACKAGED_NAME:
        return _describe(name, packaged_model())
    hub_id, _, revision = name.partition("@")
    path = download(hub_id, revision or None)
    return _describe(hub_id, path, revision=path.name)


def local_model(name: str, device: Device) -> ModelRef | None:
    """The model `name` as `resolve_model` finds it, where nothing has to be fetched or converted for it; else None.

    Raises:
        ModelError: no such folder and no hub id, or a folder that cannot be used.
    """
    name = name or DEFAULT_MODEL[device]
    folder = user_path(name)
    if folder.is_dir():
        return _describe(str(folder.resolve()), folder.resolve())
    if name == PACKAGED_NAME:
        return _describe(name, packaged_model()) if is_converted() else None
    if not HUB_ID.fullmatch(name.partition("@")[0]):
        raise ModelError(
            f"there is no model folder {name!r}, and it is not a hub id (owner/name)", remedy=ANOTHER_MODEL
        )
    return None


def detect_device(requested: str, setting: str = "engine.device") -> Device:
    """Settle "auto", "cpu" or "cuda" from device files and installed packages, without importing torch.

    Args:
        setting: what to call the request in a message.

    Raises:
        UsageError: "cuda" on a machine, or with an installation, that has none.
    """
    if requested == "cpu":
        return "cpu"
    missing = _why_no_cuda()
    if requested == "cuda" and missing:
        remedy = f"Leave {setting} at auto, or install requirements/gpu.txt"
        raise UsageError(f"{setting} = cuda: {missing}", remedy=remedy)
    return "cpu" if missing else "cuda"


def _why_no_cuda() -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}:
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "this machine has no NVIDIA GPU"
    if not _installed("vllm"):
        return "vLLM's CUDA build (package vllm) is not installed"
    return ""


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def download(hub_id: str, revision: str | None) -> Path:
    # Heavy, and only needed for hub models.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIPPED)
    except GatedRepoError as exc:
        raise ModelError(
            f"{hub_id} asks you to accept its terms", remedy="Accept them on its hub page, log in"
        ) from exc
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as exc:
        raise ModelError(f"the hub has no model {hub_id!r} at {revision or 'main'}", remedy=ANOTHER_MODEL) from exc
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as exc:
        raise ModelError(f"cannot fetch {hub_id}: {_first_line(exc)}", remedy=_offline_remedy()) from exc
    return Path(path)


def _offline_remedy() -> str:
    return (
        "Check the network (and HF_HUB_OFFLINE), or give a model folder with --model; "
        f"--model {PACKAGED_NAME} needs no network"
    )


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0].rstrip(".")


def _describe(name: str, path: Path, revision: str = "") -> ModelRef:
    config = _read_config(path)
    _require_causal(path, config)
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES)})", remedy=ANOTHER_MODEL)
    headers = {file.name: _read_header(file) for file in sorted(path.glob("*.safetensors"))}
    if not headers:
        raise ModelError(f"{path} has no *.safetensors weights", remedy="Convert it with save_pretrained() first")
    _require_all_shards(path, headers)
    parameters = sum(prod(tensor["shape"]) for header in headers.values() for tensor in _tensors(header))
    return ModelRef(name, path, revision or _fingerprint(path, config, headers), parameters)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if (path / "adapter_config.json").is_file() and not file.is_file():
        raise ModelError(f"{path} is an adapter, not a base model", remedy="Name its base model with --model")
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError as exc:
        raise ModelError(f"{path} has no config.json", remedy=ANOTHER_MODEL) from exc
    except (OSError, ValueError) as exc:
        raise ModelError(f"cannot read {file}: {_first_line(exc)}", remedy="Fetch the model again") from exc
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object", remedy="Fetch the model again")
    return config


def _require_causal(path: Path, config: dict[str, Any]) -> None:
    names = [str(name) for name in config.get("architectures") or []]
    if not any(name.endswith(CAUSAL_SUFFIXES) for name in names) or config.get("is_encoder_decoder"):
        found = ", ".join(names) or "no architecture"
        raise ModelError(f"{path} is not a causal language model (config.json names {found})", remedy=ANOTHER_MODEL)


def _read_header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: 8 bytes little-endian length, then JSON (safetensors format)."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ValueError("the header length is impossible")
            header = json.loads(stream.read(length))
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in _tensors(header)), default=0)
        if file.stat().st_size != end:
            raise ValueError(f"{file.stat().st_size} bytes long, its header says {end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"{file} is damaged: {_first_line(exc)}", remedy="Fetch the model again") from exc
    return dict(header)


def _tensors(header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (value for key, value in header.items() if key != "__metadata__")


def _require_all_shards(path: Path, headers: dict[str, dict[str, Any]]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        wanted = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"cannot read {index}: {_first_line(exc)}", remedy="Fetch the model again") from exc
    if missing := sorted(wanted - set(headers)):
        raise ModelError(f"{path} lacks {', '.join(missing)}", remedy="Fetch the model again")


def _fingerprint(path: Path, config: dict[str, Any], shards: Iterable[str]) -> str:
    """SHA-256 over the config and the content of every shard: a copied folder is the same model on any machine."""
    return sha256_bytes(canonical_json([config, {name: content_hash(path / name) for name in sorted(shards)}]))
