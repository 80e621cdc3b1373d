"""vLLM's worker on a CPU, with the runner that prunes."""

from vllm.v1.worker.cpu_worker import CPUWorker as _Worker

from .runner import PruningWorker


class CPUWorker(PruningWorker, _Worker):
    """Chosen by `config.py`."""
