"""NVIDIA NeMo Data Designer: a seed data set of the prompts and one LLM text column.

It draws one text a request, so that a prompt appears `draws` times among its records.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

os.environ["NEMO_TELEMETRY_ENABLED"] = "false"
os.environ["DATA_DESIGNER_HOME"] = str(Path(sys.executable).parent.parent / "settings")
sys.path.insert(0, str(Path(__file__).parent))

import data_designer.config as dd
import pandas as pd
from common import arguments, measure, prompts
from data_designer.interface import DataDesigner

args = arguments()
logging.disable(logging.INFO)


provider = dd.ModelProvider(name="canned", endpoint=f"{args.url}/v1", provider_type="openai", api_key="none")
parameters = dd.ChatCompletionInferenceParams(
    temperature=1.0, max_tokens=64, max_parallel_requests=args.parallel, timeout=120
)
writer = dd.ModelConfig(
    alias="writer", model="canned", provider="canned", inference_parameters=parameters, skip_health_check=True
)
builder = dd.DataDesignerConfigBuilder(model_configs=[writer])
texts = [text for text in prompts(args.prompts) for _ in range(args.draws)]
builder.with_seed_dataset(dd.DataFrameSeedSource(df=pd.DataFrame({"ask": texts})))
builder.add_column(dd.LLMTextColumnConfig(name="text", model_alias="writer", prompt="{{ ask }}"))
designer = DataDesigner(artifact_path=args.out, model_providers=[provider])
settings = dd.RunConfig(
    buffer_size=1000,
    otel_metrics_port=None,
    jinja_rendering_engine=dd.JinjaRenderingEngine.NATIVE,
    disable_early_shutdown=True,
    progress_interval=1000.0,
)
designer.set_run_config(settings)


def generate() -> int:
    """`create` writes Parquet files in row groups, and a profile of the columns."""
    return len(designer.create(builder, num_records=len(texts)).load_dataset())


measure(generate)
