"""Break the code at random places, one at a time, and see whether the tests notice.

A mutant is one change by cosmic-ray in a copy of the code. It survives if every test of its part
passes; what survives is printed as a diff. Annotations are left alone, as they do nothing.
"""

import argparse
import ast
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome

from benchmarks.pages import ROOT

# What is mutated, and the tests that should notice, the quickest first.
PARTS = {
    "supcon": (
        "supcon/**/*.py",
        "contract values denominator_weights queue kernels pipelines launches laws compiled "
        "distributed",
    ),
    "arm": ("arm/functional.py", "arm published fold laws distributed"),
    "uerm": (
        "uerm/*.py",
        "module policy noise ledger history laws dataset ledger_histories distributed",
    ),
}
TIMEOUT = 1200.0  # s; a mutant that never ends counts as noticed


def sample(part: str, size: int, seed: int) -> list[MutationSpec]:
    """Mutants of a part, drawn from all there are."""
    modules = [
        path.relative_to(ROOT) for path in sorted(ROOT.glob(f"src/unmuddle/{PARTS[part][0]}"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = WorkDB(Path(folder) / "work.sqlite", WorkDB.Mode.create)
        init(modules, work, {})
        mutants = [mutation for item in work.work_items for mutation in item.mutations]
        work.close()
    mutants = [mutant for mutant in mutants if not in_annotation(mutant)]
    mutants.sort(key=lambda m: (str(m.module_path), m.operator_name, m.occurrence))
    print(f"{part}: {size} of {len(mutants)} mutants", flush=True)
    return random.Random(seed).sample(mutants, min(size, len(mutants)))


def in_annotation(mutant: MutationSpec) -> bool:
    """Whether it changes a type only."""
    tree = ast.parse((ROOT / mutant.module_path).read_text())
    types = [
        node
        for parent in ast.walk(tree)
        for name in ("annotation", "returns")
        if (node := getattr(parent, name, None)) is not None
    ]
    return any(
        (node.lineno, node.col_offset) <= mutant.start_pos < (node.end_lineno, node.end_col_offset)
        for node in types
    )


def work_on_a_copy(folder: str) -> None:
    """Let this process break things in a copy of its own."""
    copy = Path(folder) / str(os.getpid())
    for name in ("src", "tests", "benchmarks", "docs/pages"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy / name)
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}


def run(part: str, mutant: MutationSpec | None) -> tuple[TestOutcome | None, str]:
    """Test a mutant, or the code as it is; what came of it, and how."""
    files = " ".join(f"tests/{part}/test_{name}.py" for name in PARTS[part][1].split())
    started = time.perf_counter()
    result = mutate_and_test(
        [mutant] if mutant else [],
        f"{shlex.quote(sys.executable)} -m pytest -x -q {files} src/unmuddle/{part}",
        TIMEOUT,
    )
    outcome = result.test_outcome
    what = f"{mutant.module_path}:{mutant.start_pos[0]} {mutant.operator_name}" if mutant else part
    came = (outcome.value if outcome else "no outcome") if mutant else "without a mutant"
    lines = [f"{what}: {came}, {time.perf_counter() - started:.0f} s"]
    if mutant and outcome != TestOutcome.KILLED:
        lines.append(result.diff or result.output or "")
    if not mutant and outcome != TestOutcome.SURVIVED:
        lines.append(result.output or "")
    return outcome, "\n".join(lines)


def main() -> None:
    """Draw mutants, test each, print the share that survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--sample", type=int, default=40, help="mutants of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    a = parser.parse_args()
    os.chdir(ROOT)
    drawn = [(part, mutant) for part in a.parts for mutant in sample(part, a.sample, a.seed)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(a.jobs, initializer=work_on_a_copy, initargs=(folder,)) as pool,
    ):
        sound = [pool.submit(run, part, None) for part in a.parts]
        jobs = [pool.submit(run, *mutant) for mutant in drawn]
        outcomes: list[TestOutcome | None] = []
        for done in as_completed([*sound, *jobs]):
            outcome, text = done.result()
            print(text, flush=True)
            if done in sound and outcome != TestOutcome.SURVIVED:
                pool.shutdown(cancel_futures=True)
                sys.exit("the tests fail without a mutant")
            if done in jobs:
                outcomes.append(outcome)
    survived = outcomes.count(TestOutcome.SURVIVED)
    print(f"{survived} of {len(outcomes)} survived ({survived / len(outcomes):.0%})")


if __name__ == "__main__":
    main()
