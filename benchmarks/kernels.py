"""Compile the Triton kernels ahead of time for GPUs that need not be there; print what they use."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unmuddle.supcon.backends import triton as kernels

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Shared memory that one block may use on A100, H100 and B200, in bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
POINTERS = {"group": "*i32", "scale_pointer": "*fp32", "out": "*fp32", "g": "*fp32"}
POINTERS |= {"lse": "*fp32", "a": "*fp32", "log_weight": "*fp32"}


def compile_for(kernel: Any, name: str, dim: int, capability: int) -> dict[str, Any]:
    """Resources of a kernel in its fullest form, with positives inside."""
    dtype = TYPES[name]
    blocks = kernels.choose_blocks(dim, dtype)
    constants = {
        "D": dim, "BLOCK_M": blocks.rows, "BLOCK_N": blocks.cols, "BLOCK_D": blocks.dim,
        "BLOCK_OUT": blocks.out, "OVER": kernels.OVER["all"], "WEIGHTED": True, "ATTRACTS": True,
        "PRECISION": kernels.precision(dtype), "ACCUMULATE": kernels.accumulate(dtype),
    }  # fmt: skip
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    signature = {
        argument: "constexpr" if argument in constants
        else f"*{name}" if argument == "z"
        else POINTERS.get(argument, "i32")
        for argument in kernel.arg_names
    }  # fmt: skip
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": blocks.warps, "num_stages": blocks.stages},
    )
    registers, spilled = _resource_usage(compiled.asm["cubin"])
    return {
        "kernel": kernel.fn.__name__.removesuffix("_kernel"),
        "gpu": f"sm_{capability}",
        "type": name,
        "dim": dim,
        "shared_bytes": compiled.metadata.shared,
        "shared_limit": SHARED_LIMIT[capability],
        "registers": registers,
        "spilled_bytes": spilled,
    }


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes it keeps in local memory because registers ran out."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = dict(part.split(":") for part in text.split() if part.count(":") == 1)
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def main() -> None:
    """Print a Markdown table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 128, 700, 2048])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [
        compile_for(kernel, name, dim, capability)
        for kernel in (kernels.log_sum_exp_kernel, kernels.pull_kernel)
        for capability in SHARED_LIMIT
        for name in TYPES
        for dim in arguments.dims
    ]
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
