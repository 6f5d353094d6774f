"""What the guide to other libraries promises beyond its examples, which run too."""

import lightning
import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from unmuddle import UERM, SupConLoss, attach_arm
from unmuddle.uerm import LedgerDataset

TRUTH = torch.arange(240) % 3
GIVEN = torch.where(torch.arange(240) % 10 == 0, (TRUTH + 1) % 3, TRUTH)
DATA = LedgerDataset(TensorDataset(4 * torch.eye(3)[TRUTH], GIVEN))


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.uerm = nn.Linear(3, 3), UERM(GIVEN, 3, warmup_epochs=1)
        self.supcon = SupConLoss(temperature=0.1)

    def training_step(self, batch, _):
        x, _, ids = batch
        logits = self.head(x)
        out = self.uerm(x, logits, ids)
        losses = cross_entropy(logits, out.targets, reduction="none")
        return out.weighted_mean(losses) + 0.1 * self.supcon(logits, out.labels)

    def on_train_epoch_end(self) -> None:
        self.uerm.end_epoch()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)


def fit(model: Classifier, folder, epochs: int, checkpoint=None) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(DATA, batch_size=24), ckpt_path=checkpoint)
    return trainer


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore::UserWarning:lightning")
def test_a_lightning_checkpoint_holds_the_ledger_and_goes_on_as_if_never_stopped(tmp_path) -> None:
    torch.manual_seed(0)
    model = Classifier()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    whole = Classifier()
    whole.load_state_dict(start)
    fit(whole, tmp_path, 6)
    assert len(whole.uerm.ledger.events()) >= 20

    trainer = fit(model, tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Classifier()
    fit(resumed, tmp_path, 6, tmp_path / "half.ckpt")
    assert resumed.uerm.ledger.events() == whole.uerm.ledger.events()
    assert torch.equal(resumed.uerm.ledger.current_labels, whole.uerm.ledger.current_labels)
    assert torch.equal(resumed.head.weight, whole.head.weight)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.uerm = nn.Linear(3, 3), UERM(GIVEN, 3, warmup_epochs=1)

    def forward(self, x, ids, labels):
        logits = self.head(x)
        out = self.uerm(x, logits, ids)
        losses = cross_entropy(logits, out.targets, reduction="none")
        return {"loss": out.weighted_mean(losses), "logits": logits}


class Callback(TrainerCallback):
    """Ends UERM's epochs, and ends the training as a kill would."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_epoch_end(self, args, state, control, *, model, **_):
        model.uerm.end_epoch()
        control.should_training_stop = state.epoch >= self.last


def train(model: Network, folder, last: int, *, resume: bool = False) -> None:
    arguments = TrainingArguments(
        str(folder), num_train_epochs=6, per_device_train_batch_size=24, learning_rate=0.1,
        save_strategy="epoch", remove_unused_columns=False, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"x": x, "labels": label, "ids": i} for x, label, i in DATA]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[Callback(last)])
    trainer.train(resume_from_checkpoint=resume)


def test_a_transformers_checkpoint_holds_the_ledger_and_goes_on_as_if_never_stopped(
    tmp_path,
) -> None:
    models = [Network() for _ in range(3)]
    models[1].load_state_dict(models[0].state_dict())
    train(models[0], tmp_path / "whole", 6)
    assert len(models[0].uerm.ledger.events()) >= 20
    train(models[1], tmp_path / "half", 3)
    assert models[1].uerm.epoch == 3
    train(models[2], tmp_path / "half", 6, resume=True)
    assert models[2].uerm.ledger.events() == models[0].uerm.ledger.events()
    assert torch.equal(models[2].head.weight, models[0].head.weight)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "convnext_atto"])
def test_a_timm_model_trains_with_the_loss_on_its_features(name: str) -> None:
    network = timm.create_model(name, num_classes=4)
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 4
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    (
        cross_entropy(network.get_classifier()(features), labels) + SupConLoss()(features, labels)
    ).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_timm_model_with_arm_is_prepared_by_accelerate() -> None:
    accelerator = Accelerator(cpu=True)
    model = attach_arm(timm.create_model("resnet18"), num_classes=4, input_size=128)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    before = model.arm.weight.detach().clone()
    vectors = model.embed(torch.randn(8, 3, 128, 128))
    accelerator.backward(SupConLoss()(vectors, torch.arange(8) % 4))
    optimizer.step()
    assert not torch.equal(model.arm.weight, before)
