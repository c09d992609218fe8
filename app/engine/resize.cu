// Antialiased resize and crop of decoded images, for a batch of images of any size.
//
// The arithmetic is Pillow's: weights in double precision, rounded to 22 bits; first along the rows of the upright
// image, then along its columns, each rounded to 8 bits. A separate kernel computes the weights, because all pixels of
// a row or a column share them. The orientation of the stored image costs nothing: steps may be negative.
//
// NVRTC compiles this file for a GPU without contracting multiplications and additions (--fmad=false). A C++ compiler
// compiles it for a CPU, where each kernel is a function that handles all items.

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define FUNCTION static __device__ inline
#define EACH_OF(count)                                                      \
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; \
    i < (count);                                                            \
    i += (long long)gridDim.x * blockDim.x
#else
#define KERNEL extern "C" void
#define FUNCTION static inline
#define EACH_OF(count) long long i = 0; i < (count); ++i
#endif

typedef long long Int;

// A decoded image: the address of the upright image's first pixel, and the bytes to the next column, row and plane.
// Its whole upright area of width x height is resized, and the crop begins at left, top of the result. ``place`` is the
// place of the crop in the output. The field order is that of ``app/engine/jpeg.py``.
struct Image {
    Int pixels, column, row, plane;
    Int width, height, resized_width, resized_height, left, top;
    Int place;
};

static const int PRECISION = 22;  // bits

FUNCTION double magnitude(double x) { return x < 0 ? -x : x; }

// The triangle of a bilinear filter (radius 1), or Keys' cubic with a = -0.5 (radius 2).
FUNCTION double weight(double x, Int radius) {
    x = magnitude(x);
    if (radius == 1) return x < 1 ? 1 - x : 0;
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

FUNCTION int clipped(int value) {
    value >>= PRECISION;
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

// Write a row of ``length`` integers for each of the crop's columns and then for each of its rows, image by image:
// the first source pixel, the number of pixels, and their weights.
KERNEL weights(const Image* images, Int count, Int crop, Int radius, int* rows, Int length) {
    for (EACH_OF(count * 2 * crop)) {
        const Image& image = images[i / (2 * crop)];
        bool vertical = i / crop % 2;
        Int size = vertical ? image.height : image.width;
        double scale = (double)size / (vertical ? image.resized_height : image.resized_width);
        double spread = scale < 1 ? 1 : scale;
        double center = (i % crop + (vertical ? image.top : image.left) + 0.5) * scale;
        double begin = center - radius * spread + 0.5, end = center + radius * spread + 0.5;
        int first = begin < 0 ? 0 : (int)begin;
        int pixels = (end > size ? (int)size : (int)end) - first;
        double sum = 0, inverse = 1.0 / spread;
        for (int k = 0; k < pixels; ++k) sum += weight((k + first - center + 0.5) * inverse, radius);
        int* row = rows + i * length;
        row[0] = first;
        row[1] = pixels;
        for (int k = 0; k < pixels; ++k) {
            double share = weight((k + first - center + 0.5) * inverse, radius) / sum * (1 << PRECISION);
            row[2 + k] = (int)(share < 0 ? share - 0.5 : share + 0.5);
        }
    }
}

// Write the uint8 crops [crop, crop, 3] to their places. ``rows`` is the output of ``weights``.
KERNEL resize(const Image* images, Int count, Int crop, const int* rows, Int length, unsigned char* crops) {
    for (EACH_OF(count * crop * crop)) {
        const Image& image = images[i / (crop * crop)];
        Int y = i / crop % crop, x = i % crop;
        const int* across = rows + (i / (crop * crop) * 2 * crop + x) * length;
        const int* down = across + (crop - x + y) * length;
        int sums[3] = {1 << (PRECISION - 1), 1 << (PRECISION - 1), 1 << (PRECISION - 1)};
        for (int v = 0; v < down[1]; ++v) {
            const unsigned char* pixel = (const unsigned char*)image.pixels + (down[0] + v) * image.row +
                                         across[0] * image.column;
            int values[3] = {1 << (PRECISION - 1), 1 << (PRECISION - 1), 1 << (PRECISION - 1)};
            for (int u = 0; u < across[1]; ++u, pixel += image.column) {
                for (int c = 0; c < 3; ++c) values[c] += pixel[c * image.plane] * across[2 + u];
            }
            for (int c = 0; c < 3; ++c) sums[c] += clipped(values[c]) * down[2 + v];
        }
        unsigned char* crop_pixel = crops + (image.place * crop * crop + y * crop + x) * 3;
        for (int c = 0; c < 3; ++c) crop_pixel[c] = (unsigned char)clipped(sums[c]);
    }
}
