"""Every setting once: its name, its default and one sentence. A flag wins over the environment, that over ``.env``."""

import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 2**20
PROTOCOLS = ("v2", "v1", "torchserve", "huggingface", "sagemaker", "vertex", "litserve")
_ROUTE = r"^/[^?#\s{}]*$"  # a path as it stands: braces would be parameters
PILLOW_PIXEL_LIMIT = 178_956_970  # Pillow refuses to open larger pictures, whatever we say


class Settings(BaseSettings):
    """Read once, by the command line or by ``create_app``'s caller, and passed in from there."""

    model_config = SettingsConfigDict(
        env_prefix="TOPK_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    model: str = Field(
        "auto",
        description="What to serve: `auto`, a torchvision architecture, `resnet50[:IMAGENET1K_V2]`, `timm:NAME`, a"
        " model folder, or an Ultralytics checkpoint, `yolo11n-cls.pt`.",
    )
    model_folders: Annotated[tuple[Path, ...], NoDecode] = Field(
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
    model_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,128}$",
        description="Name in answers; by default the architecture, or the folder's or file's name.",
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="`auto`, `cuda`, `cuda:N`, `mps` or `cpu`."
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
    root_path: str = Field(
        "", pattern=r"^(/[^/?#]+)*$", description="Prefix under which a proxy serves everything, `/vision`."
    )
    protocols: Annotated[tuple[Literal[PROTOCOLS], ...], NoDecode] = Field(  # type: ignore[valid-type]
        PROTOCOLS, description="Protocols that are spoken beside `/v1/predict`, comma-separated."
    )
    aip_health_route: str | None = Field(
        None,
        pattern=_ROUTE,
        validation_alias=AliasChoices("TOPK_AIP_HEALTH_ROUTE", "AIP_HEALTH_ROUTE"),
        description="Path that Vertex AI asks whether the service is ready; `AIP_HEALTH_ROUTE` is read too.",
    )
    aip_predict_route: str | None = Field(
        None,
        pattern=_ROUTE,
        validation_alias=AliasChoices("TOPK_AIP_PREDICT_ROUTE", "AIP_PREDICT_ROUTE"),
        description="Path that Vertex AI sends its requests to; `AIP_PREDICT_ROUTE` is read too.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose pages may call the API, comma-separated, or `*`."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Accepted API keys, comma-separated; none means no key is asked for."
    )
    api_keys_file: Path | None = Field(None, description="File with one accepted API key a line.")

    rate_limit: str | None = Field(
        None,
        description="Most images of one API key, or of one address where there are no keys: `10/second`, `600/minute`."
        " More is answered 429.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
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
        None, ge=1, description="Most pixels of costly pictures decoded at once; by default from the memory there is."
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
        description="A batch that takes longer than this shows that the device hangs: not ready, and the process ends.",
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

    @field_validator("cors_origins", "api_keys", "trusted_proxies", "protocols", "model_folders", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = tuple(part.strip() for part in value.split(",") if part.strip())
        if value and not parts:
            raise ValueError("nothing but separators")  # an open server, were this taken for no keys
        return parts

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ip_network(network)
        return value

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str | None) -> str | None:
        if value:
            import limits

            try:
                limits.parse(value)
            except ValueError:
                raise ValueError(f"{value!r} is no rate, such as 10/second or 600/minute") from None
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
                raise ValueError(f"{origin!r} is no origin, such as https://page.example, without a path")
        return value


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none: most are misspelt."""
    prefix = Settings.model_config["env_prefix"]
    known = {f"{prefix}{name}".upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(prefix) and name.upper() not in known)
