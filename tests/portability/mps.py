"""Whether torch can compute on this machine's MPS: `usable=yes`, or `usable=no` and `why=`. Exit code 0 in any case.

The machines that GitHub lends have MPS, and cannot allocate anything there.
"""

from __future__ import annotations

import torch


def main() -> None:
    if not torch.backends.mps.is_available():
        print("usable=no\nwhy=torch has no MPS here")
        return
    try:
        product = (torch.ones(64, 64, device="mps") @ torch.ones(64, 64, device="mps")).sum().item()
    except RuntimeError as error:
        print(f"usable=no\nwhy={str(error).splitlines()[0]}")
        return
    print("usable=yes" if product == 64**3 else f"usable=no\nwhy=a product of matrices is {product}")


if __name__ == "__main__":
    main()
