"""The machine and the library versions that a result was made with."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

LIBRARIES = ("torch", "torchvision", "lightning", "transformers", "peft", "timm", "numpy", "scikit-learn")


def environment() -> dict:
    """Python, libraries, processor, cores, memory and GPUs. Imports nothing heavy: a verb without torch stays without it."""
    found: dict = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    found |= {"cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()}
    found |= {"memory_gb": round(psutil.virtual_memory().total / 2**30, 1), "gpus": _gpus()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
