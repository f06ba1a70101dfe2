"""Download the missing files of a packaged model, several at a time.

Files of a hub repository come through huggingface_hub, into `.incoming/` in the source's folder; all others come over
plain https, into a part beside their place. A file gets its name when it is complete, matches the manifest, and is
safe on the disk.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urljoin

from tilemix.errors import ModelFileError, TilemixError, WeightsError
from tilemix.system.project import ROOT
from tilemix.weights.download import download
from tilemix.weights.local import check_lock, find_adapter, find_missing, refuse_missing
from tilemix.weights.manifest import Adapter, ManifestFile, ModelManifest, load_manifest, sources_of
from tilemix.weights.part import open_part, place_file
from tilemix.weights.progress import Progress
from tilemix.weights.web import Web, explain

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

WORKERS = 4  # files at a time
INCOMING = ".incoming"  # in a source's folder: where huggingface_hub writes


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a hub repository."""

    repository: str
    revision: str | None
    path: str
    folder: Path  # of the repository's files here


@dataclass(frozen=True, slots=True)
class Order:
    """One file to download."""

    entry: ManifestFile | Adapter
    target: Path
    origin: HubFile | str  # a str: its https address


def fetch(name: str, root: Path = ROOT, *, web: Web | None = None) -> list[Path]:
    """Download the missing files that a hub repository or an https server has and return their paths.

    Files that only their owner has stay missing; a warning names them. When one file fails, the downloads that are
    running finish and no other starts; the first failure is raised, further ones are logged as warnings.

    Hub files come through huggingface_hub, which respects HF_HUB_OFFLINE and HF_TOKEN.

    Raises:
        WeightsError: a server cannot be reached or does not have the file, or the disk fails.
        ModelFileError: a file, fetched or already here, has another size or sha256 than the manifest says.
    """
    manifest = load_manifest(name, root)
    orders = []
    for order in _list_orders(manifest, root):
        if order.target.is_file():
            check_lock(order.target, order.entry)
        else:
            orders.append(order)
    if orders:
        _carry_out(orders, web or Web())
    for source in sources_of(manifest):
        shutil.rmtree(root / "weights" / source.folder / INCOMING, ignore_errors=True)
    if missing := find_missing(manifest, root):
        logger.warning("%s", refuse_missing(name, missing))
    if unlocked := [order.target.name for order in orders if order.entry.sha256 is None]:
        logger.warning(
            "not checked, because the manifest has no hash: %s; record them: tilemix weights lock %s",
            ", ".join(unlocked),
            name,
        )
    return [order.target for order in orders]


def _list_orders(manifest: ModelManifest, root: Path) -> list[Order]:
    """Return every file that can be fetched, whether it is here already or not."""
    orders = []
    for source in sources_of(manifest):
        folder = root / "weights" / source.folder
        for file in source.files:
            if source.repository:
                hub_file = HubFile(source.repository, source.revision, file.path, folder)
                orders.append(Order(file, folder / file.path, hub_file))
            elif source.url:
                orders.append(Order(file, folder / file.path, f"{source.url}/{file.path}"))
    for adapter in manifest.adapters:
        if adapter.url:
            target = find_adapter(adapter, root)
            orders.append(Order(adapter, target, adapter.url))
            orders += [
                Order(file, target.with_name(file.path), urljoin(adapter.url, file.path))
                for file in adapter.beside
            ]
    return orders


def _carry_out(orders: Sequence[Order], web: Web) -> None:
    sizes = [order.entry.size for order in orders]
    total = sum(size or 0 for size in sizes) if None not in sizes else None
    failures: list[TilemixError] = []
    failed = threading.Event()

    def work(order: Order) -> None:
        if failed.is_set():
            return
        try:
            _get(order, web, progress)
        except BaseException:
            failed.set()
            raise

    with Progress(f"{len(orders)} files", total) as progress, ThreadPoolExecutor(WORKERS) as workers:
        running = {workers.submit(work, order) for order in orders}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                failures += [error for future in done if (error := _failure_of(future)) is not None]
        except BaseException:  # usually Ctrl-C: the threads end at their next bytes, the parts stay
            progress.stop()
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    for failure in failures[1:]:
        logger.warning("%s", failure)
    if failures:
        raise failures[0]


def _failure_of(future: Future[None]) -> TilemixError | None:
    error = future.exception()
    if error is None or isinstance(error, TilemixError):
        return error
    raise error


def _get(order: Order, web: Web, progress: Progress) -> None:
    size, sha256 = order.entry.size, order.entry.sha256
    if not progress.is_shown:
        logger.info("fetching %s%s", order.target.name, f" ({size:,} bytes)" if size else "")
    if isinstance(order.origin, HubFile):
        _get_from_hub(order.origin, order, progress)
        return
    with open_part(order.target) as part:
        download(order.origin, part, web, size=size, sha256=sha256, advance=progress.advance)
        part.place()


def _get_from_hub(file: HubFile, order: Order, progress: Progress) -> None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every try
    incoming = file.folder / INCOMING
    try:
        hf_hub_download(
            file.repository,
            file.path,
            revision=file.revision,
            local_dir=incoming,
            tqdm_class=_make_counter(progress),
        )
    # RuntimeError: when one file cannot be reached, the library closes the client that the others use.
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        reason = explain(error)
        if isinstance(error, LocalEntryNotFoundError | RuntimeError):
            reason = f"{constants.ENDPOINT} cannot be reached"
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        raise WeightsError(
            "weights-hub", repository=file.repository, file=file.path, reason=reason
        ) from error
    arrived = incoming / file.path
    try:
        check_lock(arrived, order.entry, shown=order.target)
    except ModelFileError:
        arrived.unlink()  # otherwise the next try would take it for complete
        raise
    place_file(arrived, order.target)


def _make_counter(progress: Progress) -> type[tqdm[NoReturn]]:
    """Return a class of invisible bars for huggingface_hub that pass the bytes on to `progress`."""
    from tqdm import tqdm

    class Counter(tqdm):  # type: ignore[type-arg]  # generic in its stubs alone
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

        def update_transfer(self, n: float) -> None:
            """Ignore the bytes on the wire, which are counted again when they are written."""

        def set_transfer_postfix_str(self, text: str, *, refresh: bool = True) -> None:
            """Ignore the speed on the wire."""

    return Counter
