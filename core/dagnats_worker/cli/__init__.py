"""The command line, and what a plugin's command needs to connect as the others do.

A plugin's command is a ``click.Command``:

```python
@click.command()
@connection_options
def workers(connection: ConnectionOptions) -> None:
    '''List the workers of the fleet.'''
    run_async(show(connection))

async def show(connection: ConnectionOptions) -> None:
    async with connect(connection) as nc:
        ...
```

Nothing here imports nats-py, rich or a command before it is used, so ``--help`` is quick.
"""

from __future__ import annotations

from dagnats_worker.cli._connection import ConnectionOptions, connect, connection_options
from dagnats_worker.cli._main import main
from dagnats_worker.cli._running import run_async

__all__ = ["ConnectionOptions", "connect", "connection_options", "main", "run_async"]
