"""``python -m dagnats_worker`` is the command ``dagnats-worker``."""

from __future__ import annotations

from dagnats_worker.cli import main

if __name__ == "__main__":
    main()
