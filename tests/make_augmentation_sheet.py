"""Draws docs/images/augmentation.png: frames of a dataset under each transform of the images, and as training sees them by default.

python -m tests.make_augmentation_sheet
"""

from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from jaxreflow.data.lerobot import load_dataset
from jaxreflow.training.augmentation import TRANSFORMS, Changes, ImageTransformsConfig, augment_images, draw_changes
from tests.tiny_policy import DATASET

OUT = Path("docs/images/augmentation.png")
CAMERA, FRAMES, SIZE, MARGIN, DRAWN = "observation.image", (0, 16_000), 144, 6, 3


def columns() -> dict[str, np.ndarray]:
    """By title, the frames in one state each, uint8 `[B, H, W, 3]`: as recorded, at each transform's upper end, as drawn."""
    config, dataset = ImageTransformsConfig(), load_dataset(DATASET)
    frames = np.stack([dataset.image(frame, CAMERA) for frame in FRAMES])
    ends = np.array(
        [*(getattr(config, name)[1] for name in (*TRANSFORMS[:-1], "affine_degrees")), *config.affine_translate]
    )

    def changed(changes: Changes) -> np.ndarray:
        return np.asarray(augment_images(jax.numpy.asarray(frames), changes) * 255).round().astype(np.uint8)

    amounts = np.tile(ends.astype(np.float32), (len(FRAMES), 1))
    sheet = {"as recorded": frames}
    sheet |= {
        f"{name} {ends[i]:g}": changed(Changes(np.full((len(FRAMES), 1), i), amounts))
        for i, name in enumerate(TRANSFORMS)
    }
    for i in range(DRAWN):
        drawn = draw_changes(jax.random.key(i), len(FRAMES), [CAMERA], config)
        sheet[f"drawn, update {i + 1}"] = changed(drawn[CAMERA])
    return sheet


def main() -> None:
    sheet = columns()
    step = SIZE + MARGIN
    page = Image.new("RGB", (len(sheet) * step + MARGIN, len(FRAMES) * step + 20 + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for column, (title, images) in enumerate(sheet.items()):
        draw.text((MARGIN + column * step, 6), title, fill="black", font_size=14)
        for row, image in enumerate(images):
            picture = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            page.paste(picture, (MARGIN + column * step, 26 + row * step))
    page.save(OUT)


if __name__ == "__main__":
    main()
