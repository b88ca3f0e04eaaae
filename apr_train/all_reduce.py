"""One rank of a sum over ranks, to see that they can talk: `-m apr_train.all_reduce <rank> <ranks> <backend> <file>`.

The ranks meet through a file that does not exist yet. Prints the sum of 1, 2, 4, ..; 3 for two ranks.
"""

import sys
from datetime import timedelta

import torch
from torch import distributed


def main() -> None:
    """Raises what torch raises where the others do not come within a minute."""
    rank, ranks, backend, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        backend, init_method=f"file://{file}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    total = torch.tensor([1 << rank], device="cuda" if backend == "nccl" else "cpu")
    distributed.all_reduce(total)
    print(int(total))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
