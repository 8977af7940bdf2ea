"""The `packnet` program, also as `python -m packnet_cli`."""

import sys


def main() -> None:
    try:
        from packnet_cli.cli import main as program

        program()
    except KeyboardInterrupt:  # during the imports, before the program catches it
        sys.stderr.write("error: interrupted; nothing was written\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
