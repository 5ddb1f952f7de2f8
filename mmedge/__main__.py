"""`python -m mmedge`, which is how `torchrun` and `accelerate launch` start it."""

from mmedge.cli import main

if __name__ == "__main__":
    main()
