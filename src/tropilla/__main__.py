"""`python -m tropilla` is the `tropilla` command."""

from tropilla.cli import main

if __name__ == "__main__":
    main()
