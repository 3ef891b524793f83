"""`python -m fedshare`."""

from fedshare.experiments.cli import main

if __name__ == "__main__":
    main()
