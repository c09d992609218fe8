"""The served model and how it is served, for ``/v1/info``."""

import math

from app import images
from app.api.schemas.responses import Batching, CalibrationInfo, Decoding, Info, Limits
from app.classifier import Classifier, Served


def describe(classifier: Classifier) -> Info:
    """Describe the model that ``classifier`` serves. Raises NotReady before there is one."""
    served, settings = classifier.served, classifier.settings
    model, engine, queue = served.model, served.engine, served.queue
    patience = queue.outlook().patience
    return Info(
        model=model.name,
        architecture=model.architecture,
        weights=model.weights,
        digest=f"sha256:{model.digest}",
        classes=len(model.labels),
        taxonomy=served.taxonomy is not None,
        dim=engine.dim,
        engine=engine.name,
        device=engine.device,
        device_name=engine.device_name,
        precision=engine.precision,
        compilation=engine.compilation,
        preprocessing=model.preprocessing,
        decode=Decoding(
            fast=settings.fast_decode,
            ahead_of_queue=served.ahead is not None,
            heic=images.heif_installed(),
        ),
        batching=Batching(
            streams=engine.streams,
            ceiling=queue.costs.ceiling,
            cost_ms={str(size): _ms(queue.costs.seconds(size)) for size in queue.costs.buckets},
            alone_ms=next((_ms(seconds) for seconds in queue.costs_alone.as_dict().values()), None),
            patience=round(patience, 2) if math.isfinite(patience) else None,
        ),
        limits=Limits(
            max_upload_bytes=settings.max_upload_bytes,
            max_body_bytes=settings.max_body_bytes,
            max_batch_images=settings.max_batch_images,
            max_inflight_bytes=settings.max_inflight_bytes,
            max_pixels=served.decoder.max_pixels,
            decode_pixels=served.decoder.decode_pixels,
            request_timeout_ms=settings.request_timeout_ms,
        ),
        calibration=_calibrated(served),
        explain=served.inexplicable is None,
        warning=model.warning,
    )


def _calibrated(served: Served) -> CalibrationInfo | None:
    found = served.calibration
    if found is None:
        return None
    return CalibrationInfo(
        created=found.created,
        images=found.images,
        digest=f"sha256:{served.model.digest}",
        precision=served.engine.precision,
        temperature=found.temperature,
        most_coverage=found.most_coverage,
        least_unknown=found.least_unknown,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
