"""`python -m reticent` is the command line `reticent`."""

from reticent.cli import main

if __name__ == "__main__":
    main(prog_name="reticent")
