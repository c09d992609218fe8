"""Every setting once: name, default and description. An option wins over the environment, which wins over ``.env``."""

import os
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, IPvAnyNetwork, SecretStr
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.settings import values
from app.settings.variables import DOTENV, PREFIX, is_service_link

MIB = 2**20
PROTOCOLS = ("v2", "kserve-v1", "torchserve", "huggingface", "sagemaker", "vertex", "litserve")
NEVER_EMPTY = ("api_keys", "api_keys_file")  # any other empty variable counts as unset

_Split = BeforeValidator(lambda value: values.parts(value) if isinstance(value, str) else value)
_Keys = BeforeValidator(lambda value: values.keys(value) if isinstance(value, str) else value)
_NotEmpty = BeforeValidator(lambda value: values.not_empty(value) if isinstance(value, str) else value)
_Route = Annotated[str, AfterValidator(values.route)]
_Origin = Annotated[str, AfterValidator(values.origin)]
_Protocol = Annotated[Literal[PROTOCOLS], BeforeValidator(values.current_protocol)]  # type: ignore[valid-type]


class Settings(BaseSettings):
    """Read once, by the command line or the caller of ``create_app``, and passed on from there."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=DOTENV, env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    model: str = Field(
        "auto",
        description="Model to serve: `auto`, a torchvision architecture such as `resnet50` or `resnet50:IMAGENET1K_V2`,"
        " `timm:NAME`, a model folder, or an Ultralytics checkpoint such as `yolo11n-cls.pt`.",
    )
    model_folders: Annotated[tuple[Path, ...], NoDecode, _Split] = Field(
        (Path("/opt/ml/model"),),
        description="Comma-separated model folders. If `TOPK_MODEL` is `auto`, the first one that is not empty is"
        " served.",
    )
    weights: Path | None = Field(None, description="Weights file for the architecture: safetensors or a state dict.")
    trust_checkpoint: bool = Field(
        False, description="Load Ultralytics checkpoints. They are pickled, so loading one runs code from it."
    )
    model_name: Annotated[str, AfterValidator(values.model_name)] | None = Field(
        None,
        description="Model name in responses and in the paths of protocols: up to 128 letters, digits, `.`, `_` and"
        " `-`. Default: the architecture, or the name of the folder or file.",
    )
    device: Annotated[str, AfterValidator(values.device)] = Field(
        "auto", description="`auto`, `cuda`, `cuda:N`, `mps` or `cpu`."
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="Inference engine. `auto` is `openvino` on a CPU and `torch` on a GPU."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="`auto` is bfloat16 if the hardware supports it natively, else float32. `int8` needs a model"
        " exported in int8.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/topk"),
        description="Cache for converted models. Each model is converted once; later starts are fast.",
    )
    fast_decode: bool = Field(
        True,
        description="Decode large JPEGs at a reduced scale, at least twice the needed size, and resize only the crop.",
    )
    gpu_decode: bool = Field(
        False,
        description="Decode baseline JPEGs on the GPU, with the extra `gpu`. The files of clients then reach a decoder"
        " in the engine process. It has no effect on a CPU, or if `TOPK_FAST_DECODE` is `false`.",
    )

    explain: bool = Field(
        True,
        description="Support the option `explain`. The first such request loads a second network, which takes a few"
        " seconds and about as much memory as the first. If `false`, `explain` is a 400.",
    )

    host: str = Field("0.0.0.0", description="Address to listen on.")
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("TOPK_PORT", "AIP_HTTP_PORT", "PORT"),
        description="Port to listen on. If unset, `AIP_HTTP_PORT` and `PORT` are read.",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Number of HTTP processes that decode images for one engine process; 0 is one process for all. Use"
        " it if one process cannot decode as fast as the device computes: with a GPU, or on many cores.",
    )
    listen_early: bool = Field(
        True,
        description="Listen while the model loads and respond with `not_ready`. Set it to `false` behind a load"
        " balancer that does not check `/readyz`.",
    )
    root_path: Annotated[str, AfterValidator(values.prefix)] = Field(
        "", description="Path prefix behind a proxy, such as `/vision`. It does not matter whether the proxy strips it."
    )
    protocols: Annotated[tuple[_Protocol, ...], NoDecode, _Split] = Field(
        PROTOCOLS, description="Comma-separated protocols to support in addition to `/v1/predict`."
    )
    aip_health_route: _Route | None = Field(
        None,
        validation_alias=AliasChoices("TOPK_AIP_HEALTH_ROUTE", "AIP_HEALTH_ROUTE"),
        description="Path of Vertex AI's health checks. If unset, `AIP_HEALTH_ROUTE` is read.",
    )
    aip_predict_route: _Route | None = Field(
        None,
        validation_alias=AliasChoices("TOPK_AIP_PREDICT_ROUTE", "AIP_PREDICT_ROUTE"),
        description="Path of Vertex AI's prediction requests. If unset, `AIP_PREDICT_ROUTE` is read.",
    )
    cors_origins: Annotated[tuple[_Origin, ...], NoDecode, _Split] = Field(
        (),
        description="Comma-separated origins whose pages may call the API, or `*` for all. Apps have origins such as"
        " `capacitor://localhost`.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, _Keys] = Field(
        (),
        description="Comma-separated accepted API keys. If unset, no key is required. If empty, topk does not start.",
    )
    api_keys_file: Annotated[Path | None, _NotEmpty] = Field(
        None, description="File with one accepted API key per line. If it contains none, topk does not start."
    )

    rate_limit: Annotated[str, AfterValidator(values.rate_limit)] | None = Field(
        None,
        description="Maximum rate of images per API key, or per client address without keys, such as `10/second` or"
        " `600/minute`; above it, the response is a 429. An IPv6 /64 counts as one address. Each of `TOPK_WORKERS`"
        " counts separately.",
    )
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, _Split] = Field(
        (),
        description="Comma-separated addresses or networks of proxies whose `X-Forwarded-For` is trusted. An IPv4"
        " address mapped into IPv6 is the IPv4 address.",
    )

    max_upload_bytes: int = Field(
        20 * MIB, ge=1, description="Maximum size of an image in bytes, after base64 decoding."
    )
    max_body_bytes: int = Field(64 * MIB, ge=1, description="Maximum size of a request body in bytes.")
    max_batch_images: int = Field(32, ge=1, description="Maximum number of images in one batch request.")
    max_inflight_bytes: int = Field(512 * MIB, ge=1, description="Maximum bytes of uploads in memory at once.")
    max_pixels: int = Field(
        200_000_000,
        ge=1,
        description="Maximum number of pixels of an image, read from its header. It applies to JPEGs of a single scan,"
        " which are decoded at a reduced scale. For all other images the limit is at most 50 million pixels.",
    )
    decode_pixels: int | None = Field(
        None,
        ge=1,
        description="Maximum memory of the images in the sandbox, in pixels of 20 bytes. An image counts the bytes that"
        " its format, size and scale need. Default: a quarter of the available memory.",
    )
    upload_idle_ms: int = Field(
        10_000,
        ge=1,
        description="Milliseconds without a byte after which an upload ends in a 408. Also the time limit for a"
        " request's head.",
    )
    keep_alive_ms: int = Field(
        75_000,
        ge=1,
        description="Milliseconds that a connection may be idle between two requests. Keep it above the idle timeout of"
        " the load balancer, which otherwise loses requests.",
    )
    upload_ms: int = Field(
        60_000, ge=1, description="Maximum duration of an upload in milliseconds; a longer one ends in a 408."
    )
    request_timeout_ms: int = Field(
        10_000,
        ge=1,
        description="Deadline of a request in milliseconds after its body's last byte. `X-Request-Timeout-Ms` shortens"
        " it.",
    )
    watchdog_ms: int = Field(
        30_000,
        ge=1,
        description="Maximum duration of a batch in milliseconds. A longer batch counts as a hang: the service becomes"
        " unready and the process exits. With `TOPK_WORKERS`, a process whose event loop does not respond for this long"
        " (at least 2000) is replaced.",
    )
    drain_delay_ms: int | None = Field(
        None,
        ge=0,
        description="Milliseconds that the socket stays open after SIGTERM. Default: 5000, or 0 on a terminal.",
    )
    sample_dir: Path | None = Field(
        None,
        description="Folder in which the least certain images are stored with their answers. They are your users'"
        " pictures: see docs/security.md. Default: none are stored.",
    )
    sample_rate: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the images to store in `TOPK_SAMPLE_DIR`: those whose best class has one of the lowest"
        " scores of the last 1000 images.",
    )
    sample_bytes: int = Field(
        1024 * MIB,
        ge=1,
        description="Size of `TOPK_SAMPLE_DIR` in bytes at which no more images are stored. Each process of"
        " `TOPK_WORKERS` counts what was there at its start and what it writes itself.",
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="`auto` is text on a terminal and JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level of log lines.")
    traces: bool = Field(
        False,
        description="Export OpenTelemetry traces (`pip install '.[otel]'`). Set the destination with OpenTelemetry's"
        " own variables, such as `OTEL_EXPORTER_OTLP_ENDPOINT`.",
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
        """Ignore Kubernetes' service links, and empty variables unless their absence would open the service."""
        assert isinstance(env_settings, EnvSettingsSource)
        assert isinstance(dotenv_settings, DotEnvSettingsSource)
        for source in (env_settings, dotenv_settings):
            source.env_vars = {n: value for n, value in source.env_vars.items() if not is_service_link(n, value)}
        dotenv = dotenv_values(DOTENV) if dotenv_settings.env_file else {}
        variables = {name.upper(): value for name, value in [*dotenv.items(), *os.environ.items()]}
        empty = {field: "" for field in NEVER_EMPTY if not variables.get(f"{PREFIX}{field}".upper(), "unset")}
        return init_settings, InitSettingsSource(settings_cls, empty), env_settings, dotenv_settings
