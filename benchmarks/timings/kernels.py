"""Compile the Triton kernels for GPUs that need not be there, and count what they use.

    python -m benchmarks.timings.kernels           print the table of every kernel
    python -m benchmarks.timings.kernels --write   put those of an H200 on the page

Instructions a pair are those of one thread in the loop over tiles, times the threads of a program,
by the pairs of a tile. Masks are not counted, as few tiles need them.
"""

# pyright: reportOptionalOperand=false, reportOperatorIssue=false

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.pages import write_section
from unmuddle.supcon.backends.triton import large, pairs, rows

TYPES = {
    "fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
DIMS = (16, 64, 100, 128, 256, 768, 2048)
# Shared memory that one program may use on A100, H200 and B200, in bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SERIALISED = "C7515"  # a note of ptxas: asynchronous products wait for each other
INDICES = {"labels", "valid", "order", "begin", "end"}
OPERANDS = {"x", "z", "weights", "dx"}
NUMBERS = {
    "total", "padded", "columns", "ignore_index", "blocks", "first_row", "last_row", "first_col",
    "anchors", "parts", "total_parts", "stride", "total_stride", "count_offset", "part_stride",
    "stride_row", "stride_dim", "offset",
}  # fmt: skip
H200 = {"multiprocessors": 132, "hertz": 1.7e9, "flops": 4096, "exps": 16, "warps": 4, "l2": 32}


class Build(NamedTuple):
    """A kernel as one launch compiles it.

    Attributes:
        name: pipeline and kernel.
        kernel: of Triton.
        constants: of the compilation.
        warps: of a program.
        stages: of its pipeline of loads.
        tile: pairs that a step of its loop visits; 0: it visits rows, not pairs.
        trips: steps of the loop over dimensions, where there is one.
    """

    name: str
    kernel: Any
    constants: dict[str, Any]
    warps: int
    stages: int
    tile: int
    trips: int


def builds(dim: int, type_name: str) -> Iterator[Build]:
    """Kernels over pairs for rows of a length and a type."""
    dtype = TYPES[type_name]
    _, width, blocks, sizes = pairs.choose_layout(1, dim, dtype)
    sizes |= {"BLOCK_OUT": blocks.out, "ATTRACTS": True}
    rest = blocks.warps, blocks.stages, blocks.rows * blocks.cols, width // blocks.dim
    for kernel in (pairs.sums_kernel, pairs.gradient_kernel):
        for name, is_usual in (("pairs", True), ("pairs, every option", False)):
            flags = dict.fromkeys(("WEIGHTED", "NEGATIVES", "INSIDE", "SHARED"), not is_usual)
            yield Build(name, kernel, sizes | flags | {"BOUNDED": is_usual}, *rest)
    yield from row_builds(dim, width, dtype)
    if dtype.itemsize > 2:
        return
    tiling = large.choose_tiling(dim)
    is_long = dim > large.WHOLE
    sums = large.long_sums_kernel if is_long else large.sums_kernel
    gradient = large.weights_kernel if is_long else large.rows_kernel
    for kernel, sizes in ((sums, tiling.sums), (gradient, tiling.gradient)):
        kept, visited = sizes.get("BLOCK_M", sizes.get("BLOCK", 0)), sizes.get("BLOCK_N", 0)
        visited = visited or sizes.get("STREAMED", kept)
        constants = {k: v for k, v in sizes.items() if k.isupper()} | {"WIDTH": tiling.width}
        trips = tiling.width // sizes.get("BLOCK_D", tiling.width)
        rest = sizes["num_warps"], sizes["num_stages"], kept * visited, trips
        yield Build("large", kernel, constants, *rest)


def row_builds(dim: int, width: int, dtype: torch.dtype) -> Iterator[Build]:
    """Kernels over single rows, with all that they can do."""
    constants: dict[str, Any] = {"DIM": dim, "WIDTH": width, "BLOCK_M": rows.ROWS, "BLOCK": 256}
    constants |= {"BLOCK_D": min(width, rows.DIMS), "ACCUMULATE": rows.accumulate(dtype)}
    constants |= dict.fromkeys(("ORDERED", "NORMALIZE", "INSIDE", "TRAINS"), True)
    constants |= {"BOUNDED": False, "CHUNK": min(width, large.CHUNK)}
    kernels = [rows.prepare_kernel, rows.losses_kernel, rows.finish_kernel]
    if dtype.itemsize == 2:
        kernels += [rows.attraction_kernel, rows.positives_kernel]
    for kernel in kernels:
        yield Build("rows", kernel, constants, warps=4, stages=3, tile=0, trips=1)


def compiled(build: Build, type_name: str, dim: int, capability: int) -> dict[str, Any]:
    """Return what a kernel uses on GPUs of a compute capability."""
    names = build.kernel.arg_names
    constants = {k: v for k, v in build.constants.items() if k in names}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in NUMBERS:
            return "i32"
        if name in INDICES:
            return "*i64"
        if name == "prefix" or (name == "weighted" and build.tile == 0):
            return "*fp64"
        return f"*{type_name}" if name in OPERANDS or type_name == "fp64" else "*fp32"

    signature = {name: kind(name) for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, of) in enumerate(signature.items())
        if of.startswith("*") or name == "padded"
    }
    found = triton.compile(
        ASTSource(build.kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": build.warps, "num_stages": build.stages},
    )
    registers, spilled = _resources(found.asm["cubin"])
    instructions = None
    if build.tile:
        a_step = _hot(_run("nvdisasm", found.asm["cubin"], "-c"), build.trips)
        instructions = round(a_step * 32 * build.warps / build.tile, 1)
    return {
        "kernel": f"{build.name}.{build.kernel.fn.__name__.removesuffix('_kernel')}",
        "gpu": f"sm_{capability}",
        "type": type_name,
        "dim": dim,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": found.metadata.shared,
        "shared_limit": SHARED_LIMIT[capability],
        "serialised": _is_serialised(found.asm["ptx"], capability),
        "instructions_a_pair": instructions,
    }


def _run(tool: str, binary: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(TOOLS / tool), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers of a thread, and bytes it keeps in local memory because they ran out."""
    text = _run("cuobjdump", cubin, "--dump-resource-usage")
    usage = dict(part.split(":") for part in text.split() if part.count(":") == 1)
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def _is_serialised(ptx: str, capability: int) -> bool:
    """Return whether ptxas says that it made asynchronous products wait for each other."""
    tool = TOOLS / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [
            str(tool),
            "-v",
            f"-arch={ARCHITECTURES[capability]}",
            file.name,
            "-o",
            "/dev/null",
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return SERIALISED in done.stdout + done.stderr


def _hot(assembly: str, trips: int) -> int:
    """Count the instructions of a step over tiles, without the branches of masks."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(instruction[1])
    branches = [re.search(r"BRA\S* .*`\((\.L_\w+)\)", line) for line in lines]
    targets = [labels.get(found[1], -1) if found else -1 for found in branches]

    def has(name: str, first: int, last: int) -> bool:
        return any(name in line for line in lines[first:last])

    loops = [
        (target, i + 1)
        for i, target in enumerate(targets)
        if 0 <= target <= i and has("MMA", target, i + 1)
    ]
    outer = [loop for loop in loops if has("MUFU.EX2", *loop)]
    inner = [loop for loop in loops if not has("MUFU.EX2", *loop)]
    first, last = max(outer) if outer else (0, len(lines))  # the innermost starts last
    count, i = 0, first
    while i < last:
        count, target = count + 1, targets[i]
        skips = lines[i].startswith("@") and i < target <= last
        is_mask = skips and not has("MMA", i + 1, target) and not has("STG", i + 1, target)
        i = target if is_mask else i + 1
    inside = [end - start for start, end in inner if first <= start and end <= last]
    return count + (trips - 1) * sum(inside[:1])


def account(rows: list[dict[str, Any]], total: int = 65536) -> str:
    """Return a table of what an H200 would take, from counts and documented rates, unmeasured."""
    unit = H200["multiprocessors"] * H200["hertz"]
    lines = [
        "| N = 65,536, bf16 | products | exponentials | instructions | L2 | ms, all at once | "
        "ms, products then the rest |",
        "|---|---|---|---|---|---|---|",
    ]
    for dim in (128, 768):
        least = most = 0.0
        for build in builds(dim, "bf16"):
            if build.name != "large":
                continue
            row = next(
                row
                for row in rows
                if (row["dim"], row["type"], row["gpu"]) == (dim, "bf16", "sm_90")
                and row["kernel"] == f"large.{build.kernel.fn.__name__.removesuffix('_kernel')}"
            )
            is_rows = build.kernel is large.rows_kernel
            met = total**2 if is_rows else total**2 / 2
            width = build.constants["WIDTH"]
            kept = build.constants.get("BLOCK_M") or build.constants["BLOCK"]
            visited = build.tile // kept
            loaded = (visited + (0 if build.trips == 1 else kept)) * width * 2 / build.tile
            clocks = {
                "products": 2 * width * (2 if is_rows else 1) / H200["flops"],
                "exponentials": 1 / H200["exps"],
                "instructions": row["instructions_a_pair"] / 32 / H200["warps"],
                "l2": loaded / H200["l2"],
            }
            ms = {name: 1000 * met * clock / unit for name, clock in clocks.items()}
            fast = max(ms.values())
            slow = max(ms["products"], ms["l2"]) + max(ms["exponentials"], ms["instructions"])
            least, most = least + fast, most + slow
            cells = [*(f"{value:.1f}" for value in ms.values()), f"{fast:.1f}", f"{slow:.1f}"]
            lines.append(f"| {row['kernel']}, D = {dim} | {' | '.join(cells)} |")
        if dim > large.WHOLE:
            # Weights are written once and read twice from memory; cuBLAS multiplies at 700 TFLOP/s.
            products = 1000 * 2 * total**2 * dim / 700e12
            moved = 1000 * 3 * (total**2 / 2) * 2 / 4.8e12
            least, most = least + max(products, moved), most + products + moved
            lines.append(
                f"| cuBLAS, D = {dim} | {products:.1f} | | | {moved:.1f} (memory) | "
                f"{max(products, moved):.1f} | {products + moved:.1f} |"
            )
        limit = 1000 * 6 * total**2 * dim / 790e12
        lines.append(
            f"| **all, D = {dim}** (limit 6 N² D at 790 TFLOP/s: {limit:.1f} ms) | | | | | "
            f"**{least:.1f}** | **{most:.1f}** |"
        )
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as Markdown."""
    head = "| " + " | ".join(name.replace("_", " ") for name in rows[0]) + " |"
    lines = [" | ".join("" if v is None else str(v) for v in row.values()) for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *(f"| {line} |" for line in lines)])


def main() -> None:
    """Print a Markdown table; write JSON or the page where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--gpus", type=int, nargs="+", choices=SHARED_LIMIT, default=SHARED_LIMIT)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="tables of D = 128 and 768 on sm_90")
    a = parser.parse_args()
    if a.write:
        a.dims, a.types, a.gpus = (128, 768), ("fp32", "bf16"), (90,)
    found = [
        compiled(build, name, dim, capability)
        for capability in a.gpus
        for name in a.types
        for dim in a.dims
        for build in builds(dim, name)
        if build.tile or not a.write
    ]
    print(table(found))
    if a.json:
        a.json.write_text(json.dumps(found))
    if a.write:
        write_section("benchmarks.md", "kernels", f"{table(found)}\n\nTriton {triton.__version__}.")
        write_section("benchmarks.md", "account", account(found))


if __name__ == "__main__":
    main()
