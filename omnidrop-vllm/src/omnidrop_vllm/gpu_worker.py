"""vLLM's worker on a GPU, with the runner that prunes."""

from vllm.v1.worker.gpu_worker import Worker as _Worker

from .runner import PruningWorker


class GPUWorker(PruningWorker, _Worker):
    """Chosen by `config.py`."""
