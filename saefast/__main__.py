"""`python -m saefast`: the command line, where the script `saefast` is not on the path."""

from saefast.cli import main

if __name__ == "__main__":
    main()
