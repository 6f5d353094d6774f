"""Tiny data sets in the layouts that their owners distribute."""

from pathlib import Path

import numpy as np
from PIL import Image

VOTES = {"neutral": "10,0,0,0,0,0,0,0,0,0", "happiness": "0,9,1,0,0,0,0,0,0,0"}


def save_image(path: Path, seed: int, size: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_folder(
    root: Path, parts: tuple[str, ...] = ("train", "val", "test"), each: int = 12
) -> Path:
    for p, part in enumerate(parts):
        for c, name in enumerate(("calm", "glad")):
            for i in range(each):
                save_image(root / part / name / f"{i:02}.png", seed=1000 * p + 100 * c + i)
    return root


def make_ferplus(root: Path, each: int = 6) -> Path:
    number = 0
    for folder in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        lines = []
        for votes in VOTES.values():
            for _ in range(each):
                name = f"fer{number:07}.png"
                save_image(root / folder / name, seed=number)
                lines.append(f'{name},"(0, 0, 48, 48)",{votes}')
                number += 1
        (root / folder / "label.csv").write_text("\n".join(lines) + "\n")
    return root


def make_rafdb(root: Path, each: int = 10) -> Path:
    lines = []
    for p, part in enumerate(("train", "test")):
        for number in range(7 * each):
            label = number % 7 + 1
            lines.append(f"{part}_{number + 1:05}.jpg {label}")
            image = root / "Image" / "aligned" / f"{part}_{number + 1:05}_aligned.jpg"
            save_image(image, seed=1000 * p + number, size=100)
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines))
    return root


def make_rafdb_folders(root: Path, each: int = 10) -> Path:
    for p, part in enumerate(("train", "test")):
        for number in range(7 * each):
            image = root / part / str(number % 7 + 1) / f"{part}_{number + 1:05}_aligned.jpg"
            save_image(image, seed=1000 * p + number, size=100)
    return root


def make_affectnet(root: Path, each: int = 10) -> Path:
    lists = root / "Manually_Annotated_file_lists"
    lists.mkdir(parents=True)
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    for p, name in enumerate(("training", "validation")):
        rows = [header, f"{p}/none.jpg,0,0,9,9,1;2,8,-2,-2", f"{p}/empty.jpg,-1,-1,-1,-1,1;2,3,0,0"]
        for number in range(8 * each):
            image = f"{p}/{number:04}.jpg"
            save_image(root / "Manually_Annotated_Images" / image, seed=1000 * p + number, size=60)
            rows.append(f"{image},4,6,50,40,1;2,{number % 8},0.1,0.2")
        (lists / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return root


def make_affectnet_annotations(root: Path, each: int = 10) -> Path:
    for p, part in enumerate(("train_set", "val_set")):
        (root / part / "annotations").mkdir(parents=True)
        for number in range(8 * each):
            save_image(root / part / "images" / f"{number}.jpg", seed=1000 * p + number, size=224)
            label = np.array(str(number % 8)) if number % 2 else np.int64(number % 8)
            np.save(root / part / "annotations" / f"{number}_exp.npy", label)
    return root


def make_fer2013(root: Path, each: int = 3, *, name: str = "fer2013.csv") -> Path:
    spaced = name != "fer2013.csv"
    rows = ["emotion, Usage, pixels" if spaced else "emotion,pixels,Usage"]
    rng = np.random.default_rng(0)
    for usage in ("Training", "PublicTest", "PrivateTest"):
        for number in range(7 * each):
            pixels = " ".join(map(str, rng.integers(0, 256, 48 * 48)))
            cells = (number % 7, usage, pixels) if spaced else (number % 7, pixels, usage)
            rows.append(",".join(map(str, cells)))
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(rows) + "\n")
    return root


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])
