"""Every setting once: its name, its default and one sentence. A flag wins over the environment, that over ``.env``."""

import os
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.settings import values

MIB = 2**20
PROTOCOLS = ("v2", "kserve-v1", "torchserve", "huggingface", "sagemaker", "vertex", "litserve")
PILLOW_PIXEL_LIMIT = 178_956_970  # Pillow refuses to open larger pictures, whatever we say

_PREFIX, _DOTENV = "TOPK_", ".env"
_Split = BeforeValidator(lambda value: values.parts(value) if isinstance(value, str) else value)
_Keys = BeforeValidator(lambda value: values.keys(value) if isinstance(value, str) else value)
_Given = BeforeValidator(lambda value: values.given(value) if isinstance(value, str) else value)
_NEVER_EMPTY = ("api_keys", "api_keys_file")  # other variables that are empty count as unset
_Route = Annotated[str, AfterValidator(values.route)]
_Origin = Annotated[str, AfterValidator(values.origin)]
_Network = Annotated[str, AfterValidator(values.network)]


class Settings(BaseSettings):
    """Read once, by the command line or by ``create_app``'s caller, and passed in from there."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=_DOTENV, env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    model: str = Field(
        "auto",
        description="What to serve: `auto`, a torchvision architecture, `resnet50[:IMAGENET1K_V2]`, `timm:NAME`, a"
        " model folder, or an Ultralytics checkpoint, `yolo11n-cls.pt`.",
    )
    model_folders: Annotated[tuple[Path, ...], NoDecode, _Split] = Field(
        (Path("/opt/ml/model"),),
        description="Where `TOPK_MODEL` is `auto`, the first of these folders that is there and not empty is served,"
        " comma-separated.",
    )
    weights: Path | None = Field(
        None, description="File with weights for the architecture: safetensors or a state dict."
    )
    trust_checkpoint: bool = Field(
        False, description="Unpickle the Ultralytics checkpoint that is to be served, which runs code that it holds."
    )
    model_name: Annotated[str, AfterValidator(values.model_name)] | None = Field(
        None,
        description="Name in answers and in protocols' paths, of letters, digits, `.`, `_` and `-`, at most 128; by"
        " default the architecture, or the folder's or file's name.",
    )
    device: Annotated[str, AfterValidator(values.device)] = Field(
        "auto", description="`auto`, `cuda`, `cuda:N`, `mps` or `cpu`."
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="What computes: `auto` is `openvino` on a CPU, `torch` on a GPU."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="`auto` is bfloat16 where the hardware computes it natively, else float32; `int8` needs a model"
        " exported so.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/topk"), description="Folder for converted models; each is converted once, then starts fast."
    )
    fast_decode: bool = Field(
        True,
        description="Decode large JPEGs at a reduced scale, never below twice the size needed; resize only the crop.",
    )

    host: str = Field("0.0.0.0", description="Address to listen on.")
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("TOPK_PORT", "AIP_HTTP_PORT", "PORT"),
        description="Port to listen on; `AIP_HTTP_PORT` and `PORT` are read too.",
    )
    workers: int = Field(
        0,
        ge=0,
        description="HTTP processes that decode for one engine process; 0 is one process for all. Pays beside a GPU, or"
        " on many cores, where one process cannot decode as fast as the device computes.",
    )
    listen_early: bool = Field(
        True,
        description="Listen while the model is loading, and answer `not_ready`; `false` lets a load balancer that asks"
        " no `/readyz` go elsewhere until then.",
    )
    root_path: Annotated[str, AfterValidator(values.prefix)] = Field(
        "", description="Prefix under which a proxy serves everything, `/vision`."
    )
    protocols: Annotated[tuple[Literal[PROTOCOLS], ...], NoDecode, _Split] = Field(  # type: ignore[valid-type]
        PROTOCOLS, description="Protocols that are spoken beside `/v1/predict`, comma-separated."
    )
    aip_health_route: _Route | None = Field(
        None,
        validation_alias=AliasChoices("TOPK_AIP_HEALTH_ROUTE", "AIP_HEALTH_ROUTE"),
        description="Path that Vertex AI asks whether the service is ready; `AIP_HEALTH_ROUTE` is read too.",
    )
    aip_predict_route: _Route | None = Field(
        None,
        validation_alias=AliasChoices("TOPK_AIP_PREDICT_ROUTE", "AIP_PREDICT_ROUTE"),
        description="Path that Vertex AI sends its requests to; `AIP_PREDICT_ROUTE` is read too.",
    )
    cors_origins: Annotated[tuple[_Origin, ...], NoDecode, _Split] = Field(
        (), description="Origins whose pages may call the API, comma-separated, or `*`."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, _Keys] = Field(
        (),
        description="Accepted API keys, comma-separated. Unset, no key is asked for; set but empty, topk does not"
        " start.",
    )
    api_keys_file: Annotated[Path | None, _Given] = Field(
        None, description="File with one accepted API key a line; a file without any stops the start."
    )

    rate_limit: Annotated[str, AfterValidator(values.rate_limit)] | None = Field(
        None,
        description="Most images of one API key, or of one address where there are no keys: `10/second`, `600/minute`."
        " More is answered 429. A /64 of IPv6 counts as one address. Each of `TOPK_WORKERS` counts for itself: over"
        " several connections it may be that many times as much.",
    )
    trusted_proxies: Annotated[tuple[_Network, ...], NoDecode, _Split] = Field(
        (),
        description="Addresses or networks, comma-separated, whose `X-Forwarded-For` tells the client's address.",
    )

    max_upload_bytes: int = Field(20 * MIB, ge=1, description="Largest image, in bytes (after base64).")
    max_body_bytes: int = Field(64 * MIB, ge=1, description="Largest request body, in bytes.")
    max_batch_images: int = Field(32, ge=1, description="Most images in one batch request.")
    max_inflight_bytes: int = Field(512 * MIB, ge=1, description="Most bytes of uploads held in memory at once.")
    max_pixels: int = Field(
        50_000_000, ge=1, le=PILLOW_PIXEL_LIMIT, description="Largest picture, in pixels, judged from its header."
    )
    decode_pixels: int | None = Field(
        None,
        ge=1,
        description="Bounds the memory of pictures in the sandbox: that of so many pixels, 20 bytes each. By default a"
        " quarter of the memory there is.",
    )
    upload_idle_ms: int = Field(
        10_000,
        ge=1,
        description="An upload without a byte for this long ends in 408, as does a request whose head is not whole by"
        " then.",
    )
    upload_ms: int = Field(60_000, ge=1, description="An upload that takes longer than this ends in 408.")
    request_timeout_ms: int = Field(
        10_000,
        ge=1,
        description="Deadline of a request, from its body's last byte; `X-Request-Timeout-Ms` shortens it.",
    )
    watchdog_ms: int = Field(
        30_000,
        ge=1,
        description="A longer batch counts as a hang: the service becomes unready and the process exits. With"
        " `TOPK_WORKERS`, a process whose event loop does not answer for this long, at least 2000, is replaced.",
    )
    drain_delay_ms: int | None = Field(
        None, ge=0, description="How long the socket stays open after SIGTERM; by default 5000, on a terminal 0."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="`auto` is text on a terminal, JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    traces: bool = Field(
        False,
        description="Export OpenTelemetry traces (`pip install 'topk[otel]'`); where to is said by its own variables,"
        " `OTEL_EXPORTER_OTLP_ENDPOINT` and the like.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Empty variables are ignored, except those whose absence opens the service."""
        assert isinstance(dotenv_settings, DotEnvSettingsSource)
        dotenv = dotenv_values(_DOTENV) if dotenv_settings.env_file else {}
        set_to = {name.upper(): value for name, value in [*dotenv.items(), *os.environ.items()]}
        empty = {field: "" for field in _NEVER_EMPTY if not set_to.get(f"{_PREFIX}{field}".upper(), "unset")}
        return init_settings, InitSettingsSource(settings_cls, empty), env_settings, dotenv_settings


def surroundings() -> dict[str, str]:
    """The variables that settings are read from: the environment's, and those of ``.env`` that it has not."""
    return {name: value for name, value in {**dotenv_values(_DOTENV), **os.environ}.items() if value is not None}


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none, with the setting that may be meant: most are misspelt."""
    known = [name for field in Settings.model_fields for name in _variables(field) if name.startswith(_PREFIX)]
    found = sorted(name for name in environment if name.upper().startswith(_PREFIX) and name.upper() not in known)
    nearest = {name: get_close_matches(name.upper(), known, 1) for name in found}
    return [f"{name} ({near[0]}?)" if (near := nearest[name]) else name for name in found]


def complaint(error: ValidationError, options: Collection[str] = ()) -> str:
    """What is wrong first, as a sentence that begins with what was set: one of the ``options``, or a variable."""
    fault = error.errors()[0]
    place = str(fault["loc"][0])
    field = next(name for name in Settings.model_fields if place in (name, *_variables(name)))
    if field in options:
        return f"--{field.replace('_', '-')}: {_sentence(fault)}"
    names = {name.upper(): name for name, value in surroundings().items() if value or field in _NEVER_EMPTY}
    set_by = next((names[name] for name in _variables(field) if name in names), field)
    return f"{set_by}: {_sentence(fault)}"


def _variables(field: str) -> list[str]:
    """Environment variables of a setting, its own first."""
    alias = Settings.model_fields[field].validation_alias
    return [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else [f"{_PREFIX}{field}".upper()]


def _sentence(fault: ErrorDetails) -> str:
    given, about = repr(fault["input"]), fault.get("ctx", {})
    match fault["type"]:
        case "value_error":
            return str(about["error"])
        case "int_parsing" | "int_parsing_size":
            return f"{given} is no whole number"
        case "bool_parsing":
            return f"{given} is neither true nor false"
        case "literal_error":
            return f"{given} is none of {about['expected'].replace(' or ', ' and ')}"
        case "greater_than_equal":
            return f"{given} is less than {about['ge']}"
        case "less_than_equal":
            return f"{given} is more than {about['le']}"
    return fault["msg"]
