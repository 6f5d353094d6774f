"""Picture of some training samples of each class."""

from PIL import Image, ImageDraw

from unmuddle.recipe.data import LabeledImages

CELL = 96
STEP = CELL + 2
COLUMNS = 8
MARGIN = 110
FOOTER = 30


def sample_sheet(data: LabeledImages, classes: tuple[str, ...]) -> Image.Image:
    """Draw a row of samples per class. A red frame marks a label that is not the true one."""
    height = len(classes) * STEP
    sheet = Image.new("RGB", (MARGIN + COLUMNS * STEP, height + FOOTER), "white")
    draw = ImageDraw.Draw(sheet)
    for label, name in enumerate(classes):
        y = label * STEP
        draw.text((8, y + CELL // 2 - 6), name, fill="black", font_size=15)
        for column, sample in enumerate((data.labels == label).nonzero()[:COLUMNS, 0].tolist()):
            x = MARGIN + column * STEP
            image = Image.fromarray(data.images[sample].permute(1, 2, 0).numpy())
            sheet.paste(image.resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
            if data.true_labels is not None and data.true_labels[sample] != label:
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline="red", width=4)
    note = "one row per given label; red frame: the true label is another one"
    draw.text((MARGIN, height + 6), note, fill="black", font_size=14)
    return sheet
