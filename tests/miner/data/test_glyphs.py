"""The glyph set: deterministic, split by identity, nothing but characters with a shape."""

import io
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTCollection, TTFont
from PIL import Image, ImageDraw, ImageFont

from miner.data.glyphs import GlyphReport, write_glyphs
from miner.errors import DatasetError

SHIPPED = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LATIN_A, GREEK_ALPHA, CYRILLIC_A = "U+0041", "U+0391", "U+0410"
TEXT = "Ai.\u0301WQ\u0391\u0410\u00c5\u222b \u200b\u00ad"
LETTERS = "".join(map(chr, range(0x100, 0x180)))


def subset_font(name: str, text: str, out: Path) -> Path:
    font = TTFont(SHIPPED / name)
    subsetter = Subsetter(Options(notdef_outline=True))
    subsetter.populate(text=text)
    subsetter.subset(font)
    font.save(out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fonts")
    (folder / "deep").mkdir()
    subset_font("DejaVuSans.ttf", TEXT + LETTERS, folder / "Sans.ttf")
    subset_font("DejaVuSans-Bold.ttf", TEXT + LETTERS + "\u2660", folder / "deep" / "Bold.ttf")
    return folder


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> GlyphReport:
    return write_glyphs(tmp_path_factory.mktemp("set"), fonts=[folder])


def rows_of(report: GlyphReport) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(report.path).to_pylist()
    return rows


def tile_of(row: dict[str, Any]) -> npt.NDArray[np.uint8]:
    image = Image.open(io.BytesIO(row["image"]))
    assert image.mode == "L"
    return np.asarray(image)


def oracle_ink(font: Path, character: str, em: int) -> npt.NDArray[np.uint8]:
    """The ink box of a character drawn in the middle of a large canvas, by another route."""
    canvas = Image.new("L", (8 * em, 8 * em))
    drawn_with = ImageFont.truetype(font, em, layout_engine=ImageFont.Layout.BASIC)
    ImageDraw.Draw(canvas).text((4 * em, 4 * em), character, font=drawn_with, fill=255)
    return np.asarray(canvas.crop(canvas.getbbox()))


def test_equal_fonts_give_an_equal_file_wherever_they_lie(
    folder: Path, written: GlyphReport, tmp_path: Path
) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    again = write_glyphs(tmp_path / "set", fonts=[moved / "deep", moved / "Sans.ttf"])
    assert again.path.read_bytes() == written.path.read_bytes()
    assert [path.name for path in again.path.parent.iterdir()] == ["glyphs.parquet"]


def test_report_counts_what_the_file_holds(written: GlyphReport) -> None:
    rows = rows_of(written)
    splits = [row["split"] for row in rows]
    assert written.num_samples == len(rows) == len({row["sample_id"] for row in rows})
    assert written.num_identities == len({row["identity"] for row in rows})
    assert written.num_fonts == len({row["font"] for row in rows}) == 2
    assert (written.num_train, written.num_test) == (splits.count("train"), splits.count("test"))
    assert rows[0]["sample_id"] == f"{rows[0]['identity']}/{rows[0]['font']}"


def test_splits_share_no_identity_and_stay_when_a_font_is_added(
    folder: Path, written: GlyphReport, tmp_path: Path
) -> None:
    before = {(row["identity"], row["split"]) for row in rows_of(written)}
    assert len(before) == written.num_identities
    share = sum(split == "test" for _, split in before) / len(before)
    assert 0.2 < share < 0.4
    mono = subset_font("DejaVuSansMono.ttf", LETTERS + "\u2660", tmp_path / "Mono.ttf")
    after = {
        (row["identity"], row["split"])
        for row in rows_of(write_glyphs(tmp_path, fonts=[folder, mono]))
    }
    assert before < after


@pytest.mark.parametrize("character", ["A", "i", ".", "\u0301", "\u00c5"])
def test_a_tile_is_the_centred_ink_of_its_character(
    folder: Path, written: GlyphReport, character: str
) -> None:
    row = next(r for r in rows_of(written) if r["sample_id"] == f"U+{ord(character):04X}/Sans")
    tile, ink = tile_of(row), oracle_ink(folder / "Sans.ttf", character, 26)
    expected = np.zeros((32, 32), np.uint8)
    top, left = (32 - ink.shape[0]) // 2, (32 - ink.shape[1]) // 2
    expected[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    np.testing.assert_array_equal(tile, expected)


def test_ink_larger_than_the_tile_is_shrunk_until_it_fits(tmp_path: Path) -> None:
    report = write_glyphs(
        tmp_path,
        fonts=[
            subset_font("DejaVuSans.ttf", "\ufdfa\u2001\u222d", tmp_path / "a.ttf"),
            subset_font("DejaVuSans-Bold.ttf", "\ufdfa\u222d", tmp_path / "b.ttf"),
        ],
        size=16,
    )
    for row in rows_of(report):
        tile = tile_of(row)
        assert tile.shape == (16, 16)
        assert not tile[[0, -1]].any()
        assert not tile[:, [0, -1]].any()
        assert max(np.ptp(np.nonzero(tile)[0]), np.ptp(np.nonzero(tile)[1])) >= 11


def test_latin_cyrillic_and_greek_a_are_kept_as_identical_pictures_of_three_identities(
    written: GlyphReport,
) -> None:
    images = {
        row["identity"]: row["image"]
        for row in rows_of(written)
        if row["font"] == "Sans" and row["identity"] in {LATIN_A, GREEK_ALPHA, CYRILLIC_A}
    }
    assert len(images) == 3
    assert len(set(images.values())) == 1


def test_blank_control_and_single_characters_are_left_out_and_counted(
    written: GlyphReport,
) -> None:
    rows = rows_of(written)
    identities = {row["identity"] for row in rows}
    assert not identities & {"U+0020", "U+200B", "U+00AD", "U+2660"}
    assert all(tile_of(row).max() > 64 for row in rows)
    assert written.skipped == {"blank": 2, "control": 4, "single sample": 1}


def test_private_use_and_missing_glyph_boxes_are_left_out(tmp_path: Path) -> None:
    fonts = []
    for name in ("a", "b"):
        font = TTFont(subset_font("DejaVuSans.ttf", "AB", tmp_path / f"{name}.ttf"))
        boxes = {0xE000: "A", ord("C"): "copy_of_notdef"}
        pen = TTGlyphPen(font.getGlyphSet())
        pen.addComponent(".notdef", (1, 0, 0, 1, 0, 0))
        font.setGlyphOrder([*font.getGlyphOrder(), "copy_of_notdef"])
        font["glyf"]["copy_of_notdef"] = pen.glyph()
        font["hmtx"]["copy_of_notdef"] = font["hmtx"][".notdef"]
        for table in font["cmap"].tables:
            if table.isUnicode():
                table.cmap.update(boxes)
        font.save(tmp_path / f"{name}.ttf")
        fonts.append(tmp_path / f"{name}.ttf")
    report = write_glyphs(tmp_path / "set", fonts=fonts)
    assert {row["identity"] for row in rows_of(report)} == {"U+0041", "U+0042"}
    assert report.skipped == {"notdef": 2, "private use": 2}


def test_every_face_of_a_collection_and_fonts_of_one_name_stay_apart(tmp_path: Path) -> None:
    for sub in ("x", "y"):
        (tmp_path / sub).mkdir()
        subset_font("DejaVuSans.ttf", "AB", tmp_path / sub / "Same.ttf")
    collection = TTCollection()
    collection.fonts = [TTFont(tmp_path / sub / "Same.ttf") for sub in ("x", "y")]
    collection.save(tmp_path / "Both.ttc")
    report = write_glyphs(tmp_path / "set", fonts=[tmp_path])
    assert {row["font"] for row in rows_of(report)} == {"Both#0", "Both#1", "Same", "Same~2"}
    assert report.num_samples == 8


def test_progress_reaches_the_number_of_glyphs(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_glyphs(tmp_path, fonts=[folder], on_progress=lambda *call: seen.append(call))
    assert len(seen) == 2
    assert seen[0][0] < seen[1][0] == seen[1][1] == seen[0][1]


def test_an_unreadable_font_is_counted_and_the_others_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"not a font at all")
    truncated = tmp_path / "truncated.otf"
    truncated.write_bytes((folder / "Sans.ttf").read_bytes()[:700])
    report = write_glyphs(tmp_path / "set", fonts=[folder, tmp_path])
    assert report.skipped["unreadable font"] == 2
    assert report.num_fonts == 2


def test_errors_name_the_place_and_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere does not exist; give a font file"):
        write_glyphs(tmp_path, fonts=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no font in .*empty: expected files ending in \.otf"):
        write_glyphs(tmp_path, fonts=[tmp_path / "empty"])
    (tmp_path / "broken.ttf").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"none of 1 font files can be read.*broken\.ttf"):
        write_glyphs(tmp_path, fonts=[tmp_path / "broken.ttf"])
    with pytest.raises(DatasetError, match=r"no character is drawn by 2 fonts \(fonts read: 1"):
        write_glyphs(tmp_path, fonts=[folder / "Sans.ttf"])
    with pytest.raises(DatasetError, match="at least 8 pixels, got size=7"):
        write_glyphs(tmp_path, size=7)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DatasetError, match=r"cannot write .*glyphs\.parquet.*writable folder"):
        write_glyphs(tmp_path / "taken", fonts=[folder])


def test_the_shipped_fonts_leave_out_the_ones_that_lie(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ttf = tmp_path / "fonts" / "ttf"
    ttf.mkdir(parents=True)
    for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf"):
        subset_font(name, "AB", ttf / name)
    for name in ("cmsy10.ttf", "STIXSizOneSymReg.ttf", "LastResortHE-Regular.ttf"):
        shutil.copy(ttf / "DejaVuSans.ttf", ttf / name)
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    report = write_glyphs(tmp_path / "set")
    assert {row["font"] for row in rows_of(report)} == {"DejaVuSans", "DejaVuSerif"}
