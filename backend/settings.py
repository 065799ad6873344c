"""The server's settings: one frozen value, read once from the environment. `docs/settings.md` is generated from it.

A field's name in capitals is its variable. `Settings(...)` takes values and defaults;
`Settings.from_environment(os.environ)` reads variables, and secrets also from files. To add a setting, add a field: a
type that says in words what a value must be, a default and a description.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

BUCKETS = (
    "s3.amazonaws.com",
    "s3.*.amazonaws.com",
    "s3-*.amazonaws.com",
    "*.s3.amazonaws.com",
    "*.s3.*.amazonaws.com",
    "*.s3-*.amazonaws.com",
    "*.s3.dualstack.*.amazonaws.com",
    "storage.googleapis.com",
    "*.storage.googleapis.com",
    "*.blob.core.windows.net",
)
"""Hosts to which Label Studio's cloud storages redirect a browser: enough for s3://, gs:// and azure-blob:// URIs.
Storage endpoints only: other names below amazonaws.com are anybody's virtual machines."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_OWN_SENTENCE = "own_sentence"  # type of errors whose message is complete
_FAMILIES = ("BASIC_AUTH_", "POLYGON_", "FEATURE_CACHE_", "MEMO_CACHE_", "IMAGE_M", "IMAGE_REVALIDATE", "FINETUNE_")
"""Prefixes that no other program's variables have: an unknown name with one is a mistake. `LABEL_STUDIO_` is not among
them: Label Studio and Kubernetes have variables of their own with it."""

_SERVICE_VARIABLE = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")


@dataclass(frozen=True)
class Is:
    """What a value must be, in words, for error messages and the documentation."""

    words: str


def parse_size(value: object) -> object:
    """Bytes of a text such as `512MB`, `1.5 GiB` or `1000`; K, M, G and T are powers of 1024."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", value.upper())
    if not match:
        raise ValueError
    return int(float(match[1]) * _UNITS[match[2]])


def size_text(size: int) -> str:
    """A number of bytes as `parse_size` reads it, in the largest unit without a remainder."""
    unit = next(unit for unit in ("T", "G", "M", "K", "") if size % _UNITS[unit] == 0 and (size or not unit))
    return f"{size // _UNITS[unit]}{unit and f'{unit}B'}"


def _resolution(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", value.lower())
    if not match or 0 in (sides := (int(match[1]), int(match[2] or match[1]))):
        raise ValueError
    return sides


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError
    return value.rstrip("/")


def _hosts(value: object) -> object:
    if not isinstance(value, str):
        return value
    patterns = tuple(part.strip().lower() for part in value.split(","))
    if not all(re.fullmatch(r"\*|(\*\.)?[^\s*/@?#][^\s/@?#]*", pattern) for pattern in patterns):
        raise ValueError
    return patterns


def host_matches(host: str, pattern: str) -> bool:
    """Whether a host name matches a pattern of a setting: a leading `*.` stands for one or more labels, `*` elsewhere
    for a part of one label, `*` alone for all hosts."""
    if pattern == "*":
        return True
    below = pattern.startswith("*.")
    name = re.escape(pattern.removeprefix("*.")).replace(r"\*", "[^.]*")
    return re.fullmatch(rf".+\.{name}" if below else name, host) is not None


def _listening_host(value: object) -> object:
    """A host as sockets take it: without the brackets that IPv6 addresses have in URLs."""
    if not isinstance(value, str):
        return value
    bracketed = re.fullmatch(r"\[([^]]*:[^]]*)\]", value)
    bare = bracketed[1] if bracketed else value
    if ":" in bare:
        address = IPv6Address(bare)
        if address.scope_id is not None:
            raise ValueError
        return str(address)
    if re.fullmatch(r"[\d.]+", bare):
        IPv4Address(bare)
    elif not re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", bare):
        raise ValueError
    return bare


def is_private(host: str) -> bool:
    """Whether an address cannot be reached from outside this machine's own networks."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_private and not address.is_unspecified


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Text = Annotated[str, Is("a text")]
Secret = Annotated[SecretStr | None, Is("a secret")]
Url = Annotated[str, AfterValidator(_url), Is("an address such as http://localhost:8080, without password and query")]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0), Is("a size such as 512MB, 4GB or 1000000")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Is("a number of seconds such as 20")]
Resolution = Annotated[
    tuple[int, int] | None, BeforeValidator(_resolution), Is("a resolution such as 448 or 448x672 (height x width)")
]


class Settings(BaseSettings):
    """All settings; each field's description says what it does. The representation does not show secrets."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", enable_decoding=False, case_sensitive=False)

    label_studio_url: Url = Field(
        default="http://localhost:8080",
        validation_alias=AliasChoices("label_studio_url", "label_studio_host"),
        description="address at which this server reaches Label Studio",
    )
    label_studio_api_key: Secret = Field(
        default=None,
        validation_alias=AliasChoices("label_studio_api_key", "label_studio_access_token"),
        description="personal access token, or legacy token, of a user who has access to the projects",
    )
    checkpoint: Text = Field(default="bundled", description="file with the model's weights, or `bundled`")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), Is("one of auto, cpu, cuda or cuda:1")] = Field(
        default="auto", description="device that runs the model; `auto` is a GPU if there is one"
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Is("one of auto, float32 or bfloat16")] = Field(
        default="auto",
        description="number format of the model; `auto` is bfloat16 where that is faster and gives the same masks",
    )
    runtime: Annotated[Literal["auto", "torch", "openvino"], Is("one of auto, torch or openvino")] = Field(
        default="auto",
        description="library that runs the model; `auto` is OpenVINO on a CPU where that is faster and gives the same "
        "masks, otherwise PyTorch. OpenVINO's graphs are made at the first start and kept in `MODEL_DIR`, or made "
        "beforehand by skipclick's command `compile`",
    )
    resolution: Resolution = Field(
        default=None, description="input size of the network; by default the checkpoint's own"
    )
    feature_cache_bytes: Size = Field(default=1 << 30, description="memory on the device for the features of images")
    feature_cache_host_bytes: Size = Field(
        default=4 << 30, description="host memory for features evicted from a GPU's; not used with `DEVICE=cpu`"
    )
    feature_cache_dir: Annotated[Path | None, Is("a folder")] = Field(
        default=None, description="folder that keeps features of images across restarts; by default they are not kept"
    )
    feature_cache_dir_bytes: Size = Field(
        default=10 << 30, description="disk space for features in `FEATURE_CACHE_DIR`"
    )
    click_batch: Annotated[int | None, Field(ge=1, le=32), Is("a whole number from 1 to 32")] = Field(
        default=None,
        description="clicks of several annotators that run as one batch; by default 1 on a CPU, 8 on a GPU. Above 1 "
        "the last bits of a probability depend on the rest of the batch",
    )
    memo_cache_bytes: Size = Field(default=512 << 20, description="memory for the masks of earlier clicks")
    zoom: Annotated[Literal["auto", "off"], Is("auto or off")] = Field(
        default="auto",
        description="`auto` uses a crop around the object from the second click on, and later around the click, so "
        "that small objects and parts get fine edges; `off` always uses the whole photo",
    )
    photo_cache_bytes: Size = Field(
        default=256 << 20,
        description="memory for decoded photos, from which `ZOOM` cuts its crops: 36 MB for 12 megapixels. An evicted "
        "photo is fetched again",
    )
    mask_min_part: Annotated[float, Field(ge=0, lt=1), Is("a share such as 0.001, or 0")] = Field(
        default=0.001,
        description="islands smaller than this share of a mask's area are removed, and such holes filled, unless a "
        "click lies in them",
    )
    correct_regions: Annotated[Literal["off", "negative", "any"], Is("one of off, negative or any")] = Field(
        default="negative",
        description="which first click on a saved region of the same label corrects that region instead of starting "
        "a new one: a negative one, `any`, or none (`off`); see [masks.md](masks.md)",
    )
    predict: Annotated[Literal["off", "similar"], Is("off or similar")] = Field(
        default="off",
        description="`similar` proposes masks like those that the team accepted, when a task without annotations is "
        "opened and for *Retrieve predictions*, in projects whose last training found that this helps; see "
        "[masks.md](masks.md#before-anybody-clicks)",
    )
    predict_seconds: Seconds = Field(
        default=10.0,
        description="how long opening a task may wait for `PREDICT`; what is found later is there for the next request",
    )
    polygon_min_iou: Annotated[float, Field(ge=0, le=1), Is("a number from 0 to 1 such as 0.99")] = Field(
        default=0.99,
        description="polygons of `PolygonLabels` have as few points as this IoU with the mask permits; 1 keeps all",
    )
    polygon_max_points: Annotated[int | None, Field(ge=3), Is("a whole number from 3")] = Field(
        default=None,
        description="maximum number of points of a polygon, whatever `POLYGON_MIN_IOU` requires; by default no limit",
    )
    image_max_bytes: Size = Field(default=64 << 20, description="largest file that is downloaded or decoded")
    image_max_pixels: Annotated[int, Field(ge=1, le=178_000_000), Is("a whole number from 1 to 178000000")] = Field(
        default=80_000_000, description="largest image, width x height"
    )
    image_memory_bytes: Size = Field(
        default=2 << 30,
        description="memory for all photos that are being decoded or wait for the device; an image that needs more on "
        "its own is refused",
    )
    image_timeout: Seconds = Field(default=20.0, description="time to fetch one image")
    image_revalidate_seconds: Annotated[
        float, Field(ge=0, allow_inf_nan=False), Is("a number of seconds such as 60, or 0")
    ] = Field(
        default=60.0,
        description="how long an image is assumed to be unchanged; after that, its source is asked again at the next "
        "click. 0 asks at every click, as is always done for files under `LOCAL_FILES_ROOT`",
    )
    image_hosts: Annotated[
        tuple[str, ...],
        BeforeValidator(_hosts),
        Is("host names with commas between them such as images.example.org,*.example.com, or * for all"),
    ] = Field(
        default=BUCKETS,
        description="hosts besides Label Studio from which images may be fetched, for addresses in tasks and for "
        "redirects; by default those of the cloud storages",
    )
    allow_private_addresses: Annotated[bool, Is("true or false")] = Field(
        default=False, description="also fetch images from `IMAGE_HOSTS` in private networks and on this machine"
    )
    local_files_root: Annotated[Path | None, Is("a folder")] = Field(
        default=None,
        description="the folder that Label Studio calls `LOCAL_FILES_DOCUMENT_ROOT`, if this server has it too: files "
        "of local storages are then read from it instead of being downloaded, for every project",
    )
    finetune: Annotated[Literal["auto", "manual", "follow", "off"], Is("one of auto, manual, follow or off")] = Field(
        default="auto",
        description="learn from each project's accepted masks; `manual` trains only when somebody presses Start "
        "Training, `follow` uses what another server learns in the same `MODEL_DIR`, `off` stores no annotations, "
        "trains nothing and uses the checkpoint for every project",
    )
    finetune_immediate: Annotated[bool, Is("true or false")] = Field(
        default=False,
        description="also adapt a project's head for some seconds after each accepted mask, and serve it without an "
        "evaluation: fewer clicks in a narrow domain, perhaps more elsewhere (`docs/results/finetune.md`)",
    )
    finetune_after_objects: Annotated[int, Field(ge=1, le=1_000_000), Is("a whole number from 1 to 1000000")] = Field(
        default=20, description="number of new objects that start a training"
    )
    finetune_quiet_seconds: Seconds = Field(
        default=120.0, description="a training starts once a project's annotators have been idle for this long"
    )
    finetune_seconds: Seconds = Field(
        default=360.0, description="time limit for learning in a training; reading and evaluation are extra"
    )
    finetune_job_seconds: Seconds = Field(
        default=7200.0, description="a training that takes longer in total is stopped: others wait for it"
    )
    finetune_threads: Annotated[int | None, Field(ge=1, le=1024), Is("a whole number from 1 to 1024")] = Field(
        default=None,
        description="processor threads of a training; by default `OMP_NUM_THREADS`, or one per core",
    )
    finetune_memory_bytes: Size = Field(
        default=6 << 30, description="memory that a training on a CPU may use; it fails if that is not enough"
    )
    head_cache_bytes: Size = Field(
        default=512 << 20, description="memory on the device for the fine-tuned heads of projects; see `FINETUNE`"
    )
    request_max_bytes: Size = Field(
        default=128 << 20, description="largest body of a request; each click carries all masks of its task"
    )
    request_max_clicks: Annotated[int, Field(ge=1, le=10_000), Is("a whole number from 1 to 10000")] = Field(
        default=100, description="maximum number of clicks on one object"
    )
    request_timeout: Seconds = Field(
        default=100.0,
        description="a click that has waited for this long is cancelled, as Label Studio does, and so is a request "
        "that has not arrived completely",
    )
    basic_auth_user: Annotated[str | None, Is("a text")] = Field(
        default=None, description="require this user and `BASIC_AUTH_PASS` on every route except `/health`"
    )
    basic_auth_pass: Secret = Field(default=None, validate_default=True, description="see `BASIC_AUTH_USER`")
    allowed_hosts: Annotated[
        tuple[str, ...],
        BeforeValidator(_hosts),
        Is("host names with commas between them such as skipclick.example.org,*.example.com, or * for all"),
    ] = Field(
        default=(),
        description="names by which clients may address a server that has no password, besides IP addresses, names "
        "without a dot and those of private networks",
    )
    model_dir: Annotated[Path, Is("a folder")] = Field(
        default=Path("data"), description="folder for annotations to learn from, trainings and fine-tuned heads"
    )
    workers: Annotated[int, Field(ge=1, le=64), Is("a whole number from 1 to 64")] = Field(
        default=1, description="processes; each has its own model, caches and metrics"
    )
    threads: Annotated[int, Field(ge=2, le=1024), Is("a whole number from 2 to 1024")] = Field(
        default=48,
        description="requests in progress per process. Some are reserved for `/health`, for annotations and for "
        "cached photos, whatever the others wait for",
    )
    host: Annotated[
        str,
        BeforeValidator(_listening_host),
        Is(
            "an address of this machine such as 0.0.0.0 (all), 127.0.0.1, :: or ::1, without http:// and port; see PORT"
        ),
    ] = Field(
        default="127.0.0.1",
        description="address to listen on: `127.0.0.1` for this machine only, `0.0.0.0` for all IPv4 addresses, `::` "
        "for IPv6 too",
    )
    port: Annotated[int, Field(ge=0, le=65535), Is("a whole number from 0 to 65535")] = Field(
        default=9090, description="port to listen on"
    )
    cvat: Annotated[Literal["off", "on"], Is("on or off")] = Field(
        default="off",
        description="serve CVAT's interactors too, as Nuclio's dashboard would (`docs/cvat.md`). CVAT sends no "
        "password: see `CVAT_ANY_ADDRESS`",
    )
    cvat_answer: Annotated[Literal["shapes", "mask"], Is("shapes or mask")] = Field(
        default="shapes", description="format of masks for CVAT: `shapes` from CVAT 2.60 on, `mask` before"
    )
    cvat_any_address: Annotated[bool, Is("true or false")] = Field(
        default=False,
        validate_default=True,
        description="let `CVAT=on` listen without a password on addresses that others may reach: for ports that only "
        "CVAT can reach, such as unpublished ones in a container network",
    )
    shutdown_timeout: Annotated[int, Field(ge=1, le=3600), Is("a whole number from 1 to 3600")] = Field(
        default=8, description="seconds for running requests to finish after SIGTERM; `docker stop` kills after 10"
    )
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        BeforeValidator(_upper),
        Is("one of DEBUG, INFO, WARNING or ERROR"),
    ] = Field(default="INFO", description="lowest level of log lines that are written")
    log_format: Annotated[Literal["text", "json"], Is("one of text or json")] = Field(
        default="text", description="`json` writes each log line as one JSON object"
    )

    @field_validator("basic_auth_pass")
    @classmethod
    def _both_or_neither(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if (value is None) != (info.data.get("basic_auth_user") is None):
            raise PydanticCustomError(_OWN_SENTENCE, "set both BASIC_AUTH_USER and BASIC_AUTH_PASS, or neither")
        return value

    @field_validator("cvat_any_address")
    @classmethod
    def _cvat_is_not_public(cls, value: bool, info: ValidationInfo) -> bool:
        is_guarded = info.data.get("basic_auth_user") is not None
        host = info.data.get("host")
        if info.data.get("cvat") == "on" and host is not None and not (value or is_guarded or is_private(host)):
            raise PydanticCustomError(
                _OWN_SENTENCE,
                f"CVAT=on with HOST={host} lets everybody who can reach this machine use the server, since CVAT sends "
                "no password: set HOST to an address in CVAT's own network, or CVAT_ANY_ADDRESS=true if only CVAT "
                "reaches the port",
            )
        return value

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: object, **__: object
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The process's environment is read where `from_environment` is called, and nowhere else."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Settings from variables; an empty variable counts as not set, `NAME_FILE` names a file with a secret.

        Raises `ValueError` with all errors at once, one per line.
        """
        given = {name: value.strip() for name, value in environment.items() if value.strip() and name.isupper()}
        complaints = list(_unknown_names(given))
        for name in sorted(name for name in secret_names() if f"{name}_FILE" in given):
            if name in given:
                complaints.append(f"set {name} or {name}_FILE, not both")
                continue
            try:
                given[name] = Path(given[f"{name}_FILE"]).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                complaints.append(f"{name}_FILE={given[f'{name}_FILE']} cannot be read ({type(error).__name__})")
        source = EnvSettingsSource(cls)
        source.env_vars = {name.lower(): value for name, value in given.items()}
        try:
            settings = cls(**source())
        except ValidationError as error:
            complaints += _complaints(error, given)
        if complaints:
            raise ValueError("\n".join(complaints))
        return settings


def revealed(secret: SecretStr | None) -> str | None:
    """The text of a secret, for the one place that needs it."""
    return secret.get_secret_value() if secret is not None else None


def host_and_port(host: str, port: int) -> str:
    """As in URLs and for gunicorn: IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listening_url(settings: Settings) -> str:
    """The server's own address, for somebody on the same machine."""
    host = "localhost" if settings.host in ("0.0.0.0", "::", "127.0.0.1") else settings.host
    return f"http://{host_and_port(host, settings.port)}"


def variable_names(field_name: str) -> tuple[str, ...]:
    """The variables that set a field, the preferred one first."""
    alias = Settings.model_fields[field_name].validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else [field_name]
    return tuple(str(name).upper() for name in names)


def secret_names() -> set[str]:
    """The variables that hold secrets; each also has a `NAME_FILE`."""
    return {name for field in Settings.model_fields if allowed(field) == "a secret" for name in variable_names(field)}


def allowed(field_name: str) -> str:
    """What a field's value must be, in words."""
    return next(mark.words for mark in Settings.model_fields[field_name].metadata if isinstance(mark, Is))


def _unknown_names(given: Mapping[str, str]) -> Iterator[str]:
    """Errors about variables that look like misspelled settings. The environment has many other programs' variables, so
    an unknown name alone is no error."""
    known = {name for field in Settings.model_fields for name in variable_names(field)}
    known |= {f"{name}_FILE" for name in secret_names()}
    for name in sorted(given.keys() - known - _service_variables(given)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        if near or name.startswith(_FAMILIES):
            near = near or difflib.get_close_matches(name, known, n=1, cutoff=0)
            yield f"unknown setting {name}; did you mean {near[0]}?"


def _service_variables(given: Mapping[str, str]) -> set[str]:
    """The variables that Kubernetes sets for each service of the namespace, and Docker for links: a service named
    `finetune` causes FINETUNE_PORT=tcp://10.0.0.7:80, FINETUNE_SERVICE_HOST and more."""
    services = {name.removesuffix("_PORT") for name, value in given.items() if _is_service_port(name, value)}
    links = tuple(f"{service}_{what}" for service in services for what in ("NAME", "ENV_"))
    found = {
        name for name, value in given.items() if _SERVICE_VARIABLE.fullmatch(name) or _is_service_port(name, value)
    }
    return found | {name for name in given if name.startswith(links)}


def _is_service_port(name: str, value: str) -> bool:
    return name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))


def _complaints(error: ValidationError, given: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=False):
        field = next(name for name in Settings.model_fields if str(problem["loc"][0]).upper() in variable_names(name))
        name = next((name for name in variable_names(field) if name in given), field.upper())
        shown = re.sub(r"//[^/]*@", "//...@", given.get(name, ""))  # an address may hold a password
        yield problem["msg"] if problem["type"] == _OWN_SENTENCE else f"{name}={shown} is not {allowed(field)}"
