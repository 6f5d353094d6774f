"""Picture of some training samples of each class."""

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from unmuddle.recipe.data import LabeledImages

CELL = 96
COLUMNS = 8


def sample_sheet(data: LabeledImages, labels: Tensor, classes: tuple[str, ...]) -> Image.Image:
    """Draw a row of samples per class. A red frame marks a label that is not the true one."""
    rows: list[Tensor] = []
    for label in range(len(classes)):
        ids = (labels == label).nonzero()[:COLUMNS, 0].tolist()
        cells = [_cell(data, labels, i) for i in ids]
        rows += cells + [torch.full((3, CELL, CELL), 255, dtype=torch.uint8)] * (
            COLUMNS - len(cells)
        )
    grid = make_grid(torch.stack(rows), nrow=COLUMNS, padding=2, pad_value=255)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())

    margin = 110
    footer = 30
    sheet = Image.new("RGB", (picture.width + margin, picture.height + footer), "white")
    sheet.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(classes):
        draw.text((8, row * (CELL + 2) + CELL // 2 - 6), name, fill="black", font_size=15)
    note = "one row per given label; red frame: the true label is another one"
    draw.text((margin, picture.height + 6), note, fill="black", font_size=14)
    return sheet


def _cell(data: LabeledImages, labels: Tensor, index: int) -> Tensor:
    image = torch.nn.functional.interpolate(data.images[index][None], (CELL, CELL))[0]
    if data.true_labels is not None and data.true_labels[index] != labels[index]:
        red = torch.tensor([220, 30, 30], dtype=torch.uint8)[:, None, None]
        framed = red.expand(3, CELL, CELL).clone()
        framed[:, 4:-4, 4:-4] = image[:, 4:-4, 4:-4]
        return framed
    return image
