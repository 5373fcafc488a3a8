"""One rank of test_batch_norm.py: normalises its share, writes what came out."""

import sys

import torch
from torch import distributed as dist
from torch import nn

from trainer.batch_norm import share_batch_norm


def main(folder: str, rank: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    case = torch.load(f"{folder}/case.pt")
    module = share_batch_norm(
        getattr(nn, case["module"])(case["inputs"].shape[1], **case["options"])
    )
    module.load_state_dict(case["state"])
    begin, end = ((0, case["split"]), (case["split"], len(case["inputs"])))[rank]
    inputs = case["inputs"][begin:end].clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=case["bf16"]):
        convolved = inputs.bfloat16() if case["bf16"] else inputs
        outputs = module(convolved)
    (outputs.float() * case["slopes"][begin:end]).sum().backward()
    torch.save(
        {
            "outputs": outputs.detach(),
            "inputs": inputs.grad,
            "weight": module.weight.grad,
            "bias": module.bias.grad,
            "state": module.state_dict(),
        },
        f"{folder}/rank-{rank}.pt",
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
