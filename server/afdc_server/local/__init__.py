"""`afdc run`: the whole job in one process tree, without HTTP."""

from afdc_server.local.job import plan_local, run_local
from afdc_server.local.request import RunRequest

__all__ = ["RunRequest", "plan_local", "run_local"]
