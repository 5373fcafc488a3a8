import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from trainer.encoder import build, preprocess


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def batch_of(*images: bytes | None) -> pa.RecordBatch:
    row_ids = pa.array(range(40, 40 + len(images)))
    return pa.record_batch({"row_id": row_ids, "image": pa.array(images, pa.binary())})


def test_every_pixel_arrives_at_its_place_between_0_and_1() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    inputs = preprocess(batch_of(*(encoded(Image.fromarray(image)) for image in pixels)))
    assert inputs.shape == (3, 1, 32, 32)
    assert inputs.dtype == torch.float32
    for b, y, x in np.ndindex(pixels.shape):
        assert inputs[b, 0, y, x] == np.float32(pixels[b, y, x]) / np.float32(255)


def test_colours_become_grey_and_no_rows_become_no_images() -> None:
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    assert preprocess(batch_of(encoded(red))).unique().tolist() == pytest.approx([76 / 255])
    assert preprocess(batch_of()).shape == (0, 1, 32, 32)


WHOLE = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32), np.uint8)))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (None, "null"),
        (b"", "no image"),
        (b"not an image at all", "no image"),
        (WHOLE[: len(WHOLE) // 2], "row_id 41"),
        (WHOLE[:200] + b"\0" * 50 + WHOLE[250:], "row_id 41"),
        (encoded(Image.new("L", (32, 31))), "32 x 31 pixels"),
        (encoded(Image.new("L", (64, 64))), "64 x 64 pixels"),
    ],
)
def test_a_broken_image_is_refused_with_its_row_id(broken: bytes | None, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^row_id 41: ") as raised:
        preprocess(batch_of(WHOLE, broken, WHOLE))
    assert reason in str(raised.value)


def test_a_batch_without_images_names_the_columns_it_has() -> None:
    with pytest.raises(ValueError, match=r"no column 'image'.*'text'"):
        preprocess(pa.record_batch({"text": ["a"]}))


@pytest.mark.parametrize(("dim", "width"), [(128, 16), (7, 2)])
def test_the_encoder_maps_images_to_vectors_of_the_asked_size(dim: int, width: int) -> None:
    torch.manual_seed(0)
    outputs = build(dim=dim, width=width)(torch.rand(5, 1, 32, 32))
    assert outputs.shape == (5, dim)
    assert not torch.allclose(outputs.norm(dim=1), torch.ones(5)), "normalising is the caller's"


def test_equal_seeds_give_equal_weights() -> None:
    torch.manual_seed(3)
    first = build(width=2).state_dict()
    torch.manual_seed(3)
    second = build(width=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="dim=0"):
        build(dim=0)


def test_the_module_stands_alone_so_that_miner_and_trainer_read_the_same_text() -> None:
    code = (
        "import sys, trainer.encoder;"
        "print([m for m in sys.modules if m.startswith(('trainer.', 'miner', 'grpc', 'ray'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['trainer.encoder']"
