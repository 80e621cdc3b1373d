"""`lmms-eval`, started so that a torchvision built for CUDA beside a CPU torch does not stop it."""

from omnidrop._torchvision import ensure_importable

if __name__ == "__main__":
    ensure_importable()
    import torch
    from lmms_eval.__main__ import cli_evaluate

    cli_evaluate()
    if torch.distributed.is_initialized():  # the harness leaves it open, and gloo's thread then aborts the process
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
