"""As `ranks_run`, on CPUs that Accelerate takes for GPUs: on others it does not shard."""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from ranks_run import run_stages

from attune.config.params import load
from attune.runtime.errors import reported
from attune.runtime.launch import run

if __name__ == "__main__":
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    with reported():
        params = load()
        run(lambda: run_stages(sys.argv[1:], params), params.hardware)
