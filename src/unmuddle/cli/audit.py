"""`unmuddle audit`.

Examples:
  unmuddle audit --run runs/one
  unmuddle train --labels labels.csv --data folder:PATH   # with your decisions
"""

from collections import Counter
from pathlib import Path

from unmuddle.cli.outputs import check_report
from unmuddle.recipe.atomic import write_text
from unmuddle.recipe.audit import audit
from unmuddle.recipe.decisions import Row, check_undecided
from unmuddle.recipe.paths import check_outside
from unmuddle.recipe.run_folder import RunFolder
from unmuddle.recipe.tables import write_table
from unmuddle.report.audit_page import audit_page


def run(
    *,
    run: Path,
    data: str | None = None,
    limit: int = 200,
    draw: bool = False,
    pred_probs: Path | None = None,
    out: Path | None = None,
) -> None:
    """Rank the labels of a data set by how likely they are wrong, given a run's predictions.

    Accept or reject each label on an HTML page, or in the CSV file next to it.

    Args:
        run: folder of the run
        data: data set, as for train; default: the run's own
        limit: maximum number of labels
        draw: draw labels at random from the most suspicious quarter, from which UERM learns most
        pred_probs: .npy file of predicted probabilities (n, K); default: the run's own
        out: folder to write; default: RUN/audit
    """
    out = out or run / "audit"
    check_outside("--out", out, data or RunFolder(run).config().data)
    check_undecided(out / "suspects.csv")
    check_report("--out", out / "index.html")
    suspects, classes = audit(data, run, limit, draw=draw, pred_probs=pred_probs)
    out.mkdir(parents=True, exist_ok=True)
    rows = ((*s.row, f"{s.wrong:.4f}") for s in suspects)
    write_table(out / "suspects.csv", (*Row._fields, "wrong"), rows)
    write_text(out / "index.html", audit_page(suspects, classes, f"Labels of {run.resolve().name}"))
    counts = Counter(suspect.row.split for suspect in suspects)
    print(
        f"{len(suspects)} labels ({', '.join(f'{n} of {name}' for name, n in counts.items())}): "
        f"look at {out / 'index.html'}, or fill in {out / 'suspects.csv'}"
    )
    duplicates = RunFolder(run).duplicates
    if duplicates.exists():
        print(f"images that occur more than once: {duplicates}")
