"""The machine and the library versions that a result was made with."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("torch", "torchvision", "lightning", "transformers", "peft", "timm", "numpy", "scikit-learn")


def environment() -> dict[str, Any]:
    """Python, libraries, processor, cores, memory and GPUs. Does not import torch, so that commands without it stay fast."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": available_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        **{name: _version(name) for name in LIBRARIES},
    }


def busy_cores_note(threads: int) -> str | None:
    """A note if other processes keep so many cores busy that `threads` threads would wait for each other; looks for 0.3 seconds."""
    cores = available_cores()
    busy = psutil.cpu_percent(interval=0.3) / 100 * cores if threads > 1 else 0.0
    free = max(1, round(cores - busy))
    if threads <= free or busy < 0.5:
        return None
    return (
        f"note: other processes keep {busy:.1f} of {cores} cores busy, and {threads} threads would wait for each other; "
        f"OMP_NUM_THREADS={free} in front of the command is faster then"
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def available_cores() -> int:
    """Processors that this process may use, which a batch system may restrict."""
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count() or 1
