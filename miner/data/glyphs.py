"""A labelled image set from fonts: an identity is a character, a sample is one font's shape of it.

Offline and deterministic, so a demo, a test or a benchmark has real images with a natural long
tail. It does not know the catalog or the row store: it only writes Parquet. Look-alikes and true
duplicates (Latin A, Cyrillic A, Greek Alpha) stay in on purpose: they are honest label noise.
"""

import hashlib
import io
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from PIL import Image, ImageFont

from miner.errors import DatasetError

__all__ = ["GlyphReport", "write_glyphs"]

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("font", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
ROW_GROUP_ROWS = 4096
MIN_SAMPLES = 2
TEST_FRACTION = 0.3
SPLIT_SEED = 20_250_101
# Em size as a share of the tile: nearly all letters then fit without being shrunk.
EM_FRACTION = 0.8
MARGIN_PX = 1
FONT_SUFFIXES = frozenset({".ttf", ".otf", ".ttc"})
# Other sizes of one design, a font of placeholders, and fonts whose cmap lies about characters.
SHIPPED_BUT_UNFIT = ("STIXSiz", "LastResort", "cm")
# Control, format, surrogate, private use: no shape of their own, or none that is agreed on.
SKIPPED_CATEGORIES = {"Cc": "control", "Cf": "control", "Cs": "control", "Co": "private use"}
BROKEN_FONT = (TTLibError, OSError, ValueError, KeyError, AssertionError, struct.error)


@dataclass(frozen=True, slots=True)
class GlyphReport:
    """What one call of `write_glyphs` wrote and what it left out."""

    num_samples: int
    num_identities: int
    num_fonts: int
    """Font faces with at least one sample in the file."""
    num_train: int
    """Samples whose identity is in the train split."""
    num_test: int
    """Samples whose identity is in the test split."""
    skipped: dict[str, int]
    """Reason -> number of glyphs, or of fonts for `unreadable font`, that were left out."""
    path: Path


@dataclass(frozen=True, slots=True)
class _Face:
    name: str
    path: Path
    index: int
    code_points: list[int]
    """What the font's Unicode character map claims to draw, ascending."""


def write_glyphs(
    out: Path,
    *,
    fonts: Sequence[Path] = (),
    size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> GlyphReport:
    """Draw every character of the fonts and write them to ``out/glyphs.parquet``.

    Equal fonts give an equal file, byte for byte. Rows are ordered by code point, then font. An
    identity is in one split only, by a seeded hash of its name, so adding fonts moves none.
    Identities with fewer than two samples are left out: they can be neither anchor nor positive.

    Args:
        out: Folder to write to; made if it is missing.
        fonts: Font files, or folders searched recursively for .ttf, .otf and .ttc. Empty: the
            fonts that matplotlib ships.
        size: Tile edge in pixels, >= 8.
        on_progress: Called after each font with (glyphs drawn, glyphs to draw).

    Raises:
        DatasetError: A font path is missing, there is no readable font, no character is drawn by
            two fonts, ``size`` is below 8, or ``out`` cannot be written.

    Cost: about 0.15 ms a glyph; all PNGs (about 0.3 KB each at 32 pixels) are held in memory.
    """
    if size < 8:
        raise DatasetError(f"a glyph tile needs at least 8 pixels, got size={size}")
    skipped: Counter[str] = Counter()
    faces = _open_faces(_find_fonts(fonts) if fonts else _shipped_fonts(), skipped)
    total = sum(len(face.code_points) for face in faces)
    done = 0
    samples: list[tuple[int, str, bytes]] = []
    for face in faces:
        samples += _draw_face(face, size, skipped)
        done += len(face.code_points)
        if on_progress is not None:
            on_progress(done, total)
    samples_of = Counter(code for code, _, _ in samples)
    kept = sorted(sample for sample in samples if samples_of[sample[0]] >= MIN_SAMPLES)
    skipped["single sample"] += len(samples) - len(kept)
    if not kept:
        raise DatasetError(
            f"no character is drawn by {MIN_SAMPLES} fonts (fonts read: {len(faces)}, glyphs: "
            f"{len(samples)}, skipped: {dict(skipped)}); give more fonts of one script"
        )
    table = _to_table(kept)
    path = _write(table, out)
    num_test = table["split"].to_pylist().count("test")
    return GlyphReport(
        num_samples=table.num_rows,
        num_identities=len({code for code, _, _ in kept}),
        num_fonts=len({font for _, font, _ in kept}),
        num_train=table.num_rows - num_test,
        num_test=num_test,
        skipped={reason: count for reason, count in sorted(skipped.items()) if count},
        path=path,
    )


def _shipped_fonts() -> list[Path]:
    import matplotlib  # here: heavy, and only needed without fonts of one's own

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [font for font in _find_fonts([folder]) if not font.name.startswith(SHIPPED_BUT_UNFIT)]


def _find_fonts(places: Sequence[Path]) -> list[Path]:
    found: set[Path] = set()
    for place in places:
        if not place.exists():
            raise DatasetError(f"font path {place} does not exist; give a font file or a folder")
        inside = place.rglob("*") if place.is_dir() else [place]
        fonts = [path for path in inside if path.suffix.lower() in FONT_SUFFIXES]
        if not fonts:
            raise DatasetError(
                f"no font in {place}: expected files ending in {', '.join(sorted(FONT_SUFFIXES))}"
            )
        found.update(path.resolve() for path in fonts)
    # By name first: the same fonts in another folder give the same set.
    return sorted(found, key=lambda path: (path.name, path))


def _open_faces(paths: Sequence[Path], skipped: Counter[str]) -> list[_Face]:
    faces: list[_Face] = []
    names: Counter[str] = Counter()
    for path in paths:
        try:
            code_points_of = _read_code_points(path)
        except BROKEN_FONT:
            skipped["unreadable font"] += 1
            continue
        for index, code_points in enumerate(code_points_of):
            name = path.stem if len(code_points_of) == 1 else f"{path.stem}#{index}"
            names[name] += 1
            if names[name] > 1:
                name = f"{name}~{names[name]}"
            faces.append(_Face(name, path, index, code_points))
    if not faces:
        shown = ", ".join(str(path) for path in paths[:3])
        raise DatasetError(f"none of {len(paths)} font files can be read, the first are: {shown}")
    return faces


def _read_code_points(path: Path) -> list[list[int]]:
    """The code points of each face; a font that FreeType refuses raises here, not when drawing."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".ttc":
            faces = TTCollection(file, lazy=True).fonts
        else:
            faces = [TTFont(file, lazy=True)]
        code_points_of = [sorted(face.getBestCmap() or {}) for face in faces]
    for index in range(len(code_points_of)):
        ImageFont.truetype(path, 16, index=index)
    return code_points_of


def _draw_face(face: _Face, size: int, skipped: Counter[str]) -> Iterator[tuple[int, str, bytes]]:
    """Yield (code point, font name, PNG) for every character of the face that has a shape."""
    pen = _Pen(face, size)
    # A noncharacter that the font leaves out is drawn as its "no such glyph" box.
    absent = {0xFFFE, 0xFFFF}.difference(face.code_points)
    missing = pen.draw(chr(max(absent))) if absent else None
    for code in face.code_points:
        reason = SKIPPED_CATEGORIES.get(unicodedata.category(chr(code)))
        tile = None if reason else pen.draw(chr(code))
        if tile is not None and tile != missing:
            yield code, face.name, _to_png(tile)
            continue
        skipped[reason or ("blank" if tile is None else "notdef")] += 1


class _Pen:
    """Draws single characters of one face, white on black, ink centred in a square tile."""

    def __init__(self, face: _Face, size: int) -> None:
        self._face = face
        self._size = size
        self._fonts: dict[int, ImageFont.FreeTypeFont] = {}

    def draw(self, character: str) -> Image.Image | None:
        """The tile at the common em size, or smaller where the ink would not fit; None if blank."""
        em = round(self._size * EM_FRACTION)
        room = self._size - 2 * MARGIN_PX
        ink = self._ink(character, em)
        while ink is not None and max(ink.size) > room and em > 1:
            em = max(1, min(em - 1, em * room // max(ink.size)))
            ink = self._ink(character, em)
        if ink is None:
            return None
        tile = Image.new("L", (self._size, self._size))
        tile.paste(ink, ((self._size - ink.width) // 2, (self._size - ink.height) // 2))
        return tile

    def _ink(self, character: str, em: int) -> Image.Image | None:
        font = self._fonts.get(em)
        if font is None:
            font = self._fonts[em] = ImageFont.truetype(
                self._face.path, em, self._face.index, layout_engine=ImageFont.Layout.BASIC
            )
        mask = font.getmask(character, mode="L")
        width, height = mask.size
        if width == 0 or height == 0:
            return None
        image = Image.frombytes("L", (width, height), bytes(mask))
        box = image.getbbox()
        return None if box is None else image.crop(box)


def _to_png(tile: Image.Image) -> bytes:
    buffer = io.BytesIO()
    tile.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _split_of(identity: str) -> str:
    digest = hashlib.sha256(f"{SPLIT_SEED}:{identity}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < TEST_FRACTION * 2**64 else "train"


def _to_table(samples: Sequence[tuple[int, str, bytes]]) -> pa.Table:
    identities = [f"U+{code:04X}" for code, _, _ in samples]
    fonts = [font for _, font, _ in samples]
    columns = [
        [f"{identity}/{font}" for identity, font in zip(identities, fonts, strict=True)],
        identities,
        [png for _, _, png in samples],
        fonts,
        [_split_of(identity) for identity in identities],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _write(table: pa.Table, out: Path) -> Path:
    path = out / "glyphs.parquet"
    partial = out / "glyphs.parquet.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial, row_group_size=ROW_GROUP_ROWS)
        partial.replace(path)
    except OSError as exc:
        raise DatasetError(f"cannot write {path}: {exc}; choose a writable folder") from exc
    return path
