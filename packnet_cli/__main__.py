"""`python -m packnet_cli` is the same as `packnet`."""

from packnet_cli.cli import main

if __name__ == "__main__":
    main()
