"""What KServe's SDK gets from a server, as JSON on standard output: run by the interpreter that has it."""

import asyncio
import base64
import json
import sys
from pathlib import Path

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main(url: str, model: str, path: str) -> dict[str, object]:
    photo = Path(path).read_bytes()
    text = base64.b64encode(photo).decode()
    found: dict[str, object] = {}
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        found["v1 ready"] = await client.is_model_ready(url, model)
        answer = await client.infer(url, {"instances": [{"b64": text}, {"image": {"b64": text}}]}, model_name=model)
        found["v1"] = [[entry["label"] for entry in row] for row in answer["predictions"]]
        try:
            await client.infer(url, {"instances": [{"b64": "?"}]}, model_name=model)
        except Exception as error:
            found["v1 refused"] = str(error)
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        found["v2 ready"] = await client.is_server_ready(url)
        found["v2 live"] = await client.is_server_live(url)
        found["v2 model ready"] = await client.is_model_ready(url, model)
        found["another ready"] = await client.is_model_ready(url, "another")
        for binary in (False, True):
            image = InferInput("image", [1], "BYTES")
            image.set_data_from_numpy(np.array([photo if binary else text], np.object_), binary_data=binary)
            wanted = [RequestedOutput(name, {"binary_data": binary}) for name in ("scores", "logits")]
            request = InferRequest(model, [image], request_id="42", request_outputs=wanted)
            response = await client.infer(url, request, model_name=model)
            found[f"v2 {'binary' if binary else 'json'}"] = [
                response.id,
                *([output.name, list(output.shape), int(output.as_numpy().argmax())] for output in response.outputs),
            ]
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
