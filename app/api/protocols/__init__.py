"""What other servers' clients speak: a module a protocol, with its routes, its bodies, its answers and its errors."""

from types import ModuleType

from fastapi import FastAPI

from app.api.protocols import huggingface, kserve, litserve, openinference, sagemaker, torchserve, vertex
from app.settings import PROTOCOLS, Settings

_MODULES: dict[str, ModuleType] = {
    module.NAME: module for module in (openinference, kserve, torchserve, huggingface, vertex, sagemaker, litserve)
}


def include(app: FastAPI, settings: Settings) -> None:
    """Add the routes of the protocols that the settings name.

    Vertex AI's come before those that it may share a path with: it is asked for by name.
    """
    assert set(_MODULES) == set(PROTOCOLS)
    app.state.shapes = {name: module.problem for name, module in _MODULES.items() if hasattr(module, "problem")}
    spoken = set(settings.protocols)
    app.state.prefixes = {
        module.PREFIX: name for name, module in _MODULES.items() if name in spoken and hasattr(module, "PREFIX")
    }
    app.state.documents = {}
    if spoken & {kserve.NAME, sagemaker.NAME, vertex.NAME}:  # whose contracts have it
        app.state.documents["instances"] = (kserve.NAME, kserve.instances)
    if huggingface.NAME in spoken:
        app.state.documents["inputs"] = (huggingface.NAME, huggingface.inputs)
    for name, module in _MODULES.items():
        if name in spoken:
            app.include_router(module.routes(settings))
