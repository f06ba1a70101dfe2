"""What the studio's tests share: databases, a clock, predictions, deliveries, pictures."""

import base64
import contextlib
import functools
import itertools
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO

import psycopg
from PIL import Image
from sqlalchemy import insert
from standardwebhooks import Webhook

from tilemix.studio.store.schema import Output, Prediction, Share

SECRET = "whsec_" + base64.b64encode(b"a key of thirty-two whole bytes!").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"another one, thirty-two bytes...").decode()
START = datetime(2026, 3, 1, 12, tzinfo=UTC)

names = itertools.count(1)


@contextlib.contextmanager
def make_postgres_database(server_url: str) -> Iterator[str]:
    """Make an empty database; drop it in the end."""
    name = f"studio_{next(names)}"
    with psycopg.connect(server_url.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield server_url.format(name=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Clock:
    """A clock that stands still until it is told to go on, or to jump as the wall clock does when it is set."""

    def __init__(self) -> None:
        self.moment = START
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.seconds

    def go_on(self, seconds: float) -> None:
        self.seconds += seconds
        self.jump(seconds)

    def jump(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def add_prediction(database, **values) -> str:
    """Add a prediction row; return its id. Left out: a queued one of the Cog server."""
    with database.write() as session:
        identity = values.pop("id", f"{next(names):032x}")
        row = {
            "id": identity,
            "backend": "cog",
            "status": "queued",
            "prompt": "50% red, 50% black",
            "sent_prompt": "50% red, 50% black",
            "inputs": {"prompt": "50% red, 50% black", "seed": 7},
            "created_at": START,
            "seconds_left": 1800,
        }
        session.add(Prediction(**row | values))
    return identity


def add_pictures(database, count) -> list[str]:
    """Add predictions with pictures, one in a hundred of a rare color; return the names of their files."""
    rows, shares, outputs = [], [], []
    for number in range(1, count + 1):
        mix = {"red": 90, "orchid" if number % 100 == 0 else "black": 10}
        text = ", ".join(f"{percent}% {color}" for color, percent in mix.items())
        rows.append(
            {
                "number": number,
                "id": f"{number:032x}",
                "backend": "cog",
                "status": "succeeded",
                "prompt": f"{text}, lot {number}",
                "sent_prompt": f"photorealistic rubber tile, {text}, high quality, detailed texture",
                "mix": mix,
                "inputs": {"prompt": "x", "seed": number},
                "created_at": START,
                "completed_at": START,
                "seconds_left": 1,
                "logs": "denoise " * 100,
                "metrics": {},
            }
        )
        shares += [
            {"prediction": number, "place": place, "color": color, "percent": percent}
            for place, (color, percent) in enumerate(mix.items())
        ]
        outputs.append(
            {
                "prediction": number,
                "state": "taken",
                "created_at": START,
                "file": f"{number:032x}.png",
                "media_type": "image/png",
            }
        )
    with database.write() as session:
        for table, its in ((Prediction, rows), (Share, shares), (Output, outputs)):
            session.execute(insert(table), its)
    return [row["file"] for row in outputs]


def get_prediction(database, identity: str) -> Prediction:
    """Return a prediction with its shares and its output."""
    with database.read() as session:
        prediction = session.query(Prediction).filter_by(id=identity).one()
        _ = prediction.shares, prediction.output
        session.expunge_all()
        return prediction


def body(remote_id: str, status: str, **more) -> bytes:
    """A prediction object as a back end sends it."""
    return json.dumps({"id": remote_id, "status": status, "logs": "", "metrics": {}, **more}).encode()


def sign(data: bytes, *, webhook_id: str = "msg_1", secret: str = SECRET, age: float = 0) -> dict[str, str]:
    """The headers of a signed delivery, signed by the library."""
    moment = datetime.fromtimestamp(int(time.time() - age), tz=UTC)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(webhook_id, moment, data.decode()),
    }


@functools.cache
def picture(color: tuple[int, int, int] = (200, 30, 30), size: int = 16, kind: str = "PNG") -> bytes:
    """A small picture without a record."""
    buffer = BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, kind)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    """Bytes as a data: URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
