"""distilabel: a pipeline of a source and a TextGeneration task, with `n` texts a request."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

os.environ["DISTILABEL_LOG_LEVEL"] = "ERROR"
sys.path.insert(0, str(Path(__file__).parent))

from common import arguments, measure, prompts
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def build() -> Pipeline:
    with Pipeline(name="bench", cache_dir=args.out) as pipeline:
        source = LoadDataFromDicts(
            data=[{"instruction": text} for text in prompts(args.prompts)], batch_size=args.prompts
        )
        llm = OpenAILLM(
            model="canned",
            base_url=f"{args.url}/v1",
            api_key="none",
            generation_kwargs={"max_new_tokens": 64, "temperature": 1.0},
        )
        task = TextGeneration(
            llm=llm,
            input_batch_size=args.parallel,
            num_generations=args.draws,
            group_generations=True,
            add_raw_output=False,
            add_raw_input=False,
        )
        source >> task
    return pipeline


def generate() -> int:
    """`run` starts a process a step and writes Parquet in the cache folder, with one row a group of texts."""
    column = pipeline.run(use_cache=False)["default"]["train"]["generation"]
    return sum(len(row) if isinstance(row, list) else 1 for row in column)


if __name__ == "__main__":
    args = arguments()
    pipeline = build()
    logging.disable(logging.ERROR)
    measure(generate)
