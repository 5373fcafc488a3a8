"""A client in another language, which knows nothing but the proto file, sees what the feed sees."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.feed.served_miner import ServerThread, make_folder
from trainer.feed import TripletFeed

HERE = Path(__file__).parent / "node"
REPOSITORY = HERE.parents[2]
BUILT = REPOSITORY / "build" / "node"
PROTO = REPOSITORY / "protos" / "coalface" / "v1" / "mining.proto"
NUM_STEPS = 12


@pytest.fixture(scope="module")
def script() -> Path:
    """The client beside its packages, which are installed once."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("needs node and npm, which this machine lacks")
    BUILT.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "package.json").read_text("utf-8")
    done = BUILT / "installed.json"
    if not done.exists() or done.read_text("utf-8") != wanted:
        (BUILT / "package.json").write_text(wanted, "utf-8")
        quiet = ["--package-lock=false", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(["npm", "install", *quiet], cwd=BUILT, check=True, timeout=200)
        done.write_text(wanted, "utf-8")
    shutil.copy(HERE / "client.mjs", BUILT)
    return BUILT / "client.mjs"


@pytest.fixture
def miner(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path, num_groups=900), max_message_bytes=request.param)
    yield server
    server.stop()


def run(script: Path, address: str, run_id: str, batch_rows: int) -> subprocess.CompletedProcess:
    command = ["node", str(script), address, str(PROTO), run_id, str(batch_rows), str(NUM_STEPS)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("miner", "batch_rows", "in_parts"),
    [(1_048_576, 24, False), (65_536, 3000, True)],
    indirect=["miner"],
)
def test_it_reads_the_same_batches_and_samples(
    script: Path, miner: ServerThread, batch_rows: int, in_parts: bool
) -> None:
    done = run(script, miner.address, "node", batch_rows)
    assert done.returncode == 0, done.stderr
    *lines, told = [json.loads(line) for line in done.stdout.splitlines()]
    assert (told["parts"] > 0) == in_parts
    feed = TripletFeed(
        miner.address, run_id="node", batch_rows=batch_rows, num_steps=NUM_STEPS, patience_s=10
    )
    batches = list(feed)
    assert len(lines) == len(batches) == NUM_STEPS
    for line, batch in zip(lines, batches, strict=True):
        assert (line["step"], line["round_id"]) == (batch.step, batch.round_id)
        assert line["strategy"] == batch.strategy
        columns: dict[str, Any] = {
            "row_ids": batch.row_ids_R,
            "identity_ids": batch.identity_ids_R,
            "group_offsets": batch.group_offsets_G1,
            "anchors": batch.anchors_T,
            "positives": batch.positives_T,
            "negatives": batch.negatives_T,
            "similarities_ap": batch.similarities_ap_T,
            "tiers": batch.tiers_T,
        }
        for name, column in columns.items():
            assert line[name] == column.tolist(), name
        assert batch.samples is not None
        digest = hashlib.sha256(b"".join(batch.samples["image"].to_pylist()))
        assert line["images_sha256"] == digest.hexdigest()


@pytest.mark.parametrize("miner", [1_048_576], indirect=True)
def test_a_refusal_arrives_with_code_and_field(script: Path, miner: ServerThread) -> None:
    done = run(script, miner.address, "node", 2)
    assert done.returncode == 1
    assert done.stderr.startswith("INVALID_ARGUMENT: batch_rows: ")
