"""The protocols of other servers, one module or package each: its routes, bodies, responses and errors."""

from fastapi import FastAPI

from app.api.protocols import huggingface, kserve, litserve, openinference, sagemaker, torchserve, vertex
from app.api.protocols.protocol import Protocol
from app.api.service import Protocols
from app.settings import PROTOCOLS, Settings

_ALL = {
    module.PROTOCOL.name: module.PROTOCOL
    for module in (openinference, kserve, torchserve, huggingface, vertex, sagemaker, litserve)
}
"""Vertex AI's routes come before others that may have the same path: its environment names them explicitly."""


def enabled(settings: Settings) -> Protocols:
    """The protocols that the settings enable, as error responses and shared paths need them."""
    documents = {}
    if {kserve.NAME, sagemaker.NAME, vertex.NAME} & set(settings.protocols):  # their contracts include it
        documents["instances"] = (kserve.NAME, kserve.instances)
    if huggingface.NAME in settings.protocols:
        documents["inputs"] = (huggingface.NAME, huggingface.inputs)
    protocols = _selected(settings)
    return Protocols(
        error_bodies={protocol.name: protocol.error_body for protocol in _ALL.values() if protocol.error_body},
        prefixes={protocol.prefix: protocol.name for protocol in protocols if protocol.prefix},
        documents=documents,
    )


def include(app: FastAPI, settings: Settings) -> None:
    """Add the routes of the enabled protocols."""
    for protocol in _selected(settings):
        app.include_router(protocol.routes(settings))


def _selected(settings: Settings) -> list[Protocol]:
    assert set(_ALL) == set(PROTOCOLS)
    return [protocol for name, protocol in _ALL.items() if name in settings.protocols]
