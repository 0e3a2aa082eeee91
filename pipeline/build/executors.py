"""Which executor runs the tasks of a build."""

import os
from functools import partial

from pipeline.build.local import run_tasks
from pipeline.build.run import Executor
from pipeline.build.state import BuildState
from pipeline.plan import Plan
from pipeline.tokens import Tokenizer


def choose(plan: Plan, state: BuildState, tokenizer: Tokenizer, *, workers: int = 0, ray_address: str | None = None) -> Executor:
    """Processes on this machine, or with an address the Ray cluster there; `workers` 0 takes all cores."""
    if ray_address is None:
        return partial(run_tasks, plan, state=state, tokenizer=tokenizer, workers=workers or os.cpu_count() or 1)
    from pipeline.build.ray import run_tasks as run_on_ray

    return partial(run_on_ray, plan, state=state, tokenizer=tokenizer, address=ray_address, most=workers)
