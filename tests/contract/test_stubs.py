"""The committed stubs are what the .proto says."""

import importlib.resources
from pathlib import Path

import pytest
from grpc_tools import protoc

REPOSITORY = Path(__file__).resolve().parents[2]
STUBS = ["mining_pb2.py", "mining_pb2.pyi", "mining_pb2_grpc.py"]


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    includes = importlib.resources.files("grpc_tools") / "_proto"
    arguments = [
        *("protoc", f"-I{REPOSITORY}", f"-I{includes}"),
        *(f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"),
        str(REPOSITORY / "protos/coalface/v1/mining.proto"),
    ]
    assert protoc.main(arguments) == 0
    return out / "protos/coalface/v1"


@pytest.mark.parametrize("name", STUBS)
def test_stubs_are_fresh(regenerated: Path, name: str) -> None:
    committed = (REPOSITORY / "protos/coalface/v1" / name).read_text()
    assert committed == (regenerated / name).read_text(), f"{name} is old: run `make proto`"
