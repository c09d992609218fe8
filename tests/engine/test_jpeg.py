"""JPEG decoding for a device: the kernels of the resize, compiled for this CPU, against Pillow; and bad files."""

import functools
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from structlog.testing import capture_logs

from app import images
from app.engine import jpeg
from app.engine.base import Jpeg
from app.engine.jpeg import JpegDecoder, Kernels
from app.images import Preprocessing
from app.images.geometry import UPRIGHT, resized_size
from tests.conftest import CAT, PHOTOGRAPHS
from tests.engine.kernels import cpu_decode, cpu_kernels
from tests.hostile import encode

MEAN = STD = (0.5, 0.5, 0.5)
PRESET = Preprocessing(256, 224, "bilinear", MEAN, STD)
PRESETS = [
    PRESET,
    Preprocessing(232, 224, "bicubic", MEAN, STD),
    Preprocessing(96, 96, "bicubic", MEAN, STD, squash=True),
]
FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(500, 375), (375, 500), (224, 224), (100, 61), (1, 1), (2, 3), (7, 900), (900, 7), (1999, 1333), (333, 1000)]
Crops = npt.NDArray[np.uint8]


def decoded(image: Image.Image) -> torch.Tensor:
    """A decoded image as it lies in the memory of the device."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def crops(
    pictures: Sequence[Image.Image],
    preset: Preprocessing,
    orientation: int = 1,
    device: str = "cpu",
    kernels: Kernels | None = None,
) -> Crops:
    """The crops of decoded images, by the kernels."""
    on_device = [decoded(picture).to(device) for picture in pictures]
    decoder = JpegDecoder(preset, torch.device(device), lambda _: on_device, kernels or cpu_kernels())
    out = torch.zeros((len(pictures), preset.crop, preset.crop, 3), dtype=torch.uint8, device=device)
    files = [Jpeg(b"a file", *picture.size, orientation) for picture in pictures]
    assert decoder.decode(files, range(len(files)), out) == []
    return out.cpu().numpy()


def reference(image: Image.Image, preset: Preprocessing) -> Crops:
    """Pillow's resize, first the rows and then the columns, as all but the tallest images are resized at once."""
    width, height, left, top = resized_size(*image.size, preset)
    resample = FILTER[preset.interpolation]
    resized = image.resize((width, image.height), resample).resize((width, height), resample)
    return np.asarray(resized.crop((left, top, left + preset.crop, top + preset.crop)))


@functools.cache
def noise(size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(1).randbytes(size[0] * size[1] * 3))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.resize}-{preset.crop}-{preset.interpolation}")
def test_the_kernels_compute_pillows_crop_to_the_last_bit(preset: Preprocessing) -> None:
    found = crops([noise(size) for size in SIZES], preset)
    for size, crop in zip(SIZES, found, strict=True):
        assert np.array_equal(crop, reference(noise(size), preset)), size


@pytest.mark.parametrize("orientation", range(9))
def test_the_kernels_turn_the_image_upright(orientation: int) -> None:
    picture = noise((301, 402))
    upright = picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture
    assert np.array_equal(crops([picture], PRESET, orientation)[0], reference(upright, PRESET))


@pytest.mark.shared
@pytest.mark.parametrize("preset", PRESETS[:2], ids=str)
def test_crops_of_photographs_are_those_of_the_reference(preset: Preprocessing) -> None:
    for path in PHOTOGRAPHS:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
        expected = images.decode(images.read_header(data, picture.width * picture.height), preset, fast=False)
        difference = np.abs(crops([picture], preset)[0].astype(np.int16) - expected)
        assert difference.max() == 0, path.name


# --- files ---


def read(data: bytes) -> Jpeg:
    header = images.read_header(data, 10**8)
    return Jpeg(header.data, header.width, header.height, header.orientation)


def file_decoder(preset: Preprocessing = PRESET) -> JpegDecoder:
    """The decoder of a GPU, with a decoder and the kernels for this CPU."""
    return JpegDecoder(preset, torch.device("cpu"), cpu_decode, cpu_kernels())


def places_of_crops(files: Sequence[Jpeg], decoder: JpegDecoder) -> tuple[Crops, list[int]]:
    """The crops in reverse order, and the places of the files that could not be decoded."""
    places = range(len(files))[::-1]
    out = torch.zeros((len(files), PRESET.crop, PRESET.crop, 3), dtype=torch.uint8)
    failed = decoder.decode(files, places, out)
    return out.numpy(), failed


def photo(size: tuple[int, int] = (301, 402), mode: str = "RGB", **options: object) -> bytes:
    return encode(noise(size).convert(mode), "JPEG", **options)


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def expected(data: bytes) -> Crops:
    return images.decode(images.read_header(data, 10**8), PRESET, fast=False)


def test_files_become_the_crops_of_pillows_decoder_in_their_places() -> None:
    data = [
        photo(),
        photo((500, 300), quality=95, subsampling=0),
        photo(mode="L"),
        photo(exif=exif(6)),
        CAT.read_bytes(),
    ]
    found, failed = places_of_crops(list(map(read, data)), file_decoder())
    assert failed == []
    for crop, one in zip(found[::-1], data, strict=True):
        assert np.array_equal(crop, expected(one))


def test_a_file_that_cannot_be_decoded_fails_alone() -> None:
    good = photo()
    bad = Jpeg(b"no image", 301, 402, 1)
    found, failed = places_of_crops([read(good), bad, read(good)], file_decoder())
    assert failed == [1]
    for crop in (found[0], found[2]):
        assert np.array_equal(crop, expected(good))


def test_an_image_of_another_size_than_its_header_states_fails() -> None:
    file = replace(read(photo()), width=300)
    assert places_of_crops([file, read(photo())], file_decoder())[1] == [1]


def test_a_broken_device_is_not_taken_for_a_broken_file() -> None:
    def decode(_: object) -> list[torch.Tensor]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    decoder = JpegDecoder(PRESET, torch.device("cpu"), decode, cpu_kernels())
    with pytest.raises(torch.AcceleratorError):
        places_of_crops([read(photo())], decoder)


def test_large_images_are_decoded_in_parts() -> None:
    sizes = []

    def decode(files: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes.append(len(files))
        return [torch.empty(0)] * len(files)

    decoder = JpegDecoder(PRESET, torch.device("cpu"), decode, cpu_kernels())
    files = [Jpeg(b"a file", width, 4096, 1) for width in (8192, 4096, 4096, 100, 32768, 100)]
    assert len(places_of_crops(files, decoder)[1]) == len(files)
    assert sizes == [3, 1, 1, 1]


def test_a_decoder_that_works_passes_its_check() -> None:
    for preset in PRESETS:
        file_decoder(preset).check()


@pytest.mark.parametrize(
    "wrong", [lambda image: image.flip(0), lambda image: image.flip(2), lambda image: image[:, 1:]]
)
def test_a_decoder_that_does_not_fails_its_check(wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def decode(files: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(map(wrong, cpu_decode(files)))

    with pytest.raises(RuntimeError, match="JPEG"):
        JpegDecoder(PRESET, torch.device("cpu"), decode, cpu_kernels()).check()


def test_torchcodecs_decoder_is_taken() -> None:
    torchcodec = pytest.importorskip("torchcodec.decoders")
    decoder = JpegDecoder(PRESET, torch.device("cpu"), torchcodec.decode_jpeg, cpu_kernels())
    decoder.check()
    turned = photo(exif=exif(6))
    found, failed = places_of_crops([read(turned), Jpeg(b"no image", 301, 402, 1)], decoder)
    assert failed == [0]
    assert np.array_equal(found[1], expected(turned))


def test_no_decoder_is_created_for_a_cpu() -> None:
    assert jpeg.create(PRESET, torch.device("cpu")) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_without_what_decodes_leaves_decoding_to_the_cpu() -> None:
    with capture_logs() as logs:
        assert jpeg.create(PRESET, torch.device("cuda")) is None
    assert "install the extra gpu" in logs[0]["event"]


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 0)])
def test_the_kernels_compile_for_a_gpu(capability: tuple[int, int]) -> None:
    nvrtc = pytest.importorskip("app.engine.nvrtc", reason="this is a build of torch without CUDA")
    binary = nvrtc.compiled(jpeg.SOURCE.read_bytes(), capability)
    assert b"resize" in binary
    assert b"weights" in binary


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.resize}-{preset.crop}-{preset.interpolation}")
@pytest.mark.parametrize("orientation", [1, 2, 4, 6, 7])
def test_a_gpu_computes_pillows_crop_to_the_last_bit(preset: Preprocessing, orientation: int) -> None:
    from app.engine.nvrtc import CudaKernels

    kernels = CudaKernels(jpeg.SOURCE.read_bytes(), torch.device("cuda"))
    pictures = [noise(size) for size in SIZES]
    found = crops(pictures, preset, orientation, "cuda", kernels)
    for picture, crop in zip(pictures, found, strict=True):
        upright = picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture
        assert np.array_equal(crop, reference(upright, preset)), picture.size


@pytest.mark.gpu
def test_nvjpeg_decodes_almost_as_pillow_does() -> None:
    pytest.importorskip("torchcodec")
    decoder = jpeg.create(PRESET, torch.device("cuda"))
    assert decoder
    with Image.open(CAT) as cat:
        kinds = [(cat, {}), (cat.convert("L"), {}), (cat, {"exif": exif(6)}), (cat, {"subsampling": 0, "quality": 95})]
        data = [encode(picture, "JPEG", **options) for picture, options in kinds] * 20
    out = torch.zeros((len(data) + 1, PRESET.crop, PRESET.crop, 3), dtype=torch.uint8, device="cuda")
    bad = Jpeg(data[0][:3000] + b"\xff\xd9", 1, 1, 1)
    assert decoder.decode([*map(read, data), bad], range(len(data) + 1), out) == [len(data)]
    for crop, one in zip(out.cpu().numpy(), data, strict=False):
        assert np.abs(crop.astype(np.int16) - expected(one)).mean() < 3
