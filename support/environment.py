"""What a run is started on: versions, device, processor, and what else decides how numbers are rounded."""

import os
import platform
import re
import sys
from pathlib import Path

import keras

# What else decides how numbers are rounded, where its user sets it: oneDNN's switch and instruction set, how float32 is
# multiplied, the counts of threads, and what XLA is told. On TensorFlow, JAX and PyTorch each has its own.
ROUNDING = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")
ROUNDING += ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "XLA_FLAGS")


def processor():
    """Return the name of the processor; on Linux with its family and model, for one name can stand for several."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    entries = dict(re.findall(r"(?m)^(model name|cpu family|model)\s*: (.*)$", text))
    if len(entries) < 3:
        return entries.get("model name") or platform.processor() or platform.machine()
    return "{model name}, family {cpu family}, model {model}".format(**entries)


def environment():
    """Return what a run is started on: versions, the device, which may be a number of cores, and ROUNDING's values."""
    device = str(keras.ops.convert_to_tensor(0.0).device).rpartition("device:")[2]  # TensorFlow has a path before it
    if "cpu" in device.lower():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        device = f"{cores} core{'s' if cores > 1 else ''} of {processor()}"
    versions = {name: sys.modules[name].__version__ for name in ("keras", "numpy", keras.backend.backend())}
    rounding = {name: os.environ.get(name) for name in ROUNDING}
    return {**versions, "python": platform.python_version(), "device": device, **rounding}
