"""Images from folders: as a viewer shows them, and every file that is none, named."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

from cascade_trt.cli import cli
from cascade_trt.evaluation.captions import Caption
from cascade_trt.evaluation.images import read_folder, read_images
from cascade_trt.runtime.errors import CascadeError


def pixels(folder: Path) -> np.ndarray:
    """uint8 [H, W, 3] of the folder's only image."""
    (image,) = read_folder(folder)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_of_16_bits_is_scaled(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path)[..., 0], np.rint(grey / 257))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    """An alpha channel, a transparent entry of a palette, or a colour that is declared to be clear."""
    red = np.zeros((8, 8, 4), np.uint8)
    red[..., 0], red[:4, :, 3] = 200, 255
    image = Image.fromarray(red)
    options: dict[str, object] = {}
    if mode in ("L", "1"):
        image, options = Image.fromarray(np.where(red[..., 3] > 0, 0, 255).astype(np.uint8)), {"transparency": 255}
        image = image.convert(mode)
    elif mode == "P":
        image = Image.fromarray((red[..., 3] == 0).astype(np.uint8)).convert("P")
        image.putpalette([200, 0, 0, 0, 0, 0])
        options = {"transparency": 1}
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png", **options)
    seen = pixels(tmp_path)
    assert (seen[4:] == 255).all()
    assert (seen[:4] < 255).any(axis=2).all()


def test_half_transparent(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
    assert pixels(tmp_path)[0, 0].tolist() == [255, 127, 127]


def test_photographs_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("CMYK", (16, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert pixels(tmp_path).shape == (16, 8, 3)


def test_what_is_no_image_is_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.PNG")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert len(read_folder(tmp_path)) == 1


def bomb(file: Path, side: int) -> None:
    """A PNG of side x side white pixels in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side // 8 + 1)) for _ in range(64)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def damaged(folder: Path) -> dict[str, str]:
    """Files that are no whole images, and what is said of them."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("cut.png", "cut.jpg", "cut.webp", "cut.bmp", "header.png"):
        noise.save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: 20 if name == "header.png" else len(content) // 2])
    bomb(folder / "bomb.png", 10_000)  # Pillow warns of it
    bomb(folder / "worse.png", 60_000)  # and refuses this one
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (1 << 22), zip=True)
    noise.save(folder / "chunk.png", pnginfo=info)
    bombs = {"bomb.png": "pixels", "worse.png": "pixels"}
    return dict.fromkeys((file.name for file in folder.iterdir()), "cannot be read") | bombs


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name, said in damaged(tmp_path).items():
        with pytest.raises(CascadeError, match=f"{name} cannot be read .*{said}|{name} {said}"):
            read_images(tmp_path, [Caption("x", name)])
    with pytest.raises(CascadeError, match="nowhere.png cannot be read .there is no such file"):
        read_images(tmp_path, [Caption("x", "nowhere.png")])


@pytest.mark.parametrize("name", ["cut.jpg", "bomb.png", "text.png"])
def test_eval_says_so_in_a_sentence(judge_file: Path, tmp_path: Path, name: str) -> None:
    damaged(tmp_path)
    (tmp_path / "captions.jsonl").write_text(f'{{"file": "{name}", "prompt": "a red cat"}}\n')
    asked = ("eval", "--images", tmp_path, "--judge", judge_file, "--threads", 1, "--out", tmp_path / "out")
    result = CliRunner().invoke(cli, [str(one) for one in asked])
    assert result.exit_code == 2, result.output
    assert f"{name} cannot be read" in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
