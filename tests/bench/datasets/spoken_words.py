"""Spoken words: identity = word, sample = a voice that speaks it, image = its log-mel spectrogram.

    python -m tests.bench.datasets.spoken_words [--out build/research/sets]

Needs Debian's packages espeak-ng and wamerican. Words of equal sound (flower, flour) stay in on
purpose: they are honest label noise. Every sample has noise of its own in it, and is stretched to
the same length in time; without noise the set is too easy to tell arms apart.
"""

import argparse
import io
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bench.datasets.table import Caps, Sample, rank, split_of, to_png, write_samples

WORDS = Path("/usr/share/dict/american-english")
CAPS = Caps(train_identities=1700, test_identities=600)
# Voice and variant, words a minute, pitch.
VOICES = (
    ("en-us+m3", 170, 40),
    ("en-us+f2", 190, 60),
    ("en-gb+m1", 150, 35),
    ("en-gb-x-rp+f4", 210, 70),
    ("en-gb-scotland+m5", 180, 50),
    ("en-gb-scotland+f3", 160, 65),
    ("en-029+m7", 200, 30),
    ("en-gb-x-gbclan+croak", 165, 55),
)
SIZE = 32
FRAME, HOP = 512, 128
LOWEST_HZ, HIGHEST_HZ = 60.0, 9000.0
RANGE_DB = 60.0
NOISE_SLOPE = 0.5
SNR_DB = (-6.0, 6.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/research/sets"))
    options = parser.parse_args()
    print(write_samples(_speak_all(_words()), CAPS, options.out / "words.parquet"))


def _words() -> list[str]:
    """The words that the caps will keep, so that no other is spoken."""
    found = sorted(
        {
            word
            for word in WORDS.read_text("utf-8").split()
            if word.isascii() and word.isalpha() and word.islower() and 4 <= len(word) <= 10
        },
        key=rank,
    )
    train = [word for word in found if split_of(word) == "train"][: CAPS.train_identities]
    return train + [word for word in found if split_of(word) == "test"][: CAPS.test_identities]


def _speak_all(words: list[str]) -> Iterator[Sample]:
    for word in words:
        for voice, speed, pitch in VOICES:
            samples, sound_rate = _speak(word, voice, speed, pitch)
            samples = _with_noise(samples, rank(f"noise/{word}/{voice}"))
            yield Sample(word, voice, to_png(_picture(samples, sound_rate)))


def _speak(word: str, voice: str, speed: int, pitch: int) -> tuple[np.ndarray, int]:
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    # espeak-ng cannot seek in a pipe, so the lengths in its header are wrong: read to the end.
    with wave.open(io.BytesIO(spoken)) as file:
        rate = file.getframerate()
    return np.frombuffer(spoken[44:], "<i2").astype(np.float64), rate


def _with_noise(samples: np.ndarray, seed: int) -> np.ndarray:
    """The spoken part, under noise (pink: it falls with frequency, as speech does)."""
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    draws = np.random.default_rng(seed)
    spectrum = np.fft.rfft(draws.standard_normal(len(samples)))
    spectrum /= np.arange(1, len(spectrum) + 1) ** NOISE_SLOPE
    noise = np.fft.irfft(spectrum, len(samples))
    level = np.sqrt(np.mean(samples**2) / np.mean(noise**2))
    noisy: np.ndarray = samples + noise * level * 10 ** (-draws.uniform(*SNR_DB) / 20)
    return noisy


def _picture(samples: np.ndarray, rate: int) -> Image.Image:
    """Mel bands upwards, time to the right, level as grey."""
    samples = np.pad(samples, FRAME // 2)
    starts = np.linspace(0, len(samples) - FRAME, 4 * SIZE).astype(int)
    frames = samples[starts[:, None] + np.arange(FRAME)] * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames)) ** 2
    mel = (power @ _mel_bands(rate)).reshape(SIZE, 4, SIZE).mean(axis=1)
    level = 10 * np.log10(mel + 1e-10)
    grey = np.clip((level - level.max()) / RANGE_DB + 1, 0, 1) * 255
    return Image.fromarray(grey.T[::-1].astype(np.uint8), "L")


def _mel_bands(rate: int) -> np.ndarray:
    """[FRAME // 2 + 1, SIZE] triangles of equal width in mel."""
    limits = 2595 * np.log10(1 + np.array([LOWEST_HZ, HIGHEST_HZ]) / 700)
    edges = 700 * (10 ** (np.linspace(*limits, SIZE + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(FRAME, 1 / rate)[:, None]
    rise = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    bands: np.ndarray = np.maximum(0, np.minimum(rise, fall))
    return bands


if __name__ == "__main__":
    main()
