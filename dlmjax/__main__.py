"""`python -m dlmjax COMMAND` and the console script `dlmjax`."""

from dlmjax.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
