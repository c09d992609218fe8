"""Which errors of a framework are the device's, and which classes a batch explains."""

import numpy as np
import pytest
import torch

from app.engine import Want, device_errors
from app.engine.base import BEST, explained_classes
from app.errors import DeviceLost

ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(ILLEGAL),
        RuntimeError(ILLEGAL),
        RuntimeError("CUDA driver error: device not ready"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    ],
    ids=["accelerator", "runtime", "driver", "cublas", "cudnn"],
)
def test_an_error_of_the_device_means_that_it_is_lost(error: RuntimeError) -> None:
    with pytest.raises(DeviceLost) as lost, device_errors():
        raise error
    assert lost.value.__cause__ is error
    assert str(error) not in lost.value.detail
    assert (lost.value.status, lost.value.code) == (503, "not_ready")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    ],
    ids=["torch", "accelerator", "cublas", "cudnn", "cpu"],
)
def test_a_device_without_memory_is_not_lost(error: RuntimeError) -> None:
    with pytest.raises(MemoryError), device_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error: none of the device's"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous"
        ),
        KeyboardInterrupt(),
    ],
    ids=["value", "shapes", "unsupported", "interrupt"],
)
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, device_errors():
        raise error
    assert passed.value is error


def test_the_best_class_is_that_of_the_same_image() -> None:
    wants = [Want(explain=5), Want(), Want(explain=BEST), Want(explain=0)]
    assert explained_classes(wants, np.array([[1, 2], [3, 4], [7, 8], [9, 9]])) == {0: 5, 2: 7, 3: 0}
