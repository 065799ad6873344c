"""How annotations enter the store: one by one through the webhook, all of a project through Label Studio's REST
interface.

Trust: anybody can send a webhook body to this port. It takes effect at once, so that the store follows the annotators,
but nothing is learnt from it alone: every job starts with `collect`, which asks Label Studio itself with this server's
key, and whatever Label Studio does not confirm is removed from the store before training.

If the server requires a password (BASIC_AUTH_USER), events need it like every request. Label Studio 1.23 does not send
the credentials of its own fields with webhooks; it does if the backend is connected as http://USER:PASSWORD@HOST:9090.
Without them events are refused, but START_TRAINING, which carries the password either way, still finds all annotations.
The same holds for the one change for which Label Studio sends no event: an annotation turned back into a draft.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from backend.finetune.store import AnnotationStore, Counts
from backend.label_studio.annotations import Event, event_project, read_task
from backend.label_studio.client import ApiError, LabelStudioApi, get_object, project_tasks
from backend.label_studio.labeling_config import LabelingConfig, parse_labeling_config

_PAGE = 20  # tasks per request to Label Studio; each comes with all its masks

_TOUCHED = json.dumps(
    {
        "filters": {
            "conjunction": "or",
            "items": [
                {"filter": f"filter:tasks:{count}", "operator": "greater", "type": "Number", "value": 0}
                for count in ("total_annotations", "cancelled_annotations")
            ],
        }
    }
)
"""A query for the tasks that were annotated or skipped."""


def _only(tasks: Collection[int]) -> str:
    """A query for these tasks."""
    items = [{"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": task} for task in tasks]
    return json.dumps({"filters": {"conjunction": "or", "items": items}})


def receive(store: AnnotationStore, body: Any, raw: bytes) -> int | None:
    """Record a /webhook body if it is about annotations; returns its project, otherwise None. Takes about a
    millisecond; `AnnotationStore.apply_pending` does the work."""
    project = event_project(body)
    if project is not None:
        store.receive(project, raw)
    return project


def collect(
    api: LabelStudioApi,
    store: AnnotationStore,
    project: int,
    pause: float = 1.0,
    tasks: Collection[int] | None = None,
) -> Counts:
    """Make the store agree with Label Studio while annotators continue. `pause`: seconds before the first retry.
    `tasks`: only annotations of these; by default of all.

    Raises `ApiError` if Label Studio does not answer, `ConfigError` if the project's labeling config cannot be read;
    what was collected until then stays.
    """
    store.apply_pending(project)
    since = store.marker()
    missing = store.known(project, tasks)
    config = parse_labeling_config(str(get_object(api, f"/api/projects/{project}/", pause).get("label_config") or ""))
    for event in _saved(api, project, config, pause, _TOUCHED if tasks is None else _only(tasks)):
        store.reconcile(project, event, since)
        missing -= {annotation.id for annotation in event.saved}
    gone = tuple(annotation for annotation in sorted(missing) if _is_gone(api, annotation, pause))
    store.reconcile(project, Event(deleted=gone), since)
    store.delete_orphans()
    if tasks is None:
        store.collected(project)
    return store.counts(project)


def _saved(api: LabelStudioApi, project: int, config: LabelingConfig, pause: float, query: str) -> Iterator[Event]:
    """The annotations of each task."""
    for task in project_tasks(api, project, pause, _PAGE, fields="all", query=query):
        yield Event(saved=read_task(task, config))


def _is_gone(api: LabelStudioApi, annotation: int, pause: float) -> bool:
    """Whether Label Studio says that it has no such annotation. Missing from the list of tasks is no proof: pages shift
    when a task is deleted while they are read."""
    try:
        get_object(api, f"/api/annotations/{annotation}/", pause)
    except ApiError as error:
        if error.status == 404:
            return True
        raise
    return False
