"""`python -m streamcore`: the command line."""

from __future__ import annotations

from streamcore.cli import main

if __name__ == "__main__":
    main()
