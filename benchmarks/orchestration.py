"""Orchestration: what AFDC, NVIDIA NeMo Data Designer and distilabel cost beside the model that they call.

    python -m benchmarks.orchestration [--prompts 1000] [--draws 1 4] [--delays 0 50] [--rounds 2]

All three ask the same canned OpenAI-compatible endpoint for `draws` texts of each prompt and write them to disk. The
endpoint answers after a fixed delay and has one core to itself; the side that is measured has another one. A record is
one text on disk. Each side runs in a process of its own, the other two in virtual environments that are made under
runs/orchestration/. Imports, tokenizer and the description of the job are outside the clock; starting the run, what it
spawns, and writing are inside. `--prompts` twice, the second time larger, shows what is a fixed cost.

Each side is measured at each of its numbers of requests at once in PARALLEL, and its best round counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "benchmarks" / "orchestration_env"
WORK = ROOT / "runs" / "orchestration"
LIMIT_SECONDS = 900
AFDC = "afdc"
PACKAGES = {
    "data_designer": ["data-designer==0.9.7"],
    "distilabel": ["distilabel[openai]==1.5.3", "requests"],  # requests: imported by distilabel, and not asked for
}
PARALLEL = {AFDC: [64, 256, 384], "data_designer": [16, 64, 256], "distilabel": [64, 250]}


@dataclass(frozen=True)
class Result:
    """One run of one side."""

    side: str
    parallel: int
    records: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds

    @property
    def cpu_per_thousand(self) -> float:
        """CPU seconds for 1,000 records."""
        return 1000 * self.cpu_seconds / self.records


def python_of(side: str) -> Path:
    """The interpreter of a side; makes its virtual environment the first time."""
    if side == AFDC:
        return Path(sys.executable)
    folder = WORK / f"venv-{side.replace('_', '-')}"
    python, stamp, wanted = folder / "bin" / "python", folder / "installed", "\n".join(PACKAGES[side])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {', '.join(PACKAGES[side])} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[side]], check=True)
        stamp.write_text(wanted)
    return python


@contextlib.contextmanager
def endpoint(delay_ms: float, core: int) -> Iterator[str]:
    """URL of a canned endpoint in a process of its own."""
    command = [sys.executable, str(PARTS / "endpoint.py"), "--core", str(core), "--delay-ms", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def run_side(side: str, url: str, prompts: int, draws: int, parallel: int, core: int) -> Result:
    """One run in a fresh folder. Raises RuntimeError with its last output when it fails or loses a record."""
    with tempfile.TemporaryDirectory(dir=WORK) as out:
        command = [str(python_of(side)), str(PARTS / f"side_{side}.py"), "--url", url, "--out", out]
        numbers = {"prompts": prompts, "draws": draws, "parallel": parallel, "core": core}
        command += [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, cwd=out, check=False, env=environment()
        )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    said = json.loads(lines[-1])
    if said["records"] != prompts * draws:
        raise RuntimeError(f"{side} wrote {said['records']} of {prompts * draws} records")
    return Result(side, parallel, said["records"], said["seconds"], said["cpu_seconds"])


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}


def compare(args: argparse.Namespace, prompts: int, draws: int, delay_ms: float) -> list[Result]:
    """The best run of each side; the sides take turns, so that other load on the machine meets all of them."""
    best: dict[str, Result] = {}
    with endpoint(delay_ms, args.cores[0]) as url:
        for _ in range(args.rounds):
            for side in args.sides:
                for parallel in PARALLEL[side]:
                    one = run_side(side, url, prompts, draws, parallel, args.cores[1])
                    print(f"  {one}", file=sys.stderr, flush=True)
                    best[side] = max(one, best.get(side, one), key=lambda result: result.rate)
    return list(best.values())


def table(prompts: int, draws: int, delay_ms: float, results: list[Result]) -> Iterator[str]:
    """Lines of a Markdown table. The ratios say how many times faster, and how much cheaper, AFDC is than that side."""
    yield f"\n{prompts} prompts x {draws} draws, {delay_ms:g} ms delay; load of the machine {os.getloadavg()[0]:.1f}\n"
    yield "| side | at once | records/s | CPU s per 1,000 | records/s, AFDC's over it | CPU, its over AFDC's |"
    yield "|---|---|---|---|---|---|"
    ours = next((one for one in results if one.side == AFDC), None)
    for one in results:
        ratios = [ours.rate / one.rate, one.cpu_per_thousand / ours.cpu_per_thousand] if ours else []
        cells = [one.side, str(one.parallel), f"{one.rate:.0f}", f"{one.cpu_per_thousand:.2f}"]
        yield "| " + " | ".join([*cells, *(f"{ratio:.1f}x" for ratio in ratios)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 50], help="milliseconds")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", default=list(PARALLEL), choices=list(PARALLEL))
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1], help="of the endpoint, and of the side")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    for side in args.sides:
        python_of(side)
    for prompts in args.prompts:
        for draws in args.draws:
            for delay_ms in args.delays:
                print("\n".join(table(prompts, draws, delay_ms, compare(args, prompts, draws, delay_ms))), flush=True)


if __name__ == "__main__":
    main()
