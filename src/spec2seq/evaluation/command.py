"""Modules of this room as commands: `if __name__ == "__main__": run_main(main)`."""

import sys
from collections.abc import Callable

from spec2seq.errors import Spec2SeqError


def run_main(main: Callable[[], None]) -> None:
    """Call `main`; errors of the user are one line on stderr, with the exit codes of `spec2seq`."""
    try:
        main()
    except Spec2SeqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
