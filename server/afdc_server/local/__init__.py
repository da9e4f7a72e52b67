"""`afdc run`: the whole job in one process tree, without HTTP."""

from afdc_server.local.job import RunRequest, plan_local, run_local

__all__ = ["RunRequest", "plan_local", "run_local"]
