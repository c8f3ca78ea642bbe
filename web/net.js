// @ts-check
// A net's forward pass: the operations of its ONNX graph, one after another, over arrays of numbers.

import { readOnnx } from "./onnx.js";

/** @typedef {import("./onnx.js").Tensor} Tensor */
/** @typedef {import("./onnx.js").Step} Step */
/** @typedef {(inputs: Tensor[], settings: Record<string, any>) => Tensor} Operation */

/** A net that can be run. */
export class Net {
  /** @param {Uint8Array} bytes  of an ONNX file */
  constructor(bytes) {
    const { steps, weights, output } = readOnnx(bytes);
    const unknown = steps.find((step) => !(step.op in OPERATIONS));
    if (unknown) throw new Error(`The operation ${unknown.op} cannot be expressed in this page`);
    this.values = weights;
    this.output = output;
    const constant = (/** @type {Step} */ step) => step.inputs.every((name) => weights.has(name));
    this.steps = steps.filter((step) => !constant(step));
    for (const step of steps.filter(constant)) this.compute(step);
  }

  /** @param {Step} step */
  compute({ op, inputs, output, settings }) {
    const values = inputs.map((name) => /** @type {Tensor} */ (this.values.get(name)));
    this.values.set(output, OPERATIONS[op](values, settings));
  }

  /**
   * The probabilities of one image, ten from each net in the file.
   * @param {ArrayLike<number>} image  28 × 28, 0 to 255
   */
  run(image) {
    this.values.set("images", { shape: [1, 28, 28], data: Float32Array.from(image) });
    for (const step of this.steps) this.compute(step);
    return /** @type {Tensor} */ (this.values.get(this.output)).data;
  }
}

/**
 * The probability of each digit, as `Pretrained.predict_proba` has it: each net predicts the image and, with test-time
 * augmentation, four copies moved by some pixels; a geometric mean over copies, an arithmetic one over nets.
 * @param {Net} net @param {ArrayLike<number>} image  28 × 28, 0 to 255
 * @param {number} pixels  to move copies by; 0 for no copies
 */
export function predict(net, image, pixels) {
  const moves = pixels ? [[0, 0], [-pixels, 0], [pixels, 0], [0, -pixels], [0, pixels]] : [[0, 0]];
  const results = moves.map(([down, across]) => Array.from(net.run(moved(image, down, across))));
  const total = new Array(10).fill(0);
  for (let first = 0; first < results[0].length; first += 10) {
    const means = total.map((_, digit) => {
      const logs = results.map((result) => Math.log(Math.max(result[first + digit], 1e-12)));
      return Math.exp(logs.reduce((sum, log) => sum + log, 0) / logs.length);
    });
    normalised(means).forEach((probability, digit) => (total[digit] += probability));
  }
  return normalised(total);
}

/** @param {number[]} numbers */
function normalised(numbers) {
  const whole = numbers.reduce((sum, number) => sum + number, 0);
  return numbers.map((number) => number / whole);
}

/** What leaves the field is lost. @param {ArrayLike<number>} image @param {number} down @param {number} across */
function moved(image, down, across) {
  if (!down && !across) return image;
  return new Float32Array(784).map((_, i) => {
    const y = Math.floor(i / 28) - down, x = (i % 28) - across;
    return y >= 0 && y < 28 && x >= 0 && x < 28 ? image[28 * y + x] : 0;
  });
}

/**
 * The operations by ONNX's names. Each takes one image: the first axis, that of images, has length 1.
 * @type {Record<string, Operation>}
 */
const OPERATIONS = {
  Cast: ([x]) => x, // half-precision weights were widened when they were read
  Mul: ([x, by]) => paired(x, by, (a, b) => a * b),
  Div: ([x, by]) => paired(x, by, (a, b) => a / b),
  Add: ([x, by]) => paired(x, by, (a, b) => a + b),
  Sub: ([x, by]) => paired(x, by, (a, b) => a - b),
  Relu: ([x]) => ({ shape: x.shape, data: x.data.map((a) => (a > 0 ? a : 0)) }),
  Tanh: ([x]) => ({ shape: x.shape, data: x.data.map(Math.tanh) }),
  Sigmoid: ([x]) => ({ shape: x.shape, data: x.data.map((a) => 1 / (1 + Math.exp(-a))) }),
  Reshape: ([x, shape]) => ({ shape: Array.from(shape.data, Math.abs), data: x.data }), // -1 stands for 1 image
  Flatten: ([x]) => ({ shape: [1, x.data.length], data: x.data }),
  Unsqueeze: ([x]) => ({ shape: [1, ...x.shape], data: x.data }),
  Concat: (parts) => ({ shape: [1, parts.length, 10], data: Float32Array.from(parts.flatMap((x) => [...x.data])) }),
  Transpose: channelsLast,
  Conv: convolve,
  MaxPool: pool,
  Gemm: dense,
  Softmax: ([x]) => {
    const most = Math.max(...x.data);
    return { shape: x.shape, data: Float32Array.from(normalised(Array.from(x.data, (a) => Math.exp(a - most)))) };
  },
};

/**
 * Combine each number with a constant: the only one, its channel's, or its column's.
 * @param {Tensor} x @param {Tensor} constant @param {(a: number, b: number) => number} how
 */
function paired({ shape, data }, constant, how) {
  const n = constant.data.length, each = constant.shape.length === 3 ? shape[2] * shape[3] : 1;
  return { shape, data: data.map((a, i) => how(a, constant.data[Math.floor(i / each) % n])) };
}

/** @type {Operation} */
function channelsLast([{ shape: [, channels, h, w], data }]) {
  const from = (/** @type {number} */ i) => (i % channels) * h * w + Math.floor(i / channels);
  return { shape: [1, h, w, channels], data: data.map((_, i) => data[from(i)]) };
}

/** @type {Operation} */
function dense([x, weights, bias]) {
  const data = bias.data.slice(), n = data.length;
  for (let unit = 0; unit < n; unit++) {
    let sum = data[unit];
    for (let i = 0; i < x.data.length; i++) sum += x.data[i] * weights.data[i * n + unit];
    data[unit] = sum;
  }
  return { shape: [1, n], data };
}

/** @type {Operation} */
function pool([image], { kernel_shape: [kh, kw], strides: [down, across], auto_pad }) {
  const x = auto_pad === "SAME_UPPER" ? padded(image, kh, kw, down, across, -Infinity) : image;
  const [, channels, h, w] = x.shape, oh = Math.floor((h - kh) / down) + 1, ow = Math.floor((w - kw) / across) + 1;
  const data = new Float32Array(channels * oh * ow).map((_, i) => {
    const row = Math.floor(i / ow), channel = Math.floor(row / oh);
    const first = (channel * h + (row % oh) * down) * w + (i % ow) * across;
    let most = -Infinity;
    for (let ky = 0; ky < kh; ky++) {
      for (let kx = 0; kx < kw; kx++) most = Math.max(most, x.data[first + ky * w + kx]);
    }
    return most;
  });
  return { shape: [1, channels, oh, ow], data };
}

/**
 * Nearly all of a net's work. Each pixel is read once for eight filters, whose sums stay in the CPU's registers:
 * several times as fast as one filter after another.
 * @type {Operation}
 */
function convolve([image, weights, bias], { strides: [down, across], auto_pad }) {
  const [filters, channels, kh, kw] = weights.shape, taps = channels * kh * kw;
  const x = auto_pad === "SAME_UPPER" ? padded(image, kh, kw, down, across, 0) : image;
  const [, , h, w] = x.shape, oh = Math.floor((h - kh) / down) + 1, ow = Math.floor((w - kw) / across) + 1;
  const pixels = x.data, kernel = byTap(weights), data = new Float32Array(filters * oh * ow);
  for (let filter = 0; filter < filters; filter += 8) {
    for (let place = 0; place < oh * ow; place++) {
      const corner = Math.floor(place / ow) * down * w + (place % ow) * across;
      let tap = filter * taps, s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
      for (let channel = 0; channel < channels; channel++) {
        for (let row = 0; row < kh; row++) {
          const start = (channel * h + row) * w + corner;
          for (let at = start; at < start + kw; at++, tap += 8) {
            const pixel = pixels[at];
            s0 += pixel * kernel[tap];
            s1 += pixel * kernel[tap + 1];
            s2 += pixel * kernel[tap + 2];
            s3 += pixel * kernel[tap + 3];
            s4 += pixel * kernel[tap + 4];
            s5 += pixel * kernel[tap + 5];
            s6 += pixel * kernel[tap + 6];
            s7 += pixel * kernel[tap + 7];
          }
        }
      }
      const sums = [s0, s1, s2, s3, s4, s5, s6, s7];
      for (let i = filter; i < filter + 8 && i < filters; i++) {
        data[i * oh * ow + place] = sums[i - filter] + bias.data[i];
      }
    }
  }
  return { shape: [1, filters, oh, ow], data };
}

/** @type {WeakMap<Tensor, Float32Array>} */
const KERNELS = new WeakMap();

/** Weights in the order in which `convolve` reads them: eight filters side by side. @param {Tensor} weights */
function byTap(weights) {
  const known = KERNELS.get(weights);
  if (known) return known;
  const [filters, ...sides] = weights.shape, taps = sides.reduce((product, side) => product * side, 1);
  const kernel = new Float32Array(Math.ceil(filters / 8) * 8 * taps);
  weights.data.forEach((weight, i) => {
    const filter = Math.floor(i / taps), block = filter - (filter % 8);
    kernel[block * taps + (i % taps) * 8 + (filter % 8)] = weight;
  });
  KERNELS.set(weights, kernel);
  return kernel;
}

/**
 * A rim around an image, so that an operation leaves its size as it is, or divides it by the stride.
 * @param {Tensor} x @param {number} kh @param {number} kw @param {number} down @param {number} across
 * @param {number} value  of the rim
 */
function padded({ shape: [, channels, h, w], data }, kh, kw, down, across, value) {
  const rows = Math.max((Math.ceil(h / down) - 1) * down + kh - h, 0);
  const columns = Math.max((Math.ceil(w / across) - 1) * across + kw - w, 0);
  const top = Math.floor(rows / 2), left = Math.floor(columns / 2), height = h + rows, width = w + columns;
  const wide = new Float32Array(channels * height * width).fill(value);
  for (let row = 0; row < channels * h; row++) {
    const at = (Math.floor(row / h) * height + (row % h) + top) * width + left;
    for (let x = 0; x < w; x++) wide[at + x] = data[row * w + x];
  }
  return { shape: [1, channels, height, width], data: wide };
}
