"""Where a process stands among the ranks of a run, and what it computes on."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands among the ranks, and what it computes on."""

    rank: int
    ranks: int
    device: torch.device
    cores: int  # of the CPU, that are this rank's share

    @classmethod
    def find(cls, device: str) -> "Place":
        """From torchrun's environment; a process started without torchrun is a run of one rank."""
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not start CUDA before the fork
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda, but torch finds no GPU here; --device cpu trains without one")
        chosen = f"cuda:{local}" if device != "cpu" and torch.cuda.is_available() else "cpu"
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(rank=int(os.environ.get("RANK", 0)), ranks=int(os.environ.get("WORLD_SIZE", 1)), device=torch.device(chosen),
                   cores=max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def join(self) -> Any:
        """Meet the other ranks. Returns the group for control messages, which never wait for a GPU; None alone."""
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(self.cores)
        if self.on_gpu:
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")
        if "RANK" not in os.environ:
            return None
        if self.on_gpu:
            dist.init_process_group("nccl", device_id=self.device)
            return dist.new_group(backend="gloo")
        dist.init_process_group("gloo")
        return dist.group.WORLD

    def autocast(self) -> Any:
        """bf16 on a GPU; float32 on a CPU, where runs are compared bit by bit."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu)
