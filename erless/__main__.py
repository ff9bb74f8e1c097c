"""`python -m erless` is `erless`."""

from erless.cli.main import main

if __name__ == "__main__":
    main()
