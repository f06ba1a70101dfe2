"""The whole studio: database, back end, inbox, queue, pictures, and the threads that drive them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

from tilemix.errors import RequestError, TemplateError, WeightsError
from tilemix.prompts.rewrite import Prompt, log_notes, rewrite
from tilemix.prompts.template import find_template
from tilemix.studio.attempts import PART as QUEUE
from tilemix.studio.clock import SystemClock
from tilemix.studio.cog_backend import CogBackend, cog_client
from tilemix.studio.faults import Faults
from tilemix.studio.gallery import Gallery
from tilemix.studio.inbox import Arrival, Inbox
from tilemix.studio.outputs import OutputTaker
from tilemix.studio.queue import Queue
from tilemix.studio.reconciler import Reconciler
from tilemix.studio.replicate_backend import ReplicateBackend, replicate_client
from tilemix.studio.sessions import Sessions
from tilemix.studio.signatures import Keyring
from tilemix.studio.store.database import Database
from tilemix.studio.store.locks import lock_file
from tilemix.studio.workers import Worker
from tilemix.system.project import ROOT
from tilemix.weights import load_manifest
from tilemix.weights.calibration import find_calibration, resolve_lora_scales, resolve_strength
from tilemix.weights.prompting import make_context
from tilemix.weights.tasks import find_task, load_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from tilemix.colors.palette import Palette
    from tilemix.prompts.template import PromptTemplate
    from tilemix.request import GenerationRequest
    from tilemix.studio.backends import Backend
    from tilemix.studio.clock import Clock
    from tilemix.studio.fetcher import Fetcher
    from tilemix.studio.settings import BackendName, Settings
    from tilemix.weights.calibration import Calibration
    from tilemix.weights.manifest import ModelManifest

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
PURGE_SECONDS = 3600
STOP_SECONDS = 15


class TaskModel(NamedTuple):
    """The model that draws a task, and how its prompts are written."""

    manifest: ModelManifest
    template: PromptTemplate
    palette: Palette | None  # None: the chart serves
    calibration: Calibration | None
    task_scales: Mapping[str, float] | None = None  # the task's LoRAs; None: the model's own

    def list_defaults(self) -> dict[str, float | None]:
        """Return what a request gets for the inputs that it leaves out; None: nothing."""
        scales = self.task_scales
        if scales is None:
            scales = resolve_lora_scales(self.manifest, self.calibration)
        return {
            **msgspec.structs.asdict(self.manifest.defaults),
            "strength": resolve_strength(self.manifest, self.calibration),
            "lora_scale": next(iter(scales.values()), None),
        }


class Studio:
    """All parts of a studio; as a context manager it runs them."""

    def __init__(
        self,
        settings: Settings,
        *,
        backend: Backend | None = None,
        fetcher: Fetcher | None = None,
        clock: Clock | None = None,
        root: Path = ROOT,
    ) -> None:
        self.settings = settings
        self.root = root
        self.clock: Clock = clock or SystemClock()
        self.faults = Faults()
        self.manifest = load_manifest(settings.model, root)
        self.template = find_template(self.manifest.prompt_template, root)
        self.palette = self.manifest.load_palette()
        self.calibration = find_calibration(settings.model, self.manifest, root)
        self.backend = backend or make_backend(settings)
        refetch = self.backend.fetch_signing_secret if isinstance(self.backend, ReplicateBackend) else None
        self.keyring = Keyring(settings.webhook_secrets, refetch=refetch, clock=self.clock.monotonic)
        self.pictures = settings.make_folders()
        self._lock = lock_file(settings.folder / "lock", str(settings.folder))
        try:
            self.database = Database.open(settings.database_url, is_shared=False)
        except BaseException:
            self._lock.close()
            raise
        self.gallery = Gallery(self.database, self.pictures)
        self.sessions = Sessions(self.database, settings.token, clock=self.clock)
        webhook_url = _webhook_url(settings, self.backend.name)
        self.inbox = Inbox(self.database, clock=self.clock)
        self.queue = Queue(
            self.database,
            self.backend,
            deadline_seconds=settings.deadline_seconds,
            webhook_url=webhook_url,
            webhook_key=settings.cog_webhook_key,
            most_waiting=settings.most_waiting,
            faults=self.faults,
            clock=self.clock,
        )
        self.outputs = OutputTaker(self.database, self.pictures, fetcher=fetcher, clock=self.clock)
        self.reconciler = Reconciler(
            self.database,
            self.backend,
            has_webhooks=webhook_url is not None,
            is_being_submitted=self.queue.is_being_submitted,
            clock=self.clock,
        )
        self._next_purge = self.clock.monotonic()
        self._inbox_worker = self._make_worker("inbox", self._read_delivery)
        self._queue_worker = self._make_worker(QUEUE, self._run_prediction, IDLE_SECONDS / 4)
        self._output_worker = self._make_worker("pictures", self.outputs.step)
        self._clock_worker = self._make_worker("deadlines", self._look_at_clock)
        self._workers = (self._inbox_worker, self._queue_worker, self._output_worker, self._clock_worker)

    def _make_worker(self, name: str, step: Callable[[], bool], idle_seconds: float = IDLE_SECONDS) -> Worker:
        return Worker(name, step, idle_seconds=idle_seconds, faults=self.faults)

    def __enter__(self) -> Self:
        self.outputs.recover()
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.stop()
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join(STOP_SECONDS)
        self.backend.close()
        self.database.close()
        self._lock.close()

    def rewrite(
        self,
        text: str,
        negative_prompt: str | None = None,
        *,
        seed: int | None = None,
        steps: int | None = None,
        task: str | None = None,
    ) -> Prompt:
        """Return the full prompt that a model will get, and log its notes.

        Args:
            text: as typed.
            negative_prompt: None: the template's.
            seed: makes the choices; None: 0.
            steps: that edits count; None: the model's own.
            task: whose model it is; None: the served one.

        Raises:
            PromptError: as `tilemix.prompts.rewrite.rewrite`.
            RequestError: the task is unknown, or names what is not here.
        """
        asked = self.find_model(task)
        context = make_context(
            asked.manifest,
            seed=seed or 0,
            steps=steps or asked.manifest.defaults.num_inference_steps,
            templates=self.root / "prompt_templates",
        )
        prompt = rewrite(
            text, asked.template, asked.palette, negative_prompt=negative_prompt, context=context
        )
        log_notes(prompt)
        return prompt

    def find_model(self, task: str | None) -> TaskModel:
        """Return the model that draws a task; None: the served one.

        Raises:
            RequestError: the task is unknown, or names what is not here.
        """
        if task is None:
            return TaskModel(self.manifest, self.template, self.palette, self.calibration)
        try:
            found = find_task(task, served=self.settings.model, root=self.root)
            manifest = load_manifest(found.model, self.root)
            template, palette = find_template(found.template, self.root), manifest.load_palette()
            is_served = found.model == self.settings.model
            calibration = (
                self.calibration if is_served else find_calibration(found.model, manifest, self.root)
            )
        except (WeightsError, TemplateError) as error:
            raise RequestError(error.code, field="task", **error.values) from error
        return TaskModel(manifest, template, palette, calibration, found.lora_scales)

    def list_tasks(self) -> list[str]:
        """Return the names of the tasks; none, if their file is broken."""
        try:
            return list(load_tasks(self.root))
        except WeightsError as error:
            logger.warning("%s", error)
            return []

    def ask_for(self, request: GenerationRequest) -> str:
        """Check a request as `predict()` does and queue it; return the prediction's id.

        A request whose seed makes choices gets one here, so that what is shown as sent is what is drawn.

        Raises:
            PromptError: the prompt, or the mix in it, cannot be used.
            RequestError: the task is unknown, or names what is not here.
        """
        prompt = self._rewrite_request(request)
        if prompt.choices and request.seed is None:
            request = request.with_seed()
            prompt = self._rewrite_request(request)
        identity = self.queue.add(request, prompt)
        self._queue_worker.wake()
        return identity

    def _rewrite_request(self, request: GenerationRequest) -> Prompt:
        return self.rewrite(
            request.prompt,
            request.negative_prompt,
            seed=request.seed,
            steps=request.num_inference_steps,
            task=request.task,
        )

    def receive(self, arrival: Arrival) -> Future[bool]:
        """Commit a delivery soon, and then wake the worker that reads it; see `Inbox.store`."""
        stored = self.inbox.store(arrival)
        stored.add_done_callback(lambda _: self._inbox_worker.wake())
        return stored

    def _read_delivery(self) -> bool:
        has_read = self.inbox.step()
        if has_read:
            self._output_worker.wake()
        return has_read

    def _run_prediction(self) -> bool:
        has_run = self.queue.step()
        if has_run:
            self._output_worker.wake()
        return has_run

    def _look_at_clock(self) -> bool:
        self.queue.end_late()
        if self.clock.monotonic() >= self._next_purge:
            self._next_purge = self.clock.monotonic() + PURGE_SECONDS
            self.inbox.purge()
        return self.reconciler.step()


def make_backend(settings: Settings) -> Backend:
    """Return the back end that the settings name."""
    if settings.backend == "cog":
        return CogBackend(cog_client(settings.cog_url))
    token, version = settings.require_replicate()
    return ReplicateBackend(replicate_client(token), version=version, slots=settings.slots)


def _webhook_url(settings: Settings, backend: BackendName) -> str | None:
    if backend == "replicate":
        return settings.public_url and f"{settings.public_url}/webhooks/replicate"
    if settings.cog_webhook_token is None and settings.cog_webhook_key is None:
        return None  # the inbox would refuse them
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}/webhooks/cog"
