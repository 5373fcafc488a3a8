"""Glyphs of matplotlib's fonts, and Chinese characters of Debian's fonts: identity = character.

    python -m tests.bench.datasets.glyph_sets [--out build/research/sets] [--fonts DIR ...]

The second set needs Debian's font packages (see ``HAN_PACKAGES``); it mixes printed, hand-written
and brush-written faces, so that samples of one character differ more than many characters do.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from miner.data.glyphs import write_glyphs
from tests.bench.datasets.table import Caps, Sample, write_samples

HAN_PACKAGES = (
    "fonts-wqy-microhei fonts-wqy-zenhei fonts-arphic-ukai fonts-arphic-uming fonts-ipafont-gothic "
    "fonts-ipafont-mincho fonts-vlgothic fonts-cwtex-kai fonts-cwtex-ming fonts-sawarabi-gothic "
    "fonts-sawarabi-mincho fonts-dejima-mincho fonts-kouzan-mouhitsu fonts-motoya-l-cedar "
    "fonts-motoya-l-maruberi fonts-horai-umefont fonts-aoyagi-kouzan-t fonts-hanazono"
)
# One face of each design: others of the same family would be near copies.
HAN_FACES = (
    "wqy-microhei#0", "wqy-zenhei#0", "ukai#0", "uming#0", "ipag", "ipam", "VL-Gothic-Regular",
    "cwkai", "cwming", "sawarabi-gothic-medium", "sawarabi-mincho-medium", "dejima-mincho-r227",
    "KouzanBrushFontSousyo", "kouzan-mouhitsu-gyosho", "kouzan-mouhitsu", "MTLc3m", "MTLmr3m",
    "ume-hgo4", "AoyagiKouzanT", "HanaMinA",
)  # fmt: skip
HAN_FIRST, HAN_LAST = 0x4E00, 0x9FFF
GLYPH_CAPS = Caps(train_identities=1200, test_identities=400)
HAN_CAPS = Caps(train_identities=1700, test_identities=600, max_samples=8, min_samples=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/research/sets"))
    parser.add_argument("--fonts", type=Path, nargs="+", default=[Path("/usr/share/fonts")])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        latin = write_glyphs(Path(folder)).path
        print(write_samples(_read(latin), GLYPH_CAPS, options.out / "glyphs.parquet"))
    files = [
        file
        for place in options.fonts
        for file in place.rglob("*")
        if file.stem in {face.split("#")[0] for face in HAN_FACES}
    ]
    with tempfile.TemporaryDirectory() as folder:
        han = write_glyphs(Path(folder), fonts=files).path
        print(write_samples(_read_han(han), HAN_CAPS, options.out / "han.parquet"))


def _read(path: Path) -> Iterator[Sample]:
    for row in pq.read_table(path).to_pylist():
        yield Sample(row["identity"], row["font"], row["image"])


def _read_han(path: Path) -> Iterator[Sample]:
    for sample in _read(path):
        code = int(sample.identity.removeprefix("U+"), 16)
        if HAN_FIRST <= code <= HAN_LAST and sample.source in HAN_FACES:
            yield sample


if __name__ == "__main__":
    main()
