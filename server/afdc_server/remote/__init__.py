"""An engine on another machine: a plain `vllm serve`, spoken to over HTTP."""
