"""`python -m prefork`: the command, where it is not on PATH."""

from prefork.cli import main

if __name__ == "__main__":
    main()
