"""The client of the tutorial: it submits tasks, and follows what becomes of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from dagnats_worker import Client, TaskFailedError

PATIENCE = timedelta(seconds=10)


async def main() -> None:
    async with Client() as client:
        run = await client.submit("greet", {"name": "Grace", "language": "nb"})
        print(await run.result(timeout=PATIENCE))

        runs = [await client.submit("checksum", text) for text in ("one", "two")]
        print(await asyncio.gather(*(run.result(timeout=PATIENCE) for run in runs)))

        run = await client.submit("story", "Ada", stream=True)
        async for chunk in run.stream():
            print(chunk.decode(), end=" ")
        print("-", await run.result(timeout=PATIENCE), "words")

        run = await client.submit("weather", "Oslo")
        async for event in run.events():
            print(f"{event.type}, attempt {event.attempt}")

        run = await client.submit("weather", "Atlantis")
        try:
            await run.result(timeout=PATIENCE)
        except TaskFailedError as error:
            print(f"failed ({error.failure_type}): {error}")


if __name__ == "__main__":
    asyncio.run(main())
