"""Record of a training run: the files in its run folder, and a printed description."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from unmuddle.recipe.atomic import write_whole
from unmuddle.recipe.data.duplicates import MOST, describe
from unmuddle.recipe.data.files import listing
from unmuddle.recipe.evaluate import Score
from unmuddle.recipe.metrics import plain
from unmuddle.recipe.run_folder import ENDED
from unmuddle.recipe.sample_sheet import sample_sheet
from unmuddle.recipe.snapshot import snapshot
from unmuddle.recipe.training import Training


class Record:
    """Writer of the run folder during training. Only the first process writes."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.run = training.run
        self.is_first = training.accelerator.is_main_process
        self.started = time.perf_counter() - training.progress.seconds

    def begin(self) -> None:
        """Write the files that are known before the first step, and print a description."""
        t = self.training
        if self.is_first:
            if not t.resume:
                self.run.claim()
            self.run.save_config(t.config.anywhere())
            self.run.rewind(t.progress.epoch)
            self._save_data()
            self._save_relabeling()
            if t.progress.best:
                self.run.save_weights(t.progress.best)
            t.checkpoint.save(self.run.checkpoint, t.progress)  # to return to when interrupted
        self._describe()
        if t.config.tracker != "none":
            t.accelerator.init_trackers(t.config.tracker)

    def end_epoch(self, metrics: dict[str, float | None]) -> None:
        """Write the files of an epoch, with the checkpoint last because it relies on the others."""
        t = self.training
        if self.is_first:
            if t.progress.best_epoch == t.progress.epoch:
                self.run.save_weights(t.progress.best)
            self._save_relabeling()
            self.run.add_metrics(metrics)
            t.checkpoint.save(self.run.checkpoint, t.progress)
        known = {name: value for name, value in metrics.items() if value is not None}
        t.accelerator.log(known, step=t.progress.epoch)

    def undo_epoch(self) -> None:
        """Return to the last complete epoch, and discard the interrupted one."""
        t = self.training
        if self.is_first:
            t.progress = t.checkpoint.load(self.run.checkpoint)
            self.run.rewind(t.progress.epoch)
            if t.progress.best:
                self.run.save_weights(t.progress.best)
            self._save_relabeling()
        hint = f"interrupted; unmuddle train --resume {self.run.path} continues it"
        t.console.print(hint, markup=False)

    def save_last(self) -> None:
        """Write the weights of the last epoch."""
        if self.is_first:
            self.run.save_weights(self.training.average.module.state_dict(), "last")

    def save_snapshot(self) -> None:
        """Write the snapshot of the training samples for the report."""
        t = self.training
        if self.is_first:
            training, ledger = t.data.splits.train, t.uerm.ledger
            batch, seed = t.config.batch_size, t.config.seed
            self.run.save_snapshot(snapshot(t.average.module, training, ledger, batch, seed))

    def end(self, status: str, tests: Mapping[str, Score]) -> None:
        """Write the summary, and remove the checkpoint if the run has ended."""
        if self.is_first:
            self.run.save_summary(self._summary(status, tests))
            if status in ENDED:
                self.run.checkpoint.unlink(missing_ok=True)
        if status in ENDED:
            self.training.accelerator.end_training()

    def _save_data(self) -> None:
        data, console = self.training.data, self.training.console
        training, classes = data.splits.train, data.splits.classes
        sheet = sample_sheet(training, classes)
        write_whole(self.run.path / "samples.png", partial(sheet.save, format="PNG"))
        self.run.save_samples(training, classes)
        if data.labels is not None:
            self.run.save_decisions(data.labels)
        self.run.save_left_out(data.left_out)
        if data.left_out:
            lines = [
                "left out:",
                *listing(data.left_out, shown=3),
                f"  all of them: {self.run.left_out}",
            ]
            console.print(*lines, sep="\n", soft_wrap=True, markup=False)
        if data.copies:
            self.run.save_duplicates(data.copies)
            line = f"{describe(data.copies)}: {self.run.duplicates}"
            console.print(line, soft_wrap=True, markup=False)
        if sum(map(len, data.splits.parts().values())) > MOST:
            console.print(f"near-duplicates: not searched for among more than {MOST:,} images")

    def _save_relabeling(self) -> None:
        data = self.training.data
        held_out = data.decisions.held_out if data.decisions is not None else []
        self.run.save_relabeling(self.training.uerm, data.splits, held_out)

    def _describe(self) -> None:
        t = self.training
        config, splits, backbone = t.config, t.data.splits, t.backbone
        lines: list[str] = []
        if t.data.decisions is not None:
            lines.append(f"{t.data.labels or t.run.labels}: {t.data.decisions.describe()}")
        if backbone.unused:
            names = ", ".join(backbone.unused[:3]) + (", ..." if len(backbone.unused) > 3 else "")
            lines.append(
                f"--weights {config.weights}: {len(backbone.unused)} tensors are not the "
                f"backbone's and are not used: {names}"
            )
        lines.append(
            f"{config.data}: {len(splits.train)} training, {len(splits.val)} validation, "
            f"{len(splits.test)} test images of {len(splits.classes)} classes; {config.backbone} "
            f"with {config.parts}, feature map {backbone.channels} x {backbone.map_size[0]} x "
            f"{backbone.map_size[1]}, on {t.accelerator.device}; run folder {self.run.path}"
            + (f", from epoch {t.progress.epoch + 1} on" if t.progress.epoch else "")
        )
        for name, split in (("validation", splits.val), ("test", splits.test)):
            missing = split.without_images(splits.classes)
            lines += [f"{of_class}: has no {name} image" for of_class in missing]
        for line in lines:
            t.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _summary(self, status: str, tests: Mapping[str, Score]) -> dict[str, Any]:
        t = self.training
        training, progress, recorded = t.data.splits.train, t.progress, t.config.anywhere()
        summary: dict[str, Any] = {
            "status": status,
            "data": recorded.data,
            "noise": recorded.noise,
            "labels": recorded.labels,
            "parts": recorded.parts,
            "backbone": recorded.backbone,
            "seed": recorded.seed,
            "classes": t.data.splits.classes,
            "image_size": t.data.splits.image_size,
            "best_epoch": progress.best_epoch,
            "val_accuracy": progress.best_accuracy if progress.best_epoch else None,
            "seconds": time.perf_counter() - self.started,
        }
        if training.true_labels is not None:
            scored = t.uerm.ledger.cpu().compare(training.true_labels)
            summary["relabeling"] = {name: plain(v) for name, v in scored._asdict().items()}
        for split, score in tests.items():
            summary[split] = {name: plain(value) for name, value in score._asdict().items()}
        return summary
