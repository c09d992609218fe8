"""The service of a tutorial, to compare with: FastAPI, torchvision's preset, the eager network, one image at a time."""

import io

import torch
import torchvision
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from safetensors.torch import load_file


def create_app(weights: str, device: str) -> FastAPI:
    app = FastAPI()
    network = torchvision.models.resnet50()
    network.load_state_dict(load_file(weights))
    network.eval().to(device)
    entry = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    preset, labels = entry.transforms(), entry.meta["categories"]

    @torch.inference_mode()
    def answer(data: bytes) -> list[dict[str, float | str]]:
        image = preset(Image.open(io.BytesIO(data)).convert("RGB"))
        scores, class_ids = network(image[None].to(device))[0].softmax(0).topk(5)
        return [
            {"label": labels[i], "score": score} for i, score in zip(class_ids.tolist(), scores.tolist(), strict=True)
        ]

    @app.post("/v1/predict")
    async def predict(request: Request) -> list[dict[str, float | str]]:
        return await run_in_threadpool(answer, await request.body())

    return app


def serve(weights: str, device: str, port: int) -> None:
    uvicorn.run(create_app(weights, device), host="127.0.0.1", port=port, log_level="warning")
