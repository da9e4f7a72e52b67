"""Adapter folders: the manifest beside the weights, and the checks made before anything is loaded.

The weights in an adapter folder never change and its name carries their hash: `{name}-{sha12}`. The vLLM prefix cache
is keyed by adapter name, so a name must never stand for two sets of weights.
"""

from __future__ import annotations

import json
import math
import struct
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from afdc.errors import AdapterError
from afdc.files import publish_folder, rename_folder, sha256_file, write_bytes
from afdc.prompting import PromptCodec
from afdc.task import Model, Task, first_fault

MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256)
REFUSED_OPTIONS = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "auto_mapping",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
MAX_HEADER_BYTES = 64 << 20
MAX_ALPHA = 4096
PROBE_TOKENS = 16  # enough to tell two adapters apart, and few reads
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MATRICES = ("lora_A.weight", "lora_B.weight")  # the axis that is the rank: 0 in A, 1 in B
ROUNDING = 1e-6


class Probe(Model):
    """The trainer's own label log-probs of a text, for comparison after the swap. Natural log, one value a label.

    For an open task: one value, that of the first `PROBE_TOKENS` tokens of `answer`.
    """

    text: str
    answer: str | None = None
    logprobs: tuple[float, ...]

    def scored_ids(self, codec: PromptCodec) -> list[tuple[int, ...]]:
        """Ids whose summed log-probabilities `logprobs` holds: every label's, or those that begin the answer."""
        if self.answer is None:
            return codec.scored_ids
        return [tuple(codec.answer_ids(self.answer)[:PROBE_TOKENS])]


class AdapterManifest(Model):
    """`manifest.json`: what the adapter is and how to know that it arrived whole."""

    format: int = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    job: str
    round: int = Field(ge=0)
    member: int = Field(default=0, ge=0)
    base_model: str
    base_revision: str
    rank: int
    task: Task
    template_hash: str
    temperature: float = Field(
        default=1.0, gt=0, description="calibration: divide the log-probs by this before softmax"
    )
    prior: tuple[float, ...] = Field(default=(), description="calibration: log-prior subtracted first; empty for none")
    probes: tuple[Probe, ...] = ()
    probe_dtype: str = Field(default="bfloat16", description="precision in which the trainer read the probes")
    files: dict[str, str] = Field(description="file name to hex SHA-256")


def read_manifest(folder: Path) -> AdapterManifest:
    """Read `manifest.json`.

    Raises:
        AdapterError: it is missing or is not a manifest.
    """
    path = folder / MANIFEST_FILE
    try:
        return AdapterManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as exc:
        raise AdapterError(f"{folder} is not an AFDC adapter: {MANIFEST_FILE} is missing") from exc
    except ValidationError as exc:
        where, _, message = first_fault(exc)
        reason = f"{where}: {message}" if where else message
        raise AdapterError(f"{path} is not an adapter's manifest: {reason}", remedy="Copy the folder again") from exc
    except OSError as exc:
        raise AdapterError(f"{path} cannot be read: {exc.strerror}", remedy="Check its permissions") from exc


def write_manifest(folder: Path, manifest: AdapterManifest) -> None:
    """Write `manifest.json` durably.

    With labels it is written as ever, without the answers that its probes lack; "labels": null has to be said.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    text = manifest.model_dump_json(indent=2, exclude_none=not manifest.task.is_open)
    write_bytes(folder / MANIFEST_FILE, text.encode())


def verify_adapter(folder: Path) -> AdapterManifest:
    """Check an adapter folder before the engine or PEFT sees it: hashes, options, tensor names and shapes.

    Raises:
        AdapterError: says which check failed. Nothing of the folder was executed or loaded.
    """
    manifest = read_manifest(folder)
    _verify_numbers(manifest, folder)
    _verify_files(folder, manifest)
    config = _read_config(folder)
    _verify_config(config, manifest, folder)
    _verify_tensors(read_tensor_shapes(folder / WEIGHTS_FILE), manifest, folder)
    return manifest


def publish_adapter(temporary: Path, final: Path) -> Path | None:
    """Give a finished adapter folder its name. One with the same files that lies there whole stays, with the new
    manifest: the same weights may have been calibrated otherwise since.

    Returns:
        Where a damaged folder of that name was set aside, `.damaged-NAME-N` beside it; None when there was none.

    Raises:
        AdapterError: the new folder itself fails verification.
        StorageError: the disk cannot be written.
    """
    manifest = verify_adapter(temporary)
    aside = None
    known = _whole(final)
    if known is not None and known.files == manifest.files:
        write_manifest(final, manifest)
    elif final.exists() and (known is None or known.files[WEIGHTS_FILE] != manifest.files[WEIGHTS_FILE]):
        names = (final.with_name(f".damaged-{final.name}-{number}") for number in count(1))
        aside = next(path for path in names if not path.exists())
        rename_folder(final, aside)
    publish_folder(temporary, final)
    return aside


def _whole(folder: Path) -> AdapterManifest | None:
    """The manifest of an adapter that passes verification."""
    try:
        return verify_adapter(folder)
    except (AdapterError, OSError):  # what cannot be read is as good as damaged
        return None


def _verify_numbers(manifest: AdapterManifest, folder: Path) -> None:
    n = len(manifest.task.names)
    if not math.isfinite(manifest.temperature):
        raise AdapterError(f"{folder}: the temperature is {manifest.temperature}")
    if manifest.prior and not (len(manifest.prior) == n and all(map(math.isfinite, manifest.prior))):
        raise AdapterError(f"{folder}: the prior must hold one finite number for each of the {n} labels")
    is_open = manifest.task.is_open
    for i, probe in enumerate(manifest.probes):
        wanted = 1 if is_open else n
        if len(probe.logprobs) != wanted or not all(math.isfinite(x) and x <= ROUNDING for x in probe.logprobs):
            what = "its answer" if is_open else f"each of the {n} labels"
            raise AdapterError(f"{folder}: probe {i} must hold one log-probability for {what}")
        if is_open != bool(probe.answer):
            raise AdapterError(f"{folder}: probe {i} must {'have an answer' if is_open else 'score labels alone'}")


def _verify_files(folder: Path, manifest: AdapterManifest) -> None:
    missing = {CONFIG_FILE, WEIGHTS_FILE} - set(manifest.files)
    if missing:
        raise AdapterError(f"{folder}: the manifest lists no {', '.join(sorted(missing))}")
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise AdapterError(f"{folder}: {name!r} is not a plain file of this folder")
        if sha256_file(path) != expected:
            raise AdapterError(f"{path} does not have the hash that its manifest gives", remedy="Copy the folder again")
    surplus = set(manifest.files) - {CONFIG_FILE, WEIGHTS_FILE}
    if surplus:
        raise AdapterError(f"{folder}: the manifest lists {', '.join(sorted(surplus))}, which no adapter has")
    unlisted = {p.name for p in folder.iterdir()} - set(manifest.files) - {MANIFEST_FILE}
    if unlisted:
        raise AdapterError(f"{folder}: unexpected files {', '.join(sorted(unlisted))}")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (ValueError, RecursionError) as exc:
        raise AdapterError(f"{folder / CONFIG_FILE} is not JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise AdapterError(f"{folder / CONFIG_FILE} is not a JSON object")
    return config


def _verify_config(config: dict[str, Any], manifest: AdapterManifest, folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder}: only LoRA adapters can be served, not {config.get('peft_type')!r}")
    used = [key for key in REFUSED_OPTIONS if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if config.get("init_lora_weights", True) not in (True, "gaussian"):
        used.append("init_lora_weights")
    if used:
        raise AdapterError(f"{folder}: the serving engine does not support {', '.join(used)}")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= MAX_ALPHA:
        raise AdapterError(f"{folder}: lora_alpha is {alpha!r} and must be above 0 and at most {MAX_ALPHA}")
    if not isinstance(config.get("target_modules"), list):
        raise AdapterError(f"{folder}: target_modules must be a list of names, not a pattern")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise AdapterError(f"{folder}: per-layer ranks are not supported")
    if config.get("r") != manifest.rank or manifest.rank not in ALLOWED_RANKS:
        raise AdapterError(
            f"{folder}: rank {config.get('r')} (manifest: {manifest.rank}) is not one of {ALLOWED_RANKS}"
        )


def read_tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Names and shapes from a safetensors header (safetensors format 0.4), without reading the weights.

    Raises:
        AdapterError: the file is truncated, or its header is not what the format asks for.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise AdapterError(f"{path} is not a whole safetensors file")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: _read_entry(entry) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise AdapterError(f"{path} has a damaged safetensors header: {exc}") from exc
    end = max((end for _, end in tensors.values()), default=0)
    if end != size - 8 - length:
        raise AdapterError(f"{path} is truncated: {size} bytes, and its header asks for {8 + length + end}")
    return {name: shape for name, (shape, _) in tensors.items()}


def _read_entry(entry: Any) -> tuple[list[int], int]:
    """Shape and end offset of a header entry; ValueError, KeyError or TypeError where it contradicts itself."""
    shape, (start, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"numbers of type {dtype!r}, not one of {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in [*shape, start, end]):
        raise ValueError(f"shape {shape} and offsets {start}, {end} are not whole numbers")
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"shape {shape} of {dtype} does not fill bytes {start} to {end}")
    return shape, end


def _verify_tensors(shapes: dict[str, list[int]], manifest: AdapterManifest, folder: Path) -> None:
    if not shapes:
        raise AdapterError(f"{folder}: {WEIGHTS_FILE} holds no tensors")
    for name, shape in shapes.items():
        axis = next((i for i, suffix in enumerate(MATRICES) if name.endswith(suffix)), None)
        if axis is None or len(shape) != 2:
            raise AdapterError(f"{folder}: tensor {name!r} is not a LoRA matrix of a linear layer")
        if shape[axis] != manifest.rank:
            raise AdapterError(
                f"{folder}: tensor {name!r} has shape {shape}, and the manifest says rank {manifest.rank}"
            )
        if any("lm_head" in part or "embed_tokens" in part for part in name.split(".")):
            raise AdapterError(f"{folder}: tensor {name!r}: the output head and the embeddings must not be trained")
        twin = name.removesuffix(MATRICES[axis]) + MATRICES[1 - axis]
        if twin not in shapes:
            raise AdapterError(f"{folder}: tensor {name!r} has no {twin!r} beside it")


def largest_probe_gap(manifest: AdapterManifest, served: list[list[float]]) -> float:
    """Largest difference in probability between the trainer's probes and what the engine serves, in 0..1.

    Probabilities and not log-probs are compared: bf16 moves the log-probs of very unlikely labels by several tenths.
    """
    gaps = [
        abs(math.exp(a) - math.exp(b))
        for probe, row in zip(manifest.probes, served, strict=True)
        for a, b in zip(probe.logprobs, row, strict=True)
    ]
    return max(gaps, default=0.0)
